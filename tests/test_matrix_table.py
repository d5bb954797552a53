"""The matrix' table: what is run, that each item is told of, and that nothing ends it early."""

from __future__ import annotations

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
