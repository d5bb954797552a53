"""Changes of names: create, mkdir, mknod, symlink, link, unlink, rmdir, rename.

Each is one system call on the lower volume wherever one exists for it, so that a killed server
leaves it done or not done. In a directory with an index the call is made under the directory's
lock (see `sidecar.index`), because the volumes that need an index have no rename that refuses to
replace: what was looked at must still be so when the call is made, for every mount of the tree.
"""

from __future__ import annotations

import errno
import os
import stat as stat_module
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from typing import TypeVar

from sidecar import linux
from sidecar.descriptor import Descriptor
from sidecar.identity import acting_as, in_groups
from sidecar.index import DirectoryIndex, look
from sidecar.linux import fd_path
from sidecar.look import attributes, is_remote
from sidecar.making import make_directory
from sidecar.naming import Kind, may_be_literal
from sidecar.twin import Caller, Guard, guard_of
from sidecar.walk import Absent, Found, Layer, Place, Verdict
from sysroot_fs.tree import files, listing
from sysroot_fs.tree.core import Entry, Tree, error
from sysroot_fs.tree.files import Handle
from sysroot_fs.tree.inodes import FEW, Inode
from sysroot_fs.tree.lookup import before_change, require

T = TypeVar("T")

_CREATE = os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW


def _check_new(tree: Tree, place: Place, absent: Absent) -> None:
    """Raise unless a new name may be made at *place*, where it is absent for that reason."""
    tree.check_writable(place.layer)
    if place.layer is Layer.HOST and absent.verdict is Verdict.POLICY:
        raise error(errno.EACCES)


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
    with _held(tree, parent):
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
    _check_new(tree, place, absent)
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


def _index_of(tree: Tree, parent: Inode, found: Found) -> DirectoryIndex | None:
    if found.layer is not Layer.SYSROOT:
        return None
    return tree.walk.index(tree.place(parent.part(found.part)))


def _removable(tree: Tree, parent: Inode, name: bytes, caller: Caller) -> tuple[Found, Descriptor]:
    found = require(tree, parent, name, caller)
    if found.holder is None:
        raise error(errno.EBUSY)
    tree.check_writable(found.layer)
    if found.part or (found.layer is Layer.HOST and parent.layer is Layer.SYSROOT):
        _check_removal(found, found.holder, caller)
    return found, found.holder


def _check_removal(found: Found, holder: Descriptor, caller: Caller) -> None:
    """Raise unless *caller* may take a name out of a directory that the guest's kernel cannot see.

    It has judged by the sysroot's directory of the host's path, or by the first of several that are
    merged, which may be his own.
    """
    guard = guard_of(holder.fd)
    if not guard.grants(caller, 3):
        raise error(errno.EACCES)
    _check_sticky(guard, found, caller)


def _check_sticky(guard: Guard, found: Found, caller: Caller) -> None:
    """Raise where a sticky directory keeps *caller* from taking away what is another's."""
    assert found.stat is not None
    sticky = bool(guard.mode & stat_module.S_ISVTX)
    if sticky and caller.uid not in (0, guard.uid, found.stat.uid):
        raise error(errno.EPERM)


class _losing:
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


def unlink(tree: Tree, parent_id: int, name: bytes, caller: Caller) -> None:
    """Remove a name that is no directory. A shadowed host entry shows again."""
    parent = tree.inodes[parent_id]
    with _held(tree, parent):
        found, holder = _removable(tree, parent, name, caller)
        index = _index_of(tree, parent, found)
        with _losing(tree, parent, found):
            os.unlink(found.stored, dir_fd=holder.fd)
            if index is not None:
                index.removed(holder.fd, found.stored)
    tree.vanished(parent, found)


def rmdir(tree: Tree, parent_id: int, name: bytes, caller: Caller) -> None:
    """Remove an empty directory; one that holds nothing but its index counts as empty."""
    parent = tree.inodes[parent_id]
    with _held(tree, parent):
        found, holder = _removable(tree, parent, name, caller)
        index = _index_of(tree, parent, found)
        for other in found.also:
            assert other.holder is not None
            if other.part:
                _check_removal(other, other.holder, caller)
            else:
                _check_sticky(guard_of(other.holder.fd), other, caller)
        _check_empty(tree, found)
        with _losing(tree, parent, found):
            if found.layer is Layer.SYSROOT:
                _sweep_helpers(tree, found, holder)
            for other in found.also:
                _remove_part(tree, parent, other)
            os.rmdir(found.stored, dir_fd=holder.fd)
            if index is not None:
                index.removed(holder.fd, found.stored)
    tree.vanished(parent, found)


