"""Files that are read and written without having been opened.

Where opens change nothing a door has the kernel skip them, and reads and writes name an inode. The
descriptors for that are a cache: the least recently used are closed past a bound. One for writing
is closed as soon as nobody has written for a moment, because a file that somebody has open for
writing cannot be executed (ETXTBSY), and the guest closed it long ago.
"""

from __future__ import annotations

import os
import time
from collections import OrderedDict
from typing import Final

from attrs import define, field

from sysroot_fs.tree import files
from sysroot_fs.tree.core import Tree
from sysroot_fs.tree.files import Handle
from sysroot_fs.tree.inodes import Inode

WRITER_SECONDS: Final = 0.005
"""How long a descriptor for writing is kept after the last write."""


@define(slots=True, eq=False)
class Served:
    """Handles by inode over one tree."""

    tree: Tree
    limit: int = 256
    _readers: OrderedDict[Inode, Handle] = field(factory=OrderedDict, init=False)
    _writers: OrderedDict[Inode, tuple[float, Handle]] = field(factory=OrderedDict, init=False)

    def __attrs_post_init__(self) -> None:
        self.tree.inodes.dropped = self.forget

    @property
    def writing(self) -> bool:
        """Whether descriptors for writing are held: then `settle` has to be called soon."""
        return bool(self._writers)

    def reader(self, number: int) -> Handle:
        """A handle to read the inode *number*. Raises as `files.open_file`."""
        inode = self.tree.inodes[number]
        handle = self._readers.get(inode)
        if handle is not None:
            self._readers.move_to_end(inode)
            return handle
        handle = self._readers[inode] = files.open_file(self.tree, number, os.O_RDONLY)
        if len(self._readers) > self.limit:
            _, old = self._readers.popitem(last=False)
            files.release(old)
        return handle

    def writer(self, number: int) -> Handle:
        """A handle to write to the inode *number*. Raises as `files.open_file`."""
        inode = self.tree.inodes[number]
        held = self._writers.pop(inode, None)
        handle = files.open_file(self.tree, number, os.O_WRONLY) if held is None else held[1]
        self._writers[inode] = time.monotonic(), handle
        if len(self._writers) > self.limit:
            _, (_, old) = self._writers.popitem(last=False)
            files.release(old)
        return handle

    def settle(self) -> None:
        """Close what nobody has written to for a moment."""
        latest = time.monotonic() - WRITER_SECONDS
        while self._writers:
            inode, (used, handle) = next(iter(self._writers.items()))
            if used > latest:
                return
            del self._writers[inode]
            files.release(handle)

    def forget(self, inode: Inode) -> None:
        """The kernel has let go of *inode*."""
        for handle in (self._readers.pop(inode, None), self._writers.pop(inode, (0, None))[1]):
            if handle is not None:
                files.release(handle)
