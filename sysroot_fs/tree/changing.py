"""What all changes of names have in common: locks, rights, and inodes that lose their names.

In a directory with an index the change is made under the directory's lock (see `sidecar.index`),
because the volumes that need an index have no rename that refuses to replace: what was looked at
must still be so when the call is made, for every mount of the tree.
"""

from __future__ import annotations

import errno
import os
import stat as stat_module
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from typing import Final

from sidecar.descriptor import Descriptor
from sidecar.index import DirectoryIndex
from sidecar.look import is_remote
from sidecar.twin import Caller, Guard, guard_of
from sidecar.walk import Absent, Found, Layer, Place, Verdict
from sysroot_fs.tree import files
from sysroot_fs.tree.core import Tree, error
from sysroot_fs.tree.inodes import FEW, Inode
from sysroot_fs.tree.lookup import require


def held(tree: Tree, *parents: Inode) -> AbstractContextManager[None]:
    """While names in *parents* change: hold those that have an index, in one order for everybody.

    Before the names in them are looked at: what another mount did while this one waited must be
    seen, or the call would hit the file that took the slot. Directories' times are too coarse
    to show it, so they are read again unless this server is the only one.
    """
    policy = tree.walk.policy
    for parent in parents:
        place = tree.place(parent)
        if place.others or place.has_index(policy):
            break
    else:
        # So it is on most volumes, for each change of a name.
        return tree.answered
    wanted = {}
    for place in (part for one in parents for part in tree.place(one).parts):
        index = tree.walk.index(place) if place.layer is Layer.SYSROOT else None
        if index is not None:
            seen = os.fstat(place.fd)
            wanted[seen.st_dev, seen.st_ino] = (index, place)
    return _held_in_order(tree, wanted) if wanted else tree.answered


@contextmanager
def _held_in_order(
    tree: Tree, wanted: dict[tuple[int, int], tuple[DirectoryIndex, Place]]
) -> Iterator[None]:
    with ExitStack() as stack:
        stack.enter_context(tree.answered)
        for _, (index, place) in sorted(wanted.items(), key=lambda item: item[0]):
            stack.enter_context(index.lock(place.fd))
            index.doubt()
        if not tree.presence.alone():
            for index, place in wanted.values():
                index.scan(place.fd)
        yield


def check_new(tree: Tree, place: Place, absent: Absent) -> None:
    """Raise unless a new name may be made at *place*, where it is absent for that reason."""
    tree.check_writable(place.layer)
    if place.layer is Layer.HOST and absent.verdict is Verdict.POLICY:
        raise error(errno.EACCES)


def removable(tree: Tree, parent: Inode, name: bytes, caller: Caller) -> tuple[Found, Descriptor]:
    """What *name* is, and the directory from which *caller* may take it; an OSError if not."""
    found = require(tree, parent, name, caller)
    if found.holder is None:
        raise error(errno.EBUSY)
    tree.check_writable(found.layer)
    if found.part or (found.layer is Layer.HOST and parent.layer is Layer.SYSROOT):
        check_removal(found, found.holder, caller)
    return found, found.holder


def index_of(tree: Tree, parent: Inode, found: Found) -> DirectoryIndex | None:
    """The index of the directory in which *found* lies; None where names are stored as they are."""
    if found.layer is not Layer.SYSROOT:
        return None
    return tree.walk.index(tree.place(parent.part(found.part)))


def check_removal(found: Found, holder: Descriptor, caller: Caller) -> None:
    """Raise unless *caller* may take a name out of a directory that the guest's kernel cannot see.

    It has judged by the sysroot's directory of the host's path, or by the first of several that are
    merged, which may be his own.
    """
    guard = guard_of(holder.fd)
    if not guard.grants(caller, 3):
        raise error(errno.EACCES)
    check_sticky(guard, found, caller)


def check_sticky(guard: Guard, found: Found, caller: Caller) -> None:
    """Raise where a sticky directory keeps *caller* from taking away what is another's."""
    assert found.stat is not None
    sticky = bool(guard.mode & stat_module.S_ISVTX)
    if sticky and caller.uid not in (0, guard.uid, found.stat.uid):
        raise error(errno.EPERM)


