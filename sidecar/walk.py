"""The walk: one function takes a place and a name and gives the next place, or a miss.

Lookups and mutations, the mount and the library use this function; a second one that disagrees
is the bug that the project exists to avoid. What it decides, and in which order, is the table in
`docs/CONTRACT.md` section 2.
"""

from __future__ import annotations

import errno
import os
import stat as stat_module
from collections.abc import Callable, Mapping
from enum import Enum
from typing import Final, NamedTuple, Protocol
from weakref import WeakKeyDictionary

from attrs import define, field, frozen

from sidecar import linux, twin, volume
from sidecar.descriptor import Descriptor
from sidecar.index import DirectoryIndex, Indexes, look
from sidecar.linux import Stat
from sidecar.look import find
from sidecar.naming import NAME_MAX, Kind, Policy, candidates, needs_index
from sidecar.spelling import EXACT, Spelling
from sidecar.twin import MAX_LINKS, ROOT, Caller, Guard, Twin
from sidecar.volume import Traits

VIRTUAL_TREES: Final = frozenset({b"proc", b"sys", b"dev"})
"""Top-level names that never fall back: empty directories to bind the real trees on."""

CIOPFS: Final = b".ciopfs"
"""A name that Wine looks for in a directory: where it is there, no spelling has to be tried."""

_OPEN_DIR: Final = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


class Layer(Enum):
    """Where an entry lies."""

    SYSROOT = "sysroot"
    HOST = "host"
    VIRTUAL = "virtual"

    # By identity: the enum's own is a call in Python, and it is part of the key of every inode.
    __hash__ = object.__hash__


class Verdict(Enum):
    """Why a component is where it is, or is not there."""

    EXACT = "exact"
    ESCAPE = "escape"
    ROW = "row"
    FOLDED = "folded"
    HOST = "host"
    VIRTUAL = "virtual"
    ABSENT = "absent"
    CLAIMED = "claimed"
    BELOW_MAPPING = "below-mapping"
    POLICY = "policy"
    CREATE = "create"


_FOUND: Final = {
    Kind.LITERAL: Verdict.EXACT,
    Kind.ESCAPE: Verdict.ESCAPE,
    Kind.TOKEN: Verdict.ROW,
    Kind.FOLDED: Verdict.FOLDED,
}


class HostRules(Protocol):
    """What the walk asks of a host policy."""

    trivial: bool
    """True where every path may fall back: the path need not be known then."""

    def allows(self, path: bytes) -> bool:
        """Whether the guest path *path* may be answered by the host."""


@define(slots=True, eq=False)
class Place:
    """A directory in which a walk stands.

    *path* and *twin* are asked for only when the walk leaves the sysroot here: both can cost as
    much as the directory is deep. *mapped* says whether a mapping was consulted on the way.
    *others* are directories that are merged with it; *guards* are the directories on the way to
    such a one, and itself, that not everybody may search: the guest's kernel sees but the first.
    """

    layer: Layer
    descriptor: Descriptor | None
    mapped: bool
    path: Callable[[], bytes]
    twin: Callable[[], Twin | None]
    traits: Traits | None = None
    is_root: bool = False
    spelling: Spelling = EXACT
    others: tuple[Place, ...] = ()
    guards: Callable[[], tuple[Guard, ...]] = tuple
    indexed: bool | None = field(default=None, init=False)
    """What `has_index` has found out."""

    def has_index(self, policy: Policy) -> bool:
        """Whether stored names are other than guest names here, or found by more than one."""
        if self.indexed is None:
            self.indexed = self.traits is not None and (
                self.spelling.key is not None or needs_index(self.traits, policy)
            )
        return self.indexed

    @property
    def parts(self) -> tuple[Place, ...]:
        """This directory and those that are merged with it, in the order in which names win."""
        return (self, *self.others)

    @property
    def fd(self) -> int:
        """The directory's descriptor; a virtual directory has none (EROFS: nothing goes there)."""
        if self.descriptor is None:
            raise OSError(errno.EROFS, os.strerror(errno.EROFS))
        return self.descriptor.fd


class Found(NamedTuple):
    """An entry. *holder* is the directory descriptor in which *stored* names it.

    *private* says that not everybody may see it: the answer is for this caller alone. What is
    virtual has neither attributes nor a holder: a directory, or with *regular* a file. *guest* is
    the entry's own spelling where it was found in another. *part* says in which of the place's
    parts it lies, and *also* are directories to be merged with it.
    """

    layer: Layer
    verdict: Verdict
    stored: bytes
    stat: Stat | None
    holder: Descriptor | None
    mapped: bool
    private: bool = False
    regular: bool = False
    guest: bytes = b""
    part: int = 0
    also: tuple[Found, ...] = ()


