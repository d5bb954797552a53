"""The tree: what the guest sees, and the state that its operations share.

Synchronous and descriptor-relative, with no type of any binding: the same object serves the
mount, `resolve` and the tests. One thread at a time. The operations stand beside this module
(`lookup`, `listing`, `files`, `mutations`, `attributes`), each a function of the tree.
"""

from __future__ import annotations

import errno
import logging
import os
import resource
import stat as stat_module
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import Final, NamedTuple

from attrs import define, field, frozen

from sidecar import casefold, identity, leftovers, linux, look, spelling, twin
from sidecar.descriptor import Descriptor
from sidecar.linux import Stat
from sidecar.naming import Policy
from sidecar.presence import Presence
from sidecar.twin import Guard, Twin
from sidecar.walk import CIOPFS, VIRTUAL_TREES, Absent, Found, Layer, Place, Verdict, Walk
from sysroot_fs.tree.answered import Answered
from sysroot_fs.tree.coherence import Coherence
from sysroot_fs.tree.host import HostPolicy
from sysroot_fs.tree.inodes import ROOT_ID, Inode, Inodes
from sysroot_fs.tree.spellings import Spellings

log = logging.getLogger(__name__)

_OPEN_DIR: Final = os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC
FOLD_KEYS: Final = {"unicode": casefold.key, "ascii": casefold.ascii_key}
"""What two names must have in common to be spellings of one, by the names of the keys."""
TWIN_SECONDS: Final = 1.0
"""How long a twin is believed: the host's directories and links may change behind the mount."""


@frozen(kw_only=True)
class TreeConfig:
    """What a tree is made of. Paths are bytes.

    Timeouts are seconds, zero for no caching; None leaves them to `coherence`, the one of the
    sysroot, and `host_coherence` (`sysroot_fs.tree.coherence`).
    """

    sysroot: bytes
    host: bytes | None = b"/"
    fallback: str = "all"
    allow: tuple[bytes, ...] = ()
    deny: tuple[bytes, ...] = ()
    host_writes: str = "rw"
    listing: str = "sysroot"
    names: str = "natural"
    lookup: str = "exact"
    fold: tuple[bytes, ...] = ()
    exact: tuple[bytes, ...] = ()
    fold_key: str = "unicode"
    merge: bool = False
    read_only: bool = False
    coherence: str = "watched"
    host_coherence: str = "shared"
    entry_timeout: float | None = None
    attr_timeout: float | None = None
    negative_timeout: float | None = None


class Entry(NamedTuple):
    """An inode with its attributes. *timeout*: seconds for which its name may be remembered."""

    inode: Inode
    stat: Stat
    timeout: float


def error(number: int) -> OSError:
    """The OSError for *number*."""
    return OSError(number, os.strerror(number))


def _open_root(path: bytes) -> Descriptor:
    return Descriptor(os.open(path, _OPEN_DIR))


