"""The suite of races: several processes on the same names, or on names that fold to one.

What an item says holds through the mount, after a remount, and by `sysroot-fs check` of the
volume.
"""

from __future__ import annotations

import errno
import functools
import os
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Final, TypeVar

from sidecar import linux
from tests.children import code_of, start_child
from tests.matrix.actions import Action, Actions, Stage
from tests.matrix.findings import findings
from tests.matrix.turmoil import again_and_again

__all__ = ["RACES", "check_volume"]

_PROCESSES: Final = 4
_GONE: Final = frozenset({0, errno.ENOENT, errno.ESTALE})
"""What a call may say of a name that comes and goes."""

SPELLINGS: Final = ("Foo", "foo", "FOO", "\u00e9t\u00e9", "e\u0301te\u0301", "\u00c9T\u00c9")
"""Names of which some are one to every volume that folds."""

T = TypeVar("T")


def together(*works: Callable[[], T]) -> list[T]:
    """What each of *works* returns in a process of its own, all started at one moment."""
    reader, writer = os.pipe()

    def wait_and(work: Callable[[], T]) -> T:
        os.close(writer)
        os.read(reader, 1)
        return work()

    children = [start_child(functools.partial(wait_and, work)) for work in works]
    os.close(reader)
    os.close(writer)
    return [child.result() for child in children]


def check_volume(stage: Stage) -> None:
    """Raise AssertionError where `check` finds damage in the item's directory on its volume."""
    found = findings(stage.lower, stage.traits) if stage.indexed else []
    assert not found, found


def _state(top: Path) -> dict[str, object]:
    """What is below *top*: files with their content, links with their text."""
    state: dict[str, object] = {}
    for directory, directories, files in os.walk(top):
        for name in directories + files:
            path = Path(directory) / name
            if path.is_symlink():
                state[str(path.relative_to(top))] = os.readlink(path)
            elif path.is_file():
                state[str(path.relative_to(top))] = path.read_bytes()
            else:
                state[str(path.relative_to(top))] = None
    return state


def settled(stage: Stage) -> None:
    """The same is seen after a remount, and the volume has no damage."""
    before = _state(stage.point)
    stage.remount()
    after = _state(stage.point)
    assert after == before, f"after a remount {after.items() ^ before.items()}"
    check_volume(stage)


def _rounds(stage: Stage) -> int:
    return 5 if stage.cut else 40


# --- one winner ---------------------------------------------------------------------------------


def _one_winner(stage: Stage, make: Callable[[Path, int], object]) -> None:
    """Each name is made by one of four processes; other spellings are not in its way."""
    names = _contended(stage, make, [stage.point])
    listed = os.listdir(stage.point)
    assert Counter(listed) == Counter([*names, *_kept(listed)])
    settled(stage)


def _contended(
    stage: Stage, make: Callable[[Path, int], object], points: Sequence[Path]
) -> list[str]:
    """The names that four processes have tried to make, at *points* by turns: each by one."""

    def contend(who: int) -> dict[str, int]:
        codes = {}
        for number in range(_rounds(stage)):
            for spelling in SPELLINGS:
                name = f"{spelling}-{number}"
                codes[name] = code_of(make, points[who % len(points)] / name, who)
        return codes

    tried = together(*(functools.partial(contend, who) for who in range(_PROCESSES)))
    for name in tried[0]:
        codes = Counter(codes[name] for codes in tried)
        assert codes[0] == 1, f"{name}: {codes}"
        assert set(codes) <= {0, errno.EEXIST}, f"{name}: {codes}"
    return list(tried[0])


def _kept(listed: Iterable[str]) -> list[str]:
    return [name for name in listed if name.startswith("of-")]


def _create(path: Path, who: int) -> None:
    fd = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644)
    try:
        os.write(fd, b"%d" % who)
    finally:
        os.close(fd)


def exclusive_creation(stage: Stage) -> None:
    """O_EXCL: one winner a name, whose content it has."""
    _one_winner(stage, _create)


def directories(stage: Stage) -> None:
    """mkdir: one winner a name."""
    _one_winner(stage, lambda path, who: os.mkdir(path))


def symbolic_links(stage: Stage) -> None:
    """symlink: one winner a name."""
    _one_winner(stage, lambda path, who: os.symlink(str(who), path))


