"""This project beside others of its kind, in one run: `make bench`, or
`python -m benchmarks.bench [--rounds N] [--only NAMES] [--peers NAMES] [--quick] [--out DIR]`.

Leaves results.json, table.md and a plot for each group in DIR, and prints the table. Everything is
measured in rounds, all contestants in turn, so that a busy machine is busy for all. As root.
"""

from __future__ import annotations

import argparse
import os
import shlex
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Final

from benchmarks import (
    contestants,
    folding,
    machine,
    micro,
    options,
    pages,
    scale,
    spelling,
    start,
    work,
)
from benchmarks.contestants import CONTESTANTS, Contestant
from benchmarks.results import Book
from benchmarks.timing import Bench
from tests.matrix.building import say
from tests.matrix.volume_tools import VolumeError
from tests.matrix.volumes import mounts_below

_CHECKOUT: Final = Path(__file__).parent.parent
_TMPFS: Final = Path("/dev/shm")
_PARTS: Final[Mapping[str, Callable[[Bench, Sequence[Contestant]], None]]] = {
    "single calls": micro.measure,
    "options": options.measure,
    "whole work": work.measure,
    "guests": work.measure_guests,
    "folding volume": folding.measure,
    "spellings": spelling.measure,
    "scale": scale.measure,
    "starting": start.measure,
}


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(prog="bench", description=(__doc__ or "").partition("\n\n")[0])
    made.add_argument("--rounds", type=int, default=5)
    made.add_argument("--only", default="", help="groups or parts of lines' names, commas between")
    made.add_argument("--peers", help="contestants besides native and ours, commas between")
    made.add_argument(
        "--mode", action="append", default=[], metavar="NAME=OPTIONS", help="one more of ours"
    )
    made.add_argument("--quick", action="store_true", help="two rounds, small: about 3 minutes")
    made.add_argument("--million", action="store_true", help="scale up to 10^6 files")
    made.add_argument("--out", type=Path, default=Path("build/bench"))
    made.add_argument("--backing", type=Path, default=_TMPFS, help="where the trees are")
    made.add_argument("--docs", action="store_true", help="write the documents' tables too")
    made.add_argument("--from", dest="read", type=Path, help="measure nothing: a results.json")
    return made


def chosen(peers: str | None, modes: Sequence[str], quick: bool) -> list[Contestant]:
    """Who takes part; ValueError names one that there is not."""
    everyone = {contestant.name: contestant for contestant in CONTESTANTS}
    # Quick: what users have, what it can be, and the other door.
    left_out = ("pyfuse3+",) if quick else ()
    ours = [one for one in CONTESTANTS if one.family != "peer" and one.name not in left_out]
    ours += map(contestants.parse_mode, modes)
    if peers is None:
        others = [one for one in CONTESTANTS if one.family == "peer"]
        if quick:
            others = [one for one in others if one.name in ("bindfs", "passthrough_ll+")]
        return [*ours, *others]
    names = [name for name in peers.split(",") if name]
    unknown = [name for name in names if name not in everyone]
    if unknown:
        raise ValueError(f"no contestant {unknown[0]}: there are {', '.join(everyone)}")
    return [*ours, *(everyone[name] for name in names if everyone[name].family == "peer")]


def command(words: argparse.Namespace) -> str:
    """What makes such a run again; not where its results went."""
    parts = ["python", "-m", "benchmarks.bench", "--rounds", str(words.rounds)]
    for flag in ("only", "peers"):
        if getattr(words, flag):
            parts += [f"--{flag}", getattr(words, flag)]
    for mode in words.mode:
        parts += ["--mode", mode]
    parts += [f"--{flag}" for flag in ("quick", "million") if getattr(words, flag)]
    return shlex.join(parts)


def _measure(bench: Bench, everyone: Sequence[Contestant], out: Path) -> None:
    for name, measure in _PARTS.items():
        began = time.monotonic()
        say(f"{time.strftime('%H:%M:%S')} {name}, load {machine.load()}")
        before = len(bench.book.series)
        try:
            measure(bench, everyone)
        except (AssertionError, OSError, RuntimeError, VolumeError) as error:
            # Half an hour is not to be lost with a part that breaks off.
            bench.book.notes[f"broken off, {name}"] = str(error)
            say(f"bench: {name} broke off: {error}")
        if len(bench.book.series) == before:
            continue
        lasted = time.monotonic() - began
        bench.book.notes[f"load, {name}"] = f"{machine.load()} at its end, {lasted:.0f} s"
        write(bench.book, out)


def write(book: Book, out: Path) -> str:
    """The files of a run in *out*; gives back the table."""
    out.mkdir(parents=True, exist_ok=True)
    table = pages.markdown(book)
    (out / "results.json").write_text(book.as_json())
    (out / "table.md").write_text(table)
    for group in dict.fromkeys(line.group for line in book.lines):
        (out / f"{group}.svg").write_text(pages.svg(book, group))
    return table


def write_docs(book: Book, checkout: Path) -> None:
    """The tables and plots in the documents, between their marks."""
    day = f"Measured {book.notes['date']} by `{book.notes['command']}`."
    for name, mark, lines in (
        ("README.md", "short", [day, "", *pages.short(book)]),
        ("docs/performance.md", "long", pages.long(book, "###")),
    ):
        path = checkout / name
        path.write_text(pages.inserted(path.read_text(), mark, lines))
    for group in ("micro-pinned", "work"):
        (checkout / f"docs/performance-{group}.svg").write_text(pages.svg(book, group))


def _tell(book: Book, words: argparse.Namespace) -> None:
    print(write(book, words.out))
    if words.docs:
        write_docs(book, _CHECKOUT)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, write and print; exit status 1 where something is missing or a part broke off."""
    words = parser().parse_args(arguments)
    if words.read is not None:
        _tell(Book.from_json(words.read.read_text()), words)
        return 0
    if os.geteuid() != 0:
        print("bench: run it as root, as a guest root is used", file=sys.stderr)
        return 1
    base = Path(tempfile.mkdtemp(prefix="sysroot-fs-bench-", dir=words.backing))
    try:
        everyone = chosen(words.peers, words.mode, words.quick)
        contestants.install()
        built = base / "built"
        contestants.build_peers(built)
        rounds = min(words.rounds, 2) if words.quick else words.rounds
        client = contestants.build_client(built)
        wanted = [name for name in words.only.split(",") if name]
        bench = Bench(base, client, built, rounds, words.quick, words.million, wanted)
        bench.book.order = [one.name for one in everyone]
        bench.book.notes |= {
            **machine.describe(base),
            "command": command(words),
            "rounds": str(rounds),
        }
        _measure(bench, everyone, words.out)
        _tell(bench.book, words)
        return int(any(key.startswith("broken off") for key in bench.book.notes))
    except (ValueError, RuntimeError) as error:
        print(f"bench: {error}", file=sys.stderr)
        return 1
    finally:
        if mounts_below(base):
            print(f"bench: {base} is still mounted and was left", file=sys.stderr)
        else:
            shutil.rmtree(base)


if __name__ == "__main__":
    sys.exit(main())
