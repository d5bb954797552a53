"""Doing something once and noting what it took: the clock, and the server's share."""

from __future__ import annotations

import os
import random
import statistics
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

from attrs import define, field

from benchmarks.contestants import Running, Usage
from benchmarks.results import Book, Line, Sample

PINNED: Final = {0}
"""Where client and server run in the lines that are pinned."""
_LIMIT_SECONDS: Final = 180.0


class Failed(Exception):
    """A contestant cannot do what was asked; in its own words."""


@define
class Bench:
    """A run: how much of it, what it is done with, and what came of it so far."""

    base: Path
    client: Path
    built: Path
    rounds: int
    quick: bool
    large: bool
    wanted: Sequence[str]
    book: Book = field(factory=Book)
    dice: random.Random = field(factory=lambda: random.Random(7))

    def wants(self, line: Line) -> bool:
        """Whether *line* was asked for, by its group or a part of its name."""
        if not self.wanted:
            return True
        return any(line.group.startswith(w) or w in line.name for w in self.wanted)

    def shuffled(self, running: Sequence[Running]) -> list[Running]:
        """In another order each time: nobody always follows the same one."""
        return self.dice.sample(list(running), len(running))

    def alive(self, line: Line, running: Running) -> bool:
        """Whether it has not failed on *line* in an earlier round."""
        return not self.book.of(line, running.name, running.contestant.family).failure

    def note(self, line: Line, running: Running, sample: Sample) -> None:
        """One more round."""
        family = running.contestant.family
        self.book.of(line, running.name, family).samples.append(sample)

    def fails(self, line: Line, running: Running, words: str) -> None:
        """It is not measured on this line any more."""
        self.book.of(line, running.name, running.contestant.family).failure = words.replace(
            f"{self.base}/", ""
        )


def allowed() -> set[int]:
    """Where servers run in the lines that are free."""
    return os.sched_getaffinity(0)


def run(command: Sequence[str], env: Mapping[str, str] | None = None, pinned: bool = False) -> str:
    """Run it and give back what it printed; `Failed` has what it said on standard error."""
    words = ["taskset", "-c", ",".join(map(str, PINNED)), *command] if pinned else list(command)
    try:
        done = subprocess.run(
            words,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            env={**os.environ, "LC_ALL": "C", **(env or {})},
            timeout=_LIMIT_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise Failed(f"{command[0]}: more than {_LIMIT_SECONDS:.0f} s") from None
    if done.returncode:
        said = done.stderr.decode(errors="replace").strip().splitlines()
        raise Failed(said[-1] if said else f"{command[0]}: exit status {done.returncode}")
    return done.stdout.decode(errors="replace")


def _share(
    before: Usage | None, after: Usage | None, count: int
) -> tuple[float | None, float | None]:
    """Microseconds on a processor and context switches of the server, for each operation."""
    if before is None or after is None:
        return None, None
    used = after.since(before)
    return used.cpu_ns / 1e3 / count, used.switches / count


def parse_batches(text: str, count: int) -> list[float]:
    """Microseconds for one call in each batch, of what the client printed."""
    return [int(line) / 1e3 / count for line in text.split()]


def batches(
    bench: Bench,
    running: Running,
    operation: Sequence[str],
    where: str,
    count: int,
    times: int,
    round_: int,
    pinned: bool = False,
) -> Sample:
    """*times* batches of *count* calls; *operation* is its name and the size of what is moved.

    The server's share has what surrounds the calls in it as well: removing what was created.
    """
    name, size = operation
    before = running.usage()
    command = [str(bench.client), name, str(running.root / where), str(count), str(times), size]
    spent = parse_batches(run(command, pinned=pinned), count)
    cpu, switches = _share(before, running.usage(), count * times)
    return Sample(round_, statistics.median(spent), min(spent), cpu, switches)


def whole(
    running: Running,
    command: Sequence[str],
    round_: int,
    times: int = 1,
    env: Mapping[str, str] | None = None,
) -> Sample:
    """A command, *times* times; in milliseconds."""
    spent = []
    before = running.usage()
    for _ in range(times):
        began = time.perf_counter()
        run(command, env)
        spent.append(1e3 * (time.perf_counter() - began))
    cpu, switches = _share(before, running.usage(), times)
    milliseconds = None if cpu is None else cpu / 1e3
    return Sample(round_, statistics.median(spent), min(spent), milliseconds, switches)


def noted(
    bench: Bench,
    one: Running,
    line: Line,
    words: Sequence[str],
    round_: int,
    times: int = 1,
    env: Mapping[str, str] | None = None,
) -> None:
    """`whole`, put down in the book, with whatever comes of it."""
    if bench.alive(line, one):
        try:
            bench.note(line, one, whole(one, words, round_, times, env))
        except Failed as failure:
            bench.fails(line, one, str(failure))
