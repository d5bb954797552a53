"""Watching directories by inotify: who opened, read or changed something in them."""

from __future__ import annotations

import ctypes
import os
import struct
from pathlib import Path
from typing import Final

__all__ = ["NAMES", "Watch"]

_EVERYTHING: Final = 0xFFF
NAMES: Final = 0x3C0
"""Events of names that come, go and move."""
_NONBLOCK: Final = os.O_NONBLOCK | os.O_CLOEXEC
_EVENT: Final = struct.Struct("iIII")
_libc: Final = ctypes.CDLL(None, use_errno=True)


class Watch:
    """Notes what happens in some directories from now on; opens with O_PATH are not seen."""

    def __init__(self, *directories: Path, mask: int = _EVERYTHING) -> None:
        self._fd = _libc.inotify_init1(_NONBLOCK)
        for directory in directories:
            if _libc.inotify_add_watch(self._fd, os.fsencode(directory), mask) < 0:
                number = ctypes.get_errno()
                raise OSError(number, os.strerror(number), str(directory))

    def events(self) -> list[tuple[int, bytes]]:
        """(kind, name) of what happened since the last call."""
        found: list[tuple[int, bytes]] = []
        while True:
            try:
                data = os.read(self._fd, 1 << 16)
            except BlockingIOError:
                return found
            while data:
                _, kind, _, length = _EVENT.unpack_from(data)
                name = data[_EVENT.size : _EVENT.size + length].rstrip(b"\0")
                found.append((kind, name))
                data = data[_EVENT.size + length :]

    def close(self) -> None:
        """Watch no more."""
        os.close(self._fd)