def _check_empty(tree: Tree, found: Found) -> None:
    """Raise ENOTEMPTY before the first of several merged directories is removed."""
    for one in (found, *found.also) if found.also else ():
        child, inner = _inner(tree, one)
        names = listing.names_in(child) if inner is None else inner.only_helpers(child.fd) is None
        if names:
            raise error(errno.ENOTEMPTY)


def _inner(tree: Tree, found: Found) -> tuple[Descriptor, DirectoryIndex | None]:
    """The directory *found*, and its index where stored names differ from guest names."""
    assert found.holder is not None
    child = Descriptor(os.open(found.stored, _OPEN_DIR, dir_fd=found.holder.fd))
    return child, tree.walk.index(
        Place(Layer.SYSROOT, child, True, lambda: b"", lambda: None, tree.walk.traits_of(child))
    )


def _remove_part(tree: Tree, parent: Inode, found: Found) -> None:
    assert found.holder is not None
    index = _index_of(tree, parent, found)
    with _losing(tree, parent, found):
        _sweep_helpers(tree, found, found.holder)
        os.rmdir(found.stored, dir_fd=found.holder.fd)
        if index is not None:
            index.removed(found.holder.fd, found.stored)
    tree.vanished(parent, found)


_OPEN_DIR = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


def _sweep_helpers(tree: Tree, found: Found, holder: Descriptor) -> None:
    """Remove the index file of a directory that the guest sees as empty."""
    child, inner = _inner(tree, found)
    if inner is not None:
        helpers = inner.only_helpers(child.fd)
        if helpers is None:
            return
        for helper in helpers:
            os.unlink(helper, dir_fd=child.fd)
        for leftover in inner.leftovers():
            # A removed file that is still open: its volume takes it away where it then lies.
            with suppress(FileNotFoundError):
                os.rename(leftover, leftover, src_dir_fd=child.fd, dst_dir_fd=holder.fd)


def _held(tree: Tree, *parents: Inode) -> AbstractContextManager[None]:
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


def rename(
    tree: Tree,
    old_parent_id: int,
    old_name: bytes,
    new_parent_id: int,
    new_name: bytes,
    flags: int,
    caller: Caller,
) -> None:
    """Rename, with RENAME_NOREPLACE or RENAME_EXCHANGE.

    EXDEV from one layer to the other. EXCHANGE is EINVAL where the volume below cannot do it in
    one call: two renames could be cut in half. Onto a name that only the host has, the sysroot's
    entry goes into the sysroot and shadows it.
    """
    if flags & ~(linux.RENAME_NOREPLACE | linux.RENAME_EXCHANGE):
        raise error(errno.EINVAL)
    old_parent, new_parent = tree.inodes[old_parent_id], tree.inodes[new_parent_id]
    with _held(tree, old_parent, new_parent):
        _rename(tree, old_parent, old_name, new_parent, new_name, flags, caller)


