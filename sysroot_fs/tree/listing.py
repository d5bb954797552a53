"""Listing a directory.

A listing is taken whole when it is first read or rewound, and its offsets count in it: entries that
come or go while somebody reads are neither lost nor repeated otherwise, and seekdir works. What
went away meanwhile is left out where it is reached.
"""

from __future__ import annotations

import errno
import os
import time
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence
from stat import S_IFDIR, S_ISDIR

from attrs import define

from sidecar import linux, look
from sidecar.descriptor import Descriptor
from sidecar.linux import Stat
from sidecar.naming import NAME_MAX
from sidecar.twin import Caller, guard_of
from sidecar.walk import Absent, Found, Layer, Place
from sysroot_fs.tree.core import Entry, Tree, virtual_stat
from sysroot_fs.tree.inodes import Inode

_TICK_NS = 1_000_000_000
_COARSE_NS = 5_000_000_000
"""For volumes of Windows' kinds, which count times in steps of up to two seconds."""
_DOTS = virtual_stat(S_IFDIR)
"""The kernel takes no more of `.` and `..` than what they are and their numbers."""
_DOT_COUNT = 2
_OPEN = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC


@define(slots=True, eq=False)
class Listing:
    """An open directory: whose it is, and the names as they were when reading began."""

    inode: Inode
    caller: Caller
    lasting: bool
    """Whether the directory's own times will show every change of what it lists."""
    same: bool
    """Whether they stand where they stood when it was opened the last time."""
    names: list[bytes] | None = None
    offsets: Sequence[int] = ()
    """Where each of the names stands, in rising order; what is gone leaves a gap."""
    end: int = 0
    """Where the next new name will stand."""
    shared: bool = False
    """Whether it is read by several at once; then `read_again` rewinds it."""

    def begin(self, names: list[bytes]) -> None:
        """Have *names* and nothing from before."""
        self.names, self.offsets, self.end = names, range(len(names)), len(names)

    def is_over(self, start: int) -> bool:
        """Whether who reads on from offset *start* has had everything."""
        return start >= _DOT_COUNT and bisect_left(self.offsets, start - _DOT_COUNT) == len(
            self.offsets
        )


def _sayable(names: Iterable[bytes]) -> list[bytes]:
    """Those of *names* that a program can say: a volume that counts in UTF-16 may hold longer."""
    return [name for name in names if len(name) <= NAME_MAX]


def names_in(holder: Descriptor) -> list[bytes]:
    """The names in a directory, as the volume gives them."""
    fd = os.open(b".", _OPEN, dir_fd=holder.fd)
    try:
        return [os.fsencode(name) for name in os.listdir(fd)]
    finally:
        os.close(fd)


def open_listing(tree: Tree, number: int, caller: Caller) -> Listing:
    """Open the directory *number*. Nothing is read: programs hold directories without reading."""
    inode = tree.inodes[number]
    tree.coherence.watch(inode)
    if not _times_tell(tree, inode):
        return Listing(inode, caller, lasting=False, same=False)
    seen = linux.statx(tree.inodes.descriptor(inode).fd, b"", linux.AT_EMPTY_PATH)
    # Of a directory that has just changed another change may leave the times as they are.
    age = time.time_ns() - seen.ctime_ns
    lasting = age > _settled_ns(tree, inode, seen) and not look.is_remote(seen)
    before, inode.listed = inode.listed, (seen.mtime_ns, seen.ctime_ns) if lasting else None
    return Listing(inode, caller, lasting, lasting and before == inode.listed)


def _settled_ns(tree: Tree, inode: Inode, seen: Stat) -> int:
    """How long ago a directory has to have changed, so that another change moves its times."""
    if inode.layer is Layer.SYSROOT:
        # Never measured on the host: that would leave traces there.
        return _TICK_NS + 2 * tree.walk.traits_of(tree.inodes.descriptor(inode)).time_step_ns
    return _TICK_NS if look.numbers_last(seen) else _COARSE_NS


def _times_tell(tree: Tree, inode: Inode) -> bool:
    """Whether what a directory lists is in itself alone: no other's changes show there."""
    if inode.layer is Layer.VIRTUAL or inode.also or tree.walk.merge:
        return False
    return inode.layer is Layer.HOST or tree.config.listing != "union"


