"""Names that are made and removed: create, mkdir, mknod, symlink, link, unlink, rmdir.

Each is one system call on the lower volume wherever one exists for it, so that a killed server
leaves it done or not done.
"""

from __future__ import annotations

import errno
import os
import stat as stat_module
from collections.abc import Callable
from contextlib import suppress
from typing import TypeVar

from sidecar import linux
from sidecar.descriptor import Descriptor
from sidecar.identity import acting_as, in_groups
from sidecar.linux import fd_path
from sidecar.look import attributes
from sidecar.making import make_directory
from sidecar.twin import Caller, guard_of
from sidecar.walk import Found, Layer, Place, Verdict
from sysroot_fs.tree import files, listing
from sysroot_fs.tree.changing import (
    Losing,
    check_new,
    check_removal,
    check_sticky,
    entered,
    held,
    index_of,
    removable,
    sweep_helpers,
)
from sysroot_fs.tree.core import Entry, Tree, error
from sysroot_fs.tree.files import Handle
from sysroot_fs.tree.inodes import Inode
from sysroot_fs.tree.lookup import before_change

T = TypeVar("T")

_CREATE = os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW


def _make(
    tree: Tree,
    parent: Inode,
    name: bytes,
    caller: Caller,
    make: Callable[[int, bytes], T],
    remove: Callable[..., None] = os.unlink,
) -> tuple[Found, T]:
    """Make the new *name* in *parent* by ``make(dirfd, stored)``, as *caller*, exclusively.

    Raises EEXIST where the guest sees the name already, on whichever layer. Where the volume fails
    when it is asked about what was made, that is taken away again by ``remove(stored, dir_fd=)``.
    """
    with held(tree, parent):
        try:
            return _make_held(tree, parent, name, caller, make, remove)
        except OSError as failure:
            if failure.errno == errno.EIO:
                # It may be there all the same; the kernel believes that nothing has changed.
                tree.coherence.touched(parent, data=True)
            raise


def _make_held(
    tree: Tree,
    parent: Inode,
    name: bytes,
    caller: Caller,
    make: Callable[[int, bytes], T],
    remove: Callable[..., None],
) -> tuple[Found, T]:
    place = tree.place(parent)
    absent = before_change(tree, parent, name, caller)
    if isinstance(absent, Found):
        raise error(errno.EEXIST)
    check_new(tree, place, absent)
    index = tree.walk.index(place) if place.layer is Layer.SYSROOT else None

    def act(stored: bytes) -> T:
        try:
            with acting_as(caller.uid, caller.gid):
                return make(place.fd, stored)
        except PermissionError as refusal:
            if refusal.errno != errno.EACCES or not (groups := caller.groups()):
                raise
        # A volume that judges by itself (FUSE) does not know that the kernel has let him pass.
        with in_groups(groups), acting_as(caller.uid, caller.gid):
            return make(place.fd, stored)

    if index is None:
        stored, made = name, act(name)
    else:
        stored, made = index.store(place.fd, name, act)
    tree.appeared(parent, name)
    try:
        return _found(place, name, stored, made), made
    except OSError as failure:
        # Where it is gone already the name may be somebody else's by now.
        if failure.errno != errno.ESTALE:
            with suppress(OSError):
                remove(stored, dir_fd=place.fd)
                if index is not None:
                    index.removed(place.fd, stored)
        raise


def _found(place: Place, name: bytes, stored: bytes, made: object) -> Found:
    """What a step would say of the entry that was just made, and opened as *made* if it was."""
    if isinstance(made, Descriptor):
        stat = linux.statx(made.fd, b"", linux.AT_EMPTY_PATH)
    else:
        try:
            stat, _ = attributes(place.fd, stored)
        except FileNotFoundError:
            # Another writer has removed it already: the kernel walks again.
            raise error(errno.ESTALE) from None
    if place.layer is Layer.HOST:
        return Found(Layer.HOST, Verdict.HOST, stored, stat, place.descriptor, place.mapped)
    mapped = place.mapped or stored != name
    verdict = Verdict.EXACT if stored == name else Verdict.ESCAPE
    return Found(Layer.SYSROOT, verdict, stored, stat, place.descriptor, mapped)


def create(
    tree: Tree, parent_id: int, name: bytes, mode: int, flags: int, caller: Caller
) -> tuple[Handle, Entry]:
    """Create a regular file and open it. Raises ENFILE where too many files are open."""
    parent = tree.inodes[parent_id]
    tree.inodes.check_room()
    backing = files.backing_flags(flags) | _CREATE

    def make(dirfd: int, stored: bytes) -> Descriptor:
        return Descriptor(os.open(stored, backing, stat_module.S_IMODE(mode), dir_fd=dirfd))

    try:
        found, descriptor = _make(tree, parent, name, caller, make)
    except FileExistsError:
        if flags & os.O_EXCL:
            raise
        # It came meanwhile. The kernel walks again and asks whether the caller may open it.
        raise error(errno.ESTALE) from None
    entry = tree.adopt(parent, name, found, new=True)
    descriptor = tree.inodes.lowered(descriptor)
    entry.inode.opened += (descriptor,)
    return Handle(entry.inode, descriptor, files.is_writable(flags)), entry


