"""On a volume that folds case: the volume itself beside mounts of it.

Two sysroots: in one no two names differ in case only, in the other two of each directory do, so
that each has an index. One contestant is mounted at a time, over the same sysroot. Cold is the
first walk after mounting; what the volume's own server remembers, it remembers for all of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Final

from benchmarks import trees
from benchmarks.contestants import Contestant, Running, gathered
from benchmarks.micro import Call, called
from benchmarks.results import Line
from benchmarks.timing import Bench, noted
from tests import mounts
from tests.matrix.volumes import open_volume

FILES: Final = 30_000
CROWD: Final = 10_000
_EACH: Final = 100
_KINDS: Final = {"exact": "", "twins": " with an index"}

_CALLS: Final = (
    Call("stat, first time", "stat-new", 100, batches=8),
    Call("missing", "missing"),
    Call("create", "create", 25, "many", batches=4),
    Call("unlink", "unlink", 25, "many", batches=4),
    Call("rename", "rename", 10, "many", batches=4),
)


def _part(bench: Bench) -> int:
    """Of the whole size."""
    return 10 if bench.quick else 1


def _walk(bench: Bench, kind: str, state: str) -> Line:
    return Line(f"walk of {FILES // _part(bench)}{_KINDS[kind]}, {state}", "folding", "ms")


def _call(bench: Bench, kind: str, call: Call) -> Line:
    return Line(f"{call.name} among {CROWD // _part(bench)}{_KINDS[kind]}", "folding", "us", "best")


def _lines(bench: Bench) -> list[Line]:
    walks = [_walk(bench, kind, state) for kind in _KINDS for state in ("cold", "warm")]
    return [*walks, *(_call(bench, kind, call) for kind in _KINDS for call in _CALLS)]


def measure(bench: Bench, everyone: Sequence[Contestant]) -> None:
    """All rounds; only ours and the volume itself take part."""
    if not any(map(bench.wants, _lines(bench))):
        return
    mine = [one for one in everyone if one.family != "peer"]
    with open_volume("zfs", bench.base / "volume") as volume:
        for kind in _KINDS:
            sysroot = volume.path / kind
            sysroot.mkdir()
            _fill(sysroot, bench.base, kind == "twins", _part(bench))
            with gathered(mine, bench.base / kind, bench.built, sysroot) as running:
                for round_ in range(1 if bench.quick else min(bench.rounds, 3)):
                    for one in bench.shuffled(running):
                        _round(bench, one, kind, round_)


def _round(bench: Bench, one: Running, kind: str, round_: int) -> None:
    walking = ["find", str(one.root / "walk"), "-printf", "%s"]
    one.mount()
    for state in ("cold", "warm"):
        noted(bench, one, _walk(bench, kind, state), walking, round_)
    one.mount()
    for call in _CALLS:
        called(bench, one, call, _call(bench, kind, call), round_)
    one.stop()


def _fill(sysroot: Path, work: Path, twins: bool, part: int) -> None:
    """Through a mount: only there can two names differ in case only."""
    host, point = work / "fill-host", work / "fill-point"
    for path in (host, point):
        path.mkdir()
    mounted = mounts.start(sysroot, host, point, log=work / "fill-log")
    try:
        trees.folders(point / "walk", FILES // part, _EACH, twins)
        trees.entries(point / "many", CROWD // part)
        if twins:
            (point / "many" / "F000001").touch()
    finally:
        mounted.stop()
    for path in (host, point):
        path.rmdir()
