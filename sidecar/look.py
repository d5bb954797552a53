"""Looking at one entry without entering it.

A door is a mount that must not be entered from here: one of our own mounts, which would wait for
the server that is asking, and proc and sysfs, whose links would name the server instead of the
guest's process. A mount of the very filesystem on which the walk stands is none (a bind mount that
a guest has made, met by a run inside that guest): who stands there waits for its server anyway.
The kernel resolves O_PATH and statx(AT_STATX_DONT_SYNC) on a door without a request to its server,
so looking is safe and entering is refused.
"""

from __future__ import annotations

import errno
import os
from typing import Final, NamedTuple

from sidecar import linux
from sidecar.linux import Stat

DOOR_TYPES: Final = frozenset({"fuse.sysroot", "proc", "sysfs"})

# Filesystems whose attributes may have changed elsewhere: ask them, do not believe the cache.
_REMOTE: Final = ("fuse", "nfs", "cifs", "smb", "9p", "virtiofs", "ceph", "afs", "vboxsf", "lustre")
# Filesystems that make inode numbers up: the number changes when the kernel forgets the inode.
_MADE_UP: Final = frozenset({"vfat", "msdos", "exfat", "fuseblk", "fuse.exfat"})

# Filesystems that give the number of a removed inode out again, and that note when one was made: so
# it stays for as long as the inode does. On an overlay that changes with the first write.
_GIVEN_AGAIN: Final = frozenset({"ext2", "ext3", "ext4", "xfs", "f2fs"})
_BIRTH_BITS: Final = (1 << 30) - 1

_ASK: Final = linux.AT_SYMLINK_NOFOLLOW
_LOOK: Final = linux.AT_SYMLINK_NOFOLLOW | linux.AT_STATX_DONT_SYNC
_HERE: Final = linux.AT_EMPTY_PATH | linux.AT_STATX_DONT_SYNC


class _Kind(NamedTuple):
    """What is known of a filesystem."""

    name: str
    remote: bool
    lasting: bool
    given_again: bool


_UNKNOWN: Final = _Kind("", False, True, False)
_kinds: dict[tuple[int, int], _Kind] = {}


def _kind(stat: Stat) -> _Kind:
    known = _kinds.get((stat.dev_major, stat.dev_minor))
    if known is None:
        found = linux.mount_type(stat.mount_id)
        if found is None:
            return _UNKNOWN
        name = found[0]
        known = _Kind(name, name.startswith(_REMOTE), name not in _MADE_UP, name in _GIVEN_AGAIN)
        _kinds[stat.dev_major, stat.dev_minor] = known
    return known


def filesystem(stat: Stat) -> str:
    """The type of the filesystem behind *stat* as /proc/self/mountinfo names it, or ""."""
    return _kind(stat).name


def is_remote(stat: Stat) -> bool:
    """Whether others than this kernel may change the filesystem behind *stat*."""
    return _kind(stat).remote


def numbers_last(stat: Stat) -> bool:
    """Whether the filesystem behind *stat* keeps the inode numbers that it shows."""
    return _kind(stat).lasting


def birth(stat: Stat) -> int:
    """What tells an inode from the next one with its number; zero where nothing has to or can."""
    if not stat.mask & linux.STATX_BTIME or not _kind(stat).given_again:
        return 0
    # A small integer: there may be a million of them.
    return (stat.btime ^ stat.btime_part) & _BIRTH_BITS


def is_door(stat: Stat) -> bool:
    """Whether *stat* is the root of a mount that must not be entered."""
    if not stat.mount_root:
        return False
    # Device numbers of virtual filesystems are used again: ask for this very mount.
    kind = linux.mount_type(stat.mount_id)
    return kind is not None and kind[0] in DOOR_TYPES


def find(dirfd: int, name: bytes) -> tuple[Stat, bool] | None:
    """The attributes of *name* without following it, and whether it is a door; None for nothing.

    On a door the attributes are what the kernel remembers. Raises OSError.
    """
    stat = linux.find(dirfd, name, _LOOK)
    if stat is None:
        return None
    is_root = stat.attributes and stat.mount_root
    if is_root:
        if is_door(stat) and stat.dev != linux.statx(dirfd, b"", _HERE).dev:
            return stat, True
        _kinds.pop((stat.dev_major, stat.dev_minor), None)
    if not _kind(stat).remote:
        return stat, False
    try:
        return linux.statx(dirfd, name, _ASK), False
    except FileNotFoundError:
        return None
    except OSError:
        if is_root:
            # A dead mount is listed like anything else; whoever enters it meets the error.
            return stat, False
        raise


def attributes(dirfd: int, name: bytes) -> tuple[Stat, bool]:
    """As `find`, where there has to be something: ENOENT otherwise."""
    found = find(dirfd, name)
    if found is None:
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), name)
    return found


def is_taken(dirfd: int, name: bytes) -> bool:
    """Whether the volume has an entry that answers to *name* at this moment.

    The kernel remembers of a FUSE volume that a name is there under another spelling, for a second
    or more, although that one is gone. It asks again only where something is about to be made: a
    link to a directory never is, but for a name that is taken the refusal is another.
    """
    try:
        os.link(b".", name, src_dir_fd=dirfd, dst_dir_fd=dirfd)
    except FileExistsError:
        return True
    except OSError:
        pass
    return False
