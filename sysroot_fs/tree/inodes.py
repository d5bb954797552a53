"""The table of inodes that the kernel knows: identity, lookup counts, bounded descriptors.

A file is one inode under all its names (hard links), identified by device and number. A directory
is identified by its place as well: the host's own links can show one directory at two guest paths,
and the kernel allows a directory one place only. Where a volume makes its numbers up, the place
alone identifies.

Descriptors (O_PATH) are a cache: the least recently used are closed past a bound and opened again
from the nearest ancestor, one component at a time, with the identity checked. An unlinked inode is
pinned instead: its name is gone, so the descriptor is all there is.

The cache gives way to open files. These, and what is pinned for longer than a call, never get the
last descriptors (`ceiling`): whatever one guest holds open, the others can still find, make and
list names.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat as stat_module
import sys
from collections import OrderedDict
from collections.abc import Callable, Iterator

from attrs import define, field

from sidecar import linux, look
from sidecar.descriptor import Descriptor
from sidecar.linux import Stat, fd_path
from sidecar.spelling import EXACT, Spelling
from sidecar.walk import Layer, Place
from sysroot_fs.tree.remembered import Remembered

ROOT_ID = 1
FEW = 16
"""So many descriptors are kept where open files need the rest."""
_EACH = 16
"""More descriptors than one request opens."""
_FAR = 1 << 16
_OPEN = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC

Key = int | tuple[object, ...]
"""What identifies an entry: for most the number that they have in the mount, see `Inodes.key`."""
_SLOT = 48
_SLOTS = 1 << 15
_NUMBERS = (1 << 63) - 1
_KINDS = {
    kind: kind
    for kind in (
        stat_module.S_IFREG, stat_module.S_IFDIR, stat_module.S_IFLNK, stat_module.S_IFIFO,
        stat_module.S_IFSOCK, stat_module.S_IFCHR, stat_module.S_IFBLK,
    )
}  # fmt: skip
"""One object for each: there may be a million inodes."""


def stale() -> OSError:
    """The answer for an inode whose name now means another: the kernel walks again on ESTALE."""
    return OSError(errno.ESTALE, os.strerror(errno.ESTALE))


@define(slots=True, eq=False, weakref_slot=False)
class Inode:
    """One inode that the kernel holds. `parent`, `name` and `stored` say where it was last seen.

    `name` is its own spelling; `folded` says that it was reached in another the last time.
    """

    id: int
    key: Key | None
    """None where the entry is gone: another may have its key."""
    layer: Layer
    kind: int
    dev: int
    ino: int
    parent: Inode | None
    name: bytes
    stored: bytes
    stable: bool
    birth: int = 0
    """What tells it from the next one with its number, zero for unknown (`look.birth`)."""
    lookups: int = 0
    nlink: int = 1
    """How many names it had when it was found by one of them."""
    folded: bool = False
    mapped: bool | None = None
    rule: Spelling | None = None
    descriptor: Descriptor | None = None
    placed: Place | None = None
    """Of a directory: the place that it was found to be, as long as it has that descriptor."""
    pinned: bool = False
    remembered: Remembered | None = None
    """Of a directory in which names were asked for: what the kernel may keep of them."""
    also: tuple[Inode, ...] = ()
    """Directories that are merged with this one; each is held by one lookup."""
    listed: tuple[int, int] | None = None
    """The times of a directory (mtime, ctime, ns) when it was listed in a way that lasts."""
    opened: tuple[Descriptor, ...] = ()
    """The descriptors of open files: all that is left of it on a volume that forgets."""
    kept: Descriptor | None = None
    """The same where nobody says what is open: one for whoever may have it open."""

    def may_be(self, stat: Stat) -> bool:
        """Whether *stat*, of what has its name, is of it as far as numbers tell."""
        if not self.stable:
            return True
        return (stat.dev, stat.ino) == (self.dev, self.ino) and _are_one(
            self.birth, look.birth(stat)
        )

    def let_go(self) -> None:
        """Hold the descriptor no longer."""
        self.descriptor = self.placed = None

    def part(self, number: int) -> Inode:
        """The directory that is the part *number* of a merged one, which is the part 0 itself."""
        return self.also[number - 1] if number else self

    def reach(self) -> Descriptor:
        """The descriptor to ask after its name went away; an open file's where there is one."""
        assert self.descriptor is not None
        return self.opened[-1] if self.opened else self.kept or self.descriptor

    @property
    def is_directory(self) -> bool:
        """Whether it is a directory."""
        return self.kind == stat_module.S_IFDIR

    def path(self) -> bytes:
        """The guest path under which it was last seen, every name in its own spelling."""
        names: list[bytes] = []
        inode: Inode | None = self
        while inode is not None and inode.parent is not None:
            names.append(inode.name)
            inode = inode.parent
        return b"/" + b"/".join(reversed(names))

    def way(self) -> Iterator[Inode]:
        """It, and the directories above it as it was last seen."""
        inode: Inode | None = self
        while inode is not None:
            yield inode
            inode = inode.parent

    def consulted(self) -> bool:
        """Whether a mapping was consulted on the way to it.

        Kept until a directory moves; not kept where a directory may be reached in another spelling
        the next time.
        """
        if self.mapped is not None:
            return self.mapped
        way: list[Inode] = []
        inode: Inode = self
        while inode.mapped is None and inode.parent is not None:
            way.append(inode)
            inode = inode.parent
        mapped = bool(inode.mapped)
        for inode in reversed(way):
            mapped = mapped or inode.folded or inode.stored != inode.name
            inode.mapped = None if inode.spelling().above else mapped
        return mapped

    def spelling(self) -> Spelling:
        """In which spellings the names in this directory are looked up."""
        if self.rule is not None:
            return self.rule
        way: list[Inode] = []
        inode: Inode = self
        while inode.rule is None and inode.parent is not None:
            way.append(inode)
            inode = inode.parent
        rule = EXACT if inode.rule is None else inode.rule
        for inode in reversed(way):
            rule = inode.rule = rule.child(inode.name)
        return rule


