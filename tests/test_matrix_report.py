"""The matrix' report: nothing is counted away, and a page can be read."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.matrix import report, table
from tests.matrix.report import Cell, Result

GOOD = Result(Cell("ext4", "host", "coreutils"), 3, {}, {}, 1.0)
BAD = Result(
    Cell("zfs", "sysroot", "coreutils"), 1, {"ls-<odd>": ["out: a & b"]}, {"x": "no xattrs"}, 2.0
)


def alone(cell: Cell) -> str:
    """The command that runs a cell."""
    return f"make {cell.volume}"


def test_the_totals_count_every_line() -> None:
    """Passed, failed and skipped of all cells, the last line of the text."""
    text = report.as_text([GOOD, BAD])
    assert text.splitlines()[-1] == "4 passed, 1 failed, 1 skipped"
    assert "FAILED coreutils on zfs, in sysroot: ls-<odd>\n    out: a & b" in text
    assert "skipped coreutils on zfs, in sysroot: 1 lines, because no xattrs" in text


def test_the_reports_are_written(tmp_path: Path) -> None:
    """Text, JSON with every cell, and a page in which a cell leads to its failures."""
    report.write([GOOD, BAD], tmp_path / "new", alone)
    told = json.loads((tmp_path / "new/report.json").read_text())
    assert [one["cell"]["volume"] for one in told] == ["ext4", "zfs"]
    page = (tmp_path / "new/report.html").read_text()
    assert '<td class=bad><a href="#coreutils-zfs-sysroot">1 passed, 1 failed, 1 skipped' in page
    assert '<h3 id="coreutils-zfs-sysroot">' in page
    assert "ls-&lt;odd&gt;" in page and "a &amp; b" in page and "make zfs" in page


def test_a_cut_has_every_row_and_column() -> None:
    """Each volume and each place at least once."""
    cut = table.cells({}, cut=True)
    assert {cell.volume for cell in cut} == set(table.VOLUMES)
    assert {cell.place for cell in cut} == set(table.PLACES)
    assert len(cut) < len(table.cells({}, cut=False))


def test_only_some_cells() -> None:
    """What is asked for, and a sentence for what there is not."""
    assert table.cells({"volume": "zfs", "place": "host"}, cut=False) == [
        Cell("zfs", "host", suite) for suite in table.SUITES
    ]
    with pytest.raises(SystemExit, match="no such cell: volume=fat"):
        table._only("volume=fat")


def test_every_volume_says_what_it_lacks() -> None:
    """No excuse is made up on the way."""
    assert set(table.LACKS) == set(table.VOLUMES)
