"""The table that users of this project trust: suites by volumes, guests, places and modes.

A cell is one suite run with one guest whose sysroot lies on one volume, in one place (a directory
of the sysroot, or of the host that the guest reaches by fallback), in one mode of the mount. A
suite says on which axes it depends. What differs because the volume cannot do what is needed is
counted as skipped, by name and with the reason.

The cut runs few cells, which touch every row and every column, and deals a suite's items out
among its cells.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import io
import os
import shlex
import shutil
import signal
import sys
import tempfile
import threading
import time
import traceback
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Final

import attrs

from tests.caseless import open_kind
from tests.matrix import guests, report
from tests.matrix.building import GuestBuildError
from tests.matrix.report import Result
from tests.matrix.suite import (
    GUESTS,
    MODES,
    PLACES,
    VOLUMES,
    Cell,
    Reference,
    Setting,
    Suite,
    Tally,
)
from tests.matrix.suites import SUITES
from tests.matrix.volume_tools import VolumeError
from tests.matrix.volumes import mounts_below, sweep
from tests.mounts import watchdog

_ZFS = frozenset(
    {"xattrs", "fine-times", "blocks", "setgid-kept", "large-ids", "removed-directories"}
)
LACKS: Final[Mapping[str, frozenset[str]]] = {
    "ext4": frozenset(),
    "zfs": _ZFS,
    "zfs-formd": _ZFS | {"iota-subscripts"},
    # Not that it folds, nor which names it refuses: those the guest does not see.
    "exfat": frozenset(
        {"symlinks", "hard-links", "modes", "owners", "special-files", "xattrs", "sparse"}
        | {"fine-times", "setgid-kept", "large-ids", "directory-links", "removed-directories"}
        | {"atimes", "any-targets"}
    ),
    "lowntfs": frozenset(
        {"directory-links", "fine-times", "large-ids", "open-renames", "any-targets"}
        | {"removed-directories"}
    ),
    "caseless": frozenset({"xattrs", "sparse"}),
}
"""What a volume cannot do, of `cases.NEEDS`: what differs for it in the sysroot is excused."""

_AXES: Final = {
    "suite": tuple(suite.name for suite in SUITES),
    "volume": VOLUMES,
    "guest": GUESTS,
    "place": PLACES,
    "mode": tuple(MODES),
}
_ITEM: Final = "item"
_ITSELF: Final = "(the cell itself)"
_LINES_OF_A_TRACEBACK: Final = 20

# Until the servers of a cell are killed.
_SECONDS: Final = 1800.0
_SECONDS_OF_THE_CUT: Final = 300.0


@attrs.frozen
class Job:
    """A cell that is to be run, and with which of its suite's items."""

    suite: Suite
    cell: Cell
    items: Sequence[str]
    cut: bool = False


def full(only: Mapping[str, Sequence[str]]) -> list[Job]:
    """Every cell that *only* lets through, an axis (or ``item``) with the values that it may have.

    A suite that does not depend on an axis is let through whatever stands there.
    """
    jobs = [Job(suite, cell, suite.items()) for suite in SUITES for cell in suite.cells()]
    return _let_through(jobs, only)


def _let_through(jobs: Sequence[Job], only: Mapping[str, Sequence[str]]) -> list[Job]:
    axes = {axis: values for axis, values in only.items() if axis != _ITEM}
    left = []
    for job in jobs:
        if all(getattr(job.cell, axis) in ("-", *values) for axis, values in axes.items()):
            wanted = set(only.get(_ITEM, job.items))
            items = [item for item in job.items if item in wanted]
            left += [attrs.evolve(job, items=items)] if items else []
    return left


def cut(only: Mapping[str, Sequence[str]] = MappingProxyType({})) -> list[Job]:
    """Few cells of each suite, in which every value of every axis is, and its items once each.

    A suite may say that only some of its items belong to the cut. Where it has fewer items than
    there are cells, some are there again. Of all that, what *only* lets through.
    """
    jobs = []
    for number, suite in enumerate(SUITES):
        cells = _covering(suite, number)
        for cell, items in zip(cells, _dealt(suite, cells), strict=True):
            jobs.append(Job(suite, cell, items, cut=True))
    return _let_through(jobs, only)


