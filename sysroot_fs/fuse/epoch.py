"""Having the kernel ask again for every name it remembers, at once and without a lock.

The usual notifications take one name away under its directory's lock, which the kernel holds while
it waits for the very request that makes the notification necessary: they come late. A new epoch
(FUSE_NOTIFY_INC_EPOCH, Linux 6.16) makes all names older than it be asked for once more, can be
sent before the request is answered, and costs 4 us; the binding has no call for it.
"""

from __future__ import annotations

import errno
import os
import stat
import struct
from typing import Final, Self, final

from attrs import frozen

_OUT_HEADER: Final = struct.Struct("=IiQ")  # length, code (an error otherwise), request (none)
_INC_EPOCH: Final = 8
_NEW_EPOCH: Final = _OUT_HEADER.pack(_OUT_HEADER.size, _INC_EPOCH, 0)
_DEVICE: Final = os.makedev(10, 229)


@final
@frozen
class Epoch:
    """The kernel's epoch of one mount; *fd* is the descriptor of /dev/fuse that serves it."""

    fd: int

    @classmethod
    def of_this_process(cls) -> Self | None:
        """That of the only mount that this process serves, None where the kernel has none."""
        found = []
        for name in os.listdir("/proc/self/fd"):
            try:
                seen = os.fstat(int(name))
            except OSError:
                continue  # the listing's own
            if stat.S_ISCHR(seen.st_mode) and seen.st_rdev == _DEVICE:
                found.append(int(name))
        return cls.on(found[0]) if len(found) == 1 else None

    @classmethod
    def on(cls, fd: int) -> Self | None:
        """That of the mount that *fd* serves, None where the kernel has none."""
        epoch = cls(fd)
        try:
            epoch.begin()
        except OSError as error:
            if error.errno in (errno.EINVAL, errno.ENOSYS, errno.EPERM):
                return None
            raise
        return epoch

    def begin(self) -> None:
        """Begin a new one: what the kernel remembers of names is asked for again when needed."""
        os.write(self.fd, _NEW_EPOCH)
