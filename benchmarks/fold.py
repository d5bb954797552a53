"""What a miss and a wrong spelling cost where lookups fold: `python -m benchmarks.fold [ROUNDS]`.

In directories of 10, 1 000 and 100 000 entries, in the library and through a mount, beside what
ciopfs does (it reads the directory for each name that is not there as it is spelled) and beside
ext4 or whatever /tmp is, asked for the right name. All are measured in the same rounds, in turn, so
that a busy machine is busy for all; the numbers are microseconds for one name, the median of the
rounds, and how many times the plain stat of the same kind that is.
"""

from __future__ import annotations

import contextlib
import os
import stat
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final
from unittest import mock

from attrs import define, field

from sidecar import casefold, spelling
from sidecar.descriptor import Descriptor
from sidecar.walk import Absent, Found, Place, Walk
from sysroot_fs.tree.host import HostPolicy

SIZES: Final = (10, 1_000, 100_000)
ROUNDS: Final = 5
NAMES: Final = 100_000
"""Names asked for in the library, all rounds together; ext4 as many."""
MOUNT_NAMES: Final = 5_000
"""Names asked for through the mount, all rounds together."""
SCANNED: Final = 200_000
"""Entries that the scanning lookup reads in each round."""

_OPEN: Final = os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC
_PATIENCE: Final = 20.0

Ask = Callable[[int, int], object]
"""Ask for *count* names, from number *first* on; names come from a sequence without an end."""


@define
class Series:
    """One row of the table: how to ask, for how many names a round, and what a name took."""

    label: str
    ask: Ask
    count: int
    asked: int = 0
    spent: list[float] = field(factory=list)

    def run(self, counts: bool) -> None:
        """One round."""
        began = time.perf_counter()
        self.ask(self.asked, self.count)
        if counts:
            self.spent.append(1e6 * (time.perf_counter() - began) / self.count)
        self.asked += self.count

    @property
    def middle(self) -> float:
        """Microseconds for one name."""
        return statistics.median(self.spent)


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


@contextlib.contextmanager
def _mount(sysroot: Path, point: Path, log: Path) -> Iterator[None]:
    point.mkdir()
    command = [sys.executable, "-m", "sysroot_fs", "mount", "-f", str(sysroot), str(point)]
    options = "lookup=fold,fallback=none,entry_timeout=1000,negative_timeout=1000"
    with open(log, "wb") as said:
        server = subprocess.Popen(
            [*command, "-o", options], stdin=subprocess.DEVNULL, stdout=said, stderr=said
        )
    try:
        deadline = time.monotonic() + _PATIENCE
        while not os.path.ismount(point):
            if server.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"no mount: {log.read_text()}")
            time.sleep(0.02)
        yield
    finally:
        server.terminate()
        server.wait()


def _cold(walk: Walk, place: Place, size: int) -> tuple[float, int]:
    """Milliseconds of the first look into a directory, and how often it was read for 100 more."""
    with mock.patch.object(os, "scandir", wraps=os.scandir) as reads:
        began = time.perf_counter()
        walk.step(place, _asked(0, size))
        lasted = 1e3 * (time.perf_counter() - began)
        for number in range(100):
            walk.step(place, _asked(number, size))
            walk.step(place, _missing(number, size))
    return lasted, reads.call_count


def _measure(work: Path, size: int, rounds: int) -> None:
    sysroot = work / f"sysroot-{size}"
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
    point = work / f"mount-{size}"
    with _mount(sysroot, point, work / "log"):
        seen = os.open(point / "Include", _OPEN)
        few = min(size, 50)
        own, mounted = NAMES // rounds, MOUNT_NAMES // rounds
        scans = max(2, min(own, SCANNED // size))
        misses = [
            Series("ext4, right name", _stats(held, size, _missing, False), own),
            Series("library", _steps(walk, place, size, _missing, Absent), own),
            Series("scan each time", _scans(held, size, _missing), scans),
            Series("mount, new names", _stats(seen, size, _missing, False), mounted),
            Series(
                "mount, the same names",
                _same(seen, [_missing(number, size) for number in range(-few, 0)]),
                mounted,
            ),
        ]
        hits = [
            Series("ext4, right name", _stats(held, size, _stored, True), own),
            Series("library", _steps(walk, place, size, _asked, Found), own),
            Series("scan each time", _scans(held, size, _asked), scans),
            Series("mount, new names", _stats(seen, size, _asked, True), mounted),
            Series(
                "mount, the same names",
                _same(seen, [_asked(number, size) for number in range(few)]),
                mounted,
            ),
            Series(
                "mount, right name",
                _same(seen, [_stored(number, size) for number in range(few)]),
                mounted,
            ),
        ]
        for number in range(rounds + 1):
            for series in (*misses, *hits):
                series.run(counts=number > 0)  # the first round fills caches
        os.close(seen)
    os.close(held)
    print(f"{size} entries: first look {cold:.1f} ms, read {reads} time(s) for 201 names")
    for title, group in (("miss", misses), ("wrong spelling", hits)):
        for series in group:
            ratio = series.middle / group[0].middle
            print(f"  {title:15} {series.label:22} {series.middle:12.2f} {ratio:12.1f}")


def main() -> int:
    """Measure and print; exit status 1 without root, which a mount for others needs."""
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else ROUNDS
    if os.geteuid() != 0:
        print("benchmark: run it as root, as a guest root is used", file=sys.stderr)
        return 1
    print(f"microseconds for a name, median of {rounds} rounds, load {os.getloadavg()[0]:.1f}")
    print(f"  {'':15} {'':22} {'us':>12} {'times ext4':>12}")
    with tempfile.TemporaryDirectory(prefix="sysroot-fs-benchmark-") as name:
        for size in SIZES:
            _measure(Path(name), size, rounds)
    return 0


if __name__ == "__main__":
    sys.exit(main())
