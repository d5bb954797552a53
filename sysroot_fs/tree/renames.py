"""Renames, within a layer: one call on the lower volume, and what the tree notes of it."""

from __future__ import annotations

import errno
import os
import stat as stat_module
from contextlib import suppress

from sidecar import linux
from sidecar.descriptor import Descriptor
from sidecar.index import DirectoryIndex, look
from sidecar.naming import Kind, may_be_literal
from sidecar.twin import Caller, guard_of
from sidecar.walk import Absent, Found, Layer, Place, Verdict
from sysroot_fs.tree import listing
from sysroot_fs.tree.changing import (
    OPEN_DIR,
    Losing,
    check_new,
    check_removal,
    check_sticky,
    held,
    index_of,
    removable,
    sweep_helpers,
)
from sysroot_fs.tree.core import Tree, error
from sysroot_fs.tree.inodes import Inode
from sysroot_fs.tree.lookup import before_change


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
    with held(tree, old_parent, new_parent):
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
    source, source_dir = removable(tree, old_parent, old_name, caller)
    place = tree.place(new_parent)
    target = before_change(tree, new_parent, new_name, caller)
    if isinstance(target, Found) and target.holder is None:
        raise error(errno.EBUSY)
    if isinstance(target, Absent):
        if flags & linux.RENAME_EXCHANGE:
            raise error(errno.ENOENT)
        check_new(tree, place, target)
    elif old_parent is new_parent and _is_respelling(place, source, target, new_name):
        # The same entry: it is the spelling that changes, if anything.
        if flags & linux.RENAME_EXCHANGE:
            return
        target = Absent(Verdict.ABSENT)
    elif flags & linux.RENAME_NOREPLACE:
        raise error(errno.EEXIST)
    if isinstance(target, Found) and target.part:
        assert target.holder is not None
        check_removal(target, target.holder, caller)
    elif isinstance(target, Found) and target.verdict is Verdict.FOLDED:
        # The kernel may have been told that there is nothing (`spellings.is_respelling`).
        assert target.holder is not None
        check_sticky(guard_of(target.holder.fd), target, caller)
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
    old_index = index_of(tree, old_parent, source)
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
        new_index = index_of(tree, new_parent, target)
        if (target.layer, into.fd, target.stored) == (source.layer, source_dir.fd, source.stored):
            return
    with Losing(tree, new_parent, target if isinstance(target, Found) else None):
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
            sweep_helpers(tree, target, into)
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
        inner = Descriptor(os.open(target.stored, OPEN_DIR, dir_fd=target.holder.fd))
        if listing.names_in(inner):
            raise error(errno.ENOTEMPTY)
