"""The matrix' report: nothing is counted away, and a page can be read."""

from __future__ import annotations

import json
from pathlib import Path

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
)


def alone(cell: Cell) -> str:
    """The command that runs a cell."""
    return f"make {cell.volume}"


def test_the_totals_count_every_line() -> None:
    """Passed, failed and skipped of all cells, the last line of the text."""
    text = report.as_text([GOOD, BAD])
    assert text.splitlines()[-1] == "4 passed, 1 failed, 1 skipped"
    assert "FAILED coreutils/zfs/musl/sysroot: ls-<odd>\n    out: a & b" in text
    assert "skipped coreutils/zfs/musl/sysroot: 1 lines, because no xattrs" in text


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
    assert "ls-&lt;odd&gt;" in page and "a &amp; b" in page and "make zfs" in page


def test_a_cut_has_every_row_and_column() -> None:
    """Each value of each axis of each suite in some cell, and each item that belongs to it once."""
    jobs = table.cut()
    for suite in SUITES:
        mine = [job for job in jobs if job.suite is suite]
        for axis in ("volume", "guest", "place", "mode"):
            wanted = getattr(suite, f"{axis}s") or ("-",)
            if len(suite.cut_items()) >= len(wanted):
                assert {getattr(job.cell, axis) for job in mine} == set(wanted), (suite.name, axis)
        assert sorted(item for job in mine for item in job.items) == sorted(suite.cut_items())


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


def test_every_volume_says_what_it_lacks() -> None:
    """No excuse is made up on the way."""
    assert set(table.LACKS) == set(VOLUMES)
