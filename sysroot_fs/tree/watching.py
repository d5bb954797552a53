"""Which directories are watched for changes behind the mount, and what comes of it.

A directory is watched for the inode that it is, or as the twin of one; the same may be both, and
several. A mount that comes or goes is no event in a directory: the kernel's mount table is watched
for them.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import select
import stat as stat_module
from collections.abc import Callable, Hashable
from typing import Final

from attrs import define, field, frozen

from sidecar import fsnotify, linux, look
from sidecar.fsnotify import Event, Watcher
from sidecar.mount_table import MountTable
from sidecar.twin import Twin
from sysroot_fs.tree.inodes import Inode, Inodes
from sysroot_fs.tree.remembered import Remembered

log = logging.getLogger(__name__)

COLLECT_SECONDS: Final = 0.02
"""How long a door may let changes collect before it has them read: most of them are what the mount
itself has done, and many at once cost little more than one."""
_OPEN: Final = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_EXPIRES: Final = (6, 2)
"""The first Linux that can be told to look a name up again without taking down what is mounted
below it (FUSE_EXPIRE_ONLY)."""
_FULL: Final = frozenset({errno.ENOSPC, errno.EMFILE, errno.ENFILE, errno.ENOMEM})


@frozen(slots=True)
class _Role:
    """What a watched directory is: that of *inode*, or with *twin* the host's in its place."""

    inode: Inode
    twin: bool


