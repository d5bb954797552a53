"""Starting: until a mount is there, and `true` in a guest and back.

Python's own start, measured in the same round, is taken off where a target is without it.
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from benchmarks.contestants import Contestant, Places, gathered
from benchmarks.results import NATIVE, Family, Line, Sample
from benchmarks.timing import Bench
from tests.matrix import guests

MOUNT: Final = Line("mount", "start", "ms")
TRUE: Final = Line("true in a guest and back", "start", "ms")
MORE: Final = Line("run, more than a chroot", "start", "ms")
PYTHON: Final = Line("python -c pass", "start", "ms")

_COMMAND: Final = Path(sys.executable).parent / "sysroot-fs"
_PYTHON: Final = (sys.executable, "-c", "pass")


def _milliseconds(words: Sequence[str]) -> float:
    began = time.perf_counter()
    quiet = subprocess.DEVNULL
    subprocess.run(words, check=True, stdin=quiet, stdout=quiet, stderr=quiet)
    return 1e3 * (time.perf_counter() - began)


def _note(bench: Bench, line: Line, name: str, family: Family, round_: int, spent: float) -> None:
    bench.book.of(line, name, family).samples.append(Sample(round_, spent, spent))


def measure(bench: Bench, everyone: Sequence[Contestant]) -> None:
    """Twice as many rounds as elsewhere: each is short."""
    if bench.wants(MOUNT):
        _mounts(bench, everyone)
    if bench.wants(TRUE) or bench.wants(MORE):
        _runs(bench)


def _mounts(bench: Bench, everyone: Sequence[Contestant]) -> None:
    with gathered(everyone, bench.base / "start", bench.built) as running:
        for round_ in range(2 * bench.rounds):
            python = _milliseconds(_PYTHON)
            for one in bench.shuffled([one for one in running if one.contestant.mounted]):
                began = time.perf_counter()
                one.mount()
                spent = 1e3 * (time.perf_counter() - began)
                one.stop()
                own = one.contestant.family == "own"
                less = python if own else 0.0
                _note(bench, MOUNT, one.name, one.contestant.family, round_, spent - less)


def _runs(bench: Bench) -> None:
    at = Places(bench.base / "run")
    at.make()
    guests.unpack(at.tree)
    run = [str(_COMMAND), "run", "--host", str(at.empty)]
    true = [str(at.tree), "/bin/true"]
    commands: dict[str, tuple[Family, list[str]]] = {
        NATIVE: ("native", ["chroot", *true]),
        "run": ("own", [*run, *true]),
        "run --pid": ("own", [*run, "--pid", *true]),
        "run --tty": ("own", [*run, "--tty", *true]),
        "proot": ("peer", ["proot", "-w", "/", "-r", *true]),
    }
    for round_ in range(-1, 2 * bench.rounds):
        python = _milliseconds(_PYTHON)
        spent = {name: _milliseconds(words) for name, (_, words) in commands.items()}
        if round_ < 0:  # fills caches
            continue
        _note(bench, PYTHON, NATIVE, "native", round_, python)
        for name, (family, _) in commands.items():
            _note(bench, TRUE, name, family, round_, spent[name])
            if family == "own":
                more = spent[name] - spent[NATIVE] - python
                _note(bench, MORE, name, family, round_, more)
