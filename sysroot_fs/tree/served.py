"""Files that are read and written without having been opened.

Where opens change nothing a door has the kernel skip them, and reads and writes name an inode. The
descriptors for that are a cache: the least recently used are closed past a bound. One for writing
is closed as soon as nobody has written for a moment, because a file that somebody has open for
writing cannot be executed (ETXTBSY), and the guest closed it long ago.
"""

from __future__ import annotations

import errno
import os
import resource
import time
from collections import OrderedDict
from typing import Final

from attrs import define, field

from sidecar import linux, look
from sidecar.linux import Stat
from sidecar.twin import Caller
from sysroot_fs.tree import files, listing
from sysroot_fs.tree.core import Tree
from sysroot_fs.tree.files import Handle
from sysroot_fs.tree.inodes import Inode
from sysroot_fs.tree.listing import Listing

WRITER_SECONDS: Final = 0.005
"""How long a descriptor for writing is kept after the last write."""
READER_SECONDS: Final = 1.0
"""How long one for reading is kept after the last read: the volume cannot be unmounted before."""
_MOST: Final = 256
_LISTINGS: Final = 64
_UNREAD_LISTINGS: Final = 1024
"""So many are kept of which somebody may want the rest."""


@define(slots=True, eq=False)
class _Kept:
    """A handle, when it was used last (monotonic seconds), and whether its volume is remote.

    What is only read need not say so.
    """

    handle: Handle
    used: float
    remote: bool


_Cache = OrderedDict[Inode, _Kept]


@define(slots=True, eq=False)
class Served:
    """Handles by inode over one tree."""

    tree: Tree
    _limit: int = field(init=False)
    _readers: _Cache = field(factory=OrderedDict, init=False)
    _writers: _Cache = field(factory=OrderedDict, init=False)
    _listings: OrderedDict[Inode, Listing] = field(factory=OrderedDict, init=False)
    _read: set[Inode] = field(factory=set, init=False)
    """Those of which somebody has reached the end, and nobody has read since."""

    def __attrs_post_init__(self) -> None:
        soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        self._limit = max(8, min(soft // 8, _MOST))
        self.tree.inodes.dropped.append(self.forget)

    def patience(self) -> float | None:
        """Seconds after which `settle` has something to do, None where nothing is held."""
        if self._writers:
            return WRITER_SECONDS
        return READER_SECONDS if self._readers else None

    def reader(self, number: int) -> Handle:
        """A handle to read the inode *number*. Raises as `files.open_file`."""
        return self._handle(self._readers, number, os.O_RDONLY)

    def writer(self, number: int) -> Handle:
        """A handle to write to the inode *number*. Raises as `files.open_file`."""
        return self._handle(self._writers, number, os.O_WRONLY)

    def made(self, handle: Handle, stat: Stat) -> None:
        """The new file *handle* was opened, and nobody says when it is closed."""
        before = self._writers.pop(handle.inode, None)
        if before is not None:
            files.release(before.handle)
        if not handle.writable:
            files.release(handle)
            return
        self._keep(self._writers, handle, look.is_remote(stat))

    def _keep(self, cache: _Cache, handle: Handle, remote: bool) -> None:
        cache[handle.inode] = _Kept(handle, time.monotonic(), remote)
        if len(cache) > self._limit:
            self._let_go(self._limit)

    def _handle(self, cache: _Cache, number: int, flags: int) -> Handle:
        inode = self.tree.inodes[number]
        kept = cache.get(inode)
        if kept is not None:
            kept.used = time.monotonic()
            cache.move_to_end(inode)
            return kept.handle
        if inode.kept is not None:
            return Handle(inode, inode.kept, writable=flags != os.O_RDONLY)
        try:
            handle = files.open_file(self.tree, number, flags)
        except OSError as failure:
            if failure.errno == errno.ESTALE and inode.parent is not None:
                # Another file has its name by now: who opens that once more shall get it.
                self.tree.forgotten.append((inode.parent.id, inode.name))
            if failure.errno not in (errno.ENFILE, errno.EMFILE):
                raise
            self._let_go(0)
            self.tree.inodes.keep_few()
            # Whoever holds all the others must not keep a file that is open from being read.
            handle = files.open_file(self.tree, number, flags, stays=False)
            # It is closed with this request: nobody else would do it.
            files.release(handle)
            return handle
        remote = flags != os.O_RDONLY and look.is_remote(
            linux.statx(handle.descriptor.fd, b"", linux.AT_EMPTY_PATH)
        )
        self._keep(cache, handle, remote)
        return handle

    def listing(self, number: int, start: int, caller: Caller) -> Listing:
        """The listing of the directory *number*, which was not opened, to read from *start* on."""
        inode = self.tree.inodes[number]
        found = self._listings.get(inode)
        if found is None:
            found = self._listings[inode] = Listing(inode, caller, True, True, shared=True)
            if len(self._listings) > _LISTINGS:
                self._drop_listings()
        self._listings.move_to_end(inode)
        if start == 0 or found.names is None:
            self.tree.coherence.watch(inode)
            self.tree.coherence.listed(inode)
            listing.read_again(self.tree, found)
        if found.is_over(start):
            self._read.add(inode)
        else:
            self._read.discard(inode)
        return found

    def _drop_listings(self) -> None:
        """Let go of those that are too many, of some that were read to their ends if possible.

        Who reads on in one that was dropped counts in other offsets than those that it has next,
        and would miss as many names as were removed meanwhile.
        """
        read = [inode for inode in self._listings if inode in self._read]
        for inode in read[: max(0, len(self._listings) - _LISTINGS)]:
            self._forget_listing(inode)
        if len(self._listings) > _UNREAD_LISTINGS:
            self._forget_listing(next(iter(self._listings)))

    def _forget_listing(self, inode: Inode) -> None:
        self._listings.pop(inode, None)
        self._read.discard(inode)

    def written(self, number: int) -> None:
        """Something was written: where a volume says only at close that it failed, ask now."""
        kept = self._writers.get(self.tree.inodes[number])
        if kept is not None and kept.remote:
            files.flush(kept.handle)

    def settle(self) -> None:
        """Close what nobody has used for a moment."""
        now = time.monotonic()
        for cache, seconds in ((self._writers, WRITER_SECONDS), (self._readers, READER_SECONDS)):
            while cache:
                inode, kept = next(iter(cache.items()))
                if kept.used > now - seconds:
                    break
                del cache[inode]
                files.release(kept.handle)

    def _let_go(self, limit: int) -> None:
        for cache in (self._readers, self._writers):
            while len(cache) > limit:
                _, kept = cache.popitem(last=False)
                files.release(kept.handle)

    def forget(self, inode: Inode) -> None:
        """The kernel has let go of *inode*."""
        self._forget_listing(inode)
        for cache in (self._readers, self._writers):
            kept = cache.pop(inode, None)
            if kept is not None:
                files.release(kept.handle)
