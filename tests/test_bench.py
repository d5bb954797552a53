"""The benchmarks' own arithmetic and pages, and one line measured from end to end."""

from __future__ import annotations

import math
from pathlib import Path
from xml.etree import ElementTree

import pytest

from benchmarks import bench as command
from benchmarks import contestants, micro, pages, targets, work
from benchmarks.contestants import CONTESTANTS, Usage, gathered, parse_schedstat, parse_switches
from benchmarks.results import (
    Book,
    Family,
    Line,
    Sample,
    Target,
    Verdict,
    geometric_mean,
    quartiles,
    ratio,
)
from benchmarks.timing import Bench, Failed, parse_batches, run

STAT = Line("stat, pinned", "micro-pinned", "us", "best")
UNTAR = Line("untar", "work", "ms")


def book_of(line: Line, times: dict[str, list[float]]) -> Book:
    """A book of one line; each contestant's rounds, best batches a tenth below them."""
    book = Book(order=["native", "kernel", "bindfs", "mergerfs"])
    families: dict[str, Family] = {"native": "native", "kernel": "own"}
    for name, rounds in times.items():
        series = book.of(line, name, families.get(name, "peer"))
        series.samples = [
            Sample(number, wall, 0.9 * wall, cpu=wall / 2, switches=1.0)
            for number, wall in enumerate(rounds)
        ]
    return book


def test_a_ratio_of_work_is_of_the_same_rounds() -> None:
    """A round in which the machine was slow for all changes nothing."""
    book = book_of(UNTAR, {"native": [10, 100, 10], "kernel": [20, 200, 40]})
    kernel, native = book.get(UNTAR, "kernel"), book.get(UNTAR, "native")
    assert kernel and native
    assert ratio(kernel, native) == 2.0


def test_a_round_that_only_one_has_is_not_compared() -> None:
    """Where the other failed in it."""
    book = book_of(UNTAR, {"native": [10, 10, 10], "kernel": [20, 20, 90]})
    kernel, native = book.get(UNTAR, "kernel"), book.get(UNTAR, "native")
    assert kernel and native
    del native.samples[2]
    assert ratio(kernel, native) == 2.0


def test_a_ratio_of_calls_is_of_the_best_batches() -> None:
    """Whichever round they are from."""
    book = book_of(STAT, {"native": [2, 10], "kernel": [50, 6]})
    kernel, native = book.get(STAT, "kernel"), book.get(STAT, "native")
    assert kernel and native
    assert ratio(kernel, native) == pytest.approx(3.0)


def test_spreads() -> None:
    """Quartiles of the rounds; one round is its own spread."""
    assert quartiles([1, 2, 3, 4, 5]) == (2, 4)
    assert quartiles([7]) == (7, 7)
    assert geometric_mean([0.5, 2.0]) == pytest.approx(1.0)
    assert math.isnan(geometric_mean([]))


def test_the_best_peer_is_the_quickest_that_did_not_fail() -> None:
    """On each line it may be another; ours never is."""
    book = book_of(UNTAR, {"native": [1], "kernel": [2], "bindfs": [9], "mergerfs": [5]})
    best = book.best_peer(UNTAR)
    assert best is not None and best.contestant == "mergerfs"
    best.failure = "EMFILE"
    best = book.best_peer(UNTAR)
    assert best is not None and best.contestant == "bindfs"


def test_verdicts() -> None:
    """Against native, against the best of the others, against nothing; a miss within the noise."""
    book = book_of(STAT, {"native": [10], "kernel": [14], "bindfs": [10]})
    against = [Target("native", 1.5), Target("peer", 1.0), Target("nothing", 20)]
    reached = [verdict.reached for verdict in book.verdicts(STAT, against)]
    assert reached == [True, False, True]
    assert Verdict("kernel", Target("peer", 1.0), 1.04).even
    assert not Verdict("kernel", Target("peer", 1.0), 1.2).even
    assert not Verdict("kernel", Target("peer", 1.0), math.nan).reached


