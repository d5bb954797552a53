"""The suites of scenarios and of the host fallback tell what is wrong, and leave nothing behind."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.matrix import guests
from tests.matrix.calls import Calls, Scenario, Where, told
from tests.matrix.fallback import After, Fallback, Item, tree
from tests.matrix.suite import Cell, Reference, Setting
from tests.matrix.volumes import Volume


def same(where: Where) -> Iterator[str]:
    """What is the same everywhere."""
    Path("f").write_text("x")
    yield told(os.listdir, b".")
    yield os.getcwd()
    yield told(os.mkdir, where.there + b"/d")


def differs(where: Where) -> Iterator[str]:
    """What is another on every file system."""
    yield "before"
    yield told(os.stat, b".")


def breaks(where: Where) -> Iterator[str]:
    """What cannot be done anywhere."""
    yield told(os.rmdir, b"nothing")
    os.rmdir(b"nothing")


def cannot(where: Where) -> Iterator[str]:
    """What is not even tried."""
    raise AssertionError("it was run")
    yield ""


@pytest.fixture
def setting(workplace: Path) -> Setting:
    sysroot, host = workplace / "sysroot", workplace / "host"
    sysroot.mkdir()
    host.mkdir()
    lacks = frozenset({"symlinks"})
    cell = Cell("tests", "ext4", "musl", "sysroot", "default")
    volume = Volume(workplace, "plain")
    return Setting(cell, workplace, volume, sysroot, host, lacks, Reference(workplace))


def test_scenarios_are_compared_with_a_plain_directory(setting: Setting) -> None:
    """A difference is told with what went before, a scenario that is none as such."""
    scenarios = (
        Scenario.of(same),
        Scenario.of(differs),
        Scenario.of(breaks),
        Scenario.of(cannot, "symlinks"),
    )
    suite = Calls("tests", parts=scenarios)
    tally = suite.run(setting, suite.items())
    assert (tally.passed, list(tally.failures), list(tally.skipped)) == (
        ["same"],
        ["differs", "breaks"],
        ["cannot"],
    )
    assert "line 2, after 'before'" in tally.failures["differs"][0]
    assert "no scenario" in tally.failures["breaks"][0]
    assert os.listdir(setting.sysroot) == os.listdir(setting.host) == []


def test_the_trees_of_a_fallback_item() -> None:
    """Files, directories and links, with the directories above them."""
    assert tree("a/b=text d/ l->a/b") == {
        "a": "/",
        "a/b": "text",
        "d": "/",
        "l": "->a/b",
    }


def test_a_fallback_item_tells_what_differs(setting: Setting) -> None:
    """What was said and which layer holds what else, the rule, and what to type."""
    guests.unpack(setting.sysroot)
    items = (
        Item("good", "The rule.", "", "f=host", "see f; printf new >g", After("host", "g=new")),
        Item("wrong", "The rule.", "", "f=host", "see f; printf new >g", After("guest", None, "")),
    )
    suite = Fallback("tests", parts=items)
    tally = suite.run(setting, suite.items())
    assert (tally.passed, list(tally.failures)) == (["good"], ["wrong"])
    words = "\n".join(tally.failures["wrong"])
    for said in (
        "The rule.",
        "it says 'host', expected 'guest'",
        "the sysroot holds [g new], expected []",
        "the host holds [f host], expected []",
        "$ see f; printf new >g",
    ):
        assert said in words
    assert os.listdir(setting.sysroot / "tmp") == os.listdir(setting.host / "tmp") == []