@define(slots=True, eq=False)
class Tree:
    """A sysroot over a host. Opens both roots at once, so that a later mount cannot hide them.

    Raises OSError where a root cannot be opened, `sidecar.volume.ProbeError` where the sysroot's
    volume cannot be measured.
    """

    config: TreeConfig
    rules: HostPolicy = field(init=False)
    walk: Walk = field(init=False)
    inodes: Inodes = field(init=False)
    presence: Presence = field(init=False)
    spellings: Spellings = field(factory=Spellings, init=False)
    answered: Answered = field(factory=Answered, init=False)
    coherence: Coherence = field(init=False)
    forgotten: list[tuple[int, bytes]] = field(factory=list, init=False)
    """(parent id, name) pairs that the kernel must be told to forget; a door empties it."""
    opens_skipped: bool = field(default=False, init=False)
    """Whether nobody says which files are open: any that the kernel knows may be."""
    forgets_at_once: bool = field(default=False, init=False)
    """Whether a door has the kernel forget before it answers; otherwise it is a moment later."""
    reports: dict[str, Callable[[], object]] = field(factory=dict, init=False)
    """More for `sysroot-fs status` to show: a name, and what gives its value, for JSON."""
    _root_place: Place = field(init=False)
    _twin_limit: int = field(init=False)
    _twins: OrderedDict[Inode, tuple[float, Twin | None]] = field(factory=OrderedDict, init=False)

    def __attrs_post_init__(self) -> None:
        config = self.config
        sysroot = _open_root(config.sysroot)
        self.rules = HostPolicy(config.fallback, config.allow, config.deny)
        host = None
        if config.host is not None and not self.rules.shuts_all:
            host = _open_root(config.host)
        self.walk = Walk(sysroot, host, self.rules, Policy(config.names))
        key = FOLD_KEYS[config.fold_key]
        self.walk.spelling = spelling.rules(key, config.lookup == "fold", config.fold, config.exact)
        self.walk.merge = config.merge
        self._root_place = self.walk.root()
        if not config.read_only:
            leftovers.sweep_probes(sysroot.fd, time.time_ns())
        self.presence = Presence(sysroot.fd)
        seen = os.fstat(sysroot.fd)
        root = Inode(
            ROOT_ID, (), Layer.SYSROOT, stat_module.S_IFDIR, seen.st_dev, seen.st_ino, None,
            b"", b"", True, lookups=1, mapped=False, descriptor=sysroot, pinned=True,
            rule=self.walk.spelling,
        )  # fmt: skip
        soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        self._twin_limit = max(16, min(soft // 16, 512))
        self.inodes = Inodes(root, max(64, min(soft // 4, 8192)), self.holder)
        self.inodes.dropped.append(self.answered.forget)
        self.inodes.ceiling = soft - max(64, min(soft // 8, 1536))
        self.coherence = Coherence(
            config, self.walk, self.inodes, self.place, self.twin, self.forget_twins,
            union=config.listing == "union",
        )  # fmt: skip
        self.reports["coherence"] = self.coherence.report

    def close(self) -> None:
        """Let go of what is held. Descriptors close with their last holder."""
        self.coherence.close()
        self._twins.clear()
        self.forgotten.clear()
        self.answered.clear()

    def make_room(self, mountpoints: Mapping[bytes, bool]) -> None:
        """Have guest paths to mount on, true for a directory and false for a file.

        They and the way to them are there from now on, empty, as far as neither layer has them.
        Nothing is stored, and nothing can be made in them. Raises OSError.
        """
        every: dict[bytes, bool] = {}
        for path, is_directory in mountpoints.items():
            # The kernel asks for what the links on the way lead to.
            parts = self.walk.real_path(path).split(b"/")[1:]
            for length in range(1, len(parts)):
                every[b"/" + b"/".join(parts[:length])] = True
            every.setdefault(b"/" + b"/".join(parts), is_directory)
        self.walk.mountpoints = every

    # --- places ------------------------------------------------------------------------------

    def place(self, inode: Inode) -> Place:
        """The place that a directory inode is. Raises ENOTDIR, ESTALE."""
        if inode.parent is None:
            return self._root_place
        if inode.layer is Layer.VIRTUAL:
            return Place(Layer.VIRTUAL, None, False, inode.path, lambda: None)
        if not inode.is_directory:
            raise error(errno.ENOTDIR)
        placed = inode.placed
        if placed is not None and (
            placed.layer is Layer.HOST
            or (placed.mapped is inode.mapped and placed.spelling is inode.rule)
        ):
            self.inodes.used(inode)
            return placed
        descriptor = self.inodes.descriptor(inode)
        if inode.layer is Layer.HOST:
            placed = inode.placed = Place(Layer.HOST, descriptor, False, inode.path, lambda: None)
            return placed
        mapped, rule = inode.consulted(), inode.spelling()
        if placed is not None and placed.mapped is mapped and placed.spelling is rule:
            return placed
        placed = Place(
            Layer.SYSROOT,
            descriptor,
            mapped,
            inode.path,
            lambda: self.twin(inode),
            self.walk.traits_of(descriptor),
            spelling=rule,
            others=tuple(self._part(inode, other) for other in inode.also),
        )
        # With others, each of these has a descriptor that may be closed.
        inode.placed = None if inode.also else placed
        return placed

    def _part(self, first: Inode, other: Inode) -> Place:
        """The place of *other*, which is shown as one with *first*."""
        descriptor = self.inodes.descriptor(other)

        def guards() -> tuple[Guard, ...]:
            # The kernel has walked to *first*, and has judged by what is on the way there.
            known = set(first.way())
            return tuple(
                guard
                for inode in other.way()
                if inode not in known
                for guard in twin.guards_of(self.inodes.descriptor(inode).fd)
            )

        return Place(
            Layer.SYSROOT,
            descriptor,
            True,
            other.path,
            lambda: None,
            self.walk.traits_of(descriptor),
            spelling=first.spelling(),
            guards=guards,
        )

    def twin(self, inode: Inode) -> Twin | None:
        """The host's directory at the path of a sysroot directory, None where it has none.

        Also where the directory was last reached in another spelling, though then nothing may be
        looked up there: what was found there before is still in use.
        """
        if inode.parent is None:
            return self._root_place.twin()
        now = time.monotonic()
        while self._twins and next(iter(self._twins.values()))[0] <= now:
            self._twins.popitem(last=False)
        if self.walk.host is None:
            return None
        # From the nearest ancestor whose twin is known, so that siblings share descriptors; not
        # by recursion, since a tree may be deeper than the interpreter's stack.
        way: list[Inode] = []
        here = inode
        while here.parent is not None and here not in self._twins:
            way.append(here)
            here = here.parent
        if here.parent is None:
            until, found = now + TWIN_SECONDS, self._root_place.twin()
            if way and way[-1].name in VIRTUAL_TREES:
                found = None
        else:
            until, found = self._twins[here]
        for step in reversed(way):
            if found is not None:
                found = twin.child_twin(found, step.name) if step.stored == step.name else None
            self._twins[step] = (until, found)
        # Kept in the order in which they expire, those from an older ancestor too.
        if way and until < now + TWIN_SECONDS:
            self._twins = OrderedDict(sorted(self._twins.items(), key=lambda item: item[1][0]))
        while len(self._twins) > self._twin_limit:
            self._twins.popitem(last=False)
        return found

    def appeared(self, parent: Inode, name: bytes) -> None:
        """*name* is in *parent* now: no other spelling of it is absent any more."""
        key = parent.spelling().key
        if key is not None and parent.layer is Layer.SYSROOT:
            for other in self.spellings.appeared(parent.id, key(name)):
                if other != name:
                    self.forgotten.append((parent.id, other))

    def vanished(self, parent: Inode, found: Found) -> None:
        """The entry *found* is gone from *parent*: the kernel must not keep its own spelling.

        It takes away the one that it was asked with.
        """
        if found.verdict is Verdict.FOLDED:
            self.forgotten.append((parent.id, found.guest))

    def forget_twins(self) -> None:
        """A directory moved: the literal paths below it are others now."""
        self._twins.clear()

    def forget_spellings(self, parent: Inode, name: bytes) -> None:
        """The directory that was *name* in *parent* has come under another rule for spellings.

        What was remembered of names below it followed the old one. Where the kernel cannot forget
        at once it does so with its timeouts.
        """
        self.walk.indexes.clear()
        self.forgotten.append((parent.id, name))

    def depends_on_spelling(self, parent: Inode, found: Found | Absent) -> bool:
        """Whether the answer is another when a directory above was reached in another spelling.

        The kernel keeps one name for a directory, whatever it was looked up as last, and what it
        remembers below would move along: from where the host may answer to where it may not.
        """
        if self.walk.host is None or parent.layer is not Layer.SYSROOT:
            return False
        if not parent.spelling().above:
            return False
        if isinstance(found, Absent):
            return found.verdict is Verdict.BELOW_MAPPING
        return found.layer is Layer.HOST

    def holder(self, inode: Inode) -> Descriptor:
        """The directory descriptor in which the name of *inode* stands."""
        parent = inode.parent
        assert parent is not None
        if inode.layer is Layer.HOST and parent.layer is Layer.SYSROOT:
            beside = self.twin(parent)
            if beside is None:
                raise error(errno.ESTALE)
            return beside.descriptor
        return self.inodes.descriptor(parent)

    # --- entries -----------------------------------------------------------------------------

    def adopt(self, parent: Inode, name: bytes, found: Found, new: bool = False) -> Entry:
        """The inode for what a step found, or has just been made, with one lookup more."""
        if found.stat is None:
            return self._virtual(parent, name, found)
        stat = found.stat
        folded = found.verdict is Verdict.FOLDED
        inode = self._adopt(parent, name, found, new)
        if found.also or inode.also:
            before, inode.placed = inode.also, None
            inode.also = tuple(self._adopt(parent, one.guest, one) for one in found.also)
            for other in before:
                self.inodes.forget(other.id, 1)
        # Of another spelling the kernel must ask each time: it would keep it after a rename or a
        # removal under the entry's own, and take a rename to another case for no change at all.
        private = found.private or folded
        private = private or (parent.spelling().key is not None and not self.forgets_at_once)
        if found.layer is Layer.HOST:
            private = (
                private
                or self._may_be_claimed(parent, found)
                or self.depends_on_spelling(parent, found)
            )
        return Entry(inode, stat, 0.0 if private else self.coherence.entry(parent, name, inode))

    def _adopt(self, parent: Inode, name: bytes, found: Found, new: bool = False) -> Inode:
        assert found.stat is not None
        stat = found.stat
        folded = found.verdict is Verdict.FOLDED
        own = found.guest if folded else name
        inode = self.inodes.adopt(
            found.layer, parent.part(found.part), own, found.stored, stat.mode, stat.dev, stat.ino,
            self._is_stable(found, stat), folded, new, look.birth(stat),
        )  # fmt: skip
        inode.nlink = stat.nlink
        return inode

    def _may_be_claimed(self, parent: Inode, found: Found) -> bool:
        """Whether a new sysroot name in another spelling would take this host entry away.

        The kernel could not be told: it remembers spellings, and only the volume knows which fold.
        """
        if found.layer is not Layer.HOST or parent.layer is not Layer.SYSROOT:
            return False
        if parent.spelling().key is not None:
            return True
        traits = self.place(parent).traits
        return traits is not None and traits.needs_spelling

    def _virtual(self, parent: Inode, name: bytes, found: Found) -> Entry:
        number = int.from_bytes(name[:5], "little") + parent.id
        kind = stat_module.S_IFREG if found.regular else stat_module.S_IFDIR
        stat = virtual_stat(kind)
        inode = self.inodes.adopt(Layer.VIRTUAL, parent, name, name, stat.mode, 0, number, False)
        # A real one may appear in another spelling.
        private = name == CIOPFS
        return Entry(inode, stat, 0.0 if private else self.coherence.entry(parent, name, inode))

    def known(self, parent: Inode, found: Found) -> Inode | None:
        """The inode of *found* if the kernel knows it."""
        if found.stat is None:
            return None
        stat = found.stat
        kind = stat_module.S_IFMT(stat.mode)
        key = self.inodes.key(
            found.layer, parent.part(found.part), found.stored, kind, stat.dev, stat.ino,
            self._is_stable(found, stat),
        )  # fmt: skip
        return self.inodes.find(key)

    def _is_stable(self, found: Found, stat: Stat) -> bool:
        if found.layer is Layer.SYSROOT and found.holder is not None:
            return self.walk.traits_of(found.holder).stable_inodes
        return look.numbers_last(stat)

    # --- rights ------------------------------------------------------------------------------

    def check_writable(self, layer: Layer) -> None:
        """Raise EROFS where nothing may be changed."""
        if self.config.read_only or layer is Layer.VIRTUAL:
            raise error(errno.EROFS)
        if layer is Layer.HOST and self.config.host_writes == "ro":
            raise error(errno.EROFS)

    @property
    def opens_do_nothing(self) -> bool:
        """Whether opening a file could as well be left out.

        Not where it is then that the guest has to hear that it may not write, nor where a volume
        below looks at who has a file open, nor where this process could not open a file any more
        that the guest may still use, because its mode has changed.
        """
        config = self.config
        all_writable = self.walk.host is None or config.host_writes == "rw" or config.read_only
        return all_writable and not self.late_errors and identity.overrides_permissions()

    @property
    def late_errors(self) -> bool:
        """Whether a volume below may report a write's failure only when a file is closed."""
        roots = [self.walk.sysroot, self.walk.host]
        return any(
            look.is_remote(linux.statx(root.fd, b"", linux.AT_EMPTY_PATH))
            for root in roots
            if root is not None
        )


def virtual_stat(kind: int) -> Stat:
    """The attributes of a virtual directory or file: root's, empty, not to be changed."""
    is_directory = kind == stat_module.S_IFDIR
    return Stat(
        mask=0, blksize=4096, attributes=0, nlink=2 if is_directory else 1, uid=0, gid=0,
        mode=kind | (0o555 if is_directory else 0o444), ino=0, size=0, blocks=0,
        atime=0, atime_part=0, btime=0, btime_part=0, ctime=0, ctime_part=0, mtime=0, mtime_part=0,
        rdev_major=0, rdev_minor=0, dev_major=0, dev_minor=0, mount_id=0,
    )  # fmt: skip