class Absent(NamedTuple):
    """No entry. *private* as in `Found`."""

    verdict: Verdict
    private: bool = False


@frozen(slots=True)
class Step:
    """One component of a resolved path, in words for people and programs."""

    name: bytes
    path: bytes
    verdict: str
    layer: str
    stored: bytes | None
    mapped: bool
    why: str
    link: bytes | None = None
    error: int | None = None


def _is_directory(found: Found) -> bool:
    return found.stat is not None and stat_module.S_ISDIR(found.stat.mode)


DOOR: Final = Found(Layer.VIRTUAL, Verdict.VIRTUAL, b"", None, None, False)
_FILE: Final = Found(Layer.VIRTUAL, Verdict.VIRTUAL, b"", None, None, False, regular=True)


def _door(stat: Stat) -> Found:
    """What stands for a mount that must not be entered: it may have a file for its root."""
    return DOOR if stat_module.S_ISDIR(stat.mode) else _FILE


def _join(path: bytes, name: bytes) -> bytes:
    return path + name if path.endswith(b"/") else path + b"/" + name


@define(slots=True, eq=False)
class Walk:
    """The walk over one sysroot and one host. Not safe for threads; descriptors are kept open.

    *host* is None where nothing falls back. *mountpoints* are guest paths that are there, empty,
    where neither layer has them, so that something can be mounted on them: true for a directory,
    false for a file. The way to each must be in it too. With *merge*, directories whose names are
    one under the fold key are shown as one.
    """

    sysroot: Descriptor
    host: Descriptor | None
    rules: HostRules
    policy: Policy = Policy.NATURAL
    spelling: Spelling = EXACT
    merge: bool = False
    mountpoints: Mapping[bytes, bool] = field(factory=dict)
    indexes: Indexes = field(init=False)
    _volumes: dict[tuple[int, int], Traits] = field(factory=dict, init=False)
    _open: WeakKeyDictionary[Descriptor, DirectoryIndex] = field(
        factory=WeakKeyDictionary, init=False
    )

    def __attrs_post_init__(self) -> None:
        self.indexes = Indexes(self.policy)

    # --- places ------------------------------------------------------------------------------

    def root(self) -> Place:
        """The guest's root. Probes the sysroot's volume on first use (`volume.ProbeError`)."""
        base = None if self.host is None else twin.root_twin(self.host)
        traits = self.traits(self.sysroot.fd)
        return Place(
            Layer.SYSROOT, self.sysroot, False, lambda: b"/", lambda: base, traits, True,
            self.spelling,
        )  # fmt: skip

    def traits(self, dirfd: int) -> Traits:
        """The traits of the volume on which *dirfd* lies, probed once per volume."""
        seen = linux.statx(dirfd, b"", linux.AT_EMPTY_PATH | linux.AT_STATX_DONT_SYNC)
        # The number of a device that was unmounted may be another volume's now.
        key = (seen.dev, seen.mount_id)
        known = self._volumes.get(key)
        if known is None:
            known = self._volumes[key] = volume.probe(dirfd)
        return known

    def traits_of(self, descriptor: Descriptor) -> Traits:
        """As `traits`, for a directory met on the way: EIO where its volume cannot be measured."""
        known = descriptor.traits
        if known is None:
            try:
                known = descriptor.traits = self.traits(descriptor.fd)
            except volume.ProbeError as failure:
                raise OSError(errno.EIO, str(failure)) from None
        return known

    def index(self, place: Place) -> DirectoryIndex | None:
        """The index of a sysroot directory, None where stored names are guest names."""
        if place.indexed is False or not place.has_index(self.policy):
            return None
        assert place.descriptor is not None and place.traits is not None
        # Kept with the descriptor: a miss in a directory that folds must not cost a system call.
        known = self._open.get(place.descriptor)
        if known is None or known.retired or known.key is not place.spelling.key:
            known = self.indexes.of(place.fd, place.traits, place.spelling.key)
            self._open[place.descriptor] = known
        return known

    def enter(self, place: Place, name: bytes, found: Found) -> Place:
        """The place for the directory *found* as *name* in *place*. Raises NotADirectoryError."""
        path = _join(place.path(), found.guest or name)
        if found.regular:
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
        if found.layer is Layer.VIRTUAL or found.holder is None:
            return Place(Layer.VIRTUAL, None, False, lambda: path, lambda: None)
        descriptor = Descriptor(os.open(found.stored, _OPEN_DIR, dir_fd=found.holder.fd))
        others = tuple(self._enter_part(place, one) for one in found.also)
        if found.layer is Layer.HOST:
            return Place(Layer.HOST, descriptor, place.mapped, lambda: path, lambda: None)
        # At once, not when asked for: a chain of questions would be as deep as the tree.
        shut = found.mapped or (place.is_root and name in VIRTUAL_TREES)
        above = None if shut else place.twin()
        beside = None if above is None else twin.child_twin(above, name)
        traits = self.traits_of(descriptor)
        return Place(
            Layer.SYSROOT, descriptor, found.mapped, lambda: path, lambda: beside, traits,
            spelling=place.spelling.child(name), others=others,
        )  # fmt: skip

    def _enter_part(self, place: Place, found: Found) -> Place:
        """The place for a directory that is merged with another."""
        part = place.parts[found.part]
        entered = self.enter(part, found.guest, found)
        guards = (*part.guards(), *twin.guards_of(entered.fd))
        entered.guards = lambda: guards
        return entered

    # --- one step ----------------------------------------------------------------------------

    def step(self, place: Place, name: bytes, caller: Caller = ROOT) -> Found | Absent:
        """What *name* is in *place*, for *caller*.

        Raises OSError(ENAMETOOLONG) past 255 bytes, `index_file.DamagedIndex` (EIO), and whatever
        the volume answers; never turns an error into an absence. A caller that may not search the
        twin finds nothing on the host, and that answer is for this caller alone.
        """
        if len(name) > NAME_MAX:
            raise OSError(errno.ENAMETOOLONG, os.strerror(errno.ENAMETOOLONG))
        found = self._step(place, name, caller)
        if isinstance(found, Found):
            return found
        if self.mountpoints:
            is_directory = self.mountpoints.get(_join(place.path(), name))
            if is_directory is not None:
                return DOOR if is_directory else _FILE
        if name == CIOPFS and place.spelling.key is not None:
            return _FILE
        return found

    def _step(self, place: Place, name: bytes, caller: Caller) -> Found | Absent:
        if place.layer is Layer.SYSROOT:
            return self._sysroot_step(place, name, caller)
        if place.layer is Layer.HOST:
            if not self.rules.trivial and not self.rules.allows(_join(place.path(), name)):
                return Absent(Verdict.POLICY)
            assert place.descriptor is not None
            return self._host_step(place.descriptor, name, place.mapped, private=False)
        return Absent(Verdict.ABSENT)

    def _sysroot_step(self, place: Place, name: bytes, caller: Caller) -> Found | Absent:
        index = self.index(place)
        claimed = False
        if self.merge and (place.spelling.key is not None or place.others):
            found = self._merged(place, name, caller)
            if found is not None:
                return found
        if index is None:
            seen = find(place.fd, name)
            if seen is not None:
                stat, door = seen
                if door:
                    return _door(stat)
                return Found(
                    Layer.SYSROOT, Verdict.EXACT, name, stat, place.descriptor, place.mapped
                )
        else:
            entry, claimed = index.find(place.fd, name)
            if entry is not None:
                if entry.door:
                    return _door(entry.stat)
                mapped = place.mapped or entry.kind is not Kind.LITERAL
                verdict = _FOUND[entry.kind]
                return Found(
                    Layer.SYSROOT, verdict, entry.stored, entry.stat, place.descriptor, mapped,
                    guest=entry.guest,
                )  # fmt: skip
        if claimed:
            return Absent(Verdict.CLAIMED)
        if place.mapped:
            return Absent(Verdict.BELOW_MAPPING)
        return self._leave(place, name, caller)

    def _merged(self, place: Place, name: bytes, caller: Caller) -> Found | Absent | None:
        """What *name* is in all parts of a place together, None where no part has it.

        The exact spelling wins, then the first part, then the first in byte order. Directories of
        all spellings are one, and it does not depend on the spelling asked for which one leads;
        where the names in them are exact, only those of one spelling are. What lies in a part
        that *caller* may not search is not there for him.
        """
        members: list[Found] = []
        visible: set[int] = set()
        for number, part in enumerate(place.parts):
            shown = [
                Found(
                    Layer.SYSROOT, _FOUND[kind], stored, stat, part.descriptor,
                    place.mapped or number > 0 or kind is not Kind.LITERAL,
                    guest=guest, part=number,
                )
                for guest, stored, kind in self._group(part, name)
                for stat, door in filter(None, (look(part.fd, stored),))
                if not door
            ]  # fmt: skip
            guards = part.guards() if shown else ()
            if all(guard.admits(caller) for guard in guards):
                visible.add(number)
            members += [one._replace(private=bool(guards)) for one in shown]
        if not members:
            return None
        private = any(one.private for one in members)
        candidates = [one for one in members if one.part in visible]
        if not candidates:
            return Absent(Verdict.CLAIMED, private)
        chosen = next((one for one in candidates if one.guest == name), candidates[0])
        if len(members) == 1 or not _is_directory(chosen):
            return chosen._replace(private=private)
        folds = place.spelling.child(name).key is not None
        directories = [
            one for one in members if _is_directory(one) and (folds or one.guest == chosen.guest)
        ]
        # Those behind the first one only: it is another for another caller.
        first = next(one for one in directories if one.part in visible)
        also = directories[directories.index(first) + 1 :]
        return first._replace(
            private=private,
            also=tuple(one._replace(verdict=Verdict.FOLDED, mapped=True) for one in also),
        )

    def _group(self, part: Place, name: bytes) -> list[tuple[bytes, bytes, Kind]]:
        """(guest name, stored name, what it is to *name*) of its spellings in *part*."""
        index = self.index(part)
        if index is None:
            return [(name, name, Kind.LITERAL)]
        if index.key is not None:
            return index.group(part.fd, name)
        entry, _ = index.find(part.fd, name)
        return [] if entry is None else [(name, entry.stored, entry.kind)]

    def _leave(self, place: Place, name: bytes, caller: Caller) -> Found | Absent:
        if place.is_root and name in VIRTUAL_TREES:
            return DOOR
        if self.host is None:
            return Absent(Verdict.POLICY)
        if not self.rules.trivial and not self.rules.allows(_join(place.path(), name)):
            return Absent(Verdict.POLICY)
        beside = place.twin()
        if beside is None:
            return Absent(Verdict.ABSENT)
        private = bool(beside.guards)
        if private and not beside.admits(caller):
            # Not EACCES: the sysroot's directory is the caller's to use, only the host's is not.
            return Absent(Verdict.POLICY, private)
        return self._host_step(beside.descriptor, name, False, private)

    def _host_step(
        self, holder: Descriptor, name: bytes, mapped: bool, private: bool
    ) -> Found | Absent:
        seen = find(holder.fd, name)
        if seen is None:
            return Absent(Verdict.ABSENT, private)
        stat, door = seen
        if door:
            return _door(stat)
        return Found(Layer.HOST, Verdict.HOST, name, stat, holder, mapped, private)

    # --- whole paths -------------------------------------------------------------------------

    def resolve(self, path: bytes, create: bool = False) -> list[Step]:
        """The steps of the guest path *path*, taken from the guest's root.

        The path of a step is in the spelling of what was found. Links in the middle are followed
        as the guest's kernel would (40 at most); the last component is not. With *create* a
        missing last component says where a new name would go and under which stored name it would
        be tried first. A failing step is the last and carries its errno.
        """
        steps: list[Step] = []
        chain = [self.root()]
        rest = [part for part in reversed(path.split(b"/")) if part]
        trailing = path.endswith(b"/")
        links = 0
        while rest:
            name = rest.pop()
            place = chain[-1]
            if name == b".":
                continue
            if name == b"..":
                if len(chain) > 1:
                    chain.pop()
                continue
            here = _join(place.path(), name)
            try:
                found = self.step(place, name)
                if isinstance(found, Absent):
                    steps.append(self._missing(place, name, here, found, create and not rest))
                    return steps
                link = None
                if found.stat is not None and stat_module.S_ISLNK(found.stat.mode):
                    assert found.holder is not None
                    if rest or trailing:
                        link = os.readlink(found.stored, dir_fd=found.holder.fd)
                here = _join(place.path(), found.guest or name)
                steps.append(self._present(place, name, here, found, link))
                if link is not None:
                    links += 1
                    if links > MAX_LINKS:
                        raise OSError(errno.ELOOP, os.strerror(errno.ELOOP))
                    if link.startswith(b"/"):
                        del chain[1:]
                    rest.extend(part for part in reversed(link.split(b"/")) if part)
                elif rest or trailing:
                    chain.append(self.enter(place, name, found))
            except OSError as error:
                if steps and steps[-1].path == here:
                    steps.pop()
                steps.append(_failed(place, name, here, error))
                return steps
        return steps

    def real_path(self, path: bytes, links: int = MAX_LINKS) -> bytes:
        """The guest path without links to which *path* leads.

        What is missing is appended as it is, also where a link leads to nothing. Raises OSError as
        `resolve` tells it.
        """
        real = b""
        parts = [part for part in path.split(b"/") if part]
        for number, part in enumerate(parts, 1):
            here = real + b"/" + part
            # The slash has the last link followed too.
            steps = self.resolve(here + b"/")
            last = steps[-1]
            if last.error not in (None, errno.ENOENT, errno.ENOTDIR):
                raise OSError(last.error, os.strerror(last.error), path)
            if last.error == errno.ENOENT:
                # A link that leads to nothing stands for what is missing there.
                link = next((one.link for one in steps if one.path == here), None)
                rest = b"/".join([link or here, *parts[number:]])
                if link is None:
                    return rest
                if not links:
                    raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), path)
                return self.real_path(os.path.normpath(os.path.join(real or b"/", rest)), links - 1)
            real = last.path
            if last.error == errno.ENOTDIR:
                # A file, or a link to one: the last component, or the kernel will say.
                return b"/".join([real, *parts[number:]])
        return real or b"/"

    def _present(
        self, place: Place, name: bytes, path: bytes, found: Found, link: bytes | None
    ) -> Step:
        if found.verdict is Verdict.EXACT:
            why = "the sysroot has an entry spelled exactly so"
        elif found.verdict is Verdict.ESCAPE:
            why = "the sysroot holds it under its escape, so a mapping was consulted"
        elif found.verdict is Verdict.ROW:
            why = "the directory's index file maps it to a token, so a mapping was consulted"
        elif found.also:
            why = (
                f"{len(found.also) + 1} directories of the sysroot with this name are shown as one"
            )
        elif found.verdict is Verdict.FOLDED:
            why = "the sysroot has it in another spelling, so a mapping was consulted"
        elif found.verdict is Verdict.VIRTUAL:
            why = "a virtual tree or another mount's root never falls back: an empty directory"
        elif place.layer is Layer.HOST:
            why = "the walk has left the sysroot: the literal host entry"
        else:
            why = "the sysroot directory has no such entry, no mapping was consulted: the host's"
        stored = found.stored or None
        return Step(
            name, path, found.verdict.value, found.layer.value, stored, found.mapped, why, link
        )

    def _missing(
        self, place: Place, name: bytes, path: bytes, absent: Absent, create: bool
    ) -> Step:
        why = {
            Verdict.CLAIMED: "the volume holds this slot under another spelling, so the host is "
            "not asked",
            Verdict.BELOW_MAPPING: "below a mapping the sysroot is authoritative, so the host is "
            "not asked",
            Verdict.POLICY: "the sysroot has no such entry and the host policy keeps the host out",
            Verdict.ABSENT: "neither layer has such an entry"
            if place.layer is Layer.SYSROOT
            else "the walk has left the sysroot and the host has no such entry",
        }[absent.verdict]
        if not create:
            return Step(
                name, path, absent.verdict.value, "none", None, place.mapped, why,
                error=errno.ENOENT,
            )  # fmt: skip
        if place.layer is Layer.VIRTUAL:
            raise OSError(errno.EROFS, os.strerror(errno.EROFS))
        if place.layer is Layer.HOST:
            if absent.verdict is Verdict.POLICY:
                raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
            why = "the parent is on the host: a new name is made there, literally"
            return Step(name, path, "create", "host", name, place.mapped, why)
        stored, kind = self._first_candidate(place, name)
        why = f"the parent is in the sysroot: a new name is made there ({kind.value} name)"
        mapped = place.mapped or kind is not Kind.LITERAL
        return Step(name, path, "create", "sysroot", stored, mapped, why)

    def _first_candidate(self, place: Place, name: bytes) -> tuple[bytes, Kind]:
        assert place.traits is not None
        for kind, stored in candidates(name, place.traits, self.policy):
            try:
                linux.statx(place.fd, stored, linux.AT_SYMLINK_NOFOLLOW)
            except FileNotFoundError:
                return stored, kind
            except OSError:
                continue
        raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST))


def _failed(place: Place, name: bytes, path: bytes, error: OSError) -> Step:
    text = error.strerror or os.strerror(error.errno or errno.EIO)
    number = error.errno or errno.EIO
    return Step(name, path, "absent", "none", None, place.mapped, text, error=number)
