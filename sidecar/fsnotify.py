"""The kernel's reports of changes in directories: fanotify where we may, inotify elsewhere.

Both say under which name something in a watched directory came, went or changed. fanotify
(FAN_REPORT_DFID_NAME, Linux 5.9, without root 5.13) also says whether this process has done it, so
that nobody runs after his own changes. Neither sees what another machine changes on a volume, nor
what is written through a shared mapping before that is closed.
"""

from __future__ import annotations

import ctypes
import os
import struct
from collections.abc import Hashable
from typing import Final, Protocol, final

from attrs import define, field, frozen

from sidecar.linux import failure, fd_path

# Of linux/fanotify.h and linux/inotify.h, which agree in these.
MODIFY: Final = 0x2
ATTRIB: Final = 0x4
CLOSE_WRITE: Final = 0x8
MOVED_FROM: Final = 0x40
MOVED_TO: Final = 0x80
CREATE: Final = 0x100
DELETE: Final = 0x200
DELETE_SELF: Final = 0x400
MOVE_SELF: Final = 0x800
UNMOUNT: Final = 0x2000
OVERFLOW: Final = 0x4000
IGNORED: Final = 0x8000
NAMES: Final = CREATE | DELETE | MOVED_FROM | MOVED_TO
"""A name came or went."""
GONE: Final = DELETE_SELF | MOVE_SELF | UNMOUNT | IGNORED
"""The watched directory is no longer where it was."""
_WATCHED: Final = NAMES | MODIFY | ATTRIB | CLOSE_WRITE | DELETE_SELF | MOVE_SELF

_BUFFER: Final = 32768
_libc: Final = ctypes.CDLL(None, use_errno=True)


@frozen(slots=True)
class Event:
    """What happened to *name* in the directory that is watched as *key*; b"" is itself.

    With OVERFLOW in *mask* there is no key: events were lost. *own*: this process has done it.
    """

    key: Hashable
    name: bytes
    mask: int
    own: bool


class Watcher(Protocol):
    """Watches directories. Not safe for threads."""

    wants_own: bool
    """Whether `read` tells of what this process has done, too, where it is known."""

    def fileno(self) -> int:
        """The descriptor, readable while there are events."""

    def add(self, directory: int) -> Hashable:
        """Watch a directory by a descriptor (O_PATH will do); its key, once more where known.

        Raises OSError: ENOSPC where there are too many, ENODEV, EXDEV or EOPNOTSUPP where the
        volume cannot be watched.
        """

    def remove(self, key: Hashable, directory: int | None) -> None:
        """Watch the directory *key* no longer. Never fails.

        *directory* is a descriptor of it; without one it may be watched on, in vain.
        """

    def read(self) -> list[Event]:
        """The next events, a few hundred at most; none where there are none."""

    def close(self) -> None:
        """Watch nothing any more."""


def _pending(fd: int) -> bytes:
    try:
        return os.read(fd, _BUFFER)
    except BlockingIOError:
        return b""


def _path(directory: int) -> bytes:
    # A descriptor that is open for its path only counts for neither system by itself.
    return os.fsencode(fd_path(directory))


# --- fanotify ---------------------------------------------------------------------------------

_CLOEXEC: Final = 0x1
_NONBLOCK: Final = 0x2
_UNLIMITED_MARKS: Final = 0x20
_REPORT_DFID_NAME: Final = 0xC00
_ADD: Final = 0x1
_REMOVE: Final = 0x2
_ONLYDIR: Final = 0x8
_ON_CHILD: Final = 0x0800_0000
_ONDIR: Final = 0x4000_0000
_INFO_DFID_NAME: Final = 2
_AT_EMPTY_PATH: Final = 0x1000
_HANDLE_BYTES: Final = 128

_METADATA: Final = struct.Struct("=IBBHQii")  # length, version, -, its own length, mask, fd, pid
_INFO: Final = struct.Struct("=BBH8sIi")  # kind, -, length, fsid; the handle's length and type

_init: Final = _libc.fanotify_init
_mark: Final = _libc.fanotify_mark
_mark.argtypes = (
    ctypes.c_int, ctypes.c_uint, ctypes.c_uint64, ctypes.c_int, ctypes.c_char_p,
)  # fmt: skip
_name_to_handle_at: Final = _libc.name_to_handle_at
_fstatfs: Final = getattr(_libc, "fstatfs64", None) or _libc.fstatfs
# Two longs, five 64-bit numbers, then the id, as in the kernel's asm-generic/statfs.h.
_FSID_AT: Final = 2 * ctypes.sizeof(ctypes.c_long) + 40

_Handle = tuple[bytes, int, bytes]