def _snapshot(tree: Tree, inode: Inode, caller: Caller) -> list[bytes]:
    place = tree.place(inode)
    if place.layer is Layer.VIRTUAL or place.descriptor is None:
        return []
    index = tree.walk.index(place)
    if tree.walk.merge and (place.spelling.key is not None or place.others):
        names = _merged_names(tree, place, caller)
    elif index is None:
        names = names_in(place.descriptor)
    else:
        names = [name for name, _ in index.listing(place.fd)]
    if tree.config.listing == "union" and place.layer is Layer.SYSROOT and not place.mapped:
        beside = place.twin()
        readable = beside is not None and guard_of(beside.descriptor.fd).grants(caller, 4)
        if beside is not None and readable and beside.admits(caller):
            key = place.spelling.key
            held = set(names) if key is None else {key(name) for name in names}
            names += [
                name
                for name in names_in(beside.descriptor)
                if (name if key is None else key(name)) not in held
            ]
    return _sayable(names)


def read_again(tree: Tree, listing: Listing) -> None:
    """Have *listing* from the beginning, for somebody who reads it while others still do.

    What it had and has stays where it was, so that their offsets mean what they meant; what is new
    stands behind everything that ever was there.
    """
    names = _snapshot(tree, listing.inode, listing.caller)
    if listing.names is None:
        listing.begin(names)
        return
    there = set(names)
    kept = {
        name: offset
        for name, offset in zip(listing.names, listing.offsets, strict=True)
        if name in there
    }
    new = [name for name in names if name not in kept]
    end = listing.end
    listing.names = [*kept, *new]
    listing.offsets = [*kept.values(), *range(end, end + len(new))]
    listing.end = end + len(new)


def _part_names(tree: Tree, part: Place) -> list[bytes]:
    index = tree.walk.index(part)
    if index is None:
        assert part.descriptor is not None
        return names_in(part.descriptor)
    return [name for name, _ in index.listing(part.fd)]


def _merged_names(tree: Tree, place: Place, caller: Caller) -> list[bytes]:
    """The names of all parts together; directories with one fold key are one, the first's.

    Without those of a part that *caller* may not read: the guest's kernel judges by the first.
    """
    key = place.spelling.key
    groups: dict[bytes, dict[bytes, None]] = {}
    for number, part in enumerate(place.parts):
        if number and not guard_of(part.fd).grants(caller, 4):
            continue
        for name in sorted(_sayable(_part_names(tree, part))):
            groups.setdefault(name if key is None else key(name), {})[name] = None
    names: list[bytes] = []
    for group in groups.values():
        if len(group) == 1 and not place.others:
            names += group
            continue
        shown = set()
        for name in group:
            found = tree.walk.step(place, name, caller)
            if isinstance(found, Found):
                shown.add(found.guest if found.stat and S_ISDIR(found.stat.mode) else name)
        names += shown
    return names


def read(tree: Tree, listing: Listing, start: int) -> Iterator[tuple[bytes, Entry | None, int]]:
    """(name, entry, offset behind it) from offset *start* on; None for what cannot be looked at.

    Whoever asks for such a one by its name meets the error. Offset zero (also rewinddir) reads the
    directory anew. Each entry carries one lookup for the kernel, `.` and `..` excepted, which the
    kernel does not count: an entry that could not be handed on must be given back with
    `Inodes.forget`.
    """
    inode = listing.inode
    if listing.names is None or (start == 0 and not listing.shared):
        listing.begin(_snapshot(tree, inode, listing.caller))
    names, offsets = listing.names, listing.offsets
    assert names is not None
    for offset, (dots, known) in enumerate(((b".", inode), (b"..", inode.parent or inode))):
        if start <= offset:
            yield dots, Entry(known, _DOTS, 0.0), offset + 1
    place = tree.place(inode)
    for number in range(bisect_left(offsets, start - _DOT_COUNT), len(names)):
        name = names[number]
        try:
            found = tree.walk.step(place, name, listing.caller)
        except OSError as failure:
            if failure.errno == errno.ESTALE:
                continue
            found = None
        if isinstance(found, Absent):
            continue
        entry = None if found is None else tree.adopt(inode, name, found)
        yield name, entry, offsets[number] + _DOT_COUNT + 1
