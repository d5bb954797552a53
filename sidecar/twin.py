"""The host's directory at the same literal path, confined to the host root given.

A sysroot directory that was reached without a mapping has a twin: what the host has at that
path. The host's own symlinks are followed on the way (the literal host path `/lib/x` works where
the host's `/lib` is a link), one component at a time and with `..` answered from the chain of
parents that was walked, so no link and no directory moved meanwhile leads out of the host root.
"""

from __future__ import annotations

import os
import stat as stat_module
from typing import Final

from attrs import frozen

from sidecar import linux
from sidecar.descriptor import Descriptor
from sidecar.look import attributes

MAX_LINKS: Final = 40
"""Symlinks followed in one walk, as in Linux (ELOOP beyond)."""

_OPEN_DIR: Final = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


@frozen(slots=True)
class Caller:
    """Who asks: the ids that decide what a twin shows, and the process (0 where unknown)."""

    uid: int
    gid: int
    pid: int = 0

    def groups(self) -> frozenset[int]:
        """The supplementary groups, asked of the process while it still waits."""
        try:
            with open(f"/proc/{self.pid}/status", "rb") as status:
                for line in status:
                    if line.startswith(b"Groups:"):
                        return frozenset(map(int, line.split()[1:]))
        except OSError:
            pass
        return frozenset()


ROOT: Final = Caller(0, 0)


@frozen(slots=True)
class Guard:
    """A directory on the way to a twin that not everybody may search."""

    uid: int
    gid: int
    mode: int
    has_acl: bool

    def grants(self, caller: Caller, wish: int) -> bool:
        """Whether *caller* may do *wish*: 4 reads, 2 writes, 1 searches, or a sum of them.

        In doubt (an ACL) only its owner and root may.
        """
        if caller.uid == 0:
            return True
        if caller.uid == self.uid:
            return self.mode >> 6 & wish == wish
        if self.has_acl:
            return False
        if self.gid == caller.gid or self.gid in caller.groups():
            return self.mode >> 3 & wish == wish
        return self.mode & wish == wish

    def admits(self, caller: Caller) -> bool:
        """Whether *caller* may search it."""
        return self.grants(caller, 1)


@frozen(slots=True, eq=False)
class Twin:
    """A directory on the host. It keeps its parents, and so its descriptor chain, alive."""

    descriptor: Descriptor
    parent: Twin | None
    guards: tuple[Guard, ...]

    def admits(self, caller: Caller) -> bool:
        """Whether *caller* may search every directory on the way."""
        return all(guard.admits(caller) for guard in self.guards)


def guard_of(fd: int) -> Guard:
    """The rights on the directory behind *fd*."""
    stat = os.fstat(fd)
    try:
        os.getxattr(linux.fd_path(fd), b"system.posix_acl_access")
        has_acl = True
    except OSError:
        has_acl = False
    return Guard(stat.st_uid, stat.st_gid, stat.st_mode, has_acl)


def guards_of(fd: int) -> tuple[Guard, ...]:
    """The rights on the directory behind *fd*, nothing where everybody may search it."""
    guard = guard_of(fd)
    # All three: a mode of 0705 keeps the group out.
    return () if guard.mode & 0o111 == 0o111 and not guard.has_acl else (guard,)


def root_twin(fd: Descriptor) -> Twin:
    """The twin of the guest's root: the host root itself."""
    return Twin(fd, None, guards_of(fd.fd))


def child_twin(twin: Twin, name: bytes) -> Twin | None:
    """The twin's own child directory *name*, the host's symlinks followed, or None.

    None also where the host's entry is no directory, a door, or a link to nowhere. Raises OSError
    for everything else (EIO, EACCES, ELOOP).
    """
    here = twin
    budget = MAX_LINKS
    rest = [name]
    seen = list(twin.guards)
    while rest:
        part = rest.pop()
        if part in (b"", b"."):
            continue
        if part == b"..":
            here = here.parent or here
            continue
        try:
            stat, door = attributes(here.descriptor.fd, part)
        except (FileNotFoundError, NotADirectoryError):
            return None
        if door:
            return None
        if stat_module.S_ISLNK(stat.mode):
            budget -= 1
            if budget < 0:
                return None
            target = os.readlink(part, dir_fd=here.descriptor.fd)
            if target.startswith(b"/"):
                while here.parent is not None:
                    here = here.parent
            rest.extend(reversed(target.split(b"/")))
            continue
        if not stat_module.S_ISDIR(stat.mode):
            return None
        try:
            fd = Descriptor(os.open(part, _OPEN_DIR, dir_fd=here.descriptor.fd))
        except (FileNotFoundError, NotADirectoryError):
            return None
        for guard in guards_of(fd.fd):
            if guard not in seen:
                seen.append(guard)
        here = Twin(fd, here, tuple(seen))
    return Twin(here.descriptor, here.parent, tuple(seen))
