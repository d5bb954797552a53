"""Random changes on all sides of a mount: it shows what one that remembers nothing shows.

The seeds are fixed. A failure names its last changes; what was remembered for long is what differs.
"""

from __future__ import annotations

import contextlib
import errno
import os
import random
import shutil
import stat
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

import pytest

from tests import caches
from tests.mounts import Mounter

_NAMES: Final = ("a", "b", "A", "c")
_ROUNDS: Final = 4
_SETTLED: Final = 1.6
"""Seconds after which what is remembered for a second, and told twice, is asked for again."""

Change = Callable[[random.Random, Path, Path], object]


def _rewrite(dice: random.Random, path: Path, _: Path) -> None:
    path.write_text(str(dice.random()))


def _append(_: random.Random, path: Path, __: Path) -> None:
    with path.open("a") as file:
        file.write("x")


def _chmod(dice: random.Random, path: Path, _: Path) -> None:
    path.chmod(dice.choice([0o755, 0o700, 0o750] if path.is_dir() else [0o644, 0o600]))


_CHANGES: Final[dict[str, tuple[int, Change]]] = {
    "mkdir": (3, lambda dice, path, _: path.mkdir(parents=dice.random() < 0.5)),
    "write": (3, _rewrite),
    "append": (1, _append),
    "unlink": (1, lambda _, path, __: path.unlink()),
    "rmdir": (1, lambda _, path, __: path.rmdir()),
    "rmtree": (1, lambda _, path, __: shutil.rmtree(path)),
    "rename": (3, lambda _, path, other: path.rename(other)),
    "link": (1, lambda _, path, other: os.link(path, other)),
    "symlink": (1, lambda dice, path, _: path.symlink_to(dice.choice(_NAMES))),
    "chmod": (1, _chmod),
}


def _path(dice: random.Random, top: Path) -> Path:
    return top.joinpath(*dice.choices(_NAMES, k=dice.randint(1, 4)))


def _change(dice: random.Random, top: Path) -> str:
    """One change below *top*, done or refused; in words."""
    weights = [weight for weight, _ in _CHANGES.values()]
    (kind,) = dice.choices(list(_CHANGES), weights)
    path, other = _path(dice, top), _path(dice, top)
    with contextlib.suppress(OSError):
        _CHANGES[kind][1](dice, path, other)
    return f"{kind} {path} {other.relative_to(top)}"


def _content(path: str, mode: int) -> object:
    try:
        if stat.S_ISREG(mode):
            return Path(path).read_bytes()
        return os.readlink(path) if stat.S_ISLNK(mode) else sorted(os.listdir(path))
    except OSError as error:
        return errno.errorcode[error.errno or 0]


def _seen(top: Path, depth: int = 4) -> dict[str, object]:
    """What is to be seen below *top* under every path that changes are made at."""
    found: dict[str, object] = {"": sorted(os.listdir(top))}
    waiting = [(str(top), depth)]
    while waiting:
        here, left = waiting.pop()
        for name in _NAMES:
            path = f"{here}/{name}"
            try:
                seen = os.lstat(path)
            except OSError as error:
                found[os.path.relpath(path, top)] = errno.errorcode[error.errno or 0]
                continue
            size, links = (
                (seen.st_size, seen.st_nlink) if stat.S_ISREG(seen.st_mode) else (None, None)
            )
            told = (seen.st_mode, seen.st_mtime_ns, size, links, _content(path, seen.st_mode))
            found[os.path.relpath(path, top)] = told
            if stat.S_ISDIR(seen.st_mode) and left > 1:
                waiting.append((path, left - 1))
    return found


@pytest.mark.patience(300)
@pytest.mark.parametrize("seed", [1])
@pytest.mark.parametrize(
    "options", [(), ("coherence=shared",), ("host_coherence=watched", "lookup=fold")]
)
def test_as_without_a_memory(mounted: Mounter, options: tuple[str, ...], seed: int) -> None:
    """Changes through the mount, in the sysroot and on the host, in turns and with pauses."""
    dice = random.Random(seed)
    mount = mounted(*options)
    kept = [option for option in options if "coherence" not in option]
    forgetful = mounted(
        "coherence=none", "host_coherence=none", *kept, sysroot=mount.sysroot, host=mount.host
    )
    with caches.kept():
        for _ in range(_ROUNDS):
            done = []
            for _ in range(dice.choice([3, 20, 60])):
                top = dice.choice([mount.sysroot, mount.host, mount.point])
                done.append(_change(dice, top))
                if dice.random() < 0.3:
                    os.path.lexists(_path(dice, mount.point))
                if dice.random() < 0.05:
                    _seen(mount.point)
            _seen(mount.point)
            time.sleep(_SETTLED)
            here, there = _seen(mount.point), _seen(forgetful.point)
            differ = {
                path: (here.get(path), there.get(path))
                for path in sorted(here.keys() | there.keys())
                if here.get(path) != there.get(path)
            }
            assert not differ, "\n".join(done[-25:])
