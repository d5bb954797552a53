"""What the kernel remembers of other spellings, where lookups fold.

The kernel compares names byte by byte. When `foo.h` appears, an "absent" that it remembers for
`FOO.H` is wrong, and only who gave the answer knows of it. So every such answer is kept until it
has expired by itself, and all that mean the new name are taken back.

And it takes a rename to another spelling for no rename, since both names lead to one inode: see
`is_respelling`.
"""

from __future__ import annotations

import functools
import os
import platform
import threading
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from typing import Final, TypeVar, final

from attrs import define, field

from sidecar import linux
from sidecar.spelling import Key
from sidecar.twin import Caller

T = TypeVar("T")

MOST: Final = 65536
"""Answers that are kept; past that a name is answered without leave to remember it."""


@final
@define(slots=True, eq=False)
class Spellings:
    """The "absent" answers that the kernel may remember, by directory and fold key."""

    _names: dict[tuple[int, bytes], dict[bytes, float]] = field(factory=dict, init=False)
    _queue: deque[tuple[float, tuple[int, bytes], bytes]] = field(factory=deque, init=False)

    def absent(self, directory: int, key: bytes, name: bytes, seconds: float) -> float:
        """Note that *name* is about to be answered "absent"; for how long it may be remembered."""
        now = time.monotonic()
        self._expire(now)
        if seconds <= 0 or len(self._queue) >= MOST:
            return 0.0
        place = (directory, key)
        # The kernel starts to count when it has the answer.
        until = now + seconds + 1.0
        self._names.setdefault(place, {})[name] = until
        self._queue.append((until, place, name))
        return seconds

    def appeared(self, directory: int, key: bytes) -> list[bytes]:
        """The names to be forgotten, now that one of that key is there."""
        return list(self._names.pop((directory, key), ()))

    def _expire(self, now: float) -> None:
        queue = self._queue
        while queue and queue[0][0] <= now:
            until, place, name = queue.popleft()
            names = self._names.get(place, {})
            # Asked for again meanwhile, it stands in the queue again.
            if names.get(name, until) <= now and name in names:
                del names[name]
                if not names:
                    del self._names[place]


# --- a rename that only changes the spelling ----------------------------------------------------

_Places = tuple[int | None, int, int | None, int, int | None]
# The numbers of rename, renameat and renameat2 by machine, from linux/unistd.h of each; and where
# in their arguments the directories (None: the working directory), the paths and the flags stand.
_PLAIN: Final[_Places] = (None, 0, None, 1, None)
_AT: Final[_Places] = (0, 1, 2, 3, None)
_AT2: Final[_Places] = (0, 1, 2, 3, 4)
_CALLS: Final[dict[str, dict[int, _Places]]] = {
    "x86_64": {82: _PLAIN, 264: _AT, 316: _AT2},
    "aarch64": {38: _AT, 276: _AT2},
    "riscv64": {276: _AT2},
    "ppc64le": {38: _PLAIN, 293: _AT, 357: _AT2},
    "s390x": {38: _PLAIN, 295: _AT, 347: _AT2},
}
_RENAMES: Final = _CALLS.get(platform.machine(), {})
_PATH_MAX: Final = 4096
_AT_FDCWD: Final = 0xFFFF_FF9C
PATIENCE: Final = 1.0
"""Seconds for which the memory of a caller is waited for."""
_waiting: list[threading.Thread] = []


