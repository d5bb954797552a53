"""Signals and processes: what `os` and `signal` lack, in the manner of `linux`."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import struct
from collections.abc import Callable, Iterable, Iterator
from typing import Final

from sidecar.linux import failure

_libc: Final = ctypes.CDLL(None, use_errno=True)

_SIGNAL_SET: Final = ctypes.c_char * 128
_SIGNALFD_INFO: Final = struct.Struct("=I124x")  # number, the rest
_SFD_FLAGS: Final = os.O_CLOEXEC | os.O_NONBLOCK


def signal_descriptor(numbers: Iterable[signal.Signals]) -> int:
    """A descriptor from which `read_signals` reads *numbers*; the caller has blocked them."""
    wanted = _SIGNAL_SET()
    _libc.sigemptyset(wanted)
    for number in numbers:
        _libc.sigaddset(wanted, int(number))
    fd: int = _libc.signalfd(-1, wanted, _SFD_FLAGS)
    if fd < 0:
        raise failure()
    return fd


def read_signals(fd: int) -> list[signal.Signals]:
    """The signals that have come."""
    found: list[signal.Signals] = []
    while True:
        try:
            data = os.read(fd, _SIGNALFD_INFO.size)
        except BlockingIOError:
            return found
        (number,) = _SIGNALFD_INFO.unpack(data)
        found.append(signal.Signals(number))


ENDING: Final = frozenset({signal.SIGTERM, signal.SIGINT, signal.SIGHUP})
"""The signals by which a user, a terminal or the machine ends a program."""


@contextlib.contextmanager
def ending_signals_held() -> Iterator[Callable[[], bool]]:
    """Signals that end a program wait, as far as this thread goes, until the block has ended.

    The value tells whether one waits. Those that the caller has blocked himself do not count.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, ENDING)
    ours = ENDING - before
    try:
        yield lambda: bool(signal.sigpending() & ours)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


_PR_SET_PDEATHSIG: Final = 1
_PR_SET_NAME: Final = 15


def signal_at_parents_end(number: signal.Signals | None) -> None:
    """Have *number* sent to this process when the thread that has forked it ends; None: nothing.

    The setting is the calling thread's, and a change of its user or rights clears it.
    """
    if _libc.prctl(_PR_SET_PDEATHSIG, ctypes.c_long(number or 0)):
        raise failure()


def process_fields(pid: int) -> list[bytes]:
    """What /proc/PID/stat says behind the name, from the state on; see proc(5)."""
    with open(f"/proc/{pid}/stat", "rb") as file:
        return file.read().rpartition(b")")[2].split()


def name_process(name: bytes, title: bytes) -> None:
    """What ps shows of the calling process: its *name*, at most 15 bytes, and its command line.

    The *title* stands in the place of the arguments that it was started with: what is longer than
    these is cut off.
    """
    if _libc.prctl(_PR_SET_NAME, ctypes.c_char_p(name)):
        raise failure()
    start, end = map(int, process_fields(os.getpid())[45:47])  # arg_start and arg_end
    with open("/proc/self/mem", "r+b", buffering=0) as memory:
        os.pwrite(memory.fileno(), title[: end - start - 1].ljust(end - start, b"\0"), start)