def _rename(
    tree: Tree,
    old_parent: Inode,
    old_name: bytes,
    new_parent: Inode,
    new_name: bytes,
    flags: int,
    caller: Caller,
) -> None:
    """The rename, under the locks."""
    source, source_dir = _removable(tree, old_parent, old_name, caller)
    place = tree.place(new_parent)
    target = before_change(tree, new_parent, new_name, caller)
    if isinstance(target, Found) and target.holder is None:
        raise error(errno.EBUSY)
    if isinstance(target, Absent):
        if flags & linux.RENAME_EXCHANGE:
            raise error(errno.ENOENT)
        _check_new(tree, place, target)
    elif old_parent is new_parent and _is_respelling(place, source, target, new_name):
        # The same entry: it is the spelling that changes, if anything.
        if flags & linux.RENAME_EXCHANGE:
            return
        target = Absent(Verdict.ABSENT)
    elif flags & linux.RENAME_NOREPLACE:
        raise error(errno.EEXIST)
    if isinstance(target, Found) and target.part:
        assert target.holder is not None
        _check_removal(target, target.holder, caller)
    elif isinstance(target, Found) and target.verdict is Verdict.FOLDED:
        # The kernel may have been told that there is nothing (`spellings.is_respelling`).
        assert target.holder is not None
        _check_sticky(guard_of(target.holder.fd), target, caller)
    tree.check_writable(place.layer)
    _check_policy(tree, source, old_parent, old_name, new_parent, new_name)
    if source.also:
        # Several directories that are shown as one cannot be moved in one step. Not EXDEV: a copy
        # would make one file of those that only their exact spelling tells apart.
        raise error(errno.EBUSY)
    if source.layer is not place.layer:
        raise error(errno.EXDEV)
    if isinstance(target, Found) and target.also:
        raise error(errno.ENOTEMPTY)
    if flags & linux.RENAME_EXCHANGE:
        assert isinstance(target, Found)
        _exchange(tree, (old_parent, old_name, source), (new_parent, new_name, target))
        return
    old_index = _index_of(tree, old_parent, source)
    new_index = tree.walk.index(place) if place.layer is Layer.SYSROOT else None
    into = place.descriptor
    assert into is not None
    if isinstance(target, Found) and target.layer is not place.layer:
        _check_shadowing(tree, source, target)
        target = Absent(Verdict.ABSENT)
    moving = tree.known(old_parent, source)
    if isinstance(target, Found):
        if target.holder is not None:
            into = target.holder
        new_index = _index_of(tree, new_parent, target)
        if (target.layer, into.fd, target.stored) == (source.layer, source_dir.fd, source.stored):
            return
    with _losing(tree, new_parent, target if isinstance(target, Found) else None):
        stored = _move(tree, source, source_dir, target, into, new_index, new_name, flags)
        if old_index is not None:
            old_index.removed(source_dir.fd, source.stored)
        if new_index is not None:
            new_index.added(into.fd, stored)
    tree.vanished(old_parent, source)
    if isinstance(target, Found):
        tree.vanished(new_parent, target)
    tree.appeared(new_parent, new_name)
    if moving is not None:
        meant = target if isinstance(target, Found) else None
        into_part = new_parent if meant is None else new_parent.part(meant.part)
        _moved(tree, moving, (old_parent, old_name), (into_part, new_name), stored, meant)


def _is_respelling(place: Place, source: Found, target: Found, name: bytes) -> bool:
    """Whether *name*, found as *target* in the directory of *source*, is a new spelling of that.

    Where two entries have one key, *target* may be the other one. That is not replaced if it is a
    file; a directory is, as the kernel will take it for gone.
    """
    key = place.spelling.key
    if key is None or target.verdict is not Verdict.FOLDED or key(source.guest) != key(name):
        return False
    assert target.stat is not None
    return target.stored == source.stored or not stat_module.S_ISDIR(target.stat.mode)


def _moved(
    tree: Tree,
    inode: Inode,
    old: tuple[Inode, bytes],
    new: tuple[Inode, bytes],
    stored: bytes,
    meant: Found | None,
) -> None:
    """Note that *inode* went from the name *old* to *new*, which meant an entry before.

    What the kernel remembers of the host below a directory that moved lies elsewhere now. Never the
    directory itself: the kernel would take down what is mounted below it.
    """
    rule = inode.spelling()
    folded = meant is not None and meant.verdict is Verdict.FOLDED
    own = meant.guest if meant is not None and folded else new[1]
    tree.inodes.move(inode, new[0], own, stored, folded)
    tree.coherence.renamed(inode, old, new)
    if inode.is_directory and inode.layer is Layer.SYSROOT:
        tree.coherence.forget_below(inode)
        tree.forgotten.extend(tree.inodes.left_the_sysroot(inode))
        if inode.spelling() is not rule:
            tree.forget_spellings(*old)
    elif new[0].spelling().key is not None and not tree.forgets_at_once:
        # It brings along how long its old name was to be remembered.
        tree.forgotten.append((new[0].id, new[1]))


