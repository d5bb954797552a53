"""Single kinds of calls, microseconds for each: client and server on one processor, and free."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from attrs import frozen

from benchmarks import trees
from benchmarks.contestants import Contestant, Running, gathered
from benchmarks.results import Line
from benchmarks.timing import PINNED, Bench, Failed, allowed, batches

SIZES: Final = {"4K": 4 << 10, "128K": 128 << 10, "1M": 1 << 20}


@frozen
class Call:
    """One kind: the client's operation, where, how many in a batch, how many bytes at a time."""

    name: str
    operation: str
    count: int = 100
    where: str = "."
    size: int = 0
    batches: int = 10

    def line(self, pinned: bool) -> Line:
        """The row of the table."""
        placement = "pinned" if pinned else "free"
        return Line(f"{self.name}, {placement}", f"micro-{placement}", "us", "best")


def _moved(verb: str, operation: str) -> list[Call]:
    counts = {"4K": 100, "128K": 40, "1M": 8}
    return [
        Call(f"{verb} {label}", operation, counts[label], size=size)
        for label, size in SIZES.items()
    ]


CALLS: Final = (
    Call("stat", "stat", 200),
    Call("stat, first time", "stat-new", 100, batches=8),
    Call("missing", "missing"),
    Call("missing, again", "missing-again", 200),
    Call("open+close", "open"),
    Call("open+read", "open", size=4096),
    Call("readdir 10", "readdir", 50, "listed-10"),
    Call("readdir 1000", "readdir", 2, "listed-1000"),
    Call("readdir 100000", "readdir", 1, "listed-100000", batches=2),
    Call("create", "create"),
    Call("unlink", "unlink"),
    Call("rename", "rename"),
    Call("mkdir", "mkdir"),
    Call("rmdir", "rmdir"),
    Call("chmod", "chmod"),
    Call("readlink", "readlink"),
    Call("getxattr", "getxattr"),
    *_moved("read", "read"),
    Call("read 4K, again", "read-again", size=4096),
    *_moved("write", "write"),
    Call("mmap read", "mmap", 400, size=4096),
)


def measure(bench: Bench, everyone: Sequence[Contestant], calls: Sequence[Call] = CALLS) -> None:
    """All rounds; every round begins with fresh mounts."""
    listed = trees.LISTED[:2] if bench.quick else trees.LISTED
    lists = {f"listed-{size}" for size in listed}
    wanted = [
        (call, pinned)
        for pinned in (True, False)
        for call in calls
        if bench.wants(call.line(pinned)) and (call.operation != "readdir" or call.where in lists)
    ]
    if not wanted:
        return
    with gathered(everyone, bench.base / "micro", bench.built) as running:
        for one in running:
            trees.micro(one.at.tree, listed)
        for round_ in range(bench.rounds):
            for pinned in (True, False):
                mine = [call for call, where in wanted if where == pinned]
                _round(bench, running, mine, round_, pinned)


def _round(
    bench: Bench, running: Sequence[Running], calls: Sequence[Call], round_: int, pinned: bool
) -> None:
    for one in running if calls else ():
        one.mount()
        one.pin(PINNED if pinned else allowed())
    for call in calls:
        for one in bench.shuffled(running):
            _once(bench, one, call, round_, pinned)


def _once(bench: Bench, one: Running, call: Call, round_: int, pinned: bool) -> None:
    if not called(bench, one, call, call.line(pinned), round_, pinned):
        # A server that is out of descriptors says no to everything that follows.
        one.mount()
        one.pin(PINNED if pinned else allowed())


def called(
    bench: Bench, one: Running, call: Call, line: Line, round_: int, pinned: bool = False
) -> bool:
    """One contestant's turn at a line; False where it fails, which is put down."""
    if not bench.alive(line, one):
        return True
    times = min(call.batches, 5) if bench.quick else call.batches
    operation = (call.operation, str(call.size))
    try:
        sample = batches(bench, one, operation, call.where, call.count, times, round_, pinned)
    except Failed as failure:
        bench.fails(line, one, str(failure))
        return False
    bench.note(line, one, sample)
    return True
