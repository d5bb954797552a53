"""What options of a mount cost: the same calls through mounts that differ in one option."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from benchmarks import trees
from benchmarks.contestants import EXCLUSIVE, LONG, Contestant, gathered
from benchmarks.micro import CALLS, called
from benchmarks.results import NATIVE, Line
from benchmarks.timing import PINNED, Bench

_OPTIONS: Final = (
    "fallback=none",
    "fallback=safe",
    "host_writes=ro",
    "listing=union",
    "lookup=fold",
    "names=portable",
    "noatime",
)
_TIMEOUTS: Final = {
    "exclusive": EXCLUSIVE,
    "exclusive, writes=back": f"{EXCLUSIVE},writes=back",
    "timeouts 1000 s": LONG,
    "no timeouts": "entry_timeout=0,attr_timeout=0,negative_timeout=0",
}
_MODES: Final = (
    Contestant(NATIVE, "native", mounted=False),
    Contestant("defaults", "own", "door=kernel"),
    *(Contestant(option, "own", f"door=kernel,{option}") for option in _OPTIONS),
    *(Contestant(name, "own", f"door=kernel,{more}") for name, more in _TIMEOUTS.items()),
)
_WANTED: Final = (
    "stat",
    "stat, first time",
    "missing",
    "missing, again",
    "open+read",
    "readdir 1000",
    "create",
    "unlink",
    "rename",
)
_CALLS: Final = {
    Line(f"{call.name}, by option", "options", "us", "best"): call
    for call in CALLS
    if call.name in _WANTED
}


def measure(bench: Bench, everyone: Sequence[Contestant]) -> None:
    """All rounds, pinned; these contestants are others."""
    lines = [line for line in _CALLS if bench.wants(line)]
    if not lines or bench.quick:
        return
    with gathered(_MODES, bench.base / "options", bench.built) as running:
        for one in running:
            trees.micro(one.at.tree, (1_000,))
        for round_ in range(bench.rounds):
            for one in running:
                one.mount()
                one.pin(PINNED)
            for line in lines:
                for one in bench.shuffled(running):
                    called(bench, one, _CALLS[line], line, round_, pinned=True)