def hard_links(stage: Stage) -> None:
    """link: one winner a name; the file counts its names."""
    for who in range(_PROCESSES):
        (stage.point / f"of-{who}").write_text(str(who))
    _one_winner(stage, lambda path, who: os.link(path.with_name(f"of-{who}"), path))
    names = Counter((stage.point / name).read_text() for name in os.listdir(stage.point))
    for who in range(_PROCESSES):
        assert (stage.point / f"of-{who}").stat().st_nlink == names[str(who)]


def renames_without_replacing(stage: Stage) -> None:
    """RENAME_NOREPLACE onto one name: one winner, the others keep what they had."""

    def move(path: Path, who: int) -> None:
        source = path.with_name(f"of-{who}-{path.name}")
        source.write_text(str(who))
        linux.renameat2(
            linux.AT_FDCWD, bytes(source), linux.AT_FDCWD, bytes(path), linux.RENAME_NOREPLACE
        )

    _one_winner(stage, move)
    listed = set(os.listdir(stage.point))
    for name in listed - set(_kept(listed)):
        # Of four sources one has moved.
        kept = {who for who in range(_PROCESSES) if f"of-{who}-{name}" in listed}
        won = int((stage.point / name).read_text())
        assert kept == set(range(_PROCESSES)) - {won}, f"{name}: {won} has won, {kept} are there"


# --- renames ------------------------------------------------------------------------------------


def renames_onto_one_name(stage: Stage) -> None:
    """Renames onto one target: all work; it is always there, whole, and no source is left."""
    (stage.point / "target").write_text("x" * 100)

    def move(who: int) -> int:
        for number in range(_rounds(stage) * 3):
            source = stage.point / f"source-{who}-{number}"
            source.write_text(str(who) * 100)
            os.rename(source, stage.point / "target")
        return 0

    # A volume that forgets what has no name cannot open what was replaced a moment ago.
    forgets = "removed-directories" in stage.lacks

    def read() -> int:
        whole = 0
        for _ in range(_rounds(stage) * 3):
            try:
                content = (stage.point / "target").read_text()
            except OSError as failure:
                if forgets and failure.errno == errno.ESTALE:
                    continue
                raise
            assert len(content) == 100 and len(set(content)) == 1, content
            whole += 1
        return whole

    *_, whole = together(*(functools.partial(move, who) for who in range(3)), read)
    assert whole, "every read was of a name that was replaced meanwhile"
    assert os.listdir(stage.point) == ["target"]
    settled(stage)


def changes_of_case(stage: Stage) -> None:
    """a to A and back by four processes, beside fixed neighbours: one name is there in the end."""
    names = ("name", "NAME")
    (stage.point / names[0]).write_text("content")
    (stage.point / "Name").write_text("neighbour")

    def change(who: int) -> Counter[int]:
        codes: Counter[int] = Counter()
        for number in range(_rounds(stage) * 3):
            old, new = names if (number + who) % 2 else reversed(names)
            codes[code_of(os.rename, stage.point / old, stage.point / new)] += 1
        return codes

    codes = sum(
        together(*(functools.partial(change, who) for who in range(_PROCESSES))), Counter[int]()
    )
    assert codes[0], codes
    assert set(codes) <= _GONE, codes
    listed = os.listdir(stage.point)
    assert sorted(listed) in (["NAME", "Name"], ["Name", "name"]), listed
    left = next(name for name in listed if name != "Name")
    assert (stage.point / left).read_text() == "content"
    assert (stage.point / "Name").read_text() == "neighbour"
    settled(stage)


def moves_between_directories(stage: Stage) -> None:
    """Files that move between d, D and other directories are each in exactly one in the end."""
    places = ("d", "D", "other")
    for place in places:
        (stage.point / place).mkdir()
    files = [f"f{number}" for number in range(6)] + [f"F{number}" for number in range(6)]
    for file in files:
        (stage.point / "d" / file).write_text(file)

    def move(who: int) -> Counter[int]:
        codes: Counter[int] = Counter()
        for number in range(_rounds(stage) * 3):
            file = files[(number * 5 + who) % len(files)]
            old, new = places[number % 3], places[(number + who) % 3]
            codes[code_of(os.rename, stage.point / old / file, stage.point / new / file)] += 1
        return codes

    codes = sum(
        together(*(functools.partial(move, who) for who in range(_PROCESSES))), Counter[int]()
    )
    assert codes[0] and set(codes) <= _GONE, codes
    found = sorted(name for place in places for name in os.listdir(stage.point / place))
    assert found == sorted(files), found
    for place in places:
        for name in os.listdir(stage.point / place):
            assert (stage.point / place / name).read_text() == name
    settled(stage)


