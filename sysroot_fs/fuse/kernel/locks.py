"""Locks that programs take through the mount, taken below as well (`-o locks`).

Each owner that the kernel names (a process for fcntl(2), an open file for flock(2) and F_OFD_SETLK)
has an open file of its own below, whose locks are the owner's: so they meet those of other mounts
and of programs outside. Nobody waits in here. A lock that somebody else has is tried again when one
is let go of in this mount, and from time to time (`AGAIN_SECONDS`), since nobody tells of others.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import struct
from collections.abc import Callable, Iterator
from typing import Final

from attrs import define, field, frozen

from sidecar.descriptor import Descriptor
from sidecar.linux import fd_path
from sysroot_fs.fuse.kernel import abi
from sysroot_fs.tree import Tree
from sysroot_fs.tree.files import Handle
from sysroot_fs.tree.inodes import Inode

AGAIN_SECONDS: Final = 0.05
"""How long nobody may hear that a lock outside was let go of."""

_FLOCK: Final = struct.Struct("@hhqqi4x")  # struct flock: type whence start len pid
_TO_THE_END: Final = (1 << 63) - 1
_FLOCKS: Final = {
    fcntl.F_RDLCK: fcntl.LOCK_SH,
    fcntl.F_WRLCK: fcntl.LOCK_EX,
    fcntl.F_UNLCK: fcntl.LOCK_UN,
}
_TAKEN: Final = (errno.EAGAIN, errno.EACCES)


class Later(Exception):
    """The request is answered when its time has come."""


@frozen(slots=True)
class Wanted:
    """A lock that is asked for: whose, of what kind, and from which byte to which."""

    handle: Handle
    owner: int
    type: int
    start: int
    end: int
    is_flock: bool

    @property
    def key(self) -> tuple[Inode, int, bool]:
        """What has an open file below."""
        return self.handle.inode, self.owner, self.is_flock

    def packed(self) -> bytes:
        """As fcntl(2) takes it. Raises OSError for what it would not take."""
        if not 0 <= self.start <= self.end <= _TO_THE_END or self.type not in _FLOCKS:
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        length = 0 if self.end == _TO_THE_END else self.end - self.start + 1
        return _FLOCK.pack(self.type, os.SEEK_SET, self.start, length, 0)


@define(slots=True, eq=False)
class _Held:
    """The open file of an owner, and the guest's open files through which it has taken locks."""

    descriptor: Descriptor
    handles: set[Handle] = field(factory=set)


@define(slots=True, eq=False)
class Locks:
    """The locks of one mount."""

    tree: Tree
    waiting: dict[int, Callable[[], None]] = field(factory=dict, init=False)
    """Who waits for a lock, by the number of the request, with what tries once more."""
    _held: dict[tuple[Inode, int, bool], _Held] = field(factory=dict, init=False)

    def test(self, wanted: Wanted) -> bytes:
        """A lock that is in the way, as FUSE_GETLK is answered; of type F_UNLCK for none."""
        held = self._of(wanted)
        told = fcntl.fcntl(held.descriptor.fd, fcntl.F_OFD_GETLK, wanted.packed())
        kind, _, start, length, pid = _FLOCK.unpack(told)
        end = start + length - 1 if length else _TO_THE_END
        # Of a lock that belongs to an open file nobody knows whose it is.
        return abi.LK_OUT.pack(start, end, kind, max(pid, 0))

    def take(self, wanted: Wanted) -> None:
        """Take or let go of a lock. EAGAIN where somebody else has it."""
        if wanted.type == fcntl.F_UNLCK and wanted.key not in self._held:
            return
        held = self._of(wanted)
        held.handles.add(wanted.handle)
        packed = wanted.packed()
        if wanted.is_flock:
            fcntl.flock(held.descriptor.fd, _FLOCKS[wanted.type] | fcntl.LOCK_NB)
        else:
            fcntl.fcntl(held.descriptor.fd, fcntl.F_OFD_SETLK, packed)

    def wait(self, wanted: Wanted, unique: int) -> None:
        """Take a lock, or have the request *unique* answered later, which is `Later`."""
        try:
            self.take(wanted)
        except OSError as failure:
            if failure.errno not in _TAKEN:
                raise
            self.waiting[unique] = lambda: self.take(wanted)
            raise Later from None

    def again(self) -> Iterator[tuple[int, OSError | None]]:
        """Try for all who wait; those who need not any more, with what came of it."""
        for unique, attempt in list(self.waiting.items()):
            failed = None
            try:
                attempt()
            except OSError as failure:
                if failure.errno in _TAKEN:
                    continue
                failed = failure
            del self.waiting[unique]
            yield unique, failed

    def flushed(self, handle: Handle, owner: int) -> None:
        """A process has closed a descriptor of the file: with that all its fcntl locks go."""
        self._held.pop((handle.inode, owner, False), None)

    def closed(self, handle: Handle) -> None:
        """An open file of the guest's is gone, and what was locked through it is free."""
        for key, held in list(self._held.items()):
            if key[0] is handle.inode and handle in held.handles:
                del self._held[key]

    def _of(self, wanted: Wanted) -> _Held:
        held = self._held.get(wanted.key)
        if held is None:
            held = self._held[wanted.key] = _Held(self._opened(wanted.handle))
        return held

    def _opened(self, handle: Handle) -> Descriptor:
        """An open file for locks of both kinds, as far as it can be had."""
        self.tree.inodes.check_room()
        path = fd_path(handle.descriptor.fd)
        for access in (os.O_RDWR, os.O_RDONLY, os.O_WRONLY):
            with contextlib.suppress(OSError):
                if access != os.O_RDONLY:
                    self.tree.check_writable(handle.inode.layer)
                return Descriptor(os.open(path, access | os.O_CLOEXEC | os.O_NONBLOCK))
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))
