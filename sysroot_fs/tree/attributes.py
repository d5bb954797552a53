"""Attributes and extended attributes of an inode, with or without a name."""

from __future__ import annotations

import errno
import fcntl
import os
import stat as stat_module
import struct
from collections.abc import Callable
from typing import Final, TypeVar

from attrs import frozen

from sidecar import linux
from sidecar.linux import Stat, fd_path
from sidecar.look import attributes
from sidecar.twin import Caller, guard_of
from sidecar.walk import Layer
from sysroot_fs.tree.core import Tree, error, virtual_stat
from sysroot_fs.tree.files import Handle
from sysroot_fs.tree.inodes import ROOT_ID, Inode, stale

T = TypeVar("T")

FS_IOC_GETFLAGS: Final = 0x80086601
FS_IOC_SETFLAGS: Final = 0x40086602
FS_IOC_FSGETXATTR: Final = 0x801C581F
FS_IOC_FSSETXATTR: Final = 0x401C5820
FSXATTR_BYTES: Final = 28
_IMMUTABLE: Final = 0x10
_APPEND: Final = 0x20
_JOURNAL_DATA: Final = 0x4000
_X_IMMUTABLE: Final = 0x8
_X_APPEND: Final = 0x10
FS_CASEFOLD_FL: Final = 0x40000000
_SET_ID: Final = stat_module.S_ISUID | stat_module.S_ISGID
_TO_TRUNCATE: Final = os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC

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
    if inode.opened:
        # Also where its name means another by now, or cannot be reached any more.
        return linux.statx(inode.opened[-1].fd, b"", linux.AT_EMPTY_PATH)
    if inode.pinned:
        return linux.statx(inode.reach().fd, b"", linux.AT_EMPTY_PATH)
    if inode.descriptor is not None:
        return linux.statx(inode.descriptor.fd, b"", linux.AT_EMPTY_PATH)
    if inode.key is None:
        raise stale()
    try:
        stat, door = attributes(tree.holder(inode).fd, inode.stored)
    except FileNotFoundError:
        raise stale() from None
    if door or not inode.may_be(stat) or stat_module.S_IFMT(stat.mode) != inode.kind:
        raise stale()
    return stat


def setattr_(
    tree: Tree,
    number: int,
    changes: Changes,
    fd: int | None = None,
    drop_privileges: bool = False,
) -> Stat:
    """Change an inode, through the open descriptor *fd* where there is one; its new attributes.

    With *drop_privileges* set-id bits and capabilities go, as a write takes them away.
    """
    inode = tree.inodes[number]
    tree.check_writable(inode.layer)
    if fd is None:
        at, where = _reach(tree, inode)
    else:
        at = where = fd
    if changes.size is not None:
        if inode.kind != stat_module.S_IFREG:
            raise error(errno.EINVAL)
        # Never truncate(2): it would wait, and the mount with it, for whoever holds a lease.
        size_fd = os.open(fd_path(at), _TO_TRUNCATE) if fd is None else fd
        try:
            os.ftruncate(size_fd, changes.size)
        finally:
            if fd is None:
                os.close(size_fd)
    drop_privileges = drop_privileges and inode.kind == stat_module.S_IFREG
    if changes.uid is not None or changes.gid is not None:
        uid = -1 if changes.uid is None else changes.uid
        gid = -1 if changes.gid is None else changes.gid
        os.chown(where, uid, gid)
    elif drop_privileges:
        # A change of owner that is none: capabilities go with it.
        os.chown(where, -1, -1)
    # After the owner: changing that takes setuid and setgid away.
    if changes.mode is not None:
        os.chmod(where, stat_module.S_IMODE(changes.mode))
    if changes.atime_ns is not None or changes.mtime_ns is not None:
        linux.utimens(where, changes.atime_ns, changes.mtime_ns)
    stat = linux.statx(at, b"", linux.AT_EMPTY_PATH)
    if drop_privileges and changes.mode is None and stat.mode & _SET_ID:
        _drop_set_id(where)
        stat = linux.statx(at, b"", linux.AT_EMPTY_PATH)
    return stat


