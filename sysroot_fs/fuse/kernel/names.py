"""Requests for names: what stands under them, and making, renaming and removing them."""

from __future__ import annotations

import errno
import os

from attrs import define, field

from sysroot_fs.fuse.kernel import abi
from sysroot_fs.fuse.kernel.abi import Init
from sysroot_fs.fuse.kernel.replies import Replies, absences
from sysroot_fs.fuse.kernel.request import Masked, Request, umask_left
from sysroot_fs.tree import Tree, lookup, mutations, renames
from sysroot_fs.tree.core import error
from sysroot_fs.tree.lookup import Miss


@define(slots=True, eq=False)
class Names:
    """Their handlers, each named after its opcode."""

    tree: Tree
    replies: Replies
    _umask: int = field(default=0, init=False)
    """What of the callers' umasks is to be applied here."""

    def agreed(self, flags: Init) -> None:
        """The kernel and the door have agreed on *flags*."""
        self._umask = umask_left(flags)

    def lookup(self, request: Request) -> bytes:
        """A name in a directory: its entry, or an absence that may be remembered."""
        found = lookup.lookup(self.tree, request.node, request.name(), request.caller)
        if isinstance(found, Miss):
            if found.timeout == 0:
                raise error(errno.ENOENT)
            return absences[found.timeout]
        return self.replies.entry(found)

    def mknod(self, request: Request) -> bytes:
        """Make a fifo, a socket, a device or an empty regular file."""
        mode, rdev, umask, _ = abi.MKNOD_IN.unpack_from(request.body)
        name = request.name(abi.MKNOD_IN.size)
        number = os.makedev((rdev >> 8) & 0xFFF, (rdev & 0xFF) | ((rdev >> 12) & 0xFFF00))
        with Masked(umask & self._umask):
            made = mutations.mknod(self.tree, request.node, name, mode, number, request.caller)
        return self.replies.entry(made)

    def mkdir(self, request: Request) -> bytes:
        """Make a directory."""
        mode, umask = abi.MKDIR_IN.unpack_from(request.body)
        name = request.name(abi.MKDIR_IN.size)
        with Masked(umask & self._umask):
            made = mutations.mkdir(self.tree, request.node, name, mode, request.caller)
        return self.replies.entry(made)

    def symlink(self, request: Request) -> bytes:
        """Make a symlink."""
        name = request.name()
        target = request.text(len(name) + 1)
        return self.replies.entry(
            mutations.symlink(self.tree, request.node, name, target, request.caller)
        )

    def link(self, request: Request) -> bytes:
        """Give an inode one more name."""
        (old,) = abi.LINK_IN.unpack_from(request.body)
        name = request.name(abi.LINK_IN.size)
        return self.replies.entry(
            mutations.link(self.tree, old, request.node, name, request.caller)
        )

    def unlink(self, request: Request) -> bytes:
        """Remove a name that is no directory."""
        mutations.unlink(self.tree, request.node, request.name(), request.caller)
        return b""

    def rmdir(self, request: Request) -> bytes:
        """Remove an empty directory."""
        mutations.rmdir(self.tree, request.node, request.name(), request.caller)
        return b""

    def rename(self, request: Request) -> bytes:
        """Rename without flags."""
        (new_parent,) = abi.RENAME_IN.unpack_from(request.body)
        return self._rename(request, new_parent, 0, abi.RENAME_IN.size)

    def rename2(self, request: Request) -> bytes:
        """Rename with the flags of renameat2(2)."""
        new_parent, flags, _ = abi.RENAME2_IN.unpack_from(request.body)
        return self._rename(request, new_parent, flags, abi.RENAME2_IN.size)

    def _rename(self, request: Request, new_parent: int, flags: int, start: int) -> bytes:
        old = request.name(start)
        new = request.name(start + len(old) + 1)
        renames.rename(self.tree, request.node, old, new_parent, new, flags, request.caller)
        return b""