class Losing:
    """Pin the inode whose name is about to go, so that what is open goes on working.

    It is let go again where the name stayed after all, or where it has other names by which it is
    found: pinned descriptors are outside the bound.
    """

    __slots__ = ("_found", "_inode", "_may_be_open", "_parent", "_tree")

    def __init__(self, tree: Tree, parent: Inode, found: Found | None) -> None:
        self._tree, self._parent, self._found = tree, parent, found

    def __enter__(self) -> None:
        tree, found = self._tree, self._found
        inode = self._inode = None if found is None else tree.known(self._parent, found)
        if inode is None:
            return
        assert found is not None and found.stat is not None
        self._may_be_open = tree.opens_skipped and inode.kind == stat_module.S_IFREG
        if inode.opened or (self._may_be_open and found.stat.nlink <= 1):
            # It stays pinned for as long as somebody has it open. Not in the place of the next file
            # that somebody makes: that one is closed again, this one perhaps never.
            tree.inodes.check_room(FEW)
        tree.inodes.pin(inode)
        if self._may_be_open and is_remote(found.stat):
            # Such a volume may forget what nobody has open.
            inode.kept = files.hold(inode)

    def __exit__(self, failure: object, *_: object) -> None:
        inode, inodes = self._inode, self._tree.inodes
        if inode is None:
            return
        if failure is not None:
            inode.kept = None
            inodes.unpin(inode)
            return
        assert self._found is not None
        # Where the place identifies, the name was the last one: such volumes have no hard links.
        links = _links(inode)
        if inode.is_directory or not inode.stable or not links:
            # Where the volume knows it no more a descriptor is of no use, unless it keeps a file
            # open.
            lost = links is None and inode.kept is None
            inodes.vanish(inode, self._parent, closed=not self._may_be_open, lost=lost)
        elif self._may_be_open and (inode.parent, inode.stored) == (
            self._parent, self._found.stored,
        ):  # fmt: skip
            inodes.strand(inode)
        else:
            inodes.unpin(inode)


def _links(inode: Inode) -> int | None:
    """How many names a pinned inode has, None where its volume knows it no more.

    One served by FUSE may know nothing of an inode without a name that nobody has open.
    """
    assert inode.descriptor is not None
    try:
        return os.fstat(inode.descriptor.fd).st_nlink
    except OSError:
        return None


OPEN_DIR = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


def entered(tree: Tree, found: Found) -> tuple[Descriptor, DirectoryIndex | None]:
    """The directory *found*, and its index where stored names differ from guest names."""
    assert found.holder is not None
    child = Descriptor(os.open(found.stored, OPEN_DIR, dir_fd=found.holder.fd))
    return child, tree.walk.index(
        Place(Layer.SYSROOT, child, True, lambda: b"", lambda: None, tree.walk.traits_of(child))
    )


_SWEEPING_SECONDS: Final = 1.0


def sweep_helpers(tree: Tree, found: Found, holder: Descriptor) -> None:
    """Remove the index file of a directory that the guest sees as empty.

    Under that directory's lock: a row that has no object may be one that another mount has just
    written for what it is about to make. Who has the lock for long may wait for the one of
    *holder*, which is held here; then the index file stays, and the directory is not empty.
    """
    child, index = entered(tree, found)
    if index is not None:
        helpers = index.only_helpers(child.fd)
        if helpers is None:
            return
        if helpers:
            try:
                with index.lock(child.fd, _SWEEPING_SECONDS):
                    for helper in index.only_helpers(child.fd) or ():
                        os.unlink(helper, dir_fd=child.fd)
            except OSError as failure:
                if failure.errno != errno.EBUSY:
                    raise
                return
        for leftover in index.leftovers():
            # A removed file that is still open: its volume takes it away where it then lies.
            with suppress(FileNotFoundError):
                os.rename(leftover, leftover, src_dir_fd=child.fd, dst_dir_fd=holder.fd)