# --- coming and going ---------------------------------------------------------------------------


def coming_and_going(stage: Stage) -> None:
    """Names that are made and removed by all: each call works or says why, none is left broken."""

    def work(who: int) -> Counter[int]:
        codes: Counter[int] = Counter()
        for number in range(_rounds(stage) * 3):
            path = stage.point / SPELLINGS[(number + who) % len(SPELLINGS)]
            if (number + who) % 2:
                codes[code_of(path.write_text, path.name)] += 1
            else:
                codes[code_of(os.unlink, path)] += 1
        return codes

    codes = sum(
        together(*(functools.partial(work, who) for who in range(_PROCESSES))), Counter[int]()
    )
    assert codes[0] and set(codes) <= _GONE, codes
    for name in SPELLINGS:
        path = stage.point / name
        path.write_text(name)
        assert path.read_text() == name
    assert sorted(os.listdir(stage.point)) == sorted(SPELLINGS)
    settled(stage)


def paths_made_by_all(stage: Stage) -> None:
    """mkdir -p of one path and of its other spellings by all of them works for all."""
    parts = ("Usr", "usr", "USR")
    paths = [Path(a) / b / c for a in parts for b in parts for c in parts]

    def make(who: int) -> int:
        for number in range(len(paths)):
            path = stage.point / paths[(number + who * 7) % len(paths)]
            os.makedirs(path, exist_ok=True)
            (path / f"of-{who}").write_text(str(path))
        return 0

    together(*(functools.partial(make, who) for who in range(_PROCESSES)))
    assert sorted(os.listdir(stage.point)) == sorted(parts)
    for path in paths:
        assert sorted(os.listdir(stage.point / path)) == [f"of-{n}" for n in range(_PROCESSES)]
    settled(stage)


def removal_against_creation(stage: Stage) -> None:
    """rmdir and creation in the directory: what was made in it is there, or it was never made."""
    made, gone = stage.point / "dir", {0, errno.ENOENT, errno.ESTALE}

    def remove() -> Counter[int]:
        codes: Counter[int] = Counter()
        end = time.monotonic() + stage.seconds
        while time.monotonic() < end:
            codes[code_of(os.mkdir, made)] += 1
            codes[code_of(os.rmdir, made)] += 1
        return codes

    def create(who: int) -> Counter[int]:
        codes: Counter[int] = Counter()
        end = time.monotonic() + stage.seconds
        while time.monotonic() < end:
            path = made / f"{SPELLINGS[who]}"
            code = code_of(_create, path, who)
            codes[code] += 1
            if code == 0:
                # Made: so the directory cannot be gone before it is.
                content = path.read_text()
                assert content == str(who), content
                os.unlink(path)
        return codes

    codes = together(remove, *(functools.partial(create, who) for who in range(3)))
    assert set(codes[0]) <= {*gone, errno.ENOTEMPTY, errno.EEXIST}, codes
    assert all(set(some) <= {*gone, errno.EEXIST} for some in codes[1:]), codes
    assert codes[0][0]
    assert any(some[0] for some in codes[1:]), f"nothing was ever made in it: {codes}"
    settled(stage)


# --- content and listings -----------------------------------------------------------------------


def appends(stage: Stage) -> None:
    """Lines appended by four processes through one mount are all there, whole."""
    lines = _rounds(stage) * 10
    path = stage.point / "log"

    def append(who: int) -> int:
        fd = os.open(path, os.O_CREAT | os.O_WRONLY | os.O_APPEND, 0o644)
        try:
            for number in range(lines):
                os.write(fd, b"%d %05d %s\n" % (who, number, b"x" * (number % 200)))
        finally:
            os.close(fd)
        return 0

    together(*(functools.partial(append, who) for who in range(_PROCESSES)))
    found = path.read_bytes().splitlines()
    assert len(found) == _PROCESSES * lines
    for who in range(_PROCESSES):
        mine = [line for line in found if line.startswith(b"%d " % who)]
        assert [int(line.split()[1]) for line in mine] == list(range(lines))
    settled(stage)


