"""What the kernel remembers of other spellings, where lookups fold.

The kernel compares names byte by byte. When `foo.h` appears, an "absent" that it remembers for
`FOO.H` is wrong, and only who gave the answer knows of it. So every such answer is kept until it
has expired by itself, and all that mean the new name are taken back.

And it takes a rename to another spelling for no rename, since both names lead to one inode: see
`is_respelling`.
"""

from __future__ import annotations

import os
import platform
import time
from collections import deque
from typing import Final, final

from attrs import define, field

from sidecar.spelling import Key
from sidecar.twin import Caller

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

# The numbers of rename, renameat and renameat2 by machine, from linux/unistd.h of each; and where
# in their arguments the directories (None: the working directory) and the paths stand.
_PLAIN: Final = (None, 0, None, 1)
_AT: Final = (0, 1, 2, 3)
_CALLS: Final[dict[str, dict[int, tuple[int | None, int, int | None, int]]]] = {
    "x86_64": {82: _PLAIN, 264: _AT, 316: _AT},
    "aarch64": {38: _AT, 276: _AT},
    "riscv64": {276: _AT},
    "ppc64le": {38: _PLAIN, 293: _AT, 357: _AT},
    "s390x": {38: _PLAIN, 295: _AT, 347: _AT},
}
_RENAMES: Final = _CALLS.get(platform.machine(), {})
_PATH_MAX: Final = 4096


def is_respelling(caller: Caller, name: bytes, key: Key) -> bool:
    """Whether *caller* waits in a rename from another spelling of *name* to *name*.

    Read from /proc while the caller waits: the lookup of a rename's target is a lookup like any
    other to a file system, but for this one "absent" is the right answer. In doubt, or without
    the right to look (the kernel's ptrace rules), false: then the rename changes nothing.
    """
    if not caller.pid or not _RENAMES:
        return False
    try:
        with open(f"/proc/{caller.pid}/syscall", "rb") as file:
            words = file.read().split()
        where = _RENAMES.get(int(words[0]))
        if where is None:
            return False
        arguments = [int(word, 16) for word in words[1:7]]
        old_at, old, new_at, new = where
        memory = os.open(f"/proc/{caller.pid}/mem", os.O_RDONLY | os.O_CLOEXEC)
        try:
            old_path, new_path = _text(memory, arguments[old]), _text(memory, arguments[new])
        finally:
            os.close(memory)
    except (OSError, ValueError, IndexError, OverflowError):
        return False
    old_head, _, old_name = old_path.rstrip(b"/").rpartition(b"/")
    new_head, _, new_name = new_path.rstrip(b"/").rpartition(b"/")
    if old_path.startswith(b"/") and new_path.startswith(b"/"):
        same_start = True
    elif old_path.startswith(b"/") or new_path.startswith(b"/"):
        return False
    else:
        same_start = old_at is None or new_at is None or arguments[old_at] == arguments[new_at]
    return (
        new_name == name != old_name
        and key(old_name) == key(name)
        and os.path.normpath(old_head or b".") == os.path.normpath(new_head or b".")
        and same_start
    )


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