def _move(
    tree: Tree,
    source: Found,
    source_dir: Descriptor,
    target: Found | Absent,
    into: Descriptor,
    index: DirectoryIndex | None,
    name: bytes,
    flags: int,
) -> bytes:
    """Make the call, under the locks. The stored name of *name* afterwards."""

    def move(stored: bytes) -> None:
        _rename_lower(source_dir, source.stored, into, stored, flags)

    if isinstance(target, Found):
        assert target.stat is not None
        if target.layer is Layer.SYSROOT and stat_module.S_ISDIR(target.stat.mode):
            _sweep_helpers(tree, target, into)
        try:
            move(target.stored)
        except FileExistsError:
            # zfs says so of a directory that is not empty.
            raise error(errno.ENOTEMPTY) from None
        return target.stored
    if index is None:
        move(name)
        return name
    known = index.find(into.fd, name)[0]
    is_source = known is not None and (known.stored, into.fd) == (source.stored, source_dir.fd)
    if known is not None and known.kind is not Kind.FOLDED and not is_source:
        # Another mount was faster: the walk of the guest's kernel is repeated on ESTALE.
        raise error(errno.ESTALE)
    stored, _ = index.store(into.fd, name, move, exclusive=False)
    return _prettify(index, into, name, stored)


def _prettify(index: DirectoryIndex, into: Descriptor, name: bytes, stored: bytes) -> bytes:
    """Take the literal name where the slot has become free (a rename that only changed case).

    The escape is the temporary name of such a rename: at every moment the guest's name is whole.
    """
    if stored == name or not may_be_literal(name, index.traits, index.policy):
        return stored
    try:
        if look(into.fd, name) is not None or index.may_replace(into.fd, name):
            return stored
        os.rename(stored, name, src_dir_fd=into.fd, dst_dir_fd=into.fd)
    except OSError:
        # The guest's rename is done already.
        return stored
    index.removed(into.fd, stored)
    with suppress(OSError):
        index.scan(into.fd)
    return name


def _rename_lower(
    source_dir: Descriptor, source: bytes, into: Descriptor, stored: bytes, flags: int
) -> None:
    try:
        linux.renameat2(source_dir.fd, source, into.fd, stored, flags)
    except OSError as failure:
        if failure.errno != errno.EINVAL or flags != linux.RENAME_NOREPLACE:
            raise
        # The volume has no such flag. The directory's lock keeps other mounts away.
        if look(into.fd, stored) is not None:
            raise error(errno.EEXIST) from None
        linux.renameat2(source_dir.fd, source, into.fd, stored)


def _exchange(
    tree: Tree, one: tuple[Inode, bytes, Found], other: tuple[Inode, bytes, Found]
) -> None:
    (parent_1, name_1, found_1), (parent_2, name_2, found_2) = one, other
    if found_1.layer is not found_2.layer:
        raise error(errno.EXDEV)
    assert found_1.holder is not None and found_2.holder is not None
    known_1, known_2 = tree.known(parent_1, found_1), tree.known(parent_2, found_2)
    linux.renameat2(
        found_1.holder.fd, found_1.stored, found_2.holder.fd, found_2.stored,
        linux.RENAME_EXCHANGE,
    )  # fmt: skip
    for inode, parent, name, found in (
        (known_1, parent_2, name_2, found_2),
        (known_2, parent_1, name_1, found_1),
    ):
        tree.vanished(parent, found)
        if inode is not None:
            before = (inode.parent or parent, inode.name)
            _moved(tree, inode, before, (parent.part(found.part), name), found.stored, found)


def _check_policy(
    tree: Tree, source: Found, old: Inode, old_name: bytes, new: Inode, new_name: bytes
) -> None:
    """A host directory with a shut place inside must not be moved to where that is open."""
    if tree.rules.trivial or source.layer is not Layer.HOST:
        return
    for parent, name in ((old, old_name), (new, new_name)):
        if tree.rules.shuts_below(parent.path() + b"/" + name):
            raise error(errno.EACCES)


def _check_shadowing(tree: Tree, source: Found, target: Found) -> None:
    """What rename(2) would say of a target that only the host has, before it is shadowed."""
    assert source.stat is not None and target.stat is not None and target.holder is not None
    source_is_dir = stat_module.S_ISDIR(source.stat.mode)
    target_is_dir = stat_module.S_ISDIR(target.stat.mode)
    if source_is_dir and not target_is_dir:
        raise error(errno.ENOTDIR)
    if target_is_dir and not source_is_dir:
        raise error(errno.EISDIR)
    if target_is_dir:
        inner = Descriptor(os.open(target.stored, _OPEN_DIR, dir_fd=target.holder.fd))
        if listing.names_in(inner):
            raise error(errno.ENOTEMPTY)
