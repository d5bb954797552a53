"""Files that the kernel reads, writes and maps without the server (Linux 6.9).

An open file is lent to the kernel, which gives a number for it, and whoever opens the inode gets
that number. The kernel opens the file once more with the guest's flags and the server's rights:
what the guest may only read is not written through it, nor through a map. An inode is open either
like this or through the kernel's cache, never both (EIO otherwise): what the first who opened it
has got, all get until the last has closed it.
"""

from __future__ import annotations

import errno
import fcntl
import logging
import os
from typing import Final

from attrs import define, field

from sidecar import linux, look
from sysroot_fs.fuse.kernel import abi
from sysroot_fs.fuse.notices import attributes_message
from sysroot_fs.tree.files import Handle
from sysroot_fs.tree.inodes import Inode

log = logging.getLogger(__name__)

_FOR_ALL: Final = frozenset({errno.EPERM, errno.ENOTTY, errno.EOPNOTSUPP})
"""What the kernel answers where it takes no file at all: no CAP_SYS_ADMIN, no passthrough."""
_FOR_THE_VOLUME: Final = frozenset({errno.ELOOP, errno.EINVAL})
"""The same where it takes none of that volume: it is a stack itself, as overlayfs is."""


@define(slots=True, eq=False)
class _Lent:
    """An open inode: the kernel's number for it, None where it goes through the cache."""

    backing: int | None
    opens: int = 0


@define(slots=True, eq=False)
class Passthrough:
    """What is lent through *device*."""

    device: int
    _lent: dict[Inode, _Lent] = field(factory=dict, init=False)
    _times: dict[Handle, int] = field(factory=dict, init=False)
    _volumes: dict[int, bool] = field(factory=dict, init=False)
    _refused: bool = field(default=False, init=False)

    def opened(self, handle: Handle, maps: bool) -> int | None:
        """The kernel's number for a file that was just opened, None where it must ask as ever.

        *maps* says that the guest may write it through a map.
        """
        lent = self._lent.get(handle.inode)
        if lent is None:
            lent = self._lent[handle.inode] = _Lent(self._lend(handle))
        lent.opens += 1
        if maps and lent.backing is not None:
            self._times[handle] = os.fstat(handle.descriptor.fd).st_mtime_ns
        return lent.backing

    def closed(self, handle: Handle) -> None:
        """One of those who had it open has closed it."""
        inode = handle.inode
        before = self._times.pop(handle, None)
        if before is not None and os.fstat(handle.descriptor.fd).st_mtime_ns != before:
            self._tell_times(inode)
        lent = self._lent[inode]
        lent.opens -= 1
        if not lent.opens:
            del self._lent[inode]
            if lent.backing is not None:
                number = abi.BACKING_ID.pack(lent.backing)
                fcntl.ioctl(self.device, abi.DEV_IOC_BACKING_CLOSE, number)

    def is_lent(self, handle: Handle) -> bool:
        """Whether the kernel reads and writes the file below, and keeps nothing of it."""
        lent = self._lent.get(handle.inode)
        return lent is not None and lent.backing is not None

    def _tell_times(self, inode: Inode) -> None:
        """Have the kernel ask for the attributes: of writes through a map it knows nothing."""
        try:
            os.write(self.device, attributes_message(inode.id, data=False))
        except OSError as failure:
            # It has forgotten the inode meanwhile, or the mount is gone.
            if failure.errno not in (errno.ENOENT, errno.ENODEV):
                raise

    def _lend(self, handle: Handle) -> int | None:
        if self._refused or not self._may_lend(handle):
            return None
        # An array that can be written to: of another one fcntl gives back the bytes.
        asked = bytearray(abi.BACKING_MAP.pack(handle.descriptor.fd, 0, 0))
        try:
            number: int = fcntl.ioctl(self.device, abi.DEV_IOC_BACKING_OPEN, asked)
        except OSError as failure:
            if failure.errno in _FOR_ALL:
                self._refused = True
                log.warning("passthrough is off: %s", failure.strerror)
            elif failure.errno in _FOR_THE_VOLUME:
                self._refuse(handle, str(failure.strerror))
            return None
        return number

    def _may_lend(self, handle: Handle) -> bool:
        known = self._volumes.get(handle.inode.dev)
        if known is None:
            stat = linux.statx(handle.descriptor.fd, b"", linux.AT_EMPTY_PATH)
            known = self._volumes[handle.inode.dev] = not look.is_remote(stat)
            if not known:
                self._refuse(handle, "what goes wrong there is known when a file is closed")
        return known

    def _refuse(self, handle: Handle, why: str) -> None:
        self._volumes[handle.inode.dev] = False
        kind = look.filesystem(linux.statx(handle.descriptor.fd, b"", linux.AT_EMPTY_PATH))
        log.warning("passthrough is off for files on %s (%s): %s", kind, handle.inode.path(), why)
