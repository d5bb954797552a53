"""Open directories and their listings."""

from __future__ import annotations

import errno
import stat as stat_module
from collections.abc import Iterator
from typing import Final

from attrs import define, field

from sysroot_fs.fuse.kernel import abi
from sysroot_fs.fuse.kernel.abi import Open
from sysroot_fs.fuse.kernel.replies import Replies
from sysroot_fs.fuse.kernel.request import Reply, Request
from sysroot_fs.tree import Tree, files, listing
from sysroot_fs.tree.core import error
from sysroot_fs.tree.listing import Listing
from sysroot_fs.tree.served import Served

_DIRENT_HEAD: Final = abi.DIRENT.size
_NO_ENTRY: Final = bytes(abi.ENTRY_OUT.size)


@define(slots=True, eq=False)
class Directories:
    """Those of one mount, and the handlers of requests for them, each named after its opcode."""

    tree: Tree
    replies: Replies
    served: Served
    numbers: Iterator[int]
    """For handles."""
    listings: dict[int, Listing] = field(factory=dict, init=False)
    _skips_opens: bool = field(default=False, init=False)
    """Whether the kernel opens directories without asking; then reads name an inode."""

    def agreed(self, can_be_skipped: bool) -> None:
        """The kernel and the door have agreed, and changes behind the mount are watched or never.

        *can_be_skipped* says that the kernel can open directories without asking.
        """
        self._skips_opens = can_be_skipped and self.tree.coherence.listings_last

    def opendir(self, request: Request) -> bytes:
        """Open a directory."""
        if self._skips_opens:
            # The kernel asks no more.
            raise error(errno.ENOSYS)
        number = next(self.numbers)
        opened = listing.open_listing(self.tree, request.node, request.caller)
        self.listings[number] = opened
        flags = int(Open.CACHE_DIR) if opened.lasting else 0
        if opened.same:
            # Otherwise the kernel drops what it remembers: times can be set back.
            flags |= Open.KEEP_CACHE
        return abi.OPEN_OUT.pack(number, flags, 0)

    def readdir(self, request: Request) -> Reply:
        """A piece of a listing, names and kinds."""
        return self._listed(request, with_entries=False)

    def readdirplus(self, request: Request) -> Reply:
        """A piece of a listing with what a lookup of each name would say."""
        return self._listed(request, with_entries=True)

    def _listed(self, request: Request, with_entries: bool) -> Reply:
        fh, start, size, *_ = abi.READ_IN.unpack_from(request.body)
        opened = self.listings.get(fh)
        if opened is None:
            if fh or not self._skips_opens:
                raise error(errno.EBADF)
            opened = self.served.listing(request.node, start, request.caller)
        piece = bytearray()
        inodes = self.tree.inodes
        head = _DIRENT_HEAD + (abi.ENTRY_OUT.size if with_entries else 0)
        try:
            for name, entry, offset in listing.read(self.tree, opened, start):
                number, kind = abi.UNKNOWN_INO, 0
                if entry is not None:
                    number, kind = entry.inode.id, stat_module.S_IFMT(entry.stat.mode) >> 12
                # Of the dots the kernel takes no more than the number.
                counted = entry is not None and name not in (b".", b"..")
                length = head + len(name)
                if len(piece) + length + 7 & ~7 > size:
                    if counted:
                        inodes.forget(number, 1)
                    break
                if with_entries:
                    piece += self.replies.entry(entry) if entry and counted else _NO_ENTRY
                elif counted:
                    inodes.forget(number, 1)
                piece += abi.DIRENT.pack(number, offset, len(name), kind)
                piece += name
                piece += bytes(-length % 8)
        except OSError:
            # What was handed on carries lookups: an error now would lose their count. The kernel
            # comes back for the rest and meets the error first.
            if not piece:
                raise
        return piece

    def releasedir(self, request: Request) -> bytes:
        """The last descriptor of an open directory was closed."""
        fh, *_ = abi.RELEASE_IN.unpack_from(request.body)
        if self.listings.pop(fh, None) is None:
            raise error(errno.EBADF)
        return b""

    def fsyncdir(self, request: Request) -> bytes:
        """Wait until a directory's entries are on the volume."""
        files.sync_directory(self.tree, self.tree.inodes[request.node])
        return b""
