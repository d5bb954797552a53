"""Whether other processes serve the same sysroot.

Each server keeps a shared lock on the sysroot's own directory; asking whether an exclusive one
would be granted tells whether it is alone, without changing anything. The kernel drops the lock
with the process. Locks are the kernel's, so servers on other machines are not seen.
"""

from __future__ import annotations

import fcntl
import os
import struct
from typing import Final, final

from sidecar.descriptor import Descriptor

_FLOCK: Final = struct.Struct("@hhqqi4x")


@final
class Presence:
    """This process serves the directory behind *dirfd* as long as the object lives."""

    __slots__ = ("_descriptor",)

    def __init__(self, dirfd: int) -> None:
        flags = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
        self._descriptor = Descriptor(os.open(b".", flags, dir_fd=dirfd))
        request = _FLOCK.pack(fcntl.F_RDLCK, os.SEEK_SET, 0, 0, 0)
        try:
            fcntl.fcntl(self._descriptor.fd, fcntl.F_OFD_SETLK, request)
        except OSError:
            # A volume without locks: others cannot be seen, and `alone` will say no.
            return

    def alone(self) -> bool:
        """Whether no other process is known to serve it; False where that cannot be told."""
        request = _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)
        try:
            answer = fcntl.fcntl(self._descriptor.fd, fcntl.F_OFD_GETLK, request)
        except OSError:
            return False
        return bool(_FLOCK.unpack(answer)[0] == fcntl.F_UNLCK)
