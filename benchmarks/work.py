"""Whole work, milliseconds: what programs do all day, in a source tree and in a guest.

The steps of a round follow one another in the same trees; each is done by all contestants, in
turn, before the next. Cold is the first time after mounting; the directory below is as warm for
all as it is for the one that works in it directly.
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

from attrs import frozen

from benchmarks import trees
from benchmarks.contestants import Contestant, Running, gathered
from benchmarks.results import Line
from benchmarks.timing import Bench, noted
from benchmarks.trees import Materials
from tests.matrix import guests

EXECS: Final = 200
_WARM: Final = 3

Words = Callable[[Path, Materials], list[str]]
"""The command of a step in the directory that it is given."""


@frozen
class Step:
    """One step: what is run, and in which state of the caches."""

    name: str
    words: Words
    cold: bool = False
    times: int = 1

    @property
    def line(self) -> Line:
        """The row of the table."""
        return Line(self.name, "work", "ms")


def _shell(script: str) -> Words:
    """The script has the work's directory as $1, then the materials in their order."""

    def words(where: Path, made: Materials) -> list[str]:
        given = (where, made.source, made.repository, made.program, made.library)
        return ["sh", "-ec", script, "sh", *map(str, given)]

    return words


def _walks(name: str, script: str) -> list[Step]:
    words = _shell(script)
    return [
        Step(f"{name}, cold", words, cold=True),
        Step(f"{name}, warm", words, times=_WARM),
    ]


_IMPORT: Final = (
    f"import sys; sys.dont_write_bytecode = True; sys.path.insert(0, sys.argv[1]); "
    f"import {trees.IMPORTS}"
)

STEPS: Final = (
    Step("untar", _shell('tar -xf "$2" -C "$1"')),
    *_walks("find", 'find "$1/src" -printf %s'),
    *_walks("ls -lR", 'ls -lR "$1/src"'),
    *_walks("grep -r", '! grep -r never-there "$1/src"'),
    Step("cp -r", _shell('cp -r "$1/src" "$1/copy"')),
    Step("rm -rf", _shell('rm -rf "$1/copy"')),
    Step("git clone", _shell('git clone -q --no-hardlinks "$3" "$1/clone"')),
    Step("git status", _shell('git -C "$1/clone" status -s'), times=_WARM),
    Step(
        "git checkout",
        _shell('git -C "$1/clone" checkout -q other; git -C "$1/clone" checkout -q main'),
    ),
    Step(
        "compile",
        _shell(
            'cp -r "$4" "$1/program"; cd "$1/program"; for file in *.c; do gcc -c "$file"; done; '
            "gcc *.o -o program; ./program"
        ),
    ),
    Step("cp of a library", _shell('cp -r "$5" "$1/library"')),
    Step(
        "python import",
        lambda where, made: [sys.executable, "-S", "-E", "-c", _IMPORT, str(where / "library")],
        cold=True,
    ),
)


def measure(bench: Bench, everyone: Sequence[Contestant]) -> None:
    """All rounds; all steps even where few are wanted: one works on what the others made."""
    if not any(bench.wants(step.line) for step in STEPS):
        return
    place = bench.base / "made"
    place.mkdir()
    made = trees.materials(place, 400 if bench.quick else 2000)
    with gathered(everyone, bench.base / "work", bench.built) as running:
        for round_ in range(bench.rounds):
            for one in running:
                (one.at.tree / "work").mkdir()
                one.mount()
            for step in STEPS:
                for one in bench.shuffled(running):
                    _once(bench, one, step, round_, made)
            for one in running:
                one.stop()
                shutil.rmtree(one.at.tree / "work")


def _once(bench: Bench, one: Running, step: Step, round_: int, made: Materials) -> None:
    if step.cold:
        one.mount()
    words = step.words(one.root / "work", made)
    noted(bench, one, step.line, words, round_, step.times, trees.GIT)


# --- a guest --------------------------------------------------------------------------------------

_LOOP: Final = 'i=0; while [ $i -lt "$1" ]; do /usr/bin/true; i=$((i+1)); done'
EXEC: Final = Line(f"{EXECS} programs in a guest", "guest", "ms")
_WITHOUT_MOUNT: Final = (
    Contestant("proot", "peer", mounted=False),
    Contestant("run", "own", mounted=False),
)


def _entering(one: Running) -> list[str]:
    """Run /usr/bin/true in the guest again and again; by chroot, proot or `sysroot-fs run`."""
    loop = ["/bin/sh", "-c", _LOOP, "sh", str(EXECS)]
    entering = {
        "proot": ["proot", "-r", str(one.at.tree), "-w", "/"],
        "run": [
            str(Path(sys.executable).parent / "sysroot-fs"),
            *("run", "--host", str(one.at.empty), str(one.at.tree), "--"),
        ],
    }
    return [*entering.get(one.name, ["chroot", str(one.root)]), *loop]


def measure_guests(bench: Bench, everyone: Sequence[Contestant]) -> None:
    """The same loop in the guest by every way in; proot and `run` need no mount beforehand."""
    if not bench.wants(EXEC):
        return
    with gathered([*everyone, *_WITHOUT_MOUNT], bench.base / "guest", bench.built) as running:
        for one in running:
            guests.unpack(one.at.tree)
        for round_ in range(bench.rounds):
            for one in running:
                one.mount()
            for one in bench.shuffled(running):
                noted(bench, one, EXEC, _entering(one), round_)
            for one in running:
                one.stop()
