"""The parity suite itself: it finds what is planted, makes it small, and tells how to see it."""

from __future__ import annotations

import errno
import os
import pickle
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from tests.caseless import open_kind
from tests.matrix.cases import NEEDS
from tests.matrix.parity import calls as interpreter
from tests.matrix.parity.generate import EXCHANGE, calls_of, measured_lacks, need_of
from tests.matrix.parity.pair import HangError, Pair, SideError, literal
from tests.matrix.parity.script import script_of
from tests.matrix.parity.shrink import shrink
from tests.matrix.parity.suite import MEASURED, Parity, small
from tests.matrix.parity.world import FOREIGN_LINKS, Call, Failed
from tests.matrix.suite import Cell, Reference, Setting
from tests.matrix.table import LACKS
from tests.matrix.volumes import Volume


@pytest.fixture
def sides(workplace: Path) -> tuple[Path, Path]:
    """Two directories on the same disk."""
    made = workplace / "plain", workplace / "other"
    for directory in made:
        directory.mkdir()
    return made


def with_fault(plant: Callable[[], None]) -> Callable[..., list[object]]:
    """A way to make calls in which *plant* has broken something before."""

    def perform(
        top: bytes, calls: Sequence[Call], lacks: frozenset[str], judges: bool
    ) -> list[object]:
        plant()
        return interpreter.perform(top, calls, lacks, judges)

    return perform


def wrong_errno() -> None:
    """Removing a directory that is not empty says EEXIST, as some volumes do."""
    rmdir = os.rmdir

    def faulty(path: bytes, *, dir_fd: int | None = None) -> None:
        try:
            rmdir(path, dir_fd=dir_fd)
        except OSError as failure:
            if failure.errno == errno.ENOTEMPTY:
                raise FileExistsError(errno.EEXIST, "") from None
            raise

    os.rmdir = faulty  # type: ignore[assignment]


def wrong_mode() -> None:
    """Directories cannot be closed to others."""
    mkdir = os.mkdir

    def faulty(path: bytes, mode: int, *, dir_fd: int | None = None) -> None:
        mkdir(path, mode | 0o055, dir_fd=dir_fd)

    os.mkdir = faulty  # type: ignore[assignment]


def lost_write() -> None:
    """What is written far behind the end is lost."""
    pwrite = os.pwrite

    def faulty(fd: int, data: bytes, offset: int) -> int:
        return len(data) if offset > 4096 else pwrite(fd, data, offset)

    os.pwrite = faulty  # type: ignore[assignment]


@pytest.mark.parametrize("plant", [wrong_errno, wrong_mode, lost_write])
def test_a_planted_fault_is_found_and_made_small(
    sides: tuple[Path, Path], plant: Callable[[], None]
) -> None:
    """Few calls are left, and those still show it."""
    pair = Pair(*sides, perform=with_fault(plant))
    for seed in range(10):
        calls = calls_of(seed, 1000)
        found = pair.first_difference(calls)
        if found is not None:
            break
    assert found is not None
    left = small(pair, calls[: found.index + 1], found, seconds=20.0)
    again = pair.first_difference(left)
    assert again is not None and again.kind == found.kind
    assert len(left) <= 5, left


def test_nothing_differs_between_two_plain_directories(sides: tuple[Path, Path]) -> None:
    """What a call gives back does not depend on the moment or the directory."""
    pair = Pair(*sides)
    for seed in range(3):
        assert pair.first_difference(calls_of(seed, 500)) is None
    assert [list(side.iterdir()) for side in sides] == [[], []]


def test_a_seed_is_always_the_same() -> None:
    """Its calls are made of it alone, and a shorter list is the beginning of a longer one."""
    assert calls_of(7, 500) == calls_of(7, 500)
    assert calls_of(7, 500)[:250] == calls_of(7, 250)[:249] + calls_of(7, 500)[249:250]
    assert calls_of(7, 500) != calls_of(8, 500)


def test_a_seed_replays(sides: tuple[Path, Path]) -> None:
    """The same difference is found at the same call."""
    found = [Pair(*sides, perform=with_fault(wrong_mode)).first_difference(calls_of(3, 1000))] * 2
    found[1] = Pair(*sides, perform=with_fault(wrong_mode)).first_difference(calls_of(3, 1000))
    assert found[0] is not None and found[0] == found[1]


def test_every_call_is_made() -> None:
    """No call of the interpreter is forgotten by the generator."""
    known = {name.removeprefix("do_") for name in vars(interpreter) if name.startswith("do_")}
    assert {call.name for seed in range(12) for call in calls_of(seed, 2000)} == known


def test_most_calls_of_a_seed_do_something(sides: tuple[Path, Path]) -> None:
    """Of all kinds of call some succeed."""
    top = sides[0]
    done: set[str] = set()
    for seed in range(6):
        calls = calls_of(seed, 1000)
        values = Pair(top, sides[1]).performed(calls)
        done |= {c.name for c, v in zip(calls, values, strict=True) if not isinstance(v, Failed)}
    known = {name.removeprefix("do_") for name in vars(interpreter) if name.startswith("do_")}
    assert done == known


@pytest.fixture
def folding(workplace: Path) -> Iterator[Path]:
    """A directory in which Foo and foo are one: a fault that a script can meet by itself."""
    with open_kind("caseless", workplace) as volume:
        volume.path.chmod(0o777)
        yield volume.path


