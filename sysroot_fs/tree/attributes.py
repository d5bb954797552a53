"""Attributes and extended attributes of an inode, with or without a name."""

from __future__ import annotations

import errno
import os
import stat as stat_module
from typing import Final

from attrs import frozen

from sidecar import linux
from sidecar.linux import Stat, fd_path
from sidecar.look import attributes
from sidecar.twin import Caller
from sidecar.walk import Layer
from sysroot_fs.tree.core import Tree, error, virtual_stat
from sysroot_fs.tree.inodes import Inode, stale

_ACLS: Final = (b"system.posix_acl_access", b"system.posix_acl_default")


@frozen(slots=True)
class Changes:
    """What to change; None leaves it. Times are nanoseconds since the epoch, size is bytes."""

    mode: int | None = None
    uid: int | None = None
    gid: int | None = None
    size: int | None = None
    atime_ns: int | None = None
    mtime_ns: int | None = None


def getattr_(tree: Tree, number: int) -> Stat:
    """The attributes of an inode. Raises ESTALE where its name means another by now."""
    return _stat(tree, tree.inodes[number])


def _stat(tree: Tree, inode: Inode) -> Stat:
    if inode.layer is Layer.VIRTUAL:
        return virtual_stat(inode.kind)
    if inode.pinned:
        return linux.statx(inode.reach().fd, b"", linux.AT_EMPTY_PATH)
    if inode.descriptor is not None:
        return linux.statx(inode.descriptor.fd, b"", linux.AT_EMPTY_PATH)
    try:
        stat, door = attributes(tree.holder(inode).fd, inode.stored)
    except FileNotFoundError:
        raise stale() from None
    same = not inode.stable or (stat.dev, stat.ino) == (inode.dev, inode.ino)
    if door or not same or stat_module.S_IFMT(stat.mode) != inode.kind:
        raise stale()
    return stat


def setattr_(tree: Tree, number: int, changes: Changes, fd: int | None = None) -> Stat:
    """Change an inode, through the open descriptor *fd* where there is one; its new attributes."""
    inode = tree.inodes[number]
    tree.check_writable(inode.layer)
    held = inode.reach() if inode.pinned else tree.inodes.descriptor(inode)
    path = fd_path(held.fd)
    if changes.size is not None:
        if inode.kind != stat_module.S_IFREG:
            raise error(errno.EINVAL)
        if fd is not None:
            os.ftruncate(fd, changes.size)
        else:
            # Never truncate(2): it would wait, and the mount with it, for whoever holds a lease.
            size_fd = os.open(path, os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC)
            try:
                os.ftruncate(size_fd, changes.size)
            finally:
                os.close(size_fd)
    if changes.uid is not None or changes.gid is not None:
        uid = -1 if changes.uid is None else changes.uid
        gid = -1 if changes.gid is None else changes.gid
        os.chown(path, uid, gid)
    # After the owner: changing that takes setuid and setgid away.
    if changes.mode is not None:
        os.chmod(path, stat_module.S_IMODE(changes.mode))
    if changes.atime_ns is not None or changes.mtime_ns is not None:
        linux.utimens(path, changes.atime_ns, changes.mtime_ns)
    return linux.statx(held.fd, b"", linux.AT_EMPTY_PATH)


def readlink(tree: Tree, number: int) -> bytes:
    """The bytes stored in a symlink."""
    inode = tree.inodes[number]
    if inode.kind != stat_module.S_IFLNK:
        raise error(errno.EINVAL)
    held = tree.inodes.descriptor(inode)
    return os.readlink(b"", dir_fd=held.fd)


def statfs(tree: Tree) -> os.statvfs_result:
    """The sysroot volume's numbers."""
    return os.fstatvfs(tree.walk.sysroot.fd)


def _xattr_path(tree: Tree, number: int) -> tuple[Inode, bytes]:
    inode = tree.inodes[number]
    if inode.layer is Layer.VIRTUAL:
        raise error(errno.EOPNOTSUPP)
    return inode, fd_path(tree.inodes.descriptor(inode).fd)


def getxattr(tree: Tree, number: int, name: bytes) -> bytes:
    """One extended attribute. ENODATA where it is not set, and for ACLs where there can be none.

    The kernel asks for the ACL before it judges by the mode, and any other errno is its judgement.
    """
    try:
        _, path = _xattr_path(tree, number)
        return os.getxattr(path, name)
    except OSError as failure:
        if failure.errno == errno.EOPNOTSUPP and name in _ACLS:
            raise error(errno.ENODATA) from None
        # `ls -l` asks for this twice a file until it hears that there is no such thing.
        if failure.errno == errno.ENODATA and name == b"security.selinux":
            raise error(errno.EOPNOTSUPP) from None
        raise


def listxattr(tree: Tree, number: int, caller: Caller) -> list[bytes]:
    """The names of the extended attributes; `trusted.` ones for root only, as in Linux."""
    try:
        _, path = _xattr_path(tree, number)
        names = [os.fsencode(name) for name in os.listxattr(path)]
    except OSError as failure:
        if failure.errno == errno.EOPNOTSUPP:
            return []
        raise
    return [name for name in names if caller.uid == 0 or not name.startswith(b"trusted.")]


def setxattr(tree: Tree, number: int, name: bytes, value: bytes) -> None:
    """Set one extended attribute."""
    inode, path = _xattr_path(tree, number)
    tree.check_writable(inode.layer)
    os.setxattr(path, name, value)


def removexattr(tree: Tree, number: int, name: bytes) -> None:
    """Remove one extended attribute."""
    inode, path = _xattr_path(tree, number)
    tree.check_writable(inode.layer)
    os.removexattr(path, name)
