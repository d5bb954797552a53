"""Requests for what an inode is: attributes, a target, extended attributes, flags, its volume."""

from __future__ import annotations

import errno
import os
import struct
from collections.abc import Callable, Mapping
from typing import Final

from attrs import define, field

from sidecar.twin import Caller
from sysroot_fs.fuse import status
from sysroot_fs.fuse.kernel import abi
from sysroot_fs.fuse.kernel.abi import Attr, Init
from sysroot_fs.fuse.kernel.replies import Replies
from sysroot_fs.fuse.kernel.request import Request
from sysroot_fs.tree import Tree, attributes
from sysroot_fs.tree.attributes import Changes
from sysroot_fs.tree.core import error
from sysroot_fs.tree.files import Handle

_SECOND: Final = 1_000_000_000
_NAME_MAX: Final = 255
_CHANGES: Final = Attr.MODE | Attr.UID | Attr.GID | Attr.SIZE | Attr.ATIME | Attr.MTIME
_SIGN: Final = 1 << 63


@define(slots=True, eq=False)
class Attributes:
    """Their handlers, each named after its opcode."""

    tree: Tree
    replies: Replies
    handles: Mapping[int, Handle]
    """The open files, by the numbers that the kernel has for them."""
    told: Callable[[Caller], bytes]
    """What the server says of itself to a caller."""
    _says_more: bool = field(default=False, init=False)
    """Whether SETXATTR has the flags that came later."""

    def agreed(self, flags: Init) -> None:
        """The kernel and the door have agreed on *flags*."""
        self._says_more = bool(flags & Init.SETXATTR_EXT)

    def getattr(self, request: Request) -> bytes:
        """The attributes of an inode."""
        return self.replies.attributes(request.node, attributes.getattr_(self.tree, request.node))

    def statx(self, request: Request) -> bytes:
        """The same with what only statx(2) asks for: the time of birth."""
        number = request.node
        stat = attributes.getattr_(self.tree, number)
        attr = self.replies.attr(number, stat)
        # STATX_BASIC_STATS, and STATX_BTIME where the volume knows it.
        mask = 0x7FF if stat.btime_ns is None else 0xFFF
        times: list[int] = []
        for time in (stat.atime_ns, stat.btime_ns or 0, stat.ctime_ns, stat.mtime_ns):
            times += (*divmod(time, _SECOND), 0)
        return abi.STATX_OUT.pack(
            *self.replies.remembered(number, stat), 0,
            mask, stat.blksize, 0, stat.nlink, attr[11], attr[12], stat.mode, 0,
            number, stat.size, stat.blocks, 0,
            *times,
            os.major(stat.rdev), os.minor(stat.rdev), 0, 0,
        )  # fmt: skip

    def setattr(self, request: Request) -> bytes:
        """Change attributes of an inode."""
        (
            valid, _, fh, size, _, atime, mtime, _, atime_ns, mtime_ns, _, mode, _, uid, gid, _,
        ) = abi.SETATTR_IN.unpack_from(request.body)  # fmt: skip
        changes = Changes(
            mode=mode if valid & Attr.MODE else None,
            uid=uid if valid & Attr.UID else None,
            gid=gid if valid & Attr.GID else None,
            size=size if valid & Attr.SIZE else None,
            # Also where now is meant: the kernel says what time it is.
            atime_ns=_signed(atime) * _SECOND + atime_ns if valid & Attr.ATIME else None,
            mtime_ns=_signed(mtime) * _SECOND + mtime_ns if valid & Attr.MTIME else None,
        )
        handle = self.handles.get(fh) if valid & Attr.FH else None
        fd = handle.descriptor.fd if handle is not None and handle.writable else None
        drop = bool(valid & Attr.KILL_SUIDGID) or (not valid & _CHANGES and self._drops(request))
        stat = attributes.setattr_(self.tree, request.node, changes, fd, drop_privileges=drop)
        return self.replies.attributes(request.node, stat)

    def _drops(self, request: Request) -> bool:
        """Whether set-id bits and capabilities have to go by a change of nothing.

        It comes before a write, or is a chown that changes nothing, which anybody can ask for: the
        kernel does not say which of the two.
        """
        if attributes.may_write(self.tree, request.node, request.caller):
            return True
        # Somebody may have been handed an open file.
        return any(
            handle.writable and handle.inode.id == request.node for handle in self.handles.values()
        )

    def readlink(self, request: Request) -> bytes:
        """The bytes of a symlink."""
        return attributes.readlink(self.tree, request.node)

    def getxattr(self, request: Request) -> bytes:
        """One extended attribute, or its size."""
        size, _ = abi.GETXATTR_IN.unpack_from(request.body)
        name = request.text(abi.GETXATTR_IN.size)
        if status.is_meant(request.node, name):
            return _sized(self.told(request.caller), size)
        return _sized(attributes.getxattr(self.tree, request.node, name), size)

    def listxattr(self, request: Request) -> bytes:
        """The names of the extended attributes, or how long they are together."""
        size, _ = abi.GETXATTR_IN.unpack_from(request.body)
        names = attributes.listxattr(self.tree, request.node, request.caller)
        return _sized(b"".join(name + b"\0" for name in names), size)

    def setxattr(self, request: Request) -> bytes:
        """Set an extended attribute."""
        size, flags, more, _ = abi.SETXATTR_IN.unpack_from(request.body)
        start = abi.SETXATTR_IN.size
        if not self._says_more:
            start, more = abi.COMPAT_SETXATTR_IN_SIZE, 0
        name = request.text(start)
        start += len(name) + 1
        value = bytes(request.body[start : start + size])
        if len(value) < size:
            raise error(errno.EINVAL)
        status.check_not_meant(request.node, name)
        attributes.setxattr(self.tree, request.node, name, value, flags)
        if more & abi.SETXATTR_ACL_KILL_SGID:
            attributes.drop_setgid(self.tree, request.node)
        return b""

    def removexattr(self, request: Request) -> bytes:
        """Remove an extended attribute."""
        name = request.text()
        status.check_not_meant(request.node, name)
        attributes.removexattr(self.tree, request.node, name)
        return b""

    def statfs(self, request: Request) -> bytes:
        """The numbers of the volume on which the inode lies."""
        below = attributes.statfs(self.tree, request.node)
        return abi.STATFS_OUT.pack(
            below.f_blocks, below.f_bfree, below.f_bavail, below.f_files, below.f_ffree,
            below.f_bsize, _NAME_MAX, below.f_frsize, 0,
        )  # fmt: skip

    def ioctl(self, request: Request) -> bytes:
        """The flags of an inode (lsattr, chattr); everything else is ENOTTY."""
        _, _, command, _, in_size, _ = abi.IOCTL_IN.unpack_from(request.body)
        value = request.body[abi.IOCTL_IN.size : abi.IOCTL_IN.size + in_size]
        if command == attributes.FS_IOC_GETFLAGS:
            told = attributes.get_flags(self.tree, request.node)
            return abi.IOCTL_OUT.pack(0, 0, 0, 0) + struct.pack("=I", told)
        if command == attributes.FS_IOC_SETFLAGS:
            (wanted,) = struct.unpack_from("=I", value)
            attributes.set_flags(self.tree, request.node, wanted, request.caller)
            return abi.IOCTL_OUT.pack(0, 0, 0, 0)
        if command == attributes.FS_IOC_FSGETXATTR:
            extended = attributes.get_extended_flags(self.tree, request.node)
            return abi.IOCTL_OUT.pack(0, 0, 0, 0) + extended
        if command == attributes.FS_IOC_FSSETXATTR:
            attributes.set_extended_flags(self.tree, request.node, bytes(value), request.caller)
            return abi.IOCTL_OUT.pack(0, 0, 0, 0)
        raise error(errno.ENOTTY)


def _signed(value: int) -> int:
    """Seconds travel as if they had no sign."""
    return value - (value & _SIGN) * 2


def _sized(value: bytes, size: int) -> bytes:
    """An answer to somebody who asks for so many bytes, or with zero for how many there are."""
    if size == 0:
        return abi.GETXATTR_OUT.pack(len(value), 0)
    if len(value) > size:
        raise error(errno.ERANGE)
    return value
