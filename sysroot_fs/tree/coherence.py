"""The trees changed underneath: for how long the kernel may remember an answer, and what it must
forget.

A layer is `exclusive` (nobody else writes it: everything is remembered), `watched` (hardly anybody
does: remembered for long where a watcher sees the directory, for a second elsewhere), `shared`
(anybody may: the same, but attributes of files for a second everywhere) or `none` (nothing is
remembered). What no watcher sees is a hard link made elsewhere, what is then done by that name, and
what somebody writes through a mapping before he unmaps it: that is the difference.

What was told for long is noted with its directory (`Remembered`); when the watcher reports a change
there, exactly that is taken back. Names that were never asked for cost nothing, whatever happens to
them.

What is watched stands in `sysroot_fs.tree.watching`. An answer from the host below a directory of
the sysroot depends on that directory, on its twin and on every twin above: all of these are watched
before such an answer may last.

The race between an answer on its way and the event that makes it wrong is closed by telling twice
(`sysroot_fs.fuse.notices`).
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Final, Protocol

from attrs import define, field, frozen

from sidecar import fsnotify
from sidecar.index import DirectoryIndex
from sidecar.linux import Stat
from sidecar.twin import Twin
from sidecar.walk import Layer, Place, Walk
from sysroot_fs.tree.inodes import Inode, Inodes, is_below
from sysroot_fs.tree.remembered import Remembered
from sysroot_fs.tree.watching import Watching

LONG: Final = 86400.0
"""Seconds: as good as for ever; the kernel forgets by itself what it needs the memory for."""
SHORT: Final = 1.0
_WATCHED: Final = frozenset({"watched", "shared"})
ABSENCES: Final = 100_000
"""So many absent names are remembered for long; past that all of them are taken back."""


@frozen(slots=True)
class Entry:
    """The kernel shall look *name* in *parent* up again."""

    parent: int
    name: bytes


@frozen(slots=True)
class Attributes:
    """It shall ask for the attributes of an inode again, and with *data* for what is in it."""

    inode: int
    data: bool


@frozen(slots=True)
class Removed:
    """The file *inode* is no longer *name* in *parent*, nor anything else: who waits for that may
    hear of it. An `Entry` follows."""

    parent: int
    inode: int
    name: bytes


Notice = Entry | Attributes | Removed


class Timeouts(Protocol):
    """What the user has said; None leaves it to the modes. Seconds."""

    @property
    def coherence(self) -> str: ...
    @property
    def host_coherence(self) -> str: ...
    @property
    def entry_timeout(self) -> float | None: ...
    @property
    def attr_timeout(self) -> float | None: ...
    @property
    def negative_timeout(self) -> float | None: ...


@define(slots=True, eq=False)
class Coherence:
    """Of one tree: *place* and *twin* are its, *moved* has it forget what it believes of twins."""

    config: Timeouts
    walk: Walk
    inodes: Inodes
    place: Callable[[Inode], Place]
    twin: Callable[[Inode], Twin | None]
    moved: Callable[[], None]
    union: bool
    _tell: Callable[[Notice], None] | None = field(default=None, init=False)
    watching: Watching = field(init=False)
    _can_watch: bool = field(default=False, init=False)
    """Whether anything can be watched."""
    _absences: int = field(default=0, init=False)

    def __attrs_post_init__(self) -> None:
        self.watching = Watching(
            self.inodes, self.twin, self._changed, self._mounted, self.forget_all
        )

    # --- starting and stopping ---------------------------------------------------------------

    def start(self, tell: Callable[[Notice], None]) -> int | None:
        """Watch from now on; *tell* takes notices for the kernel, of which none may be lost.

        The descriptor that can be read when `read` has something to do. None where nothing is to
        be watched or nothing can be.
        """
        self._tell = tell
        if not _WATCHED & {self.config.coherence, self._host_mode()}:
            return None
        fd = self.watching.start()
        if fd is not None:
            self._can_watch = True
            self.inodes.dropped.append(self._dropped)
        return fd

    def _host_mode(self) -> str:
        return "none" if self.walk.host is None else self.config.host_coherence

    def close(self) -> None:
        """Watch nothing any more, and tell nobody."""
        self.watching.stop()
        self._can_watch = False
        self._tell = None

    def report(self) -> dict[str, object]:
        """How it goes, for `status`."""
        return {
            "sysroot": self.config.coherence,
            "host": self._host_mode(),
            **self.watching.report(),
        }

    # --- for how long ------------------------------------------------------------------------

    def entry(self, parent: Inode, name: bytes, inode: Inode) -> float:
        """Seconds for which the kernel may remember that *name* in *parent* is *inode*."""
        seconds = self._seconds(parent, inode.layer is not Layer.SYSROOT)
        if self.config.entry_timeout is not None:
            seconds = self.config.entry_timeout
        if seconds > SHORT and parent.remembered is not None:
            parent.remembered.names[name] = inode.id
        return seconds

    def absent(self, parent: Inode, name: bytes, seen: bool) -> float:
        """The same of an absence; *seen* says that the host may not answer here anyway."""
        seconds = self._seconds(parent, not seen)
        if self.config.negative_timeout is not None:
            seconds = self.config.negative_timeout
        if seconds > SHORT and parent.remembered is not None:
            self._absences += name not in parent.remembered.names
            parent.remembered.names[name] = 0
            if self._absences > ABSENCES:
                self._take_absences_back()
        return seconds

    def attributes(self, inode: Inode, stat: Stat) -> float:
        """Seconds for which the kernel may remember the attributes *stat* of *inode*."""
        if self.config.attr_timeout is not None:
            return self.config.attr_timeout
        mode = self._mode(inode.layer)
        if mode not in _WATCHED:
            return LONG if mode == "exclusive" else 0.0
        if inode.layer is Layer.VIRTUAL:
            return LONG
        if inode.is_directory:
            remembered = inode.remembered
            return LONG if remembered is not None and remembered.watched else SHORT
        # What has other names can be changed by them, wherever they are.
        if mode == "shared" or stat.nlink != 1 or inode.parent is None:
            return SHORT
        remembered = inode.parent.remembered
        # The name is noted as long as nothing has happened to it.
        if remembered is not None and remembered.names.get(inode.name) == inode.id:
            return LONG
        return SHORT

    def _mode(self, layer: Layer) -> str:
        return self.config.coherence if layer is Layer.SYSROOT else self.config.host_coherence

    def _seconds(self, parent: Inode, by_host: bool) -> float:
        remembered = parent.remembered
        if parent.layer is Layer.VIRTUAL:
            return LONG
        watched = remembered is not None and remembered.watched
        seconds = _of(self._mode(parent.layer), watched)
        if by_host and parent.layer is Layer.SYSROOT and self.walk.host is not None:
            beside = remembered is not None and remembered.beside
            if remembered is not None and not beside and seconds > 0:
                # For the next time: what was found just now was not watched yet.
                self._watch_beside(parent)
            seconds = min(seconds, _of(self.config.host_coherence, beside))
        return seconds

    @property
    def listings_last(self) -> bool:
        """Whether the kernel may keep every listing until it is told otherwise."""
        modes = (
            {self.config.coherence, self._host_mode()}
            if self.walk.host
            else {self.config.coherence}
        )
        if "none" in modes or self.config.attr_timeout == 0 or self.union or self.walk.merge:
            return False
        return self._can_watch or modes == {"exclusive"}

    def listed(self, inode: Inode) -> None:
        """The directory *inode* was read, and nobody says when it is closed."""
        remembered = inode.remembered
        watched = remembered is not None and remembered.watched
        if not watched and self._mode(inode.layer) in _WATCHED and inode.layer is not Layer.VIRTUAL:
            # Its times need not show the next change.
            self._send(Attributes(inode.id, data=True))

    # --- watching ----------------------------------------------------------------------------

    def watch(self, inode: Inode) -> None:
        """Names in the directory *inode* are about to be asked for."""
        if inode.remembered is not None:
            return
        inode.remembered = Remembered()
        if inode.layer is Layer.VIRTUAL or self._mode(inode.layer) == "none":
            return
        if not self._can_watch or self.walk.merge:
            return
        if self._mode(inode.layer) in _WATCHED:
            inode.remembered.watched = self.watching.add(inode, twin=False)
        else:
            self.watching.directories[inode] = []

    def _watch_beside(self, inode: Inode) -> None:
        """Watch the twins of *inode* and of all above, as far as there are any."""
        if self._can_watch and not self.walk.merge and self.config.host_coherence != "exclusive":
            self.watching.add_twins(inode)

    def _dropped(self, inode: Inode) -> None:
        """The kernel has let go of *inode*."""
        parent = inode.parent
        if parent is not None and parent.remembered is not None:
            names = parent.remembered.names
            if names.get(inode.name) == inode.id:
                del names[inode.name]
        if inode.remembered is not None:
            self.watching.drop(inode)
            inode.remembered = None

    # --- what has changed --------------------------------------------------------------------

    def read(self) -> bool:
        """Take what the watchers report, a few hundred events at most; whether there is more."""
        return self.watching.read()

    def _changed(self, inode: Inode, twin: bool, name: bytes, mask: int) -> None:
        remembered = inode.remembered
        if remembered is None:
            return
        if not name:
            if mask & fsnotify.GONE or twin:
                # It is elsewhere now, or other people may look into it.
                self.forget_below(inode)
                if mask & fsnotify.GONE:
                    remembered.watched = remembered.watched and twin
                    remembered.beside = False
            else:
                self._send(Attributes(inode.id, data=False))
            return
        structural = bool(mask & fsnotify.NAMES)
        if structural and (not twin or self.union):
            self._send(Attributes(inode.id, data=True))
        if not twin and inode.layer is Layer.SYSROOT:
            index = self._index(inode)
            if index is not None and structural:
                # Which names it has follows from all of them together.
                index.distrust()
                self.forget_directory(inode)
                return
            if index is not None:
                name = index.guest_of(name) or b""
        number = remembered.names.get(name)
        if number is None:
            return
        if structural:
            if number and mask & fsnotify.DELETE:
                self._removed(inode, name, number)
            self._forget_name(inode, remembered, name, number)
        elif number:
            data = bool(mask & (fsnotify.MODIFY | fsnotify.CLOSE_WRITE))
            self._send(Attributes(number, data))

    def _index(self, inode: Inode) -> DirectoryIndex | None:
        """The index of *inode*, None where stored names are its names, or it is gone."""
        try:
            return self.walk.index(self.place(inode))
        except OSError:
            return None

    def _forget_name(self, inode: Inode, remembered: Remembered, name: bytes, number: int) -> None:
        self._send(Entry(inode.id, name))
        child = self.inodes.get(number)
        if child is None or child.remembered is None:
            del remembered.names[name]
            self._absences -= not number
        if child is None:
            return
        self._send(Attributes(number, data=False))
        # It may have another twin now, or none: what lies below is answered by another directory.
        # Its name stays noted as long as somebody may stand in it.
        if child.remembered is not None and child.layer is Layer.SYSROOT:
            self.forget_below(child)
        elif child.is_directory:
            self.moved()

    def _removed(self, parent: Inode, name: bytes, number: int) -> None:
        child = self.inodes.get(number)
        if child is None or child.is_directory or child.name != name or child.parent is not parent:
            return
        held = child.descriptor
        if child.nlink == 1 if held is None else os.fstat(held.fd).st_nlink == 0:
            self._send(Removed(parent.id, number, name))

    def forget_directory(self, inode: Inode) -> None:
        """Everything that was told for long of names in *inode*."""
        remembered = inode.remembered
        if remembered is None:
            return
        names, remembered.names = remembered.names, {}
        for name, number in names.items():
            self._send(Entry(inode.id, name))
            child = self.inodes.get(number)
            if child is not None:
                self._send(Attributes(number, data=True))
                if child.remembered is not None:
                    remembered.names[name] = number
            self._absences -= not number
        self._send(Attributes(inode.id, data=True))

    def forget_below(self, top: Inode) -> None:
        """The same of *top* and of every directory below: they have other twins now."""
        self.moved()
        for inode in list(self.watching.directories):
            if is_below(inode, top):
                self.forget_directory(inode)
                if inode.remembered is not None:
                    inode.remembered.beside = False

    def forget_all(self) -> None:
        """Everything."""
        self.forget_below(self.inodes.root)

    def _take_absences_back(self) -> None:
        for inode in self.watching.directories:
            remembered = inode.remembered
            if remembered is not None:
                gone = [name for name, number in remembered.names.items() if not number]
                for name in gone:
                    del remembered.names[name]
                    self._send(Entry(inode.id, name))
        self._absences = 0

    def _mounted(self, name: bytes) -> None:
        """Something was mounted on a *name*, or unmounted there."""
        for inode in list(self.watching.directories):
            remembered = inode.remembered
            number = None if remembered is None else remembered.names.get(name)
            if remembered is not None and number is not None:
                self._forget_name(inode, remembered, name, number)

    # --- what the mount itself changes -------------------------------------------------------

    def renamed(self, inode: Inode, old: tuple[Inode, bytes], new: tuple[Inode, bytes]) -> None:
        """The entry *old* is *new* now: the kernel keeps for how long it may be remembered."""
        remembered = old[0].remembered
        if remembered is not None and remembered.names.get(old[1]) == inode.id:
            del remembered.names[old[1]]
        remembered = new[0].remembered
        if remembered is not None and remembered.watched and inode.layer is new[0].layer:
            remembered.names[new[1]] = inode.id
        else:
            if remembered is not None:
                remembered.names.pop(new[1], None)
            if inode.layer is new[0].layer and self._mode(inode.layer) == "exclusive":
                # For as long as everything else.
                return
            self._send(Entry(new[0].id, new[1]))
            self._send(Attributes(inode.id, data=False))

    def touched(self, inode: Inode, data: bool = False) -> None:
        """The attributes of *inode*, or what is in it, may have changed, and nobody says so."""
        self._send(Attributes(inode.id, data))

    def _send(self, notice: Notice) -> None:
        if self._tell is not None:
            self._tell(notice)


def _of(mode: str, watched: bool) -> float:
    if mode == "exclusive":
        return LONG
    return 0.0 if mode == "none" else LONG if watched else SHORT