def _reach(tree: Tree, inode: Inode) -> tuple[int, int | bytes]:
    """A descriptor of *inode* to look at, and what calls take that want to change it.

    That is the descriptor of an open file where it is open anyway. An O_PATH descriptor takes no
    changes, but its path does.
    """
    if inode.opened:
        fd = inode.opened[-1].fd
        return fd, fd
    held = inode.reach() if inode.pinned else tree.inodes.descriptor(inode)
    return held.fd, fd_path(held.fd)


def may_write(tree: Tree, number: int, caller: Caller) -> bool:
    """Whether *caller* could write to an inode, or change its mode; in doubt (an ACL) not."""
    at, _ = _reach(tree, tree.inodes[number])
    guard = guard_of(at)
    return caller.uid == guard.uid or guard.grants(caller, 2)


def drop_set_id(tree: Tree, handle: Handle) -> None:
    """Take the set-id bits of an open file away, as a write by somebody without rights does.

    The kernel leaves that to whoever serves the file (FUSE_HANDLE_KILLPRIV_V2). File capabilities
    go by themselves when the volume below is written to.
    """
    if _drop_set_id(handle.descriptor.fd):
        # It was not the change of attributes before the write that took them away.
        tree.coherence.touched(handle.inode)


def _drop_set_id(where: int | bytes) -> bool:
    mode = os.stat(where).st_mode
    runs_as_group = mode & stat_module.S_IXGRP
    kept = mode & ~(stat_module.S_ISUID | (stat_module.S_ISGID if runs_as_group else 0))
    if kept != mode:
        os.chmod(where, stat_module.S_IMODE(kept))
    return kept != mode


def drop_setgid(tree: Tree, number: int) -> None:
    """Take set-gid away from an inode whose new ACL was set by somebody outside of its group."""
    at, where = _reach(tree, tree.inodes[number])
    mode = os.fstat(at).st_mode
    if mode & stat_module.S_ISGID:
        os.chmod(where, stat_module.S_IMODE(mode) & ~stat_module.S_ISGID)


def readlink(tree: Tree, number: int) -> bytes:
    """The bytes stored in a symlink."""
    inode = tree.inodes[number]
    if inode.kind != stat_module.S_IFLNK:
        raise error(errno.EINVAL)
    held = tree.inodes.descriptor(inode)
    return os.readlink(b"", dir_fd=held.fd)


def statfs(tree: Tree, number: int = ROOT_ID) -> os.statvfs_result:
    """The numbers of the volume on which an inode lies."""
    inode = tree.inodes[number]
    if inode.layer is Layer.VIRTUAL:
        inode = tree.inodes.root
    return os.fstatvfs(tree.inodes.descriptor(inode).fd)


