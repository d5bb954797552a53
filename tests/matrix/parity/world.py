"""What a process of the parity suite holds while it makes calls, and in what words it tells.

The words do not depend on which directory it was: no inode numbers, no descriptors, no moments.
What a volume cannot do is known by its name, a need, and a call that depends on it is left out.
Only the standard library is used, since `script` copies from this module.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import os
import stat
from collections.abc import Callable
from typing import Any, NamedTuple

RECENT = 1_500_000_000
"""Seconds since the epoch: a file whose time is later was touched, and is not told when."""

LINK_COUNTS = "link-counts"
"""The need that a file that was renamed or removed while it was open tells its links."""

REMOVED_FILES = "removed-files"
"""The need that a directory is empty although a file that was in it is open."""

DIRECTORY_TIMES = "directory-times"
"""The need that every change in a directory is a change of it."""

FOREIGN_LINKS = "foreign-links"
"""The need that a user may give a file of another one, which he may write, a second name."""

libc = ctypes.CDLL(None, use_errno=True)


class Call(NamedTuple):
    """Who makes it (`root` or `other`, a process of uid 1000), which `do_` function, with what."""

    actor: str
    name: str
    args: tuple[Any, ...]


class Failed(NamedTuple):
    """What came of a call that failed."""

    errno: str


class LeftOut(Exception):
    """The call depends on something that the volume cannot do, of `cases.NEEDS`."""


class EmptySlot(Exception):
    """The call needs something to be open that is not."""


class World:
    """What one process holds: descriptors by slot. Its root and working directory are the kernel's.

    `lacks` is what the volume of the other side cannot do; where `judges`, a call that depends on
    it is left out.
    """

    def __init__(self, proc: int, lacks: frozenset[str], judges: bool) -> None:
        self.proc = proc
        self.lacks = lacks
        self.judges = judges
        self.slots: dict[str, int] = {}

    def fd(self, slot: str) -> int:
        """The descriptor in a slot."""
        if slot not in self.slots:
            raise EmptySlot
        fd = self.slots[slot]
        if self.judges:
            self._check(os.fstat(fd), not fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_PATH)
        return fd

    def at(self, slot: str | None) -> int | None:
        """The directory that a path starts from; None is the working directory."""
        if slot is not None:
            return self.fd(slot)
        if self.judges:
            with contextlib.suppress(PermissionError):
                self._check(os.stat(os.curdir), False)
        return None

    def _check(self, seen: os.stat_result, opened: bool) -> None:
        """A removed file is kept by volumes as long as it is open, anything else is not by all."""
        need = "removed-directories"
        kept = opened and stat.S_ISREG(seen.st_mode)
        if need in self.lacks and seen.st_nlink == 0 and not kept:
            raise LeftOut(need)

    def needs_closed(self, replaced: bytes = b"") -> None:
        """Leave the call out where a removed file that is open here may be in its way.

        Replacing an open file of a long name leaves one of a cut name on lowntfs.
        """
        if not self.judges or REMOVED_FILES not in self.lacks:
            return
        if len(replaced) > 240 or any(os.fstat(fd).st_nlink == 0 for fd in self.slots.values()):
            raise LeftOut(REMOVED_FILES)

    def needs_own(self, seen: os.stat_result) -> None:
        """Leave the call out where the file is another user's, and the volume gives it no name."""
        if self.judges and FOREIGN_LINKS in self.lacks and os.geteuid() not in (0, seen.st_uid):
            raise LeftOut(FOREIGN_LINKS)

    def put(self, slot: str, fd: int) -> None:
        """Keep a descriptor; what was in the slot is closed."""
        old = self.slots.pop(slot, None)
        self.slots[slot] = fd
        if old is not None:
            os.close(old)

    def attributes(self, seen: os.stat_result) -> tuple[object, ...]:
        """What must be equal on both sides."""
        kind, mode = stat.S_IFMT(seen.st_mode), stat.S_IMODE(seen.st_mode)
        counts = "directory-links" if stat.S_ISDIR(kind) else LINK_COUNTS
        # Whether writing to a fifo or a device moves its times is a FUSE mount's kernel's affair.
        timed = (
            DIRECTORY_TIMES not in self.lacks
            if stat.S_ISDIR(kind)
            else stat.S_ISREG(kind) or stat.S_ISLNK(kind)
        )
        sized = stat.S_ISREG(kind) or stat.S_ISLNK(kind)
        return (
            stat.filemode(kind)[0] if "modes" in self.lacks else stat.filemode(kind | mode),
            f"links={seen.st_nlink}" if counts not in self.lacks else "",
            f"owner={seen.st_uid}:{seen.st_gid}" if "owners" not in self.lacks else "",
            f"size={seen.st_size}" if sized else "",
            f"device={seen.st_rdev:#x}" if seen.st_rdev else "",
            f"mtime={moment(seen.st_mtime_ns)}" if timed else "",
        )


def moment(nanoseconds: int) -> str:
    """A time that somebody set, or that it is one of the clock's."""
    return "recent" if nanoseconds // 10**9 > RECENT else f"{nanoseconds / 10**9:.9f}"


def checked(result: int) -> int:
    """What a C function has returned, or the OSError of its errno."""
    if result < 0:
        raise OSError(ctypes.get_errno(), "")
    return result


def from_here(fd: int | None) -> int:
    """A directory for a C function: AT_FDCWD for none."""
    return -100 if fd is None else fd


def errno_of(function: Callable[..., object], *args: object) -> str:
    """The name of the errno with which a function fails, nothing where it does not."""
    try:
        function(*args)
    except OSError as error:
        return errno.errorcode[error.errno or 0]
    return ""
