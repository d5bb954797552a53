"""The mount table of this process's namespace, and what has changed in it."""

from __future__ import annotations

import contextlib
import os
import re
import select
import threading
from typing import Final

from attrs import define, field

_ESCAPE: Final = re.compile(rb"\\([0-7]{3})")
_TABLE: Final = "/proc/self/mountinfo"
_PIECE: Final = 1 << 16
"""Bytes to ask for at once; the kernel gives less."""


def _event() -> int:
    return os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)


@define(slots=True, eq=False)
class MountTable:
    """Its descriptor can be read when the table has changed. OSError and RuntimeError where it
    cannot be waited for: no /proc, no descriptors, no thread.

    The table's own cannot be waited for together with others: that it has changed is told once, to
    whoever looks first (proc(5)), and an epoll looks for itself. So a thread waits for it alone.
    """

    _changed: int = field(init=False)
    _closed: int = field(init=False)
    _table: int = field(init=False)
    _lines: set[bytes] = field(factory=set, init=False)
    _thread: threading.Thread = field(init=False)

    def __attrs_post_init__(self) -> None:
        opened: list[int] = []
        try:
            opened += [_event()]
            opened += [_event()]
            opened += [os.open(_TABLE, os.O_RDONLY | os.O_CLOEXEC)]
            self._changed, self._closed, self._table = opened
            self.changed()
            self._thread = threading.Thread(target=self._wait, name="mounts", daemon=True)
            self._thread.start()
        except (OSError, RuntimeError):
            for fd in opened:
                os.close(fd)
            raise

    def _wait(self) -> None:
        poll = select.poll()
        poll.register(self._table, select.POLLPRI)
        poll.register(self._closed, select.POLLIN)
        while all(fd == self._table for fd, _ in poll.poll()):
            os.eventfd_write(self._changed, 1)

    def fileno(self) -> int:
        """The descriptor, for poll."""
        return self._changed

    def changed(self) -> list[bytes]:
        """The mountpoints at which something was mounted or unmounted since the last time."""
        with contextlib.suppress(BlockingIOError):
            os.eventfd_read(self._changed)
        before, self._lines = self._lines, self._read()
        return sorted({_mountpoint(line) for line in before ^ self._lines})

    def _read(self) -> set[bytes]:
        """The table's lines, by the descriptor that there is: there may be no other to be had."""
        os.lseek(self._table, 0, os.SEEK_SET)
        return set(b"".join(iter(lambda: os.read(self._table, _PIECE), b"")).splitlines())

    def close(self) -> None:
        """End the thread."""
        os.eventfd_write(self._closed, 1)
        self._thread.join()
        for fd in (self._changed, self._closed, self._table):
            os.close(fd)


def _mountpoint(line: bytes) -> bytes:
    where = line.split(b" ", 5)[4]
    return _ESCAPE.sub(lambda found: bytes((int(found[1], 8) & 0xFF,)), where)
