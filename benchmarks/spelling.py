"""What a miss and a wrong spelling cost where lookups fold, in the library and through a mount.

In directories of 10, 1 000 and 100 000 entries, beside what ciopfs does (it reads the directory for
each name that is not there as it is spelled) and beside the directory itself, asked for the right
name. The numbers are microseconds for one name.
"""

from __future__ import annotations

import contextlib
import os
import stat
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final
from unittest import mock

from attrs import define

from benchmarks.contestants import LONG, Contestant
from benchmarks.results import NATIVE, Family, Line, Sample
from benchmarks.timing import Bench
from sidecar import casefold, spelling
from sidecar.descriptor import Descriptor
from sidecar.walk import Absent, Found, Place, Walk
from sysroot_fs.tree.host import HostPolicy
from tests import mounts

SIZES: Final = (10, 1_000, 100_000)
NAMES: Final = 100_000
"""Names asked for in the library, all rounds together; the directory itself as many."""
MOUNT_NAMES: Final = 5_000
"""Names asked for through the mount, all rounds together."""
SCANNED: Final = 200_000
"""Entries that the scanning lookup reads in each round."""

_OPEN: Final = os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC

Ask = Callable[[int, int], object]
"""Ask for *count* names, from number *first* on; names come from a sequence without an end."""


@define
class Asked:
    """One contestant: how to ask, for how many names a round, and how far it has come."""

    contestant: str
    family: Family
    ask: Ask
    count: int
    asked: int = 0

    def spent(self) -> float:
        """Microseconds for a name in one more round."""
        began = time.perf_counter()
        self.ask(self.asked, self.count)
        self.asked += self.count
        return 1e6 * (time.perf_counter() - began) / self.count


def _stored(number: int, size: int) -> bytes:
    return b"Header%06d.H" % (number % size)


def _asked(number: int, size: int) -> bytes:
    """A wrong spelling of an entry, another one whenever the directory has been gone through."""
    name = bytearray(b"header%06d.h" % (number % size))
    turn = 1 + number // size
    for bit in range(5):
        if turn >> bit & 1:
            name[1 + bit] -= 32
    return bytes(name)


def _missing(number: int, size: int) -> bytes:
    return b"missing%07d.h" % number


Name = Callable[[int, int], bytes]


def _steps(walk: Walk, place: Place, size: int, name: Name, wanted: type) -> Ask:
    def ask(first: int, count: int) -> None:
        for number in range(first, first + count):
            assert isinstance(walk.step(place, name(number, size)), wanted)

    return ask


def _stats(held: int, size: int, name: Name, there: bool) -> Ask:
    def ask(first: int, count: int) -> None:
        for number in range(first, first + count):
            try:
                os.stat(name(number, size), dir_fd=held)
            except FileNotFoundError:
                assert not there
            else:
                assert there

    return ask


def _scans(held: int, size: int, name: Name) -> Ask:
    """As ciopfs: the name as it is, then every entry in turn until one folds to it."""

    def ask(first: int, count: int) -> None:
        for number in range(first, first + count):
            wanted = name(number, size)
            with contextlib.suppress(FileNotFoundError):
                os.stat(wanted, dir_fd=held)
            key = casefold.key(wanted)
            reading = os.open(b".", os.O_RDONLY | os.O_DIRECTORY, dir_fd=held)
            try:
                with os.scandir(reading) as entries:
                    for entry in entries:
                        if casefold.key(os.fsencode(entry.name)) == key:
                            os.stat(entry.name, dir_fd=held)
                            break
            finally:
                os.close(reading)

    return ask


def _same(held: int, names: list[bytes]) -> Ask:
    """The same few names again and again: the kernel may know them."""

    def ask(first: int, count: int) -> None:
        for number in range(count):
            with contextlib.suppress(FileNotFoundError):
                os.stat(names[number % len(names)], dir_fd=held)

    return ask


