"""Where an open file has data and where holes (lseek's SEEK_DATA and SEEK_HOLE).

The volume knows, but for what was written through a map and is still in the kernel: that lies in
what the volume takes for a hole, and whoever copies the file by it would copy zeros. So before a
hole is told of, the kernel has to hand over what it keeps of it, which takes requests in between:
the answer comes later.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

from attrs import define

from sysroot_fs.fuse.kernel import abi
from sysroot_fs.fuse.kernel.locks import Later
from sysroot_fs.tree.files import Handle

Flush = Callable[[int, int, int, Callable[[], None]], bool]
"""Have the kernel hand over what it keeps of an inode, from an offset for so many bytes, and then
call; from any thread. False where that cannot be had."""

AnswerLate = Callable[[int, Callable[[], bytes]], None]
"""Answer the request of a number with what is computed then, or later still (`Later`); from any
thread."""


class _Found(NamedTuple):
    """What the volume says: the offset, none for ENXIO, and the hole that is told by it if any."""

    offset: int | None
    start: int = 0
    length: int = 0


def _data_after(fd: int, offset: int) -> int | None:
    try:
        return os.lseek(fd, offset, os.SEEK_DATA)
    except OSError as failure:
        if failure.errno != errno.ENXIO:
            raise
        return None


def _look(fd: int, offset: int, whence: int) -> _Found:
    size = os.fstat(fd).st_size
    if offset < 0 or offset >= size:
        return _Found(None)
    if whence == os.SEEK_DATA:
        data = _data_after(fd, offset)
        return _Found(data, offset, (size if data is None else data) - offset)
    hole = os.lseek(fd, offset, os.SEEK_HOLE)
    data = _data_after(fd, hole) if hole < size else hole
    return _Found(hole, hole, (size if data is None else data) - hole)


def _packed(found: _Found) -> bytes:
    if found.offset is None:
        raise OSError(errno.ENXIO, os.strerror(errno.ENXIO))
    return abi.LSEEK_OUT.pack(found.offset)


@define(slots=True, eq=False)
class Holes:
    """What is told of the holes of one mount's files.

    Without *flush* nothing is kept by anybody, and the volume is believed.
    """

    flush: Flush | None = None
    answer: AnswerLate | None = None

    def sought(
        self, unique: int, handle: Handle, offset: int, whence: int, known: int | None = None
    ) -> bytes:
        """The answer to the request *unique*; `Later` where it comes later. Raises ENXIO.

        Of the hole that begins at *known* the kernel keeps nothing any more.
        """
        fd = handle.descriptor.fd
        found = _look(fd, offset, whence)
        if self.flush is None or self.answer is None or not found.length or found.start == known:
            return _packed(found)
        again = partial(self.sought, unique, handle, offset, whence, found.start)
        then = partial(self.answer, unique, again)
        if self.flush(handle.inode.id, found.start, found.length, then):
            raise Later
        # All of the file is data then, which is always true enough.
        return abi.LSEEK_OUT.pack(offset if whence == os.SEEK_DATA else os.fstat(fd).st_size)