@pytest.mark.parametrize(
    ("name", "group", "wanted"),
    [
        ("stat, pinned", "micro-pinned", [Target("peer", 1.0), Target("native", 1.5)]),
        ("stat, first time, pinned", "micro-pinned", [Target("peer", 1.0)]),
        ("missing, pinned", "micro-pinned", [Target("peer", 1.0)]),
        ("missing, again, free", "micro-free", [Target("peer", 1.0), Target("native", 1.5)]),
        ("open+read, free", "micro-free", [Target("peer", 1.0), Target("native", 1.5)]),
        ("readdir 1000, free", "micro-free", [Target("peer", 1.0), Target("native", 1.5)]),
        ("write 4K, free", "micro-free", [Target("peer", 1.0)]),
        ("rename, free", "micro-free", [Target("peer", 1.2)]),
        ("chmod, free", "micro-free", []),
        ("untar", "work", [Target("peer", 1.0)]),
        ("create among 10000", "folding", [Target("native", 1.3)]),
        ("mount", "start", [Target("nothing", 150)]),
        ("memory, 100000 files", "scale", [Target("nothing", 60)]),
    ],
)
def test_what_is_to_be_reached(name: str, group: str, wanted: list[Target]) -> None:
    """Each line has the targets that were set for it."""
    assert targets.targets(Line(name, group, "us")) == wanted


def test_every_line_of_the_short_table_is_measured() -> None:
    """None of its names is a leftover."""
    names = {call.line(pinned).name for call in micro.CALLS for pinned in (True, False)}
    assert set(pages.SHORT) <= names | {step.name for step in work.STEPS}


def test_the_table() -> None:
    """Native's time, everybody's ratio in their order, the best peer, the verdict."""
    book = book_of(UNTAR, {"mergerfs": [40], "bindfs": [30], "native": [10], "kernel": [20]})
    head, _, row, *_ = pages.ratios(book, "work")
    assert head == "|  | native | kernel | bindfs | mergerfs | best peer | to reach |"
    assert row == ("| untar | 10.0 ms | 2.00 | 3.00 | 4.00 | bindfs | <= 1 best peer: kernel |")
    mean = "Geometric mean to the best peer of each line (to reach: 0.7): kernel 0.67."
    assert pages.means(book)[0] == mean


def test_a_failure_is_told() -> None:
    """In its cell, and in words; a target that nobody measured is missed."""
    book = book_of(UNTAR, {"native": [10], "kernel": [20], "bindfs": [30]})
    book.of(UNTAR, "bindfs", "peer").failure = "too many files"
    text = pages.markdown(book)
    assert "- bindfs, untar: too many files" in text
    row = "| untar | 10.0 ms | 2.00 | fails | - | <= 1 best peer: **missed**: kernel - |"
    assert row in text


def test_a_run_can_be_read_again() -> None:
    """The table of a written run is the table of the run."""
    book = book_of(STAT, {"native": [2.0, 3.0], "kernel": [4.0, 5.0], "bindfs": [5.0, 6.0]})
    book.notes["kernel"] = "6.18"
    book.of(STAT, "bindfs", "peer").failure = "no"
    assert pages.markdown(Book.from_json(book.as_json())) == pages.markdown(book)


