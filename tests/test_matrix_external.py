"""How suites of others are judged, and where their tests may write."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tests.matrix import busybox, external
from tests.matrix.external import Difference, Outcome, judge, parse_list
from tests.matrix.sandbox import only_writing
from tests.matrix.suite import Cell
from tests.matrix.suites import SUITES

CELL = Cell("busybox", "zfs", "musl", "sysroot", "default")
LIST = """\
# what is behind a sign is for people
= the volume has no wings
zfs+exfat sysroot cp.tests: flies far
all all fly.tests
"""
PASS = Outcome({"": "PASS"})
FAIL = Outcome({"": "FAIL"}, {"": ["it fell"]})


def test_a_list_of_differences() -> None:
    """Volumes, places, the item and its case, with the reason above."""
    first, second = parse_list(LIST)
    assert first == Difference(
        frozenset({"zfs", "exfat"}),
        frozenset({"sysroot"}),
        "cp.tests",
        "flies far",
        "the volume has no wings",
        always=True,
    )
    assert (second.item, second.case) == ("fly.tests", "")
    assert [one.covers(CELL) for one in (first, second)] == [True, True]
    assert not first.covers(Cell("busybox", "zfs", "musl", "host", "default"))
    assert not first.covers(Cell("busybox", "ext4", "musl", "sysroot", "default"))


def test_a_difference_of_some_guests() -> None:
    """Others do not have what the case is about."""
    (one,) = parse_list("= no wings\nzfs sysroot:musl+glibc cp.tests: flies far\n")
    assert (one.item, one.case) == ("cp.tests", "flies far")
    assert one.covers(CELL)
    assert not one.covers(Cell("busybox", "zfs", "musl-static", "sysroot", "default"))
    assert not one.covers(Cell("busybox", "zfs", "musl", "host", "default"))


@pytest.mark.parametrize(
    "text",
    [
        "zfs sysroot cp.tests",
        "= so\nnvme sysroot cp.tests",
        "= so\nzfs attic cp.tests",
        "= so\nzfs sysroot:uclibc cp.tests",
        "= so\nplain uclibc cp.tests",
    ],
)
def test_a_line_that_says_nothing_is_refused(text: str) -> None:
    """No reason, no such volume, no such place, no such guest."""
    with pytest.raises(ValueError, match="line"):
        parse_list(text)


@pytest.mark.parametrize("suite", ["busybox", "gnu-coreutils"])
def test_lists_name_what_exists(suite: str) -> None:
    """A line for a test that is gone would never be missed."""
    (found,) = [one for one in SUITES if one.name == suite]
    assert {one.item for one in external.read_list(suite)} <= set(found.items())


def test_what_is_alike_has_passed() -> None:
    """Passed is what passes in both; what skips itself is skipped with its words."""
    alike = {"a": PASS, "b": Outcome({"": "SKIP"}, {"": ["no wings"]})}
    tally = judge(CELL, alike, alike, [])
    assert (tally.passed, dict(tally.failures)) == (["a"], {})
    assert dict(tally.skipped) == {"b": "SKIP in a plain directory too: no wings"}


@pytest.mark.parametrize("verdict", ["FAIL", "ERROR", "nothing", "nothing within 9 s"])
def test_what_fails_in_a_plain_directory_is_listed_or_a_failure(verdict: str) -> None:
    """It would be alike on a mount that is broken; the line is for the guests it names."""
    alike = {"fly.tests": Outcome({"": verdict}, {"": ["it fell"]})}
    words = [f"{verdict}, in a plain directory already", "it fell"]
    assert judge(CELL, alike, alike, []).failures == {"fly.tests": words}
    tally = judge(CELL, alike, alike, parse_list("= no wings\nplain musl fly.tests\n"))
    assert (dict(tally.failures), dict(tally.skipped)) == ({}, {"fly.tests": "no wings"})
    elsewhere = parse_list("= no wings\nplain glibc fly.tests\n")
    assert judge(CELL, alike, alike, elsewhere).failures == {"fly.tests": words}


def test_a_line_for_what_no_longer_fails_plainly_is_a_failure() -> None:
    """Unless it depends on the machine."""
    good = {"fly.tests": PASS}
    tally = judge(CELL, good, good, parse_list("= no wings\nplain all fly.tests\n"))
    assert list(tally.failures) == ["fly.tests"]
    assert judge(CELL, good, good, parse_list("~ wind\nplain all fly.tests\n")).passed == [
        "fly.tests"
    ]


def test_what_differs_has_failed_in_its_own_words() -> None:
    """With what came, what should have come, and what was said."""
    tally = judge(CELL, {"a": PASS}, {"a": FAIL}, [])
    assert tally.failures == {"a": ["FAIL, in a plain directory PASS", "it fell"]}
    assert (tally.passed, dict(tally.skipped)) == ([], {})


def test_passing_where_a_plain_directory_fails_is_a_difference() -> None:
    """It may be that nothing was tried."""
    tally = judge(CELL, {"a": FAIL}, {"a": PASS}, [])
    assert list(tally.failures) == ["a"]


def test_a_case_that_is_lost_or_new_is_a_difference() -> None:
    """A script that ends early says less."""
    one, two = Outcome({"x": "PASS"}), Outcome({"x": "PASS", "y": "PASS"})
    assert judge(CELL, {"a": two}, {"a": one}, []).failures == {
        "a": ["y: nothing, in a plain directory PASS"]
    }
    assert list(judge(CELL, {"a": one}, {"a": two}, []).failures) == ["a"]


def test_a_listed_case_excuses_no_other() -> None:
    """The reason is counted where all that differs is listed."""
    good = Outcome({"flies far": "PASS", "swims": "PASS"})
    bad = Outcome({"flies far": "FAIL", "swims": "PASS"})
    worse = Outcome({"flies far": "FAIL", "swims": "FAIL"})
    listed = parse_list(LIST)
    tally = judge(CELL, {"cp.tests": good}, {"cp.tests": bad}, listed)
    assert tally.skipped == {"cp.tests": "the volume has no wings"}
    tally = judge(CELL, {"cp.tests": good}, {"cp.tests": worse}, listed)
    assert tally.failures == {"cp.tests": ["swims: FAIL, in a plain directory PASS"]}


def test_a_line_for_what_differs_no_longer_is_a_failure() -> None:
    """A list becomes shorter, not longer; a line for another volume says nothing here."""
    tally = judge(CELL, {"fly.tests": PASS}, {"fly.tests": PASS}, parse_list(LIST))
    assert tally.failures == {
        "fly.tests": ["fly.tests no longer differs: remove the line from the list"]
    }
    elsewhere = parse_list("= so\next4 sysroot fly.tests\n")
    assert judge(CELL, {"fly.tests": PASS}, {"fly.tests": PASS}, elsewhere).passed == ["fly.tests"]


def test_a_race_may_be_won() -> None:
    """What differs only now and then is excused, and not missed."""
    listed = parse_list("~ who comes first\nall all fly.tests\n")
    assert judge(CELL, {"fly.tests": PASS}, {"fly.tests": PASS}, listed).passed == ["fly.tests"]
    tally = judge(CELL, {"fly.tests": PASS}, {"fly.tests": FAIL}, listed)
    assert tally.skipped == {"fly.tests": "who comes first"}


def test_what_busyboxs_testsuite_says() -> None:
    """Old tests say one line each, by the name of their file; all else is the new one's."""
    text = """\
PASS: cp-follows-links
FAIL: cp-parents
+ cmp a b
======================
echo -ne '' >input
echo -ne '' | cp a b
PASS: cp files
======================
echo -ne '' | cp c d
FAIL: cp dirs
--- expected
"""
    names = ["cp.tests", "cp/cp-follows-links", "cp/cp-parents"]
    outcomes = busybox.parse(names, text)
    assert outcomes["cp/cp-follows-links"].verdicts == {"": "PASS"}
    assert outcomes["cp/cp-parents"] == Outcome(
        {"": "FAIL"}, {"": ["FAIL: cp-parents", "+ cmp a b"]}
    )
    assert outcomes["cp.tests"].verdicts == {"cp files": "PASS", "cp dirs": "FAIL"}
    assert outcomes["cp.tests"].said["cp dirs"] == ["FAIL: cp dirs", "--- expected"]


