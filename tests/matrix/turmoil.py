"""Processes that do something over and over while something else is done."""

from __future__ import annotations

import contextlib
import errno
import functools
import mmap
import os
import select
import signal
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

from sidecar import linux
from sysroot_fs.guest import kernel
from tests.children import Child, code_of, start_child
from tests.waiting import comes

__all__ = ["PASSING", "again_and_again", "attempt", "exchange", "swap"]

PASSING: Final = frozenset({
    errno.ENOENT, errno.ESTALE, errno.EEXIST, errno.ENOTEMPTY, errno.ENOTDIR, errno.EISDIR,
    errno.ELOOP, errno.EINVAL, errno.ENXIO, errno.EXDEV, errno.ENODATA, errno.EOPNOTSUPP,
    errno.EPERM, errno.EACCES, errno.EBUSY,
})  # fmt: skip
"""With what a call may fail while others change what it works on."""


@contextlib.contextmanager
def again_and_again(*works: Callable[[], object]) -> Iterator[None]:
    """Each of *works* is repeated by a process of its own, until the end of the block.

    The block begins when each has worked once. What it raises with an errno of `PASSING` is a round
    that did not work; anything else ends it, and is told at the end by an AssertionError. So is
    that not one round worked in the block.
    """
    counts = memoryview(mmap.mmap(-1, 8 * len(works))).cast("Q")
    children = [
        start_child(functools.partial(_repeat, work, counts, number))
        for number, work in enumerate(works)
    ]
    comes(lambda: all(counts) or any(map(_has_ended, children)))
    before = list(counts)
    try:
        yield
    finally:
        worked = [after - first for after, first in zip(counts, before, strict=True)]
        said = [words for child in children if (words := _ended(child))]
        assert not said, f"a process that disturbs has ended: {said[0]}"
    assert all(worked), f"a process that disturbs has not disturbed once: {worked} rounds worked"


def _repeat(work: Callable[[], object], counts: memoryview, number: int) -> None:
    kernel.die_with_parent()
    while True:
        try:
            work()
        except OSError as failure:
            if failure.errno not in PASSING:
                raise
        else:
            counts[number] += 1


def _has_ended(child: Child) -> bool:
    return bool(select.select([child.pipe], [], [], 0)[0])


def _ended(child: Child) -> str:
    """End a process that disturbs; why it has ended by itself, if it has."""
    if _has_ended(child):
        try:
            child.result()
        except Exception as failure:
            return "".join(traceback.format_exception(failure))
    os.kill(child.pid, signal.SIGKILL)
    os.waitpid(child.pid, 0)
    os.close(child.pipe)
    return ""


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