def _cold(walk: Walk, place: Place, size: int) -> tuple[float, int]:
    """Microseconds of the first look into a directory, and how often it was read for 100 more."""
    with mock.patch.object(os, "scandir", wraps=os.scandir) as reads:
        began = time.perf_counter()
        walk.step(place, _asked(0, size))
        lasted = 1e6 * (time.perf_counter() - began)
        for number in range(100):
            walk.step(place, _asked(number, size))
            walk.step(place, _missing(number, size))
    return lasted, reads.call_count


def _line(what: str, size: int) -> Line:
    return Line(f"{what} among {size}", "spelling", "us")


_MISS: Final = "a name that is not there"
_WRONG: Final = "a wrong spelling"
_COLD: Final = "the first look"


def measure(bench: Bench, everyone: Sequence[Contestant]) -> None:
    """All rounds for each size; these contestants are others."""
    for size in SIZES[: 2 if bench.quick else None]:
        if any(bench.wants(_line(what, size)) for what in (_MISS, _WRONG, _COLD)):
            _measure(bench, bench.base / f"spelling-{size}", size)


def _measure(bench: Bench, work: Path, size: int) -> None:
    sysroot = work / "sysroot"
    (sysroot / "Include").mkdir(parents=True)
    held = os.open(sysroot / "Include", _OPEN)
    for number in range(size):
        os.mknod(_stored(number, size), stat.S_IFREG | 0o600, dir_fd=held)
    # While its times are young a directory is read once a second, not once.
    time.sleep(3.2)
    walk = Walk(Descriptor(os.open(sysroot, _OPEN)), None, HostPolicy("none"))
    walk.spelling = spelling.rules(casefold.key, True)
    root = walk.root()
    found = walk.step(root, b"include")
    assert isinstance(found, Found)
    place = walk.enter(root, b"include", found)
    cold, reads = _cold(walk, place, size)
    assert reads == 1, f"a directory was read {reads} times for 201 names"
    bench.book.of(_line(_COLD, size), "library", "own").samples.append(Sample(0, cold, cold))
    host, point = work / "host", work / "point"
    for path in (host, point):
        path.mkdir()
    options = ("lookup=fold", "fallback=none", LONG)
    mounted = mounts.start(sysroot, host, point, *options, log=work / "log")
    try:
        seen = os.open(point / "Include", _OPEN)
        try:
            _rounds(bench, _contestants(bench.rounds, size, held, seen, walk, place), size)
        finally:
            os.close(seen)
    finally:
        mounted.stop()
        os.close(held)


def _contestants(
    rounds: int, size: int, held: int, seen: int, walk: Walk, place: Place
) -> dict[str, list[Asked]]:
    """*held* is the directory itself, *seen* the same one through the mount."""
    few = min(size, 50)
    own, mounted = NAMES // rounds, MOUNT_NAMES // rounds
    scans = max(2, min(own, SCANNED // size))
    absent = [_missing(number, size) for number in range(-few, 0)]
    wrong = [_asked(number, size) for number in range(few)]
    right = [_stored(number, size) for number in range(few)]
    return {
        _MISS: [
            Asked(NATIVE, "native", _stats(held, size, _missing, False), own),
            Asked("library", "own", _steps(walk, place, size, _missing, Absent), own),
            Asked("mount", "own", _stats(seen, size, _missing, False), mounted),
            Asked("mount, again", "own", _same(seen, absent), mounted),
            Asked("scan each time", "peer", _scans(held, size, _missing), scans),
        ],
        _WRONG: [
            Asked(NATIVE, "native", _stats(held, size, _stored, True), own),
            Asked("library", "own", _steps(walk, place, size, _asked, Found), own),
            Asked("mount", "own", _stats(seen, size, _asked, True), mounted),
            Asked("mount, again", "own", _same(seen, wrong), mounted),
            Asked("mount, right name", "own", _same(seen, right), mounted),
            Asked("scan each time", "peer", _scans(held, size, _asked), scans),
        ],
    }


def _rounds(bench: Bench, groups: dict[str, list[Asked]], size: int) -> None:
    for round_ in range(-1, bench.rounds):
        for what, group in groups.items():
            for one in group:
                spent = one.spent()
                if round_ >= 0:  # the first one fills caches
                    series = bench.book.of(_line(what, size), one.contestant, one.family)
                    series.samples.append(Sample(round_, spent, spent))