def is_respelling(caller: Caller, name: bytes, key: Key, directory: Callable[[], bytes]) -> bool:
    """Whether *caller* waits in a rename from another spelling of *name* to *name*.

    *directory* tells the guest path of the directory in which *name* was looked up. Read from /proc
    while the caller waits: the lookup of a rename's target is a lookup like any other to a file
    system, but for this one "absent" is the right answer. In doubt, or without the right to look
    (the kernel's ptrace rules), false: then the rename changes nothing. The caller can lie, so
    nothing but "absent" may follow from it: what is replaced is judged when the rename comes.
    """
    if not caller.pid or not _RENAMES:
        return False
    try:
        words = _read(b"/proc/%d/syscall" % caller.pid).split()
        where = _RENAMES.get(int(words[0]))
        if where is None:
            return False
        arguments = [int(word, 16) for word in words[1:7]]
        old_at, old, new_at, new, flags = where
        if flags is not None and arguments[flags] & linux.RENAME_EXCHANGE:
            return False
        old_path, new_path = _patiently(
            functools.partial(_texts, caller.pid, arguments[old], arguments[new])
        )
        old_head, _, old_name = old_path.rstrip(b"/").rpartition(b"/")
        new_head, _, new_name = new_path.rstrip(b"/").rpartition(b"/")
        if not (new_name == name != old_name and key(old_name) == key(name)):
            return False
        starts = [
            _start(caller.pid, path, _AT_FDCWD if at is None else arguments[at])
            for at, path in ((old_at, old_path), (new_at, new_path))
        ]
    except (OSError, ValueError, IndexError, OverflowError):
        return False
    old_way, new_way = (
        os.path.normpath(os.path.join(start, head))
        for start, head in zip(starts, (old_head, new_head), strict=True)
    )
    return key(old_way) == key(new_way) and not any(
        _is_on_the_way(name, way, directory(), key) for way in (old_way, new_way)
    )


def _read(path: bytes) -> bytes:
    # Half the time of open(), and it is asked for every name in another spelling.
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return os.read(fd, 256)
    finally:
        os.close(fd)


def _start(pid: int, path: bytes, at: int) -> bytes:
    """The directory from which a call's *path* is walked, by the name that the kernel has."""
    if path.startswith(b"/"):
        return b"/"
    at &= 0xFFFF_FFFF
    return os.readlink(b"/proc/%d/cwd" % pid if at == _AT_FDCWD else b"/proc/%d/fd/%d" % (pid, at))


def _is_on_the_way(name: bytes, way: bytes, directory: bytes, key: Key) -> bool:
    """Whether the lookup of *name* in *directory* may be for one above the names, called the same.

    *way* is what the caller sees above the names; *directory* begins at the mount.
    """
    parts = [part for part in way.split(b"/") if part]
    if name not in parts:
        return False
    above = [part for part in key(directory).split(b"/") if part]
    return not above or any(
        part == name and [key(one) for one in parts[:number]][-len(above) :] == above
        for number, part in enumerate(parts)
    )


def _patiently(work: Callable[[], T]) -> T:
    """What *work* returns, in a thread: TimeoutError after `PATIENCE`, or while one still waits.

    The caller's memory may be a file of this very mount, or of a server that never answers.
    """
    if any(thread.is_alive() for thread in _waiting):
        raise TimeoutError
    done: list[T] = []

    def act() -> None:
        with suppress(OSError, ValueError, OverflowError):
            done.append(work())

    _waiting[:] = [threading.Thread(target=act, daemon=True)]
    _waiting[0].start()
    _waiting[0].join(PATIENCE)
    if not done:
        raise TimeoutError
    return done[0]


def _texts(pid: int, *addresses: int) -> list[bytes]:
    """The strings at *addresses* in the memory of the process *pid*."""
    memory = os.open(f"/proc/{pid}/mem", os.O_RDONLY | os.O_CLOEXEC)
    try:
        return [_text(memory, address) for address in addresses]
    finally:
        os.close(memory)


def _text(memory: int, address: int) -> bytes:
    """The string at *address*; what lies behind its page may not be mapped."""
    text = b""
    while len(text) < _PATH_MAX:
        step = _PATH_MAX - (address + len(text)) % _PATH_MAX
        piece, end, _ = os.pread(memory, step, address + len(text)).partition(b"\0")
        text += piece
        if end or not piece:
            return text
    raise ValueError("no path is that long")
