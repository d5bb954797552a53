"""The kernel's caches, which are the whole machine's: dropped by some tests, needed by others."""

from __future__ import annotations

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

_CACHES: Final = Path("/proc/sys/vm/drop_caches")


def drop() -> None:
    """Have the kernel forget names and inodes that nobody uses; waits for who counts on them."""
    with _CACHES.open("w", encoding="ascii") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        file.write("2")


@contextmanager
def kept() -> Iterator[None]:
    """Nobody drops them meanwhile."""
    with _CACHES.open("w", encoding="ascii") as file:
        fcntl.flock(file, fcntl.LOCK_SH)
        yield
