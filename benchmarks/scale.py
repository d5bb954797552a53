"""How costs grow: with the number of files, of clients, and with depth.

One contestant is mounted at a time, all over the same tree.
"""

from __future__ import annotations

import subprocess
import time
from collections.abc import Sequence
from typing import Final

from benchmarks import trees
from benchmarks.contestants import Contestant, Running, gathered
from benchmarks.micro import Call, called
from benchmarks.results import Line, Sample
from benchmarks.timing import Bench, Failed, run

SIZES: Final = (1_000, 10_000, 100_000)
_EACH: Final = 1_000
CLIENTS: Final = (1, 2, 4, 8)
_CALLS: Final = 500
_DEEP: Final = (
    Call(f"path of {trees.DEPTH} directories, cold", "deep", 1, batches=1),
    Call(f"path of {trees.DEPTH} directories, warm", "deep", 50),
)


def _walk(size: int, state: str) -> Line:
    return Line(f"walk of {size} files, {state}", "scale", "us a file")


def _memory(size: int) -> Line:
    return Line(f"memory, {size} files", "scale", "MB")


def _inode(size: int) -> Line:
    return Line(f"memory of an inode, {size} files", "scale", "bytes")


def _deep(call: Call) -> Line:
    return Line(call.name, "scale", "us")


def _together(clients: int) -> Line:
    return Line(f"missing, {clients} clients", "clients", "us")


def sizes(bench: Bench) -> tuple[int, ...]:
    """The numbers of files of this run."""
    if bench.quick:
        return SIZES[:2]
    return (*SIZES, 1_000_000) if bench.large else SIZES


def measure(bench: Bench, everyone: Sequence[Contestant]) -> None:
    """All rounds of all of it."""
    rounds = min(bench.rounds, 3)
    for size in sizes(bench):
        asked = [_walk(size, "cold"), _walk(size, "warm"), _memory(size), _inode(size)]
        if not any(map(bench.wants, asked)):
            continue
        tree = bench.base / f"scale-{size}"
        for number in range(size // _EACH):
            trees.entries(tree / f"folder{number:04}", _EACH)
        with gathered(everyone, bench.base / "scale", bench.built, tree) as running:
            for round_ in range(rounds):
                for one in bench.shuffled(running):
                    _walked(bench, one, size, round_)
    if any(bench.wants(_deep(call)) for call in _DEEP):
        tree = bench.base / "deep"
        trees.deep(tree)
        with gathered(everyone, bench.base / "scale", bench.built, tree) as running:
            for round_ in range(rounds):
                for one in bench.shuffled(running):
                    one.mount()
                    for call in _DEEP:
                        called(bench, one, call, _deep(call), round_)
                    one.stop()
    if any(bench.wants(_together(clients)) for clients in CLIENTS):
        with gathered(everyone, bench.base / "clients", bench.built) as running:
            for round_ in range(rounds):
                for one in running:
                    one.mount()
                for clients in CLIENTS:
                    for one in bench.shuffled(running):
                        _at_once(bench, one, clients, round_)


def _walked(bench: Bench, one: Running, size: int, round_: int) -> None:
    """Walk twice, and see what the server remembers afterwards."""
    one.mount()
    before = one.memory_kib()
    for state in ("cold", "warm"):
        line = _walk(size, state)
        if not bench.alive(line, one):
            break
        began = time.perf_counter()
        try:
            run(["find", str(one.root), "-printf", "%s"])
        except Failed as failure:
            bench.fails(line, one, str(failure))
            break
        spent = 1e6 * (time.perf_counter() - began) / size
        bench.note(line, one, Sample(round_, spent, spent))
    else:
        held = one.memory_kib()
        if held:
            megabytes, each = held / 1024, 1024 * (held - before) / size
            bench.note(_memory(size), one, Sample(round_, megabytes, megabytes))
            bench.note(_inode(size), one, Sample(round_, each, each))
    one.stop()


def _at_once(bench: Bench, one: Running, clients: int, round_: int) -> None:
    """The wall time that a call takes when they share the server; less is more throughput."""
    command = [str(bench.client), "missing", str(one.root), str(_CALLS), "1", "0"]
    began = time.perf_counter()
    started = [
        subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        for _ in range(clients)
    ]
    codes = [process.wait() for process in started]
    spent = 1e6 * (time.perf_counter() - began) / clients / _CALLS
    line = _together(clients)
    if any(codes):
        bench.fails(line, one, f"clients ended with {codes}")
    elif bench.alive(line, one):
        bench.note(line, one, Sample(round_, spent, spent))
