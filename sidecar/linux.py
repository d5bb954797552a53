"""The few Linux system calls that `os` lacks, made to feel like `os`.

Every function takes descriptors and bytes, calls the kernel once, and turns a failure into
OSError(errno, text, file name), of the subclass that `os` would raise. Nothing here
decides anything: callers know why they call. All of it may be used from any thread. Those on
signals and processes stand in `processes`, on whose files are made in `identity`, on rings in
`io_uring`.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import os
import re
import struct
import time
from collections.abc import Mapping
from types import TracebackType
from typing import Any, Final, NamedTuple, final

__all__ = [
    "AT_EMPTY_PATH",
    "AT_FDCWD",
    "AT_STATX_DONT_SYNC",
    "AT_STATX_FORCE_SYNC",
    "AT_SYMLINK_NOFOLLOW",
    "MS_NOATIME",
    "MS_NODEV",
    "MS_NOEXEC",
    "MS_NOSUID",
    "MS_RDONLY",
    "RENAME_EXCHANGE",
    "RENAME_NOREPLACE",
    "RENAME_WHITEOUT",
    "RESOLVE_BENEATH",
    "RESOLVE_CACHED",
    "RESOLVE_IN_ROOT",
    "RESOLVE_NO_MAGICLINKS",
    "RESOLVE_NO_SYMLINKS",
    "RESOLVE_NO_XDEV",
    "STATX_BTIME",
    "Stat",
    "call",
    "failure",
    "fallocate",
    "fd_path",
    "find",
    "mount",
    "mount_type",
    "new_mount",
    "openat2",
    "renameat2",
    "same_file_lock",
    "statx",
    "umount",
    "utimens",
    "version",
]

AT_FDCWD: Final = -100
AT_SYMLINK_NOFOLLOW: Final = 0x100
AT_EMPTY_PATH: Final = 0x1000
AT_STATX_FORCE_SYNC: Final = 0x2000
AT_STATX_DONT_SYNC: Final = 0x4000

RESOLVE_NO_XDEV: Final = 0x01
RESOLVE_NO_MAGICLINKS: Final = 0x02
RESOLVE_NO_SYMLINKS: Final = 0x04
RESOLVE_BENEATH: Final = 0x08
RESOLVE_IN_ROOT: Final = 0x10
RESOLVE_CACHED: Final = 0x20

RENAME_NOREPLACE: Final = 1
RENAME_EXCHANGE: Final = 2
RENAME_WHITEOUT: Final = 4

_libc: Final = ctypes.CDLL(None, use_errno=True)
_get_errno: Final = ctypes.get_errno


def failure(filename: bytes | None = None, filename2: bytes | None = None) -> OSError:
    """The OSError for the errno that the last ctypes call of this thread has left."""
    code = _get_errno()
    return OSError(code, os.strerror(code), filename, None, filename2)


_syscall: Final = _libc.syscall
_syscall.restype = ctypes.c_long


def call(
    number: int,
    *arguments: int | bytes | ctypes.Array[ctypes.c_char] | None,
    name: bytes | None = None,
) -> int:
    """The system call *number*, for which the C library has no function; *name* is for the error.

    Calls newer than Linux 5.0 have the same number on every architecture but alpha.
    """
    # Integers as C long: an int would leave the upper half of the register as it was.
    words = [ctypes.c_long(word) if isinstance(word, int) else word for word in arguments]
    result = int(_syscall(ctypes.c_long(number), *words))
    if result < 0:
        raise failure(name)
    return result


def version(release: str | None = None) -> tuple[int, ...]:
    """The first two numbers of the running kernel, or of its *release* as uname(2) says it."""
    found = re.match(r"(\d+)(?:\.(\d+))?", os.uname().release if release is None else release)
    return tuple(int(part) for part in found.groups() if part) if found else ()


# --- opening and renaming -------------------------------------------------------------

_SYS_OPENAT2: Final = 437  # the same on every architecture that has openat2 but alpha
_TRIES: Final = 256  # with their pauses about three seconds
_OPEN_HOW: Final = struct.Struct("=QQQ")


def openat2(dirfd: int, path: bytes, flags: int, *, mode: int = 0, resolve: int = 0) -> int:
    """Open a path under the RESOLVE_* restrictions of openat2(2); return a descriptor.

    The descriptor is not inherited by programs (O_CLOEXEC), as with `os.open`. `mode` must
    be 0 unless `flags` creates something. A walk through `..` that the kernel gave up, as
    it does under RESOLVE_BENEATH and RESOLVE_IN_ROOT while anything on the machine is renamed
    or mounted (EAGAIN), is tried again for some seconds.
    """
    how = _OPEN_HOW.pack(flags | os.O_CLOEXEC, mode, resolve)
    scoped = resolve & (RESOLVE_BENEATH | RESOLVE_IN_ROOT) and not resolve & RESOLVE_CACHED
    tries = 0
    _check_path(path)
    while True:
        fd: int = _syscall(
            ctypes.c_long(_SYS_OPENAT2),
            ctypes.c_long(dirfd),
            ctypes.c_char_p(path),
            ctypes.c_char_p(how),
            ctypes.c_size_t(_OPEN_HOW.size),
        )
        if fd >= 0:
            return fd
        code = _get_errno()
        if code == errno.EAGAIN and scoped and tries < _TRIES:
            tries += 1
            # The next moment may be as busy: a few at once, then ever more seldom.
            time.sleep(max(0, tries - 8) / 1e4)
        elif code != errno.EINTR:
            raise failure(path)


_renameat2: Final = _libc.renameat2
_renameat2.argtypes = (
    ctypes.c_int,
    ctypes.c_char_p,
    ctypes.c_int,
    ctypes.c_char_p,
    ctypes.c_uint,
)


def renameat2(src_dirfd: int, src: bytes, dst_dirfd: int, dst: bytes, flags: int = 0) -> None:
    """Rename with the RENAME_* flags of renameat2(2).

    Filesystems that do not know a flag answer EINVAL.
    """
    _check_path(src)
    _check_path(dst)
    if _renameat2(src_dirfd, src, dst_dirfd, dst, flags):
        raise failure(src, dst)


def _check_path(path: bytes) -> None:
    # C would read a name with a NUL as the shorter one before it.
    if b"\0" in path:
        raise ValueError("embedded null byte")


# --- attributes -----------------------------------------------------------------------


class Stat(NamedTuple):
    """What statx(2) says about one inode, in its order and words.

    Times are seconds since the epoch and nanoseconds on top; those of birth count where *mask* has
    STATX_BTIME. `blocks` counts 512 bytes. `mount_id` is the one in /proc/self/mountinfo (0 before
    Linux 5.8). What `os.stat_result` puts together is a property: looked at thousands of times a
    second, most of it never is.
    """

    mask: int
    blksize: int
    attributes: int
    nlink: int
    uid: int
    gid: int
    mode: int
    ino: int
    size: int
    blocks: int
    atime: int
    atime_part: int
    btime: int
    btime_part: int
    ctime: int
    ctime_part: int
    mtime: int
    mtime_part: int
    rdev_major: int
    rdev_minor: int
    dev_major: int
    dev_minor: int
    mount_id: int

    @property
    def dev(self) -> int:
        """The device on which it lies, as `os.stat_result` has it."""
        return _makedev(self.dev_major, self.dev_minor)

    @property
    def rdev(self) -> int:
        """The device that it is."""
        return _makedev(self.rdev_major, self.rdev_minor)

    @property
    def atime_ns(self) -> int:
        """When it was read last, in nanoseconds since the epoch."""
        return self.atime * _SECOND + self.atime_part

    @property
    def mtime_ns(self) -> int:
        """When its content was changed last."""
        return self.mtime * _SECOND + self.mtime_part

    @property
    def ctime_ns(self) -> int:
        """When it was changed last."""
        return self.ctime * _SECOND + self.ctime_part

    @property
    def btime_ns(self) -> int | None:
        """When it was made, None where the filesystem keeps no such time."""
        return self.btime * _SECOND + self.btime_part if self.mask & STATX_BTIME else None

    @property
    def mount_root(self) -> bool:
        """Whether it is the root of its mount."""
        return self.attributes & _MOUNT_ROOT != 0


_SECOND: Final = 1_000_000_000
_EINTR: Final = errno.EINTR
_ENOENT: Final = errno.ENOENT
STATX_BTIME: Final = 0x800
_STATX_WANTED: Final = 0x17FF | STATX_BTIME  # the basic ones (0x7ff) and the mount id (0x1000)
_MOUNT_ROOT: Final = 0x2000  # STATX_ATTR_MOUNT_ROOT

# struct statx up to stx_mnt_id; times are (s64 seconds, u32 nanoseconds, 4 bytes of padding)
_statx_fields: Final = struct.Struct("=IIQIIIHxxQQQ8xqI4xqI4xqI4xqI4xIIIIQ").unpack_from
# No argtypes here and for set*id: their checks cost 0.6 us a call. Ints go as C int, bytes and
# arrays as pointers; the NUL check below also stops a str, which would go as wchar_t *.
_statx: Final = _libc.statx

# ctypes lets other threads run during the call, so one buffer for all of them would be torn.
# A thread takes one out of this list (one atomic step) and puts it back.
_statx_buffers: Final[list[Any]] = []
_StatxBuffer: Final = ctypes.c_char * 256
_makedev: Final = os.makedev
_new_stat: Final = tuple.__new__


def find(dirfd: int, path: bytes, flags: int = AT_SYMLINK_NOFOLLOW) -> Stat | None:
    """As `statx`, but None where nothing has that name (ENOENT), which is no failure of a walk."""
    if b"\0" in path:
        raise ValueError("embedded null byte")
    try:
        buffer = _statx_buffers.pop()
    except IndexError:
        buffer = _StatxBuffer()
    while _statx(dirfd, path, flags, _STATX_WANTED, buffer):
        code = _get_errno()
        # Interrupted lookups happen on network and FUSE volumes only.
        if code != _EINTR:
            _statx_buffers.append(buffer)
            if code == _ENOENT:
                return None
            raise failure(path)
    found: Stat = _new_stat(Stat, _statx_fields(buffer))
    _statx_buffers.append(buffer)
    return found


def statx(dirfd: int, path: bytes, flags: int = AT_SYMLINK_NOFOLLOW) -> Stat:
    """Return the attributes of `path` below `dirfd`; by default a symlink's own.

    With AT_EMPTY_PATH and ``b""`` it is `dirfd` itself that is looked at, O_PATH
    descriptors too. What it gives on top of `os.stat` is the mount, and that it can be asked not
    to wait for whoever serves it.
    """
    found = find(dirfd, path, flags)
    if found is None:
        raise FileNotFoundError(_ENOENT, os.strerror(_ENOENT), path)
    return found


_UTIME_OMIT: Final = (1 << 30) - 2
_TIMESPECS: Final = struct.Struct("@llll")
_utimensat: Final = _libc.utimensat
_utimensat.argtypes = (ctypes.c_int, ctypes.c_char_p, ctypes.c_char_p, ctypes.c_int)
_futimens: Final = _libc.futimens
_futimens.argtypes = (ctypes.c_int, ctypes.c_char_p)


def utimens(
    path: int | bytes,
    atime_ns: int | None,
    mtime_ns: int | None,
    dirfd: int = AT_FDCWD,
    follow: bool = True,
) -> None:
    """Set access and modification time, each in nanoseconds since the epoch (negative before).

    None leaves that time alone, which `os.utime` cannot do. *path* may be an open file's
    descriptor. With ``path=b""`` it is `dirfd` itself that is changed; that may be an O_PATH
    descriptor (Linux 5.8).
    """
    # divmod rounds down, so that -1 ns is the last nanosecond of the second before the epoch
    # and the nanosecond part is never negative (EINVAL).
    asec, ansec = (0, _UTIME_OMIT) if atime_ns is None else divmod(atime_ns, 1_000_000_000)
    msec, mnsec = (0, _UTIME_OMIT) if mtime_ns is None else divmod(mtime_ns, 1_000_000_000)
    times = _TIMESPECS.pack(asec, ansec, msec, mnsec)
    if isinstance(path, int):
        if _futimens(path, times):
            raise failure()
        return
    _check_path(path)
    flags = 0 if follow else AT_SYMLINK_NOFOLLOW
    if not path:
        flags |= AT_EMPTY_PATH
    if _utimensat(dirfd, path, times, flags):
        raise failure(path)


_fallocate: Final = _libc.fallocate
_fallocate.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)


def fallocate(fd: int, mode: int, offset: int, length: int) -> None:
    """Allocate, zero or give back bytes of a file with the FALLOC_FL_* of fallocate(2)."""
    while _fallocate(fd, mode, offset, length):
        if _get_errno() != _EINTR:
            raise failure()


# --- descriptors and mounts -----------------------------------------------------------


def fd_path(fd: int) -> bytes:
    """Return the magic link of an open descriptor.

    It is the way to calls that take only a path (chmod, xattr) for an O_PATH descriptor.
    Never hand it a guest's name to append.
    """
    return b"/proc/self/fd/%d" % fd


def mount_type(mount_id: int) -> tuple[str, str] | None:
    """Return (filesystem type, source) of a mount, or None where it is not to be seen.

    `mount_id` is `Stat.mount_id`. The type is for messages; what a volume does to names
    has to be probed (every FUSE volume just says that it is one).
    """
    wanted = b"%d" % mount_id
    with open("/proc/self/mountinfo", "rb") as lines:
        for line in lines:
            fields = line.split()
            if fields[0] != wanted:
                continue
            after = fields.index(b"-", 6)  # optional fields end with a single hyphen
            return os.fsdecode(_unescape(fields[after + 1])), os.fsdecode(
                _unescape(fields[after + 2])
            )
    return None


def _unescape(field: bytes) -> bytes:
    return re.sub(rb"\\([0-7]{3})", lambda octal: bytes((int(octal[1], 8),)), field)


_umount2: Final = _libc.umount2
_umount2.argtypes = (ctypes.c_char_p, ctypes.c_int)
_MNT_DETACH: Final = 2
_UMOUNT_NOFOLLOW: Final = 8


MS_RDONLY: Final = 1
MS_NOSUID: Final = 2
MS_NODEV: Final = 4
MS_NOEXEC: Final = 8
MS_NOATIME: Final = 1024

_mount: Final = _libc.mount
_mount.argtypes = (
    ctypes.c_char_p,
    ctypes.c_char_p,
    ctypes.c_char_p,
    ctypes.c_ulong,
    ctypes.c_char_p,
)


def mount(
    source: bytes | None, target: bytes, kind: bytes | None, flags: int, data: bytes | None
) -> None:
    """Mount a filesystem of the type *kind* at *target*, or change a mount; *flags* are MS_*."""
    _check_path(target)
    if _mount(source, target, kind, flags, data):
        raise failure(target)


_FSOPEN: Final = 430
_FSCONFIG: Final = 431
_FSMOUNT: Final = 432
_FSCONFIG_SET_FLAG: Final = 0
_FSCONFIG_SET_STRING: Final = 1
_FSCONFIG_CMD_CREATE: Final = 6
_FS_CLOEXEC: Final = 1  # FSOPEN_CLOEXEC and FSMOUNT_CLOEXEC alike


def new_mount(
    kind: bytes, options: Mapping[bytes, bytes | None] | None = None, attributes: int = 0
) -> int:
    """A new mount of a filesystem of the type *kind*, attached nowhere: its root's descriptor.

    An option without a value is a flag. *attributes* are MOUNT_ATTR_*.
    """
    context = call(_FSOPEN, kind, _FS_CLOEXEC, name=kind)
    try:
        for key, value in (options or {}).items():
            command = _FSCONFIG_SET_FLAG if value is None else _FSCONFIG_SET_STRING
            call(_FSCONFIG, context, command, key, value, 0, name=key)
        call(_FSCONFIG, context, _FSCONFIG_CMD_CREATE, None, None, 0, name=kind)
        return call(_FSMOUNT, context, _FS_CLOEXEC, attributes, name=kind)
    finally:
        os.close(context)


def umount(path: bytes, *, lazy: bool = False) -> None:
    """Unmount what is mounted at `path`, which is not followed if it is a symlink.

    `lazy` takes it out of the tree now and lets its users finish (MNT_DETACH); otherwise
    EBUSY says that there are some.
    """
    _check_path(path)
    if _umount2(path, _UMOUNT_NOFOLLOW | (_MNT_DETACH if lazy else 0)):
        raise failure(path)


@final
class same_file_lock:
    """Hold the exclusive flock(2) of an open file, waiting at most `timeout_s` seconds.

    Raises OSError(EBUSY) when somebody else holds it for longer. The lock belongs to the
    open file description: it keeps other openers out, threads sharing `fd` it does not. The
    caller closes the file when it is let go.
    """

    __slots__ = ("_fd", "_timeout_s")

    def __init__(self, fd: int, timeout_s: float) -> None:
        self._fd = fd
        self._timeout_s = timeout_s

    def __enter__(self) -> None:
        # A blocking flock could not be given up again without signals.
        deadline = time.monotonic() + self._timeout_s
        pause = 0.0005
        while True:
            try:
                fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return
            except BlockingIOError:
                left = deadline - time.monotonic()
                if left <= 0:
                    raise OSError(errno.EBUSY, os.strerror(errno.EBUSY)) from None
            time.sleep(min(pause, left))
            pause = min(2 * pause, 0.02)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        # Closing the file, which the caller does next, lets it go in any case; what was done under
        # the lock is not undone by a failure here.
        with contextlib.suppress(OSError):
            fcntl.flock(self._fd, fcntl.LOCK_UN)