def test_the_script_shows_it(sides: tuple[Path, Path], folding: Path, workplace: Path) -> None:
    """It ends with 1 and points where the directories differ, and with 0 where they do not."""
    lacks = LACKS["caseless"] | measured_lacks(folding)
    pair = Pair(sides[0], folding, lacks)
    for seed in range(10):
        calls = [call for call in calls_of(seed, 500) if not need_of(call) & lacks]
        found = pair.first_difference(calls)
        if found is not None:
            break
    assert found is not None
    left = small(pair, calls[: found.index + 1], found, seconds=20.0)
    script = workplace / "again.py"
    script.write_text(script_of(left, lacks, "A test."), "utf-8")

    def run(directory: Path) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-I", str(script), str(directory), str(sides[0])]
        return subprocess.run(command, capture_output=True, text=True, check=False)

    shown = run(folding)
    assert (shown.returncode, shown.stderr) == (1, "")
    assert "DIFFERENT" in shown.stdout
    same = run(sides[1])
    assert (same.returncode, same.stderr) == (0, "")


def test_calls_that_the_volume_lacks_are_left_out(sides: tuple[Path, Path]) -> None:
    """What depends on a directory that was removed is not asked of such a volume."""
    calls = [
        Call("root", "mkdir", (None, b"d", 0o755)),
        Call("root", "open", ("here", None, b"d", os.O_DIRECTORY, 0)),
        Call("root", "rmdir", (None, b"d")),
        Call("root", "fstat", ("here",)),
    ]
    pair = Pair(*sides, frozenset({"removed-directories"}))
    assert pair.first_difference(calls) is None
    assert pair.left_out == {"removed-directories": 1}


def test_every_need_has_a_reason() -> None:
    """So that nothing is left out without one."""
    needs = {need for seed in range(12) for call in calls_of(seed, 2000) for need in need_of(call)}
    assert EXCHANGE in needs
    assert needs <= NEEDS.keys() | MEASURED.keys()


def test_a_side_that_breaks_off_is_told(sides: tuple[Path, Path]) -> None:
    """Neither a hang nor a traceback of the child's."""

    def plant() -> None:
        os._exit(3)

    pair = Pair(*sides, perform=with_fault(plant))
    with pytest.raises(SideError, match="without an answer"):
        pair.first_difference(calls_of(0, 10))


def test_a_second_process_that_breaks_off_is_told(
    sides: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The side that waits for its answer breaks off too, and the suite goes on."""
    monkeypatch.setattr(interpreter.Other, "_serve", lambda *given: pickle.load(given[-1]))
    with pytest.raises(SideError):
        Pair(*sides).first_difference([Call("other", "getcwd", ())])


def test_links_that_the_volume_lacks_are_left_out(sides: tuple[Path, Path]) -> None:
    """Who does not own a file gives it no second name there; its owner and root do."""
    calls = [
        Call("root", "umask", (0,)),
        Call("root", "open", ("one", None, b"f", os.O_CREAT | os.O_RDWR, 0o666)),
        Call("other", "open", ("one", None, b"f", os.O_RDWR, 0)),
        Call("other", "link", (None, b"f", None, b"g", False)),
        Call("other", "link", (None, b"none", None, b"g", False)),
        Call("other", "link_open", ("one", None, b"g", True)),
        Call("root", "link", (None, b"f", None, b"h", False)),
        Call("other", "mknod", (None, b"mine", 0o100666, 0)),
        Call("other", "link", (None, b"mine", None, b"i", False)),
    ]
    pair = Pair(*sides, frozenset({FOREIGN_LINKS}))
    assert pair.first_difference(calls) is None
    assert pair.left_out == {FOREIGN_LINKS: 2}
    said = pair.performed(calls)
    assert (said[4], said[6:]) == (Failed("ENOENT"), [None, None, None])


def test_a_server_that_hangs_is_ended(workplace: Path) -> None:
    """What was not run afterwards is a failure, and nothing is left behind."""
    sysroot, host = workplace / "sysroot", workplace / "host"
    for directory in (sysroot, host):
        directory.mkdir()
    setting = Setting(
        Cell("parity", "ext4", place="sysroot", mode="default"),
        workplace,
        Volume(sysroot, "plain"),
        sysroot,
        host,
        frozenset(),
        Reference(workplace),
        cut=True,
    )
    suite = Parity("parity")
    tally = suite.run(setting, suite.items()[:2])
    assert (tally.passed, tally.failures) == (["seed-0", "seed-1"], {})

    def hang(*_: object) -> None:
        raise HangError("no end within 60 s")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Pair, "first_difference", hang)
        tally = suite.run(setting, suite.items()[:2])
    assert tally.failures == {
        "seed-0": ["seed-0: no end within 60 s"],
        "seed-1": ["not run: the server had gone"],
    }
    assert tally.passed == []
    assert [*sysroot.iterdir(), *host.iterdir()] == []


def test_shrinking_leaves_what_is_needed() -> None:
    """Calls that only count together are both kept."""
    calls = [Call("root", "umask", (number,)) for number in range(100)]

    def shows_it(some: Sequence[Call]) -> Sequence[Call] | None:
        return some[: some.index(calls[71]) + 1] if {calls[17], calls[71]} <= set(some) else None

    assert shrink(calls, shows_it, 20.0) == [calls[17], calls[71]]
    with pytest.raises(ValueError):
        shrink(calls[:50], shows_it, 20.0)


def test_arguments_are_shown_short() -> None:
    """Runs are products, and what is shown is Python."""
    for value in (b"x" * 70_000, "é".encode() * 127, b"abc", (b"q" * 255, 1, None)):
        assert eval(literal(value)) == value
        assert len(literal(value)) < 40


def test_measured_lacks(workplace: Path) -> None:
    """A plain disk can do all of it."""
    assert measured_lacks(workplace) == frozenset()
    assert stat.S_ISDIR(workplace.stat().st_mode) and not list(workplace.iterdir())
