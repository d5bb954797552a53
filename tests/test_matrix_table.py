"""The matrix' table: what is run, that each item is told of, and that nothing ends it early."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import attrs
import pytest

from tests.matrix import table
from tests.matrix.suite import Cell, Reference, Setting, Suite, Tally
from tests.matrix.table import Job

ITEMS = ("one", "two", "three")


@attrs.frozen
class Told(Suite):
    """A suite that does what a test says."""

    work: Callable[[Setting], Tally] = attrs.field(kw_only=True)

    def items(self) -> Sequence[str]:
        """Three."""
        return ITEMS

    def run(self, setting: Setting, items: Sequence[str]) -> Tally:
        """What the test says."""
        return self.work(setting)


def run(work: Callable[[Setting], Tally], base: Path) -> Tally:
    """The tally of a cell on the machine's own disk whose suite does *work*."""
    job = Job(Told("told", guests=(), work=work), Cell("told", "ext4"), ITEMS)
    return table.run_job(job, base, Reference(base)).tally


def test_an_item_that_is_not_told_has_failed(workplace: Path) -> None:
    """Also one that is told twice, and one that nobody asked for."""
    tally = run(
        lambda _: Tally(
            ("one", "one", "four"),
            {"(the server)": ["it logs"]},
            {"two": "no xattrs", "calls that need links": "no links"},
        ),
        workplace,
    )
    assert tally.passed == []
    assert set(tally.failures) == {"(the server)", "one", "three", "four"}
    assert "not told" in tally.failures["three"][0]
    assert set(tally.skipped) == {"two", "calls that need links"}


def test_a_full_tally_stays_as_it_is(workplace: Path) -> None:
    """Passed, failed and skipped, once each."""
    told = Tally(["one"], {"two": ["it differs"]}, {"three": "no xattrs"})
    assert run(lambda _: told, workplace) == told


def test_whatever_is_raised_is_a_failure(workplace: Path) -> None:
    """With the last lines of the traceback, and no item has passed."""

    def work(setting: Setting) -> Tally:
        raise IndexError("on purpose")

    tally = run(work, workplace)
    assert tally.passed == []
    assert set(tally.failures) == {"(the cell itself)", *ITEMS}
    words = tally.failures["(the cell itself)"]
    assert words[-1] == "IndexError: on purpose"
    assert any("on purpose" in word and "raise" in word for word in words)
    assert list(workplace.iterdir()) == []


def test_a_reference_that_breaks_off_is_not_used(
    workplace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The next one who asks gets a whole one."""

    def half(dest: Path, kind: str) -> None:
        (dest / "root").mkdir(parents=True)
        raise OSError("on purpose")

    reference = Reference(workplace)
    with monkeypatch.context() as patch:
        patch.setattr("tests.matrix.guests.unpack", half)
        with pytest.raises(OSError, match="on purpose"):
            reference.root("musl")
    assert (reference.root("musl") / "bin/sh").exists()


def test_a_cell_that_hangs_loses_its_servers(
    workplace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What waits for them goes on, and the failure says what has happened."""
    monkeypatch.setattr(table, "_SECONDS", 3.0)

    def work(setting: Setting) -> Tally:
        with setting.mounted() as mount:
            mount.process.send_signal(signal.SIGSTOP)
            mount.process.wait()
        return Tally(ITEMS)

    tally = run(work, workplace)
    words = tally.failures["(the cell itself)"]
    assert words[0] == "it took longer than 3 s: then its servers were killed"
    assert list(workplace.iterdir()) == []


def test_what_stays_mounted_is_not_deleted(workplace: Path) -> None:
    """It is unmounted first: what a mount shows is not the cell's."""
    host = workplace / "outside"
    host.mkdir()
    (host / "precious").touch()

    def work(setting: Setting) -> Tally:
        (setting.base / "left").mkdir()
        subprocess.run(["mount", "--bind", host, setting.base / "left"], check=True)
        return Tally(ITEMS)

    assert run(work, workplace) == Tally(list(ITEMS))
    assert (host / "precious").exists()
    assert [path.name for path in workplace.iterdir()] == ["outside"]


def test_what_cannot_be_unmounted_is_left_and_told(
    workplace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The failure names it."""
    monkeypatch.setattr(table, "sweep", lambda base: None)

    def work(setting: Setting) -> Tally:
        (setting.base / "left").mkdir()
        subprocess.run(["mount", "-t", "tmpfs", "none", setting.base / "left"], check=True)
        (setting.base / "left/precious").touch()
        return Tally(ITEMS)

    (words,) = run(work, workplace).failures["(the cell itself)"]
    (left,) = workplace.glob("cell-*/left")
    try:
        assert words.startswith(f"{left} is still mounted")
        assert (left / "precious").exists()
    finally:
        subprocess.run(["umount", left], check=True)


def matrix(*words: str, temp: Path) -> subprocess.Popen[str]:
    """The table as a user starts it."""
    return subprocess.Popen(
        [sys.executable, "-m", "tests.matrix.table", *words],
        env={**os.environ, "TMPDIR": str(temp)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.parametrize(
    "words",
    [("suite=gnu-coreutils,volume=exfat",), ("--cut", "suite=volume-death,volume=zfs")],
)
def test_nothing_to_run_is_an_error(words: tuple[str, ...], workplace: Path) -> None:
    """A run of no cells must not look like a good one."""
    with matrix(*words, temp=workplace) as process:
        out, err = process.communicate()
    assert (process.returncode, out) == (1, "")
    assert err.startswith("matrix: there is no such cell: ") and err.count("\n") == 1


@pytest.mark.parametrize(
    ("number", "status"),
    [(signal.SIGTERM, 128 + signal.SIGTERM), (signal.SIGINT, -signal.SIGINT)],
)
def test_a_run_that_is_ended_leaves_its_report_and_nothing_else(
    number: int, status: int, workplace: Path
) -> None:
    """The cells until then, and no mount."""
    temp, told = workplace / "temp", workplace / "report"
    temp.mkdir()
    only = "suite=names,volume=ext4+lowntfs,mode=default"
    with matrix(only, "--report", str(told), temp=temp) as process:
        assert process.stdout is not None
        assert process.stdout.readline().startswith("1/4 names/ext4/sysroot/default")
        process.send_signal(number)
        process.communicate()
    assert process.returncode == status
    cells = [one["cell"] for one in json.loads((told / "report.json").read_text())]
    assert cells[0]["volume"] == "ext4" and len(cells) < 4
    assert list(temp.iterdir()) == []
    assert str(temp) not in Path("/proc/self/mountinfo").read_text()