def _are_one(birth: int, other: int) -> bool:
    """Whether two inodes with one number may be one and the same."""
    return birth == other or not birth or not other


def is_below(inode: Inode, top: Inode) -> bool:
    """Whether *inode* is *top* or, as it was last seen, below it."""
    here: Inode | None = inode
    while here is not None:
        if here is top:
            return True
        here = here.parent
    return False


@define(slots=True, eq=False)
class Inodes:
    """The table. *holder* gives the directory descriptor in which an inode's name stands."""

    root: Inode
    limit: int
    holder: Callable[[Inode], Descriptor]
    ceiling: int = sys.maxsize
    """From this number on a descriptor is for work that ends with its request."""
    dropped: list[Callable[[Inode], None]] = field(factory=list, init=False)
    """Called with an inode that the kernel has let go of, while its descriptor is still there."""
    _by_id: dict[int, Inode] = field(factory=dict, init=False)
    _by_key: dict[Key, Inode] = field(factory=dict, init=False)
    _open: OrderedDict[Inode, None] = field(factory=OrderedDict, init=False)
    _stranded: OrderedDict[Inode, None] = field(factory=OrderedDict, init=False)
    _volumes: dict[tuple[Layer, int], tuple[int, int]] = field(factory=dict, init=False)
    """By layer and device: the upper bits of the numbers of its inodes, and the device."""
    _spare: dict[int, int] = field(factory=dict, init=False)
    """So often there is room for so many more without a look."""

    def __attrs_post_init__(self) -> None:
        self._by_id[ROOT_ID] = self.root
        self._volume(self.root.layer, self.root.dev)

    def __len__(self) -> int:
        return len(self._by_id)

    def __getitem__(self, number: int) -> Inode:
        inode = self._by_id.get(number)
        if inode is None:
            raise stale()
        return inode

    def get(self, number: int) -> Inode | None:
        """The inode *number*, None where the kernel does not know it."""
        return self._by_id.get(number)

    def find(self, key: Key) -> Inode | None:
        """The inode that the kernel knows under *key*."""
        if type(key) is int:
            inode = self._by_id.get(key)
            if inode is not None and inode.key == key:
                return inode
        return self._by_key.get(key)

    def key(
        self,
        layer: Layer,
        parent: Inode,
        stored: bytes,
        kind: int,
        dev: int,
        ino: int,
        stable: bool,
    ) -> Key:
        """What identifies an entry (see the module)."""
        if not stable:
            return (layer, parent.id, stored)
        if kind == stat_module.S_IFDIR:
            return (layer, dev, ino, parent.id, stored)
        slot, _ = self._volume(layer, dev)
        if slot < _SLOTS and ino >> _SLOT == 0:
            return ino + (slot << _SLOT) if slot else ino
        return (layer, dev, ino)

    def _volume(self, layer: Layer, dev: int) -> tuple[int, int]:
        found = self._volumes.get((layer, dev))
        if found is None:
            found = self._volumes[layer, dev] = (len(self._volumes), dev)
        return found

    def _enter(self, inode: Inode) -> None:
        """It is found by its key from now on."""
        if inode.key is not None and inode.key != inode.id:
            self._by_key[inode.key] = inode

    def _leave(self, inode: Inode) -> None:
        """It is found by its key no longer."""
        if inode.key is not None and self._by_key.get(inode.key) is inode:
            del self._by_key[inode.key]

    def adopt(
        self,
        layer: Layer,
        parent: Inode,
        name: bytes,
        stored: bytes,
        mode: int,
        dev: int,
        ino: int,
        stable: bool,
        folded: bool = False,
        new: bool = False,
        birth: int = 0,
    ) -> Inode:
        """The inode for an entry that was just seen, one lookup more on its count.

        *name* is its own spelling; *folded* says that it was seen in another. Of a *new* one, what
        is known under its number is gone: a volume that is served by FUSE gives the numbers of
        removed files out again although a descriptor is left of them. So is what has another
        *birth*: somebody who has it open must not get the new one instead.
        """
        kind = stat_module.S_IFMT(mode)
        key = self.key(layer, parent, stored, kind, dev, ino, stable)
        inode = self.find(key)
        if inode is not None and (new or inode.kind != kind or not _are_one(inode.birth, birth)):
            # The number was used again for another object behind our back. The name of the one that
            # is gone stays noted: the kernel believes in it until the removal is reported.
            self._leave(inode)
            inode.key = None
            inode = None
        if inode is None:
            inode = self._new(layer, kind, dev, ino, parent, name, stored, stable, key)
            inode.folded, inode.birth = folded, birth
        else:
            self._place(inode, parent, name, stored, folded)
            inode.dev, inode.ino = dev, ino
        inode.lookups += 1
        return inode

    def adopt_unnamed(self, parent: Inode, fd: int) -> Inode:
        """The inode of the open file *fd* that has no name yet, one lookup on its count.

        *parent* is a directory on its volume; `adopt` gives it a place when it gets a name.
        """
        # Not *fd* itself: who holds that may be somebody who writes.
        held = Descriptor(os.open(fd_path(fd), os.O_PATH | os.O_CLOEXEC))
        seen = linux.statx(held.fd, b"", linux.AT_EMPTY_PATH)
        kind = stat_module.S_IFMT(seen.mode)
        layer, dev, ino = parent.layer, seen.dev, seen.ino
        key = self.key(layer, parent, b"", kind, dev, ino, True)
        before = self.find(key)
        if before is not None:
            # As in `adopt`.
            self._leave(before)
            before.key = None
        inode = self._new(layer, kind, dev, ino, parent, b"", b"", True, key)
        inode.birth = look.birth(seen)
        inode.lookups = 1
        inode.descriptor, inode.pinned = held, True
        return inode

    def _new(
        self,
        layer: Layer,
        kind: int,
        dev: int,
        ino: int,
        parent: Inode,
        name: bytes,
        stored: bytes,
        stable: bool,
        key: Key,
    ) -> Inode:
        slot, dev = self._volume(layer, dev)
        # Inode numbers are the node ids (the binding knows one number only). The volume's own
        # number is kept where it can be, so that it is the same after a remount.
        number = key if type(key) is int else (ino + (slot << _SLOT)) & _NUMBERS
        while number <= ROOT_ID or number in self._by_id:
            number = (number + (1 << 56) + 1) & _NUMBERS
        inode = Inode(
            number, key, layer, _KINDS.get(kind, kind), dev, ino, parent, name, stored, stable
        )
        self._by_id[number] = inode
        self._enter(inode)
        return inode

    def _place(self, inode: Inode, parent: Inode, name: bytes, stored: bytes, folded: bool) -> None:
        if inode.parent is not parent or inode.name != name or inode.stored != stored:
            inode.parent, inode.name, inode.stored = parent, name, stored
            inode.mapped = inode.rule = None
        if inode.folded != folded:
            inode.folded, inode.mapped = folded, None
        self.unpin(inode)

    def forget(self, number: int, count: int) -> None:
        """The kernel drops *count* lookups; with the last one the inode is gone from here."""
        inode = self._by_id.get(number)
        if inode is None or inode is self.root:
            return
        inode.lookups -= count
        if inode.lookups <= 0:
            del self._by_id[number]
            self._leave(inode)
            self._open.pop(inode, None)
            self._stranded.pop(inode, None)
            for let_go in self.dropped:
                let_go(inode)
            inode.let_go()
            also, inode.also = inode.also, ()
            for other in also:
                self.forget(other.id, 1)

    def move(
        self, inode: Inode, parent: Inode, name: bytes, stored: bytes, folded: bool = False
    ) -> None:
        """The entry of *inode* was renamed; *name* and *folded* as in `adopt`."""
        self._leave(inode)
        before = inode.consulted(), inode.spelling()
        self._place(inode, parent, name, stored, folded)
        inode.key = self.key(
            inode.layer, parent, stored, inode.kind, inode.dev, inode.ino, inode.stable
        )
        self._enter(inode)
        if inode.is_directory and before != (inode.consulted(), inode.spelling()):
            for known in self._by_id.values():
                if known is not self.root:
                    known.mapped = known.rule = None

    def vanish(self, inode: Inode, parent: Inode, closed: bool = False, lost: bool = False) -> None:
        """The last name of *inode* was removed from *parent*: another object may get its key.

        It stays pinned where it is open or may be; where it is *closed* for sure, while there is
        room. Else it is stale from now on. So it is where its volume knows it no more (*lost*) and
        may give its number to another: for as long as it is held the kernel takes that one for it
        (`sidecar.making`).
        """
        self._leave(inode)
        inode.key = None
        # Where it was seen in another place last, the kernel still believes in that.
        if inode.parent is parent and parent.remembered is not None:
            parent.remembered.names.pop(inode.name, None)
        if not inode.opened and (lost or not self._may_stay(inode, closed)):
            inode.pinned = False
            inode.let_go()

    def _may_stay(self, inode: Inode, closed: bool) -> bool:
        """Whether the descriptor of a removed inode need not be closed for others."""
        if closed:
            # Before one that is not open come those that will be, and those in use.
            return self._has_room(self.limit)
        if inode.descriptor is not None and inode.descriptor.fd >= self.ceiling:
            with contextlib.suppress(OSError):
                inode.descriptor = self.lowered(inode.descriptor)
        return inode.descriptor is None or inode.descriptor.fd < self.ceiling

    # --- descriptors -------------------------------------------------------------------------

    def descriptor(self, inode: Inode) -> Descriptor:
        """An O_PATH descriptor of *inode*. Raises ESTALE where its name means another now."""
        way: list[Inode] = []
        here = inode
        while here.descriptor is None:
            way.append(here)
            if here.parent is None or here.layer is not here.parent.layer:
                break
            here = here.parent
        for step in reversed(way):
            self._reopen(step)
        self.used(inode)
        assert inode.descriptor is not None
        return inode.descriptor

    def used(self, inode: Inode) -> None:
        """Its descriptor was needed: others are closed before it."""
        if inode in self._open:
            self._open.move_to_end(inode)

    def _reopen(self, inode: Inode) -> None:
        if inode.key is None:
            # What has its name and its number by now is another.
            raise stale()
        holder = self.holder(inode)
        try:
            descriptor = Descriptor(os.open(inode.stored, _OPEN, dir_fd=holder.fd))
        except (FileNotFoundError, NotADirectoryError):
            raise stale() from None
        seen = linux.statx(descriptor.fd, b"", linux.AT_EMPTY_PATH)
        if not inode.may_be(seen) or stat_module.S_IFMT(seen.mode) != inode.kind:
            raise stale()
        inode.descriptor = descriptor
        self._keep(inode)

    def _keep(self, inode: Inode) -> None:
        self._open[inode] = None
        assert inode.descriptor is not None
        # The kernel gives the lowest number that is free.
        self._shrink(self.limit if inode.descriptor.fd < self.ceiling else FEW)

    def _shrink(self, limit: int) -> None:
        while len(self._open) > limit:
            old, _ = self._open.popitem(last=False)
            old.let_go()

    def keep_few(self) -> None:
        """Close what can be opened again: descriptors are short."""
        self._shrink(FEW)

    def check_room(self, more: int = 0) -> None:
        """Raise ENFILE where one more descriptor that stays open would be one of the last.

        Or one of the *more* before these.
        """
        if not self._has_room(more):
            self._shrink(FEW)
            if not self._has_room(more):
                raise OSError(errno.ENFILE, os.strerror(errno.ENFILE))

    def _has_room(self, more: int = 0) -> bool:
        """Whether there is room for one descriptor that stays open, and *more* besides."""
        spare = self._spare.get(more, 0)
        if spare:
            self._spare[more] = spare - 1
            return True
        number = self._next() + more
        self._spare[more] = max(0, min(self.ceiling, _FAR) - number) // _EACH
        return number < self.ceiling

    def lowered(self, descriptor: Descriptor) -> Descriptor:
        """*descriptor*, which stays open, under a number that is not one of the last."""
        if descriptor.fd < self.ceiling:
            return descriptor
        self._shrink(FEW)
        # Where what was needed for the moment is closed by now there is a lower one.
        return Descriptor(os.dup(descriptor.fd))

    def _next(self) -> int:
        """The number that the next descriptor will have."""
        assert self.root.descriptor is not None
        try:
            fd = os.dup(self.root.descriptor.fd)
        except OSError as failure:
            if failure.errno != errno.EMFILE:
                raise
            return sys.maxsize
        os.close(fd)
        return fd

    def left_the_sysroot(self, top: Inode) -> list[tuple[int, bytes]]:
        """(parent id, name) of the known host entries of sysroot directories below *top*."""
        return [
            (inode.parent.id, inode.name)
            for inode in self._by_id.values()
            if inode.layer is Layer.HOST
            and inode.parent is not None
            and inode.parent.layer is Layer.SYSROOT
            and is_below(inode, top)
        ]

    def unpin(self, inode: Inode) -> None:
        """Its descriptor is one among the others again."""
        self._stranded.pop(inode, None)
        if inode.pinned:
            inode.pinned = False
            self._keep(inode)

    def strand(self, inode: Inode) -> None:
        """The name by which the pinned *inode* was found is gone, and it has others.

        It stays pinned until it is found by one of them, or too many are: it may be open.
        """
        self._stranded[inode] = None
        while len(self._stranded) > max(4, self.limit // 4):
            self.unpin(next(iter(self._stranded)))

    def pin(self, inode: Inode) -> None:
        """Hold the descriptor of *inode* whatever the bound: its name is about to go."""
        self.descriptor(inode)
        self._open.pop(inode, None)
        inode.pinned = True
