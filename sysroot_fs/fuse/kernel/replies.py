"""Entries and attributes as the kernel takes them, each with how long it may remember them."""

from __future__ import annotations

import os
import stat as stat_module
from typing import Final, final

from attrs import define, field

from sidecar.linux import Stat
from sysroot_fs.fuse.kernel import abi
from sysroot_fs.fuse.owners import Owners
from sysroot_fs.tree import Entry, Tree

_SECOND: Final = 1_000_000_000
_SIGN: Final = 1 << 63
_POSITIVE: Final = _SIGN - 1
_UNSIGNED: Final = 2 * _SIGN - 1

_pack_entry = abi.ENTRY_OUT.pack
_pack_attr = abi.ATTR_OUT.pack


@final
class _Timeouts(dict[float, tuple[int, int]]):
    """Seconds as the kernel takes them: whole ones, and nanoseconds. There are few different."""

    def __missing__(self, seconds: float) -> tuple[int, int]:
        whole = int(seconds)
        timeout = self[seconds] = whole, int((seconds - whole) * _SECOND)
        return timeout


@final
class _Absences(dict[float, bytes]):
    """Replies for names that are not there, by the seconds for which that may be remembered."""

    def __missing__(self, seconds: float) -> bytes:
        valid, valid_ns = _timeouts[seconds]
        reply = self[seconds] = _pack_entry(0, 0, valid, 0, valid_ns, *[0] * 17)
        return reply


_timeouts: Final = _Timeouts()
absences: Final = _Absences()


@define(slots=True, eq=False)
class Replies:
    """What is said of the inodes of one tree."""

    tree: Tree
    _owners: Owners = field(factory=Owners.here, init=False)

    def attr(self, number: int, stat: Stat) -> tuple[int, ...]:
        """The fields of struct fuse_attr for the inode *number*."""
        owners = self._owners
        rdev = 0
        if stat.rdev_major or stat.rdev_minor:
            rdev = _device_number(stat.rdev)
        return (
            number, stat.size, stat.blocks,
            stat.atime & _UNSIGNED, stat.mtime & _UNSIGNED, stat.ctime & _UNSIGNED,
            stat.atime_part, stat.mtime_part, stat.ctime_part, stat.mode, stat.nlink,
            owners.users.get(stat.uid, stat.uid), owners.groups.get(stat.gid, stat.gid),
            rdev, stat.blksize, 0,
        )  # fmt: skip

    def entry(self, entry: Entry) -> bytes:
        """The reply for a name that was found or made."""
        inode, stat = entry.inode, entry.stat
        number = inode.id
        timeout = _timeouts[entry.timeout]
        valid, valid_ns = _timeouts[self.tree.coherence.attributes(inode, stat)]
        generation = 0
        if stat_module.S_ISLNK(stat.mode):
            # The kernel remembers targets: another symlink that has got the number is another.
            generation = (stat.mtime_ns + stat.size) & _POSITIVE
        return _pack_entry(
            number, generation, timeout[0], valid, timeout[1], valid_ns, *self.attr(number, stat)
        )

    def remembered(self, number: int, stat: Stat) -> tuple[int, int]:
        """For how long the attributes *stat* of the inode *number* may be."""
        tree = self.tree
        return _timeouts[tree.coherence.attributes(tree.inodes[number], stat)]

    def attributes(self, number: int, stat: Stat) -> bytes:
        """The reply that says the attributes *stat* of the inode *number*."""
        return _pack_attr(*self.remembered(number, stat), 0, *self.attr(number, stat))


def _device_number(number: int) -> int:
    """As the kernel packs a device number into 32 bits."""
    major, minor = os.major(number), os.minor(number)
    return (minor & 0xFF) | major << 8 | (minor & ~0xFF) << 12
