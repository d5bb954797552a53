"""Having the kernel ask again for every name it remembers, at once and without a lock.

The usual notifications take one name away under its directory's lock, which the kernel holds while
it waits for the very request that makes the notification necessary: they come late. A new epoch
(FUSE_NOTIFY_INC_EPOCH, Linux 6.16) makes all names older than it be asked for once more, can be
sent before the request is answered, and costs 4 us; the binding has no call for it.

It also takes down whatever is mounted on one of these names. So there are epochs only while nothing
is, and none in a run, which always has mounts of its own.
"""

from __future__ import annotations

import errno
import os
import stat
import struct
from typing import Final, Self, final

from attrs import frozen

from sysroot_fs.fuse import submounts

_OUT_HEADER: Final = struct.Struct("=IiQ")  # length, code (an error otherwise), request (none)
_INC_EPOCH: Final = 8
_NEW_EPOCH: Final = _OUT_HEADER.pack(_OUT_HEADER.size, _INC_EPOCH, 0)
_DEVICE: Final = os.makedev(10, 229)


def device_of_this_process() -> int | None:
    """The descriptor that serves the only mount that this process serves."""
    found = []
    for name in os.listdir("/proc/self/fd"):
        try:
            seen = os.fstat(int(name))
        except OSError:
            continue  # the listing's own
        if stat.S_ISCHR(seen.st_mode) and seen.st_rdev == _DEVICE:
            found.append(int(name))
    return found[0] if len(found) == 1 else None


@final
@frozen
class Epoch:
    """The kernel's epoch of one mount; *fd* is the descriptor of /dev/fuse that serves it."""

    fd: int
    mount: bytes
    """The device of the mount, see `submounts.device_at`."""

    @classmethod
    def of_this_process(cls, mountpoint: bytes) -> Self | None:
        """That of the only mount that this process serves, None where the kernel has none."""
        fd = device_of_this_process()
        return None if fd is None else cls.on(fd, mountpoint)

    @classmethod
    def on(cls, fd: int, mountpoint: bytes) -> Self | None:
        """That of the mount at *mountpoint* that *fd* serves, None where the kernel has none."""
        mount = submounts.device_at(mountpoint)
        if mount is None:
            return None
        epoch = cls(fd, mount)
        try:
            epoch._begin()
        except OSError as error:
            if error.errno in (errno.EINVAL, errno.ENOSYS, errno.EPERM):
                return None
            raise
        return epoch

    def begin(self) -> bool:
        """Begin a new one: what the kernel remembers of names is asked for again when needed.

        False where something is mounted on the tree: then it is not begun.
        """
        if submounts.is_mounted_on(self.mount):
            return False
        self._begin()
        return True

    def _begin(self) -> None:
        os.write(self.fd, _NEW_EPOCH)