def test_a_test_of_busybox_that_says_nothing_is_told() -> None:
    """One that hangs until its time is up, or a guest that ends."""
    outcome = busybox.parse(["cp.tests"], "cp: no space\n=== status 124\n")["cp.tests"]
    assert outcome == Outcome({"": "nothing"}, {"": ["cp: no space", "=== status 124"]})


def test_tests_can_write_their_directory_and_nothing_else(tmp_path: Path) -> None:
    """As root, with mounts and processes of their own that end with them."""
    inside, outside = tmp_path / "in side", tmp_path / "outside"
    inside.mkdir()
    outside.mkdir()
    script = """
        cd "$1" && echo yes >file && mkdir -p point && mount -t tmpfs tmpfs point || exit 1
        echo no >"$2/file" && exit 2
        mkdir /dev/shm/mine || exit 3
        test -w /proc/sys/kernel/hostname && exit 4
        for point in $(cut -d' ' -f2 /proc/mounts | grep ^/sys); do
            test -w "$point" && exit 5
        done
        sleep 1000 &
        test "$$" != 1 && echo well
    """
    with only_writing(inside) as enter:
        command = [*enter, "sh", "-c", script, "-", str(inside), str(outside)]
        for _ in range(2):
            done = subprocess.run(command, capture_output=True, check=False, timeout=60)
            assert (done.returncode, done.stdout) == (0, b"well\n"), done.stderr
            assert b"Read-only file system" in done.stderr
    assert sorted(path.name for path in inside.iterdir()) == ["file", "point"]
    assert not list(outside.iterdir())
    assert str(inside) not in Path("/proc/self/mountinfo").read_text()
    assert not Path("/dev/shm/mine").exists()