def listings_meanwhile(stage: Stage) -> None:
    """A name that is there all the time is listed exactly once while others come, go and move."""
    fixed = {f"Fixed-{number}" for number in range(60)} | {f"fixed-{n}" for n in range(60)}
    for name in fixed:
        (stage.point / name).write_text(name)

    def disturb(who: int) -> None:
        path, moved = (stage.point / f"{name}-{who}" for name in ("moving", "MOVING"))
        path.write_text("")
        os.rename(path, moved)
        os.unlink(moved)

    with again_and_again(*(functools.partial(disturb, who) for who in range(3))):
        end = time.monotonic() + stage.seconds
        listed = 0
        while time.monotonic() < end:
            names = Counter(os.listdir(stage.point))
            wrong = {name: names[name] for name in fixed if names[name] != 1}
            assert not wrong, wrong
            assert not [name for name in names if names[name] > 1], names
            strange = [name for name in names if not name.lower().startswith(("fixed", "moving"))]
            assert not strange, strange
            listed += 1
    assert listed
    settled(stage)


# --- two mounts ---------------------------------------------------------------------------------


def two_mounts(stage: Stage) -> None:
    """Through two mounts of one sysroot: one winner a name, and nothing that was made is lost."""
    names = _contended(stage, _create, [stage.point, stage.second()])
    _forget_all(stage)
    settled(stage)
    assert sorted(os.listdir(stage.point)) == sorted(names)


def two_mounts_renaming(stage: Stage) -> None:
    """Files moved and removed through two mounts, cases changed: each is there or removed."""
    points = (stage.point, stage.second())
    count = _rounds(stage)
    for number in range(count):
        (points[0] / f"name-{number}").write_text(str(number))
    _forget_all(stage)

    def rename(who: int) -> dict[int, set[int]]:
        """The numbers of the names that it was tried with, by errno."""
        codes: dict[int, set[int]] = defaultdict(set)
        for number in range(count):
            new = f"{'NAME' if who % 2 else 'Name'}-{number}"
            code = code_of(os.rename, points[who] / f"name-{number}", points[who] / new)
            codes[code].add(number)
        return codes

    def remove(who: int) -> dict[int, set[int]]:
        codes: dict[int, set[int]] = defaultdict(set)
        for number in range(count):
            if number % 3 == 0:
                continue  # there is something left to rename, whoever is faster
            for spelling in ("name", "Name", "NAME"):
                code = code_of(os.unlink, points[who] / f"{spelling}-{number}")
                codes[code].add(number)
                if code == 0:
                    break
        return codes

    tried = together(
        *(functools.partial(work, who) for work in (rename, remove) for who in range(2))
    )
    renamed, removed = tried[:2], tried[2:]
    for what, codes in (("rename", renamed), ("unlink", removed)):
        assert all(set(some) <= _GONE for some in codes), f"{what}: {codes}"
        assert any(some[0] for some in codes), f"no {what} has worked: {codes}"
    gone = Counter(number for some in removed for number in some[0])
    assert not [number for number, times in gone.items() if times > 1], "removed twice"
    stage.remount()
    left = [(stage.point / name).read_text() for name in os.listdir(stage.point)]
    expected = [str(number) for number in range(count) if number not in gone]
    assert sorted(left) == sorted(expected)
    settled(stage)


def _forget_all(stage: Stage) -> None:
    """Wait as long as mounts may remember what others have changed, unless for ever."""
    if "long" in stage.setting.cell.mode:
        stage.forget()
    time.sleep(1.1)


_LINKS: Final = frozenset({"symlinks"})

RACES: Final = Actions(
    "races",
    parts=(
        Action("exclusive-creation", exclusive_creation),
        Action("directories", directories),
        Action("symbolic-links", symbolic_links, _LINKS),
        Action("hard-links", hard_links, frozenset({"hard-links"})),
        Action("renames-without-replacing", renames_without_replacing),
        Action("renames-onto-one-name", renames_onto_one_name),
        Action("changes-of-case", changes_of_case),
        Action("moves-between-directories", moves_between_directories),
        Action("coming-and-going", coming_and_going),
        Action("paths-made-by-all", paths_made_by_all),
        Action("removal-against-creation", removal_against_creation),
        Action("appends", appends),
        Action("listings-meanwhile", listings_meanwhile),
        Action("two-mounts", two_mounts),
        Action("two-mounts-renaming", two_mounts_renaming),
    ),
)