def _handle_of(fd: int) -> _Handle:
    """What fanotify calls the object behind *fd*: its filesystem, and type and bytes there."""
    numbers = ctypes.create_string_buffer(256)
    if _fstatfs(fd, numbers) < 0:
        raise failure()
    handle = ctypes.create_string_buffer(8 + _HANDLE_BYTES)
    struct.pack_into("=I", handle, 0, _HANDLE_BYTES)
    mount = ctypes.c_int()
    if _name_to_handle_at(fd, b"", handle, ctypes.byref(mount), _AT_EMPTY_PATH) < 0:
        raise failure()
    length, kind = struct.unpack_from("=Ii", handle)
    return numbers.raw[_FSID_AT : _FSID_AT + 8], kind, handle.raw[8 : 8 + length]


@final
@define(slots=True, eq=False)
class Fanotify:
    """Raises OSError where this process may not, or the kernel has no such reports."""

    wants_own: bool = True
    _fd: int = field(init=False)
    _pid: int = field(factory=os.getpid, init=False)

    def __attrs_post_init__(self) -> None:
        flags = _CLOEXEC | _NONBLOCK | _REPORT_DFID_NAME
        # Never an unlimited queue: what nobody reads must not fill the memory.
        for more in (_UNLIMITED_MARKS, 0):
            self._fd = _init(flags | more, os.O_RDONLY | os.O_CLOEXEC)
            if self._fd >= 0:
                return
        raise failure()

    def fileno(self) -> int:
        """As `Watcher.fileno`."""
        return self._fd

    def add(self, directory: int) -> Hashable:
        """As `Watcher.add`."""
        key = _handle_of(directory)
        if not self._change(_ADD, directory):
            raise failure()
        return key

    def _change(self, what: int, directory: int) -> bool:
        mask = _WATCHED | _ON_CHILD | _ONDIR
        done: int = _mark(self._fd, what | _ONLYDIR, mask, -100, _path(directory))
        return done >= 0

    def remove(self, key: Hashable, directory: int | None) -> None:
        """As `Watcher.remove`."""
        if directory is not None:
            self._change(_REMOVE, directory)

    def read(self) -> list[Event]:
        """As `Watcher.read`."""
        data = _pending(self._fd)
        found = []
        at = 0
        while at < len(data):
            length, _, _, head, mask, _, pid = _METADATA.unpack_from(data, at)
            if self.wants_own or pid != self._pid or mask & OVERFLOW:
                found.append(self._event(data[at + head : at + length], mask, pid))
            at += length
        return found

    def _event(self, info: bytes, mask: int, pid: int) -> Event:
        if mask & OVERFLOW or len(info) < _INFO.size:
            return Event(None, b"", mask | OVERFLOW, own=False)
        kind, _, length, fsid, size, handle_kind = _INFO.unpack_from(info)
        if kind != _INFO_DFID_NAME:
            return Event(None, b"", mask | OVERFLOW, own=False)
        handle = info[_INFO.size : _INFO.size + size]
        name = info[_INFO.size + size : length].partition(b"\0")[0]
        own = pid == self._pid
        return Event((fsid, handle_kind, handle), b"" if name == b"." else name, mask, own)

    def close(self) -> None:
        """As `Watcher.close`."""
        os.close(self._fd)


# --- inotify ----------------------------------------------------------------------------------

_IN_ONLYDIR: Final = 0x0100_0000
_IN_EVENT: Final = struct.Struct("=iIII")  # watch, mask, cookie, the name's length

_add_watch: Final = _libc.inotify_add_watch
_add_watch.argtypes = (ctypes.c_int, ctypes.c_char_p, ctypes.c_uint32)
_rm_watch: Final = _libc.inotify_rm_watch


@final
@define(slots=True, eq=False)
class Inotify:
    """Knows not who has done something: nothing is `own`."""

    wants_own: bool = True
    _fd: int = field(init=False)

    def __attrs_post_init__(self) -> None:
        self._fd = _libc.inotify_init1(os.O_CLOEXEC | os.O_NONBLOCK)
        if self._fd < 0:
            raise failure()

    def fileno(self) -> int:
        """As `Watcher.fileno`."""
        return self._fd

    def add(self, directory: int) -> Hashable:
        """As `Watcher.add`."""
        watch: int = _add_watch(self._fd, _path(directory), _WATCHED | _IN_ONLYDIR)
        if watch < 0:
            raise failure()
        return watch

    def remove(self, key: Hashable, directory: int | None) -> None:
        """As `Watcher.remove`."""
        assert isinstance(key, int)
        _rm_watch(self._fd, key)  # EINVAL where the kernel has done it already

    def read(self) -> list[Event]:
        """As `Watcher.read`."""
        data = _pending(self._fd)
        found = []
        at = 0
        while at < len(data):
            watch, mask, _, length = _IN_EVENT.unpack_from(data, at)
            at += _IN_EVENT.size
            name = data[at : at + length].partition(b"\0")[0]
            at += length
            found.append(Event(watch if watch >= 0 else None, name, mask, own=False))
        return found

    def close(self) -> None:
        """As `Watcher.close`."""
        os.close(self._fd)


def best() -> Watcher | None:
    """The better one that works here, None where neither does."""
    for kind in (Fanotify, Inotify):
        try:
            return kind()
        except OSError:
            continue
    return None
