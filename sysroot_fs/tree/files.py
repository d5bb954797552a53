"""Open files: opening by inode, reading, writing, syncing."""

from __future__ import annotations

import errno
import os
import stat as stat_module

from attrs import frozen

from sidecar.descriptor import Descriptor
from sidecar.linux import fd_path
from sidecar.walk import Layer
from sysroot_fs.tree.core import Tree, error
from sysroot_fs.tree.inodes import Inode

# What a backing open may carry. O_APPEND is the guest kernel's business: with it here a shared
# mapping written back would append. O_DIRECT would ask our buffers to be aligned.
_CARRIED = os.O_ACCMODE | os.O_TRUNC | os.O_SYNC | os.O_DSYNC | os.O_NOATIME


@frozen(slots=True, eq=False)
class Handle:
    """An open file. The descriptor closes with the last reference."""

    inode: Inode
    descriptor: Descriptor
    writable: bool


def backing_flags(flags: int) -> int:
    """The flags for the backing descriptor of a file that the guest opens with *flags*."""
    return (flags & _CARRIED) | os.O_CLOEXEC | os.O_NONBLOCK


def is_writable(flags: int) -> bool:
    """Whether a descriptor opened with *flags* can be written to."""
    return (flags & os.O_ACCMODE) != os.O_RDONLY


def open_file(tree: Tree, number: int, flags: int, stays: bool = True) -> Handle:
    """Open the inode *number*, itself and never what a name means by now.

    Only regular files are opened: the guest's kernel serves fifos, sockets and devices itself,
    and opening one here would act on the host. Raises ESTALE where the inode has gone, ENFILE
    where too many files are open and this one *stays* open for longer than a request.
    """
    inode = tree.inodes[number]
    if inode.kind != stat_module.S_IFREG:
        raise error(errno.EINVAL)
    if inode.layer is Layer.VIRTUAL:
        # There to be mounted on; it has no content.
        raise error(errno.EACCES)
    writable = is_writable(flags)
    if writable or flags & os.O_TRUNC:
        tree.check_writable(inode.layer)
    held = tree.inodes.descriptor(inode)
    if stays:
        tree.inodes.check_room()
    try:
        fd = os.open(fd_path(held.fd), backing_flags(flags))
    except FileNotFoundError:
        raise error(errno.ESTALE) from None
    descriptor = Descriptor(fd)
    inode.opened += (descriptor,)
    return Handle(inode, descriptor, writable)


def hold(inode: Inode) -> Descriptor | None:
    """A descriptor that keeps the file *inode* alive on its volume, None where that fails."""
    assert inode.descriptor is not None
    for flags in (os.O_RDWR, os.O_RDONLY):
        try:
            fd = os.open(fd_path(inode.descriptor.fd), flags | os.O_CLOEXEC | os.O_NONBLOCK)
        except OSError:
            continue
        return Descriptor(fd)
    return None


def release(handle: Handle) -> None:
    """The guest closed the file."""
    inode = handle.inode
    inode.opened = tuple(one for one in inode.opened if one is not handle.descriptor)


def read(handle: Handle, offset: int, size: int) -> bytes:
    """At most *size* bytes from *offset*; fewer only at the end of the file."""
    return os.pread(handle.descriptor.fd, size, offset)


def write(handle: Handle, offset: int, data: bytes | memoryview) -> int:
    """Write *data* at *offset*. The number of bytes written: fewer where the volume is full."""
    fd = handle.descriptor.fd
    done = os.pwrite(fd, data, offset)
    if done == len(data):
        return done
    view = memoryview(data)
    while done < len(data):
        try:
            step = os.pwrite(fd, view[done:], offset + done)
        except OSError:
            # What was written counts; the guest meets the error at its next write.
            return done
        if step == 0:
            return done
        done += step
    return done


def flush(handle: Handle) -> None:
    """Report what the volume reports when a writer closes."""
    if handle.writable:
        os.close(os.dup(handle.descriptor.fd))


def sync(handle: Handle, data_only: bool) -> None:
    """Wait until the file is on the volume. Blocks; the only call that may run in a thread."""
    (os.fdatasync if data_only else os.fsync)(handle.descriptor.fd)


def sync_directory(tree: Tree, inode: Inode) -> None:
    """Wait until the directory's entries are on its volume. Blocks."""
    if inode.layer is Layer.VIRTUAL:
        return
    held = tree.inodes.descriptor(inode)
    fd = os.open(b".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=held.fd)
    try:
        os.fsync(fd)
    except OSError as failure:
        # Some volumes have no such call for directories; Linux's own file systems do.
        if failure.errno not in (errno.EINVAL, errno.ENOSYS):
            raise
    finally:
        os.close(fd)