def create_unnamed(
    tree: Tree, parent_id: int, mode: int, flags: int, caller: Caller
) -> tuple[Handle, Entry]:
    """Create a regular file without a name on the volume of a directory (O_TMPFILE), and open it.

    EOPNOTSUPP where the volume has no such thing. A link may give it a name later, unless *flags*
    have O_EXCL.
    """
    parent = tree.inodes[parent_id]
    place = tree.place(parent)
    tree.check_writable(place.layer)
    tree.inodes.check_room()
    backing = files.backing_flags(flags) | os.O_TMPFILE | (flags & os.O_EXCL)
    with acting_as(caller.uid, caller.gid):
        fd = os.open(b".", backing, stat_module.S_IMODE(mode), dir_fd=place.fd)
    descriptor = Descriptor(fd)
    inode = tree.inodes.adopt_unnamed(parent, fd)
    inode.opened += (descriptor,)
    stat = linux.statx(fd, b"", linux.AT_EMPTY_PATH)
    return Handle(inode, descriptor, files.is_writable(flags)), Entry(inode, stat, 0.0)


def mkdir(tree: Tree, parent_id: int, name: bytes, mode: int, caller: Caller) -> Entry:
    """Make a directory; setgid is inherited as the volume below does it."""
    parent = tree.inodes[parent_id]
    permissions = stat_module.S_IMODE(mode)
    found, _ = _make(
        tree, parent, name, caller,
        lambda dirfd, stored: make_directory(dirfd, stored, permissions), os.rmdir,
    )  # fmt: skip
    return tree.adopt(parent, name, found, new=True)


def mknod(tree: Tree, parent_id: int, name: bytes, mode: int, rdev: int, caller: Caller) -> Entry:
    """Make a fifo, a socket, a device or an empty regular file."""
    parent = tree.inodes[parent_id]
    found, _ = _make(
        tree, parent, name, caller,
        lambda dirfd, stored: os.mknod(stored, mode, rdev, dir_fd=dirfd),
    )  # fmt: skip
    return tree.adopt(parent, name, found, new=True)


def symlink(tree: Tree, parent_id: int, name: bytes, target: bytes, caller: Caller) -> Entry:
    """Make a symlink that holds *target*, byte for byte."""
    parent = tree.inodes[parent_id]
    found, _ = _make(
        tree, parent, name, caller,
        lambda dirfd, stored: os.symlink(target, stored, dir_fd=dirfd),
    )  # fmt: skip
    return tree.adopt(parent, name, found, new=True)


def link(tree: Tree, number: int, parent_id: int, name: bytes, caller: Caller) -> Entry:
    """Give the inode *number* one more name. EXDEV from one layer to the other."""
    inode = tree.inodes[number]
    parent = tree.inodes[parent_id]
    tree.check_writable(inode.layer)
    held = tree.inodes.descriptor(inode)

    def make(dirfd: int, stored: bytes) -> None:
        os.link(fd_path(held.fd), stored, dst_dir_fd=dirfd, follow_symlinks=True)

    if parent.layer is not inode.layer:
        if isinstance(before_change(tree, parent, name, caller), Found):
            raise error(errno.EEXIST)
        raise error(errno.EXDEV)
    found, _ = _make(tree, parent, name, caller, make)
    return tree.adopt(parent, name, found)


def unlink(tree: Tree, parent_id: int, name: bytes, caller: Caller) -> None:
    """Remove a name that is no directory. A shadowed host entry shows again."""
    parent = tree.inodes[parent_id]
    with held(tree, parent):
        found, holder = removable(tree, parent, name, caller)
        index = index_of(tree, parent, found)
        with Losing(tree, parent, found):
            os.unlink(found.stored, dir_fd=holder.fd)
            if index is not None:
                index.removed(holder.fd, found.stored)
    tree.vanished(parent, found)


def rmdir(tree: Tree, parent_id: int, name: bytes, caller: Caller) -> None:
    """Remove an empty directory; one that holds nothing but its index counts as empty."""
    parent = tree.inodes[parent_id]
    with held(tree, parent):
        found, holder = removable(tree, parent, name, caller)
        index = index_of(tree, parent, found)
        for other in found.also:
            assert other.holder is not None
            if other.part:
                check_removal(other, other.holder, caller)
            else:
                check_sticky(guard_of(other.holder.fd), other, caller)
        _check_empty(tree, found)
        with Losing(tree, parent, found):
            if found.layer is Layer.SYSROOT:
                sweep_helpers(tree, found, holder)
            for other in found.also:
                _remove_part(tree, parent, other)
            os.rmdir(found.stored, dir_fd=holder.fd)
            if index is not None:
                index.removed(holder.fd, found.stored)
    tree.vanished(parent, found)


def _check_empty(tree: Tree, found: Found) -> None:
    """Raise ENOTEMPTY before the first of several merged directories is removed."""
    for one in (found, *found.also) if found.also else ():
        child, index = entered(tree, one)
        names = listing.names_in(child) if index is None else index.only_helpers(child.fd) is None
        if names:
            raise error(errno.ENOTEMPTY)


def _remove_part(tree: Tree, parent: Inode, found: Found) -> None:
    assert found.holder is not None
    index = index_of(tree, parent, found)
    with Losing(tree, parent, found):
        sweep_helpers(tree, found, found.holder)
        os.rmdir(found.stored, dir_fd=found.holder.fd)
        if index is not None:
            index.removed(found.holder.fd, found.stored)
    tree.vanished(parent, found)
