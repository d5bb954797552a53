"""Processes that do something over and over while something else is done."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

from sidecar import linux
from tests.children import code_of

__all__ = ["PASSING", "again_and_again", "attempt", "exchange", "swap", "wait_until"]

_PR_SET_PDEATHSIG: Final = 1
_PATIENCE: Final = 15.0

PASSING: Final = frozenset({
    errno.ENOENT, errno.ESTALE, errno.EEXIST, errno.ENOTEMPTY, errno.ENOTDIR, errno.EISDIR,
    errno.ELOOP, errno.EINVAL, errno.ENXIO, errno.EXDEV, errno.ENODATA, errno.EOPNOTSUPP,
    errno.EPERM, errno.EACCES, errno.EBUSY,
})  # fmt: skip
"""With what a call may fail while others change what it works on."""


@contextlib.contextmanager
def again_and_again(*works: Callable[[], object]) -> Iterator[None]:
    """Each of *works* is repeated by a process of its own, until the end of the block.

    What it raises with an errno of `PASSING` is nothing; anything else ends it, and is raised at
    the end as an AssertionError.
    """
    pids = [_repeat(work) for work in works]
    try:
        yield
    finally:
        ended = []
        for pid in pids:
            gone, status = os.waitpid(pid, os.WNOHANG)
            if gone:
                ended.append(os.waitstatus_to_exitcode(status))
                continue
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
    assert not ended, f"a process that disturbs has ended: {list(map(os.strerror, ended))}"


def _repeat(work: Callable[[], object]) -> int:
    pid = os.fork()
    if pid:
        return pid
    code = 255
    try:
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        while code == 255:
            code = attempt(work) or 255
    finally:
        os._exit(code)


def attempt(work: Callable[[], object]) -> int:
    """The errno with which *work* failed where that is not in `PASSING`, 0 otherwise."""
    code = code_of(work)
    return 0 if code in PASSING else code


def exchange(one: Path, other: Path) -> None:
    """Two names swap what they mean, in one step."""
    linux.renameat2(linux.AT_FDCWD, bytes(one), linux.AT_FDCWD, bytes(other), linux.RENAME_EXCHANGE)


def swap(one: Path, other: Path) -> None:
    """As `exchange`; in three steps where the volume cannot do it in one."""
    try:
        exchange(one, other)
    except OSError as failure:
        if failure.errno != errno.EINVAL:
            raise
        aside = one.with_name(one.name + "-aside")
        os.rename(one, aside)
        os.rename(other, one)
        os.rename(aside, other)


def wait_until(condition: Callable[[], bool]) -> bool:
    """Whether *condition* holds in the end."""
    deadline = time.monotonic() + _PATIENCE
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True