def test_the_documents_have_the_tables(tmp_path: Path) -> None:
    """Between their marks; what stands around them stays, and a second time nothing changes."""
    for name in ("README.md", "docs/performance.md"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text((Path(command.__file__).parent.parent / name).read_text())
    book = book_of(UNTAR, {"native": [10], "kernel": [20], "bindfs": [30]})
    book.notes |= {"date": "2031-01-02", "command": "make it"}
    command.write_docs(book, tmp_path)
    readme = (tmp_path / "README.md").read_text()
    assert "| untar | 2.00 | 3.00 (bindfs) |\n\n<!-- short: end -->\n" in readme
    assert "Measured 2031-01-02 by `make it`." in readme
    assert readme.startswith("# sysroot-fs\n")
    performance = (tmp_path / "docs/performance.md").read_text()
    assert "| untar | 10.0 ms | 2.00 | 3.00 | bindfs |" in performance
    command.write_docs(book, tmp_path)
    assert (tmp_path / "README.md").read_text() == readme
    assert (tmp_path / "docs/performance.md").read_text() == performance
    with pytest.raises(ValueError, match="are missing"):
        pages.inserted("no marks", "short", [])


def test_the_plot_is_well_formed() -> None:
    """One bar for each contestant on each line, and one in the legend; names are escaped."""
    book = book_of(Line("a<b", "work", "ms"), {"native": [1], "kernel": [0.001], "bindfs": [900]})
    root = ElementTree.fromstring(pages.svg(book, "work"))
    bars = [found for found in root.iter() if found.tag.endswith("rect")][1:]
    assert len(bars) == 4
    assert all(0 <= float(bar.attrib["width"]) <= 700 for bar in bars)


def test_what_a_server_has_used() -> None:
    """Of the kernel's files; a thread that has ended takes nothing away."""
    assert parse_schedstat("123 456 7\n") == 123
    status = "Name:\tx\nvoluntary_ctxt_switches:\t3\nnonvoluntary_ctxt_switches:\t4\n"
    assert parse_switches(status) == 7
    assert Usage(5, 9).since(Usage(2, 3)) == Usage(3, 6)
    assert Usage(1, 1).since(Usage(2, 3)) == Usage(0, 0)


def test_what_the_client_prints() -> None:
    """Nanoseconds of a batch; we tell microseconds of a call."""
    assert parse_batches("2000\n4000\n", 2) == [1.0, 2.0]


def test_who_takes_part() -> None:
    """All; those that are named; one more of ours; and not one that there is not."""
    names = [one.name for one in command.chosen(None, [], quick=False)]
    assert names == [one.name for one in CONTESTANTS]
    chosen = command.chosen("bindfs", ["long=door=kernel,entry_timeout=9"], quick=False)
    assert [one.name for one in chosen][-2:] == ["long", "bindfs"]
    assert chosen[-2].options == "door=kernel,entry_timeout=9"
    with pytest.raises(ValueError, match="no contestant ext5"):
        command.chosen("ext5", [], quick=False)
    with pytest.raises(ValueError, match="NAME=OPTIONS"):
        contestants.parse_mode("door")


def test_the_command_of_a_run() -> None:
    """As it would be typed again, without where its results went."""
    given = ["--out", "here", "--rounds", "3", "--only", "work", "--mode", "a=b c", "--quick"]
    said = command.command(command.parser().parse_args(given))
    assert said == "python -m benchmarks.bench --rounds 3 --only work --mode 'a=b c' --quick"


def test_a_command_that_fails_says_why() -> None:
    """With its last word on standard error."""
    with pytest.raises(Failed, match=r"^no way$"):
        run(["sh", "-c", "echo first >&2; echo no way >&2; exit 3"])
    assert run(["echo", "there"]) == "there\n"


def test_a_line_from_end_to_end(workplace: Path) -> None:
    """Native and a mount, in interleaved rounds, by the real client; everything is taken away."""
    built = workplace / "built"
    client = contestants.build_client(built)
    measured = Bench(workplace, client, built, 2, True, False, ["missing"])
    mine = [one for one in CONTESTANTS if one.name in ("native", "kernel")]
    micro.measure(measured, mine, [micro.Call("missing", "missing", 5)])
    for placement in ("pinned", "free"):
        line = Line(f"missing, {placement}", f"micro-{placement}", "us", "best")
        kernel, native = measured.book.get(line, "kernel"), measured.book.get(line, "native")
        assert kernel and native
        assert [sample.round for sample in kernel.samples] == [0, 1]
        # It was the server that answered: every name is a new one.
        assert all(sample.switches and sample.cpu for sample in kernel.samples)
        assert [sample.cpu for sample in native.samples] == [None, None]
    assert not (workplace / "micro").exists()


def test_what_fails_once_is_not_asked_again(workplace: Path) -> None:
    """Its words are kept, and the others go on."""
    built = workplace / "built"
    measured = Bench(workplace, contestants.build_client(built), built, 2, True, False, [])
    mine = [one for one in CONTESTANTS if one.name == "native"]
    call = micro.Call("odd", "no-such-operation", 5)
    with gathered(mine, workplace / "odd", built) as (native,):
        assert not micro.called(measured, native, call, STAT, 0)
        assert micro.called(measured, native, call, STAT, 1)
    series = measured.book.series[STAT.name, "native"]
    assert series.failure == "client: no operation no-such-operation"
    assert series.samples == []
