"""What was measured, and what it comes to: medians, spreads, ratios, and whether that is enough.

Numbers of two contestants are compared only where they come from the same round of the same run: a
ratio of whole work is the median of the rounds' ratios, one of a single kind of call that of the
best batches, which a busy machine disturbs least.
"""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Iterable, Sequence
from typing import Any, Final, Literal

from attrs import asdict, define, field, frozen

NATIVE: Final = "native"

NOISE: Final = 1.05
"""How much the ratio of best batches differs between two runs, nine times in ten."""

Family = Literal["native", "own", "peer"]
By = Literal["best", "rounds"]

_FAMILIES: Final[Sequence[Family]] = ("native", "own", "peer")


@frozen
class Sample:
    """One contestant in one round of one line; the wall times are in the line's unit."""

    round: int
    wall: float
    """The middle of the round's batches."""
    best: float
    """The quickest of them."""
    cpu: float | None = None
    """What the server was on a processor for, in the line's unit; None where there is no server."""
    switches: float | None = None
    """The server's context switches for each operation."""


@frozen
class Line:
    """One row: what was done, in which unit, and how its ratios are made."""

    name: str
    group: str
    unit: str
    by: By = "rounds"


@frozen
class Target:
    """What is to be reached on a line: at most `at_most` times the others' time, or itself."""

    against: Literal["native", "peer", "nothing"]
    at_most: float


@define
class Series:
    """All rounds of one contestant on one line, or in which words it failed."""

    line: Line
    contestant: str
    family: Family
    samples: list[Sample] = field(factory=list)
    failure: str = ""

    @property
    def median(self) -> float:
        """The middle of the rounds."""
        return statistics.median(sample.wall for sample in self.samples)

    @property
    def least(self) -> float:
        """The best batch of all rounds."""
        return min(sample.best for sample in self.samples)

    @property
    def quartiles(self) -> tuple[float, float]:
        """Between these lies the middle half of the rounds."""
        return quartiles([sample.wall for sample in self.samples])

    def mean(self, what: Literal["cpu", "switches"]) -> float | None:
        """The rounds' median of one of a server's costs."""
        found = [getattr(sample, what) for sample in self.samples]
        known = [value for value in found if value is not None]
        return statistics.median(known) if known else None


def quartiles(values: Sequence[float]) -> tuple[float, float]:
    """The first and the third; of a single value it is both."""
    if len(values) < 2:
        return values[0], values[0]
    first, _, third = statistics.quantiles(values, n=4, method="inclusive")
    return first, third


def ratio(ours: Series, others: Series) -> float:
    """How many times the time of *others* it took; see the module."""
    if ours.line.by == "best":
        return ours.least / others.least
    there = {sample.round: sample.wall for sample in others.samples}
    both = [s.wall / there[s.round] for s in ours.samples if s.round in there]
    return statistics.median(both) if both else ours.median / others.median


def geometric_mean(values: Iterable[float]) -> float:
    """NaN of nothing."""
    logs = [math.log(value) for value in values]
    return math.exp(statistics.fmean(logs)) if logs else math.nan


@frozen
class Verdict:
    """How one of ours did on one target; `times` is NaN where there is nothing to compare with.

    Against nothing it is the number itself.
    """

    contestant: str
    target: Target
    times: float

    @property
    def reached(self) -> bool:
        """Not where nothing was measured."""
        return self.times <= self.target.at_most

    @property
    def even(self) -> bool:
        """Missed by less than two runs of the same thing differ."""
        return not self.reached and self.times <= NOISE * self.target.at_most

    @property
    def holds(self) -> bool:
        """Reached, or as good as."""
        return self.reached or self.even


@define
class Book:
    """Every series of a run, in the order of the lines."""

    series: dict[tuple[str, str], Series] = field(factory=dict)
    order: list[str] = field(factory=list)
    """The contestants as they are to be told; others come after them."""
    notes: dict[str, Any] = field(factory=dict)
    """What else a reader has to know: the machine, the command, single numbers."""

    def of(self, line: Line, contestant: str, family: Family) -> Series:
        """The series to which samples are added."""
        key = (line.name, contestant)
        return self.series.setdefault(key, Series(line, contestant, family))

    @property
    def lines(self) -> list[Line]:
        """All lines, as they were first measured."""
        return list(dict.fromkeys(series.line for series in self.series.values()))

    @property
    def contestants(self) -> list[str]:
        """Native, ours, the others; each of them in their order."""
        places = {name: place for place, name in enumerate(self.order)}
        found = {
            (_FAMILIES.index(s.family), places.get(s.contestant, len(places)), s.contestant)
            for s in self.series.values()
        }
        return [name for *_, name in sorted(found)]

    def row(self, line: Line) -> list[Series]:
        """Who was measured on *line*, failed ones left out."""
        found = (self.series.get((line.name, name)) for name in self.contestants)
        return [s for s in found if s is not None and s.samples and not s.failure]

    def get(self, line: Line, contestant: str) -> Series | None:
        """One of them."""
        return next((s for s in self.row(line) if s.contestant == contestant), None)

    def best_peer(self, line: Line) -> Series | None:
        """The quickest of the others, as ratios on this line are made."""
        peers = [series for series in self.row(line) if series.family == "peer"]
        return min(peers, key=lambda s: s.least if line.by == "best" else s.median, default=None)

    def verdicts(self, line: Line, targets: Sequence[Target]) -> list[Verdict]:
        """One for each of ours and each target of the line."""
        found = []
        for target in targets:
            other = self._other(line, target)
            for series in self.row(line):
                if series.family != "own":
                    continue
                if target.against == "nothing":
                    times = series.median
                else:
                    times = math.nan if other is None else ratio(series, other)
                found.append(Verdict(series.contestant, target, times))
        return found

    def _other(self, line: Line, target: Target) -> Series | None:
        match target.against:
            case "native":
                return self.get(line, NATIVE)
            case "peer":
                return self.best_peer(line)
            case "nothing":
                return None

    def mean_to_best_peer(self, lines: Iterable[Line], contestant: str) -> float:
        """The geometric mean over those of *lines* that it and a peer have."""
        ratios = []
        for line in lines:
            ours, peer = self.get(line, contestant), self.best_peer(line)
            if ours is not None and peer is not None:
                ratios.append(ratio(ours, peer))
        return geometric_mean(ratios)

    def as_json(self) -> str:
        """Everything, so that tables can be written again."""
        rows = [asdict(series) for series in self.series.values()]
        return (
            json.dumps({"order": self.order, "notes": self.notes, "series": rows}, indent=1) + "\n"
        )

    @classmethod
    def from_json(cls, text: str) -> Book:
        """What `as_json` wrote."""
        read = json.loads(text)
        book = cls(order=read["order"], notes=read["notes"])
        for row in read["series"]:
            series = book.of(Line(**row["line"]), row["contestant"], row["family"])
            series.samples = [Sample(**sample) for sample in row["samples"]]
            series.failure = row["failure"]
        return book