def _flags(tree: Tree, number: int, act: Callable[[int], T]) -> T:
    """What *act* returns for a descriptor of an inode that ioctl(2) takes."""
    inode = tree.inodes[number]
    if inode.layer is Layer.VIRTUAL or inode.kind not in (stat_module.S_IFREG, stat_module.S_IFDIR):
        raise error(errno.ENOTTY)
    held = tree.inodes.descriptor(inode)
    fd = os.open(fd_path(held.fd), os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        return act(fd)
    finally:
        os.close(fd)


def _told_flags(tree: Tree, number: int, fd: int) -> int:
    (flags,) = struct.unpack("=I", fcntl.ioctl(fd, FS_IOC_GETFLAGS, bytes(4)))
    inode = tree.inodes[number]
    # How names are looked up is not what the volume does, but what the guest sees.
    folds = inode.is_directory and inode.spelling().key is not None
    return int(flags & ~FS_CASEFOLD_FL | (FS_CASEFOLD_FL if folds else 0))


def get_flags(tree: Tree, number: int) -> int:
    """The flags of an inode as lsattr(1) shows them. ENOTTY where its volume has none."""
    return _flags(tree, number, lambda fd: _told_flags(tree, number, fd))


def get_extended_flags(tree: Tree, number: int) -> bytes:
    """The same with a project, as FS_IOC_FSGETXATTR has it: the kernel asks for it first."""
    return _flags(tree, number, lambda fd: fcntl.ioctl(fd, FS_IOC_FSGETXATTR, bytes(FSXATTR_BYTES)))


def _check_flags(fd: int, caller: Caller, changed: int, guarded: int, append: int) -> None:
    """Raise unless *caller* may change the flags *changed*, of which *guarded* are root's.

    Today's kernels have looked already, older ones (before 5.13) leave it to the server.
    """
    if caller.uid and (caller.uid != os.fstat(fd).st_uid or changed & guarded):
        raise error(errno.EPERM)
    if changed & append:
        # The guest's kernel says where to write, and such a file takes only appends (`files`).
        raise error(errno.EOPNOTSUPP)


def set_extended_flags(tree: Tree, number: int, value: bytes, caller: Caller) -> None:
    """Set what `get_extended_flags` gives. EPERM for who may not."""
    tree.check_writable(tree.inodes[number].layer)
    if len(value) < FSXATTR_BYTES:
        raise error(errno.EINVAL)

    def act(fd: int) -> None:
        now = fcntl.ioctl(fd, FS_IOC_FSGETXATTR, bytes(FSXATTR_BYTES))
        (before, _, _, project), (after, _, _, wanted) = (
            struct.unpack_from("=IIII", one) for one in (now, value)
        )
        if caller.uid and project != wanted:
            raise error(errno.EPERM)
        _check_flags(fd, caller, before ^ after, _X_IMMUTABLE | _X_APPEND, _X_APPEND & after)
        fcntl.ioctl(fd, FS_IOC_FSSETXATTR, value)

    _flags(tree, number, act)


def set_flags(tree: Tree, number: int, flags: int, caller: Caller) -> None:
    """Set the flags of an inode as chattr(1) does. Whether names fold cannot be set.

    EPERM for who may not.
    """
    tree.check_writable(tree.inodes[number].layer)

    def act(fd: int) -> None:
        changed = flags ^ _told_flags(tree, number, fd)
        if changed & FS_CASEFOLD_FL:
            raise error(errno.EOPNOTSUPP)
        guarded = _IMMUTABLE | _APPEND | _JOURNAL_DATA
        _check_flags(fd, caller, changed, guarded, _APPEND & flags)
        (below,) = struct.unpack("=I", fcntl.ioctl(fd, FS_IOC_GETFLAGS, bytes(4)))
        wanted = flags & ~FS_CASEFOLD_FL | below & FS_CASEFOLD_FL
        fcntl.ioctl(fd, FS_IOC_SETFLAGS, struct.pack("=I", wanted))

    _flags(tree, number, act)
    # The kernel does not think of the time of change.
    tree.coherence.touched(tree.inodes[number])


def _with_xattrs(tree: Tree, number: int) -> tuple[Inode, int | bytes]:
    inode = tree.inodes[number]
    if inode.layer is Layer.VIRTUAL:
        raise error(errno.EOPNOTSUPP)
    _, where = _reach(tree, inode)
    return inode, where


def getxattr(tree: Tree, number: int, name: bytes) -> bytes:
    """One extended attribute. ENODATA where it is not set, and for ACLs where there can be none.

    The kernel asks for the ACL before it judges by the mode, and any other errno is its judgement.
    """
    try:
        _, where = _with_xattrs(tree, number)
        return os.getxattr(where, name)
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
        _, where = _with_xattrs(tree, number)
        names = [os.fsencode(name) for name in os.listxattr(where)]
    except OSError as failure:
        if failure.errno == errno.EOPNOTSUPP:
            return []
        raise
    return [name for name in names if caller.uid == 0 or not name.startswith(b"trusted.")]


def setxattr(tree: Tree, number: int, name: bytes, value: bytes, flags: int = 0) -> None:
    """Set one extended attribute; *flags* are XATTR_CREATE and XATTR_REPLACE."""
    inode, where = _with_xattrs(tree, number)
    tree.check_writable(inode.layer)
    os.setxattr(where, name, value, flags)


def removexattr(tree: Tree, number: int, name: bytes) -> None:
    """Remove one extended attribute."""
    inode, where = _with_xattrs(tree, number)
    tree.check_writable(inode.layer)
    os.removexattr(where, name)
