"""The system calls of io_uring(7), as `linux` has the others."""

from __future__ import annotations

import ctypes
from typing import Final

from sidecar.linux import call, failure

_syscall: Final = ctypes.CDLL(None, use_errno=True).syscall
_syscall.restype = ctypes.c_long

_SYS_SETUP: Final = 425
_SYS_ENTER: Final = ctypes.c_long(426)
_GET_EVENTS: Final = ctypes.c_long(1)
_ZERO: Final = ctypes.c_long(0)


def setup(entries: int, params: ctypes.Array[ctypes.c_char]) -> int:
    """A new ring for *entries* at once; *params* is struct io_uring_params, filled in."""
    return call(_SYS_SETUP, entries, params)


def enter(ring: int, submitted: int, awaited: int) -> None:
    """Hand *submitted* entries to the kernel and wait for as many completions as *awaited*.

    A signal ends the waiting (InterruptedError) where nothing was submitted.
    """
    # Ints go as C int, which is all that the kernel takes of these; prepared, the others cost less.
    if _syscall(_SYS_ENTER, ring, submitted, awaited, _GET_EVENTS, None, _ZERO) < 0:
        raise failure()
