"""The matrix' report: nothing is counted away, and a page can be read."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import attrs
import pytest

from tests.matrix import report, table
from tests.matrix.report import Result
from tests.matrix.suite import VOLUMES, Cell, Tally
from tests.matrix.suites import SUITES

GOOD = Result(Cell("coreutils", "ext4", "musl", "host"), Tally(("a", "b", "c")), 1.0)
BAD = Result(
    Cell("coreutils", "zfs", "musl", "sysroot"),
    Tally(("a",), {"ls-<odd>": ["out: a & b"]}, {"x": "no xattrs"}),
    2.0,
    ["a", "ls-<odd>", "x"],
)


def alone(cell: Cell, items: Sequence[str]) -> str:
    """The command that runs a cell's items."""
    return f"make {cell.volume} {'+'.join(items)}"


def test_the_totals_count_every_line() -> None:
    """Passed, failed and skipped of all cells, the last line of the text."""
    text = report.as_text([GOOD, BAD], alone)
    assert text.splitlines()[-1] == "4 passed, 1 failed, 1 skipped"
    failed = "FAILED coreutils/zfs/musl/sysroot: ls-<odd>\n    out: a & b\n"
    assert f"{failed}    alone: make zfs ls-<odd>\n" in text
    assert "skipped coreutils/zfs/musl/sysroot: 1 items, because no xattrs\n    x\n" in text


def test_what_is_told_of_many_is_told_once() -> None:
    """The skipped by their reasons, the failed by what was said; only items are run alone."""
    tally = Tally(
        (),
        {"a": ["it hangs"], "(the server)": ["it logs"], "b": ["it hangs"]},
        {"c": "no links", "d": "no modes", "e": "no links"},
    )
    text = report.as_text([Result(Cell("paths", "zfs"), tally, 1.0, ["a", "b"])], alone)
    assert "FAILED paths/zfs: a, b\n    it hangs\n    alone: make zfs a+b\n" in text
    assert "FAILED paths/zfs: (the server)\n    it logs\n    alone: make zfs \n" in text
    assert "paths/zfs: 2 items, because no links\n    c, e\n" in text
    assert "paths/zfs: 1 items, because no modes\n    d\n" in text


def test_any_name_can_be_reported(tmp_path: Path) -> None:
    """A name that is not UTF-8 stands in a failure's words."""
    tally = Tally((), {"a": ["left: \udcff"]}, {"b": "no \udcfe"})
    report.write([Result(Cell("names", "zfs"), tally, 1.0)], tmp_path, alone)
    for name in ("report.txt", "report.json", "report.html"):
        assert "\\udcff" in (tmp_path / name).read_text("utf-8")
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        *("report.html", "report.json", "report.txt")
    ]


def test_the_reports_are_written(tmp_path: Path) -> None:
    """Text, JSON with every cell, and a page in which a cell leads to its failures."""
    report.write([GOOD, BAD], tmp_path / "new", alone)
    told = json.loads((tmp_path / "new/report.json").read_text())
    assert [one["cell"]["volume"] for one in told] == ["ext4", "zfs"]
    page = (tmp_path / "new/report.html").read_text()
    assert (
        '<td class=bad><a href="#coreutils-zfs-musl-sysroot">1 passed, 1 failed, 1 skipped' in page
    )
    assert '<h3 id="coreutils-zfs-musl-sysroot">' in page
    assert "ls-&lt;odd&gt;" in page and "a &amp; b" in page
    assert "<code>make zfs </code>" in page and "<code>make zfs ls-&lt;odd&gt;</code>" in page


def test_a_cut_has_every_row_and_column() -> None:
    """Each value of each axis of each suite in some cell, and each item that belongs to it once.

    Where there are fewer items than cells, some are there again: no cell is empty.
    """
    jobs = table.cut()
    for suite in SUITES:
        mine = [job for job in jobs if job.suite is suite]
        for axis in ("volume", "guest", "place", "mode"):
            wanted = getattr(suite, f"{axis}s") or ("-",)
            assert {getattr(job.cell, axis) for job in mine} == set(wanted), (suite.name, axis)
        assert all(job.items for job in mine)
        dealt = [item for job in mine for item in job.items]
        assert set(dealt) == set(suite.cut_items())
        assert len(dealt) == max(len(suite.cut_items()), len(mine))


def test_a_cut_deals_items_to_volumes_that_can() -> None:
    """What a volume cannot do would be skipped there, and nowhere run."""
    dealt = {(job.suite.name, item): job.cell for job in table.cut() for item in job.items}
    for (name, item), cell in dealt.items():
        (suite,) = [suite for suite in SUITES if suite.name == name]
        assert not suite.needs(item) & table.LACKS[cell.volume], (name, item, cell)
    links = {("races", "hard-links"), ("names", "links-case")}
    assert {*links, ("path-calls", "removed-working-directory")} <= dealt.keys()


def test_a_cut_meets_folding_volumes_in_the_sysroot() -> None:
    """All but one: on the host it makes no difference that they fold."""
    for suite in SUITES:
        if suite.places:
            mine = [job.cell for job in table.cut() if job.suite is suite]
            on_host = [cell.volume for cell in mine if cell.place == "host"]
            assert on_host[0] == "ext4" and len(on_host) == 2, suite.name


def test_only_some_cells() -> None:
    """What is asked for, and a sentence for what there is not."""
    only = table._only("volume=zfs+exfat,place=host,suite=coreutils,mode=long,guest=musl")
    assert [job.cell for job in table.full(only)] == [
        Cell("coreutils", volume, "musl", "host", "long") for volume in ("zfs", "exfat")
    ]
    with pytest.raises(SystemExit, match="no such cell: volume=fat"):
        table._only("volume=fat")


def test_a_command_runs_its_cell_alone() -> None:
    """What the report gives for a cell names that cell and no other."""
    for job in table.full({}):
        assert [one.cell for one in table.full(table._only(job.cell.only))] == [job.cell]


def test_a_command_runs_some_items_alone() -> None:
    """Every item can be named; those of the cut as the cut has them."""
    for suite in SUITES:
        assert not [item for item in suite.items() if set(item) & set("+,")]
    for choose in (table.full, table.cut):
        job = choose(table._only("suite=coreutils,volume=zfs"))[0]
        some = job.items[3:5]
        (_, words) = table.alone(job.cell, some, cut=job.cut).rsplit(maxsplit=1)
        (found,) = choose(table._only(words.removeprefix("ONLY=")))
        assert found == attrs.evolve(job, items=some)
        assert ("--cut" in table.alone(job.cell, some, cut=job.cut)) == job.cut
    with pytest.raises(SystemExit, match="no such item: ls-nothing"):
        table._only("suite=coreutils,item=ls-nothing")
    with pytest.raises(SystemExit, match="no such item: iotas"):
        table._only("suite=coreutils,item=iotas")


def test_every_volume_says_what_it_lacks() -> None:
    """No excuse is made up on the way."""
    assert set(table.LACKS) == set(VOLUMES)