@define(slots=True, eq=False)
class Watching:
    """Of one tree: *twin* is its.

    *changed* is called with an inode, whether its twin is meant, a name in that directory (b"" for
    itself) and what has happened (`sidecar.fsnotify`); *mounted* with the last name of a path on
    which something was mounted or unmounted; *lost* where so much happened that nobody knows what.
    """

    inodes: Inodes
    twin: Callable[[Inode], Twin | None]
    changed: Callable[[Inode, bool, bytes, int], None]
    mounted: Callable[[bytes], None]
    lost: Callable[[], None]
    directories: dict[Inode, list[tuple[Hashable, bool]]] = field(factory=dict, init=False)
    """By inode the keys of what is watched for it, each with whether it is a twin."""
    overflows: int = field(default=0, init=False)
    """How often so much happened at once that events were lost."""
    _watcher: Watcher | None = field(default=None, init=False)
    _mounts: MountTable | None = field(default=None, init=False)
    _poll: select.epoll | None = field(default=None, init=False)
    _roles: dict[Hashable, list[_Role]] = field(factory=dict, init=False)
    _full: bool = field(default=False, init=False)
    _elsewhere: bool = field(default=False, init=False)
    """Whether links of the host show one of its directories below another path, too."""

    def start(self) -> int | None:
        """Watch from now on; with a word in the log, and None, where nothing can be watched.

        Else the descriptor that can be read when `read` has something to do.
        """
        try:
            self._watcher = fsnotify.best() if linux.version() >= _EXPIRES else None
            if self._watcher is not None:
                return self._wait_for(self._watcher)
        except (OSError, RuntimeError):
            # No descriptors, no thread, or no /proc.
            self.stop()
        log.warning("changes behind the mount cannot be watched here: answers last a second")
        return None

    def _wait_for(self, watcher: Watcher) -> int:
        self._mounts = MountTable()
        self._poll = select.epoll()
        self._poll.register(watcher.fileno(), select.EPOLLIN)
        self._poll.register(self._mounts.fileno(), select.EPOLLIN)
        watcher.wants_own = False
        return self._poll.fileno()

    def stop(self) -> None:
        """Watch nothing any more."""
        for each in (self._poll, self._watcher, self._mounts):
            if each is not None:
                each.close()
        self._poll = self._watcher = self._mounts = None

    def report(self) -> dict[str, object]:
        """How it goes, for `status`."""
        return {
            "watcher": None if self._watcher is None else type(self._watcher).__name__.lower(),
            "directories": self.watches,
            "overflows": self.overflows,
            "full": self._full,
        }

    @property
    def watches(self) -> int:
        """How many directories are watched."""
        return len(self._roles)

    def add(self, inode: Inode, twin: bool) -> bool:
        """Watch the directory of *inode*, or its twin's; whether that can be."""
        if twin:
            found = self.twin(inode)
            if found is None:
                return True
            descriptor = found.descriptor
        else:
            descriptor = self.inodes.descriptor(inode)
        stat = linux.statx(descriptor.fd, b"", linux.AT_EMPTY_PATH | linux.AT_STATX_DONT_SYNC)
        if look.is_remote(stat) or self._full:
            return False
        assert self._watcher is not None
        try:
            key = self._watcher.add(descriptor.fd)
        except OSError as failure:
            self._not_watched(failure)
            return False
        roles = self._roles.setdefault(key, [])
        roles.append(_Role(inode, twin))
        # The kernel has asked for it, but of a directory that is shown twice it knows only one.
        self._watcher.wants_own = self._watcher.wants_own or len(roles) > 1
        self.directories.setdefault(inode, []).append((key, twin))
        return True

    def _not_watched(self, failure: OSError) -> None:
        if failure.errno in _FULL and not self._full:
            self._full = True
            log.warning(
                "no more directories can be watched for changes behind the mount (%s): answers "
                "from others last a second; fs.inotify.max_user_watches and "
                "fs.fanotify.max_user_marks say how many",
                failure.strerror,
            )

    def add_twins(self, inode: Inode) -> None:
        """Watch the twins of *inode* and of all above, as far as there are any."""
        assert self._watcher is not None
        way = list(inode.way())
        above: Twin | None = None
        for step in reversed(way):
            found = self.twin(step)
            if above is not None and _leads_elsewhere(above, step.name, found):
                # What the mount does by that way it may show by another one, too.
                self._elsewhere = self._watcher.wants_own = True
                return
            if step.remembered is None:
                step.remembered = Remembered()
            if not step.remembered.beside:
                step.remembered.beside = self.add(step, twin=True)
            if not step.remembered.beside:
                return
            if found is None:
                # Whether there will be one is seen above.
                assert inode.remembered is not None
                inode.remembered.beside = True
                return
            above = found

    def drop(self, inode: Inode) -> None:
        """The kernel has let go of *inode*."""
        for key, twin in self.directories.pop(inode, ()):
            roles = [role for role in self._roles.get(key, ()) if role.inode is not inode]
            if roles:
                self._roles[key] = roles
                continue
            self._roles.pop(key, None)
            if self._watcher is not None:
                self._unwatch(self._watcher, inode, key, twin)

    def _unwatch(self, watcher: Watcher, inode: Inode, key: Hashable, twin: bool) -> None:
        if twin:
            watcher.remove(key, None)
            return
        if inode.descriptor is not None:
            watcher.remove(key, inode.descriptor.fd)
            return
        # The kernel holds a directory in memory as long as it is watched. One that is elsewhere by
        # now stays there until the end.
        with contextlib.suppress(OSError):
            fd = os.open(inode.stored, _OPEN, dir_fd=self.inodes.holder(inode).fd)
            try:
                # Another directory may have the name by now, and be watched itself.
                if inode.may_be(linux.statx(fd, b"", linux.AT_EMPTY_PATH)):
                    watcher.remove(key, fd)
            finally:
                os.close(fd)

    def read(self) -> bool:
        """Take what the watchers report, a few hundred events at most; whether there is more."""
        assert self._poll is not None and self._watcher is not None and self._mounts is not None
        for fd, _ in self._poll.poll(0):
            if fd == self._mounts.fileno():
                for place in self._mounts.changed():
                    self.mounted(os.path.basename(place))
            else:
                for event in self._watcher.read():
                    self._heed(event)
        return bool(self._poll.poll(0))

    def _heed(self, event: Event) -> None:
        if event.mask & fsnotify.OVERFLOW:
            self.overflows += 1
            if self.overflows == 1:
                log.warning("too much changes behind the mount at once: all is asked for again")
            self.lost()
            return
        roles = self._roles.get(event.key, ())
        if event.own and len(roles) == 1 and not self._elsewhere:
            return
        for role in list(roles):
            self.changed(role.inode, role.twin, event.name, event.mask)


def _leads_elsewhere(above: Twin, name: bytes, found: Twin | None) -> bool:
    """Whether the host has a link as *name*: behind it are directories that are not watched."""
    if found is not None:
        return found.parent is not above
    # Not by lstat(2): what is there may be this very mount, which would wait for itself.
    there = look.find(above.descriptor.fd, name)
    return there is not None and stat_module.S_ISLNK(there[0].mode)