def _dealt(suite: Suite, cells: Sequence[Cell]) -> list[list[str]]:
    """The items of the cut for each of *cells*: evenly, where the volume can do what they need."""
    hands: list[list[str]] = [[] for _ in cells]
    able = {
        item: [
            hand
            for hand, cell in zip(hands, cells, strict=True)
            if not suite.needs(item) & LACKS[cell.volume]
        ]
        for item in suite.cut_items()
    }
    for item, some in able.items():
        min(some or hands, key=len).append(item)
    for number, hand in enumerate(hands):
        if not hand:
            good = [item for item, some in able.items() if any(hand is one for one in some)]
            choice = good or list(able)
            hand.append(choice[number % len(choice)])
    return hands


def _covering(suite: Suite, shift: int) -> list[Cell]:
    """As many cells as the longest axis has values; *shift* makes suites differ in which."""
    count = max(map(len, (suite.volumes, suite.guests, suite.places, suite.modes)))
    on_host = (0, 1 + shift % max(count - 1, 1))
    cells = []
    for turn in range(count):
        guest, mode = (
            # They turn on by one more each time that they have come round.
            axis[(turn + turn // len(axis) + shift) % len(axis)] if axis else "-"
            for axis in (suite.guests, suite.modes)
        )
        # In the sysroot it is the volume that makes the difference; the first one does not fold.
        place = suite.places[-1 if turn in on_host else 0] if suite.places else "-"
        volume = suite.volumes[turn % len(suite.volumes)]
        cells.append(Cell(suite.name, volume, guest, place, mode))
    return cells


def run_job(job: Job, base: Path, reference: Reference) -> Result:
    """Run one cell in a directory of its own below *base*; what goes wrong is a failure."""
    began = time.monotonic()
    seconds = _SECONDS_OF_THE_CUT if job.cut else _SECONDS
    with watchdog(seconds) as killed:
        try:
            with _workplace("cell-", base) as work:
                tally = _run(job, work, reference)
        except (VolumeError, GuestBuildError) as error:
            tally = Tally(failures={_ITSELF: str(error).splitlines()})
        except Exception as error:
            told = "".join(traceback.format_exception(error)).splitlines()
            tally = Tally(failures={_ITSELF: told[-_LINES_OF_A_TRACEBACK:]})
    if killed.is_set():
        words = f"it took longer than {seconds:.0f} s: then its servers were killed"
        told = [words, *tally.failures.get(_ITSELF, ())]
        tally = attrs.evolve(tally, failures={**tally.failures, _ITSELF: told})
    return Result(job.cell, _complete(tally, job.items), time.monotonic() - began, job.items)


@contextlib.contextmanager
def _workplace(prefix: str, base: Path | None = None) -> Iterator[Path]:
    """A directory that every user can enter, removed when nothing is mounted below it any more.

    Raises VolumeError where something stays mounted: deleting would delete inside of it.
    """
    work = Path(tempfile.mkdtemp(prefix=prefix, dir=base)).resolve()
    work.chmod(0o755)
    try:
        yield work
    finally:
        if mounts_below(work):
            sweep(work)
        if left := mounts_below(work):
            raise VolumeError(f"{left[0]} is still mounted: unmount it, then remove {work}")
        shutil.rmtree(work)


def _complete(tally: Tally, items: Sequence[str]) -> Tally:
    """*tally* with a failure for each item that is not in it once, and each that was not asked for.

    A suite that forgets an item must not look as if that had passed.
    """
    counts = Counter(tally.passed)
    counts.update(name for name in {**tally.failures, **tally.skipped} if name in items)
    wrong = {item: "not told: it is neither passed nor failed nor skipped" for item in items}
    for name, count in counts.items():
        if name not in wrong:
            wrong[name] = "it has passed, and nobody has asked for it"
        elif count > 1:
            wrong[name] = "it has passed, and that is not all that is told of it"
        else:
            del wrong[name]
    passed = [name for name in tally.passed if name not in wrong]
    failures = dict(tally.failures)
    for name, why in wrong.items():
        failures[name] = [*failures.get(name, ()), why]
    return attrs.evolve(tally, passed=passed, failures=failures)


def _run(job: Job, base: Path, reference: Reference) -> Tally:
    cell = job.cell
    kind = "plain" if cell.volume == "ext4" else cell.volume
    with open_kind(kind, base) as volume:
        sysroot, host = volume.path / "guest", base / "host"
        host.mkdir()
        if cell.guest == "-":
            sysroot.mkdir()
        else:
            links: guests.Links = "copy" if cell.volume == "exfat" else "symlink"
            guests.unpack(sysroot, links, cell.guest)
        lacks = LACKS[cell.volume]
        setting = Setting(cell, base, volume, sysroot, host, lacks, reference, job.cut)
        return job.suite.run(setting, job.items)


def run_jobs(
    jobs: Sequence[Job], base: Path, after_each: Callable[[Sequence[Result]], None]
) -> list[Result]:
    """Run the cells, one line each; on a terminal the one that runs shows how long already.

    *after_each* is given all that there is so far.
    """
    reference = Reference(base)
    results = []
    for number, job in enumerate(jobs, 1):
        line = f"{number:{len(str(len(jobs)))}}/{len(jobs)} {job.cell.name:48} "
        with _clock(line) if sys.stdout.isatty() else contextlib.nullcontext():
            result = run_job(job, base, reference)
        results.append(result)
        after_each(results)
        print(f"{line}{result.line()}", flush=True)
    return results


@contextlib.contextmanager
def _clock(line: str) -> Iterator[None]:
    """Show *line* and the seconds since, on one line of the terminal that is empty afterwards."""
    over = threading.Event()

    def show() -> None:
        began = time.monotonic()
        while True:
            print(f"\r{line}{time.monotonic() - began:.0f} s", end="", flush=True)
            if over.wait(1):
                print("\r\033[K", end="", flush=True)
                return

    thread = threading.Thread(target=show)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def _only(text: str) -> dict[str, Sequence[str]]:
    only: dict[str, Sequence[str]] = {}
    for part in filter(None, text.split(",")):
        axis, _, values = part.partition("=")
        only[axis] = values.split("+")
        if axis == _ITEM:
            continue
        for value in only[axis]:
            if value not in _AXES.get(axis, ()):
                choices = "; ".join(f"{one}={'+'.join(all)}" for one, all in _AXES.items())
                raise SystemExit(f"matrix: no such cell: {part} (there are {choices}; {_ITEM}=..)")
    for item in only.get(_ITEM, ()):
        if not any(
            suite.name in only.get("suite", [suite.name]) and item in suite.items()
            for suite in SUITES
        ):
            raise SystemExit(f"matrix: no such item: {item}")
    return only


def alone(cell: Cell, items: Collection[str] = (), *, cut: bool = False) -> str:
    """The command that runs a cell alone, or only some of its *items*, as the *cut* does."""
    only = cell.only + (f",{_ITEM}={'+'.join(items)}" if items else "")
    if cut:
        return f".venv/bin/python -m tests.matrix.table --cut {shlex.quote(only)}"
    return f"make matrix ONLY={shlex.quote(only)}"


@contextlib.contextmanager
def _ended_in_order() -> Iterator[None]:
    """SIGTERM ends this process as ^C does, with its volumes taken away."""

    def end(number: int, frame: object) -> None:
        raise SystemExit(128 + number)

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def main() -> int:
    """Run what was asked for; 1 where something failed."""
    parser = argparse.ArgumentParser(prog="matrix", description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("only", nargs="?", default="", help="volume=zfs+exfat,suite=S,item=I ...")
    parser.add_argument("--cut", action="store_true", help="a little of everything")
    parser.add_argument("--report", type=Path, help="write report.txt, .json and .html there")
    arguments = parser.parse_args()
    if os.geteuid() != 0:
        print("matrix: volumes and chroots need root: run it as root", file=sys.stderr)
        return 1
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")
    only = _only(arguments.only)
    jobs = cut(only) if arguments.cut else full(only)
    if not jobs:
        asked = f"{arguments.only}{' --cut' if arguments.cut else ''}"
        print(f"matrix: there is no such cell: {asked}", file=sys.stderr)
        return 1
    command = functools.partial(alone, cut=arguments.cut)

    def write(results: Sequence[Result]) -> None:
        if arguments.report is not None:
            report.write(results, arguments.report, command)

    with _ended_in_order(), _workplace("sysroot-fs-matrix-") as work:
        results = run_jobs(jobs, work, write)
    print(report.as_text(results, command))
    if arguments.report is not None:
        print(f"report: {arguments.report}/report.html")
    return 1 if any(result.tally.failures for result in results) else 0


if __name__ == "__main__":
    sys.exit(main())
