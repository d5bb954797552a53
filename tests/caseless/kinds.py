"""The volumes of `tests.matrix.volumes` and the one in memory, under one name each."""

from __future__ import annotations

from contextlib import AbstractContextManager, ExitStack
from pathlib import Path
from typing import Final

from tests.caseless.memory import caseless_volume
from tests.matrix.volumes import Volume, open_volume

FOLDING: Final = ("caseless", "zfs", "zfs-formd", "exfat", "lowntfs")
"""Volumes that take Foo and foo for one name."""
EVERY: Final = ("plain", *FOLDING)


def open_kind(kind: str, base: Path) -> AbstractContextManager[Volume]:
    """A new volume of the given kind below *base*."""
    return caseless_volume(base) if kind == "caseless" else open_volume(kind, base)


class Volumes:
    """Volumes below *base*, one of each kind, opened when first asked for, closed by *stack*."""

    def __init__(self, base: Path, stack: ExitStack) -> None:
        self._base = base
        self._stack = stack
        self._opened: dict[str, Volume] = {}

    def __getitem__(self, kind: str) -> Volume:
        if kind not in self._opened:
            self._opened[kind] = self._stack.enter_context(open_kind(kind, self._base))
        return self._opened[kind]
