"""Attacks with names: some look like stored ones, some are helper files that another writer plants.

On a volume that keeps every name nothing is stored under another one, and what looks so is an
ordinary name there.
"""

from __future__ import annotations

import contextlib
import functools
import mmap
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

from sidecar import escape
from sidecar.naming import INDEX_FILE, NAME_MAX, token
from sidecar.volume import PROBE_PREFIX
from tests.children import code_of, in_child
from tests.matrix.actions import Action, Stage, Unable
from tests.matrix.turmoil import again_and_again
from tests.matrix.watch import NAMES, Watch

_LINKS: Final = frozenset({"symlinks"})
_LOCK, _TEMPORARY = INDEX_FILE + b".lock", INDEX_FILE + b".tmp"
_DAMAGE: Final = r"damaged index|\[Errno 5\]"
_LONG: Final = ("L" * 200, "l" * 200, "\xe9" * 120, "e\u0301" * 80)
"""Of these some are one name to every volume that folds, and no escape holds them in 255 bytes."""


def shaped_names() -> list[bytes]:
    """Names that look like what stands on disk, and names that must not stand there."""
    plain = [b"a", b"A", b"Makefile", b"makefile", "é".encode(), "e\u0301".encode(), b"...", b".ef"]
    names = [*plain, *map(escape.encode, plain)]
    names += [escape.encode(escape.encode(name)) for name in plain]
    names += [name.upper() for name in map(escape.encode, plain)]
    names += [b".ef=" + tail for tail in (b"", b"6", b"zz", b"2e", b"2e2e", b"2f", b"00", b"6G")]
    names += [escape.encode(b"long" * 40), b".ef=" + "\u4e7e\u4e00".encode()]
    names += [token(b"x"), token(b"x").upper(), b".ef_", b".ef_0123"]
    names += [INDEX_FILE, _LOCK, _TEMPORARY, INDEX_FILE.upper(), INDEX_FILE + b".tmp.lock"]
    names += [b".fuse_hidden0000000000000001", b".ghost-ntfs-3g-00000000000000000001"]
    names += [PROBE_PREFIX + b"0123456789abcdef", b".ciopfs", b".elfuse"]
    names += [
        b"con",
        b"NUL.txt",
        b"dot.",
        b"space ",
        b'a:b*c?d"e<f>g|h\\i',
        b"\x01\x7f",
        b"new\nline",
    ]
    names += [b"\xff\xfe", b"\xed\xa0\x80", "\U00010400".encode(), "ß".encode(), "ﬁ".encode()]
    names += [text.encode() for text in _LONG]
    return [name for name in dict.fromkeys(names) if len(name) <= NAME_MAX]


def names_like_stored_ones(stage: Stage) -> None:
    """All at once they are files and directories with their own content, and go without trace."""
    names = shaped_names()

    def path(*parts: bytes) -> bytes:
        return b"/".join((bytes(stage.point), *parts))

    def make() -> None:
        for name in names:
            Path(os.fsdecode(path(name))).write_bytes(name)
            os.mkdir(path(b"d", name))

    def check() -> None:
        assert set(os.listdir(path())) == {*names, b"d"}
        assert set(os.listdir(path(b"d"))) == set(names)
        for name in names:
            assert Path(os.fsdecode(path(name))).read_bytes() == name
            assert os.path.isdir(path(b"d", name))

    os.mkdir(path(b"d"))
    make()
    check()
    stage.remount()
    check()
    # What only stands on disk is no name.
    for stored in set(os.listdir(bytes(stage.lower))) - {*names, b"d"}:
        assert code_of(os.lstat, path(stored)), stored
    for name in names:
        os.rename(path(name), path(b"d", name, b"moved"))
        os.unlink(path(b"d", name, b"moved"))
        os.rmdir(path(b"d", name))
    os.rmdir(path(b"d"))
    assert os.listdir(path()) == []
    left = {*os.listdir(bytes(stage.lower))} - {INDEX_FILE, _LOCK}
    assert not left, left


def escapes_that_lie(stage: Stage) -> None:
    """Stored names that decode to dots, slashes or nothing mean themselves: nothing is climbed."""
    lies = [
        b".ef=2e",
        b".ef=2e2e",
        b".ef=2f",
        b".ef=2e2e2f65",
        b".ef=00",
        b".ef=",
        b".ef=6",
        b".ef=6Z",
    ]
    lies += [b".ef=2E2E", b".ef=" + "\u4e7e".encode(), b".ef=" + "\u4e7e".encode() * 3]
    planted = []
    for name in lies:
        with contextlib.suppress(OSError):
            os.mkdir(os.path.join(bytes(stage.lower), name))
            planted.append(name)
    assert len(planted) > 5
    listed = os.listdir(bytes(stage.point))
    # One that folds with another is not made twice by the volume.
    assert sorted(listed) == sorted(set(os.listdir(bytes(stage.lower)))), listed
    for name in listed:
        seen = os.lstat(os.path.join(bytes(stage.point), name))
        made = os.lstat(os.path.join(bytes(stage.lower), name))
        assert stage.traits.stable_inodes is False or seen.st_ino & 0xFFFF == made.st_ino & 0xFFFF
    for name in (b".", b"..", b"/"):
        assert name not in listed


def stored_twice(stage: Stage) -> None:
    """A literal name and an escape that mean one thing are listed once: the literal is meant."""
    if not stage.indexed:
        raise Unable("nothing is stored under another name there")
    (stage.lower / "name").write_text("literal")
    (stage.lower / os.fsdecode(escape.encode(b"name"))).write_text("escape")
    assert os.listdir(stage.point) == ["name"]
    assert (stage.point / "name").read_text() == "literal"


# --- helper files -------------------------------------------------------------------------------


def _plant_link(path: Path, stage: Stage, victim: Path) -> None:
    path.symlink_to(stage.outside[0] / "file")


def _plant_dangling_link(path: Path, stage: Stage, victim: Path) -> None:
    path.symlink_to(stage.outside[0] / "missing")


def _plant_fifo(path: Path, stage: Stage, victim: Path) -> None:
    os.mkfifo(path)


def _plant_directory(path: Path, stage: Stage, victim: Path) -> None:
    (path / "in").mkdir(parents=True)


def _plant_device(path: Path, stage: Stage, victim: Path) -> None:
    os.mknod(path, 0o20666, os.makedev(1, 5))


def _plant_hard_link(path: Path, stage: Stage, victim: Path) -> None:
    os.link(victim, path)


_Plant = Callable[[Path, Stage, Path], None]


def _make_long_names(directory: Path) -> list[int]:
    """What comes of names that need a row, made, changed and removed."""
    codes = [code_of(os.listdir, directory)]
    for name in _LONG:
        codes.append(code_of((directory / name).write_text, name))
        codes.append(code_of(os.rename, directory / name, directory / f"n{name[1:]}"))
        codes.append(code_of(os.unlink, directory / f"n{name[1:]}"))
    codes.append(code_of(os.mkdir, directory / "sub"))
    codes.append(code_of(os.rmdir, directory / "sub"))
    return codes


def _planted(stage: Stage, plant: _Plant, names: tuple[bytes, ...]) -> None:
    """In place of each helper file stands something else: no hang, nothing outside is touched."""
    # Beside the tree, on its volume: a hard link leads there. To each another one: the kernel may
    # believe for a second that a file on a FUSE volume has gone with its second name.
    victims = [stage.lower.parent.parent / f"victim-{stage.name}-{len(name)}" for name in names]
    try:
        stage.mount.expects(f"{_DAMAGE}|row without an object")
        for name, victim in zip(names, victims, strict=True):
            victim.write_text("victim")
            directory = stage.lower / f"d{len(name)}"
            directory.mkdir()
            plant(directory / os.fsdecode(name), stage, victim)
            through = stage.point / directory.name
            codes = in_child(functools.partial(_make_long_names, through))
            assert victim.read_text() == "victim", f"{name!r}: the victim holds other bytes"
            if not stage.indexed:
                assert os.listdir(directory) == [os.fsdecode(name)], os.listdir(directory)
                assert set(codes) == {0}, codes
            if name == INDEX_FILE and stage.indexed:
                assert set(codes) - {0}, "a directory whose index is no file was taken for good"
            shutil.rmtree(directory)
        (stage.point / "afterwards").write_text("good")
    finally:
        for victim in victims:
            victim.unlink(missing_ok=True)


_HELPERS: Final = (INDEX_FILE, _LOCK, _TEMPORARY)


def _planting(plant: _Plant) -> Callable[[Stage], None]:
    return functools.partial(_planted, plant=plant, names=_HELPERS)


def huge_index(stage: Stage) -> None:
    """An index file of 256 GiB of nothing is damage, and costs no memory."""
    directory = stage.lower / "huge"
    directory.mkdir()
    with open(directory / os.fsdecode(INDEX_FILE), "wb") as file:
        file.truncate(1 << 38)
    stage.mount.expects(_DAMAGE)
    stage.point.stat()
    before = stage.mount.memory_kib()
    code = code_of(os.listdir, stage.point / "huge")
    grown = stage.mount.memory_kib() - before
    assert grown < 32 << 10, f"the server has grown by {grown} KiB"
    assert bool(code) == stage.indexed, f"errno {code}"
    assert code_of(os.listdir, stage.point) == 0


def rows_that_lie(stage: Stage) -> None:
    """Rows that name dots, slashes, too much or nothing are EIO; orphans are nothing."""
    stage.mount.expects(_DAMAGE)
    good = token(b"x")
    lies = [b"..", b".", b"../x", b"/", b"a/b", b"a\0b", b"", b"n" * 256]
    rows = [name.hex().encode() + b"\t" + good + b"\n" for name in lies]
    rows += [
        b"61\t../outside\n",
        b"61\t.ef_0123\n",
        b"61\t" + good.upper() + b"\n",
        b"61 " + good + b"\n",
    ]
    rows += [b"61\t" + good, b"\n", b"6\t" + good + b"\n", b"\0" * 4096, b"61\t" + good + b"\r\n"]
    for number, row in enumerate(rows):
        directory = stage.lower / f"d{number}"
        directory.mkdir()
        (directory / os.fsdecode(INDEX_FILE)).write_bytes(row)
        (directory / "file").write_text("x")
        through = stage.point / directory.name
        calls = [
            code_of(os.listdir, through),
            code_of(os.stat, through / "missing"),
            code_of((through / "new").write_text, ""),
        ]
        assert all(calls) == stage.indexed, f"{row!r}: {calls}"
        assert (stage.lower / "d0/file").read_text() == "x"
    rowed = stage.lower / "rows"
    rowed.mkdir()
    every = b"".join((b"name-%d" % n).hex().encode() + b"\t" + good + b"\n" for n in range(500))
    (rowed / os.fsdecode(INDEX_FILE)).write_bytes(every)
    if stage.indexed:
        assert os.listdir(stage.point / "rows") == []
        assert code_of(os.stat, stage.point / "rows/name-1")
    else:
        assert os.listdir(stage.point / "rows") == [os.fsdecode(INDEX_FILE)]


def index_swapped(stage: Stage) -> None:
    """Another writer swaps the index file for links and fifos while names are made: no hang."""
    if not stage.indexed:
        raise Unable("no index file is at work there")
    stage.mount.expects(f"{_DAMAGE}|row without an object")
    spare = stage.lower / "spare"
    spare.mkdir()
    work = stage.lower / "work"
    work.mkdir()
    (spare / "link").symlink_to(stage.outside[0] / "file")
    os.mkfifo(spare / "fifo")

    def disturb() -> None:
        for helper in map(os.fsdecode, _HELPERS):
            for one in ("link", "fifo"):
                with contextlib.suppress(FileNotFoundError):
                    (work / helper).unlink()
                os.link(spare / one, work / helper, follow_symlinks=False)
                with contextlib.suppress(FileNotFoundError):
                    (work / helper).unlink()

    through = stage.point / "work"
    rounds = 4 if stage.cut else 30
    with again_and_again(disturb):
        for _ in range(rounds):
            in_child(functools.partial(_make_long_names, through))
    for helper in map(os.fsdecode, _HELPERS):
        (work / helper).unlink(missing_ok=True)
    (stage.point / "afterwards").write_text("good")


# --- what reaches the guest ---------------------------------------------------------------------


@contextlib.contextmanager
def _mapped(path: Path) -> Iterator[None]:
    with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ):
        yield


def names_that_leak(stage: Stage) -> None:
    """Maps, links of /proc, inotify, errors and attributes tell the guest's names only."""
    names = [
        "Run",
        "run",
        "RUN",
        "e\u0301x",
        "\xe9x",
        ".ef=61",
        os.fsdecode(INDEX_FILE),
        "M" * 200,
        "m" * 200,
    ]
    seen: list[bytes] = []
    for name in names:
        directory = stage.point / name
        directory.mkdir()
        watch = Watch(stage.point, directory, mask=NAMES)
        program = directory / name
        shutil.copy("/bin/sleep", program)
        program.chmod(0o755)
        with _mapped(program):
            maps = Path("/proc/self/maps").read_bytes()
            assert bytes(program) in maps.replace(b"\\012", b"\n"), name
            seen.append(maps)
        if "modes" not in stage.lacks:
            running = subprocess.Popen([str(program), "10"])
            try:
                assert os.readlink(f"/proc/{running.pid}/exe") == str(program)
                seen.append(Path(f"/proc/{running.pid}/maps").read_bytes())
            finally:
                running.kill()
                running.wait()
        os.rename(program, directory / "moved")
        os.rename(directory / "moved", program)
        events = watch.events()
        assert {one for _, one in events} == {os.fsencode(name), b"moved"}, events
        watch.close()
        with contextlib.suppress(OSError):
            seen += map(os.fsencode, os.listxattr(program))
        for call in (os.rmdir, os.listdir):
            try:
                call(program if call is os.listdir else directory)
            except OSError as failure:
                seen.append(str(failure).encode())
    stored = set(os.listdir(stage.lower)) - set(names)
    leaks = [name for name in stored for text in seen if os.fsencode(name) in text]
    assert not leaks, leaks


ACTIONS: Final = (
    Action("names-like-stored-ones", names_like_stored_ones),
    Action("escapes-that-lie", escapes_that_lie),
    Action("stored-twice", stored_twice),
    Action("helpers-that-are-links", _planting(_plant_link), _LINKS),
    Action("helpers-that-are-dangling-links", _planting(_plant_dangling_link), _LINKS),
    Action("helpers-that-are-fifos", _planting(_plant_fifo), frozenset({"special-files"})),
    Action("helpers-that-are-devices", _planting(_plant_device), frozenset({"special-files"})),
    Action("helpers-that-are-directories", _planting(_plant_directory)),
    Action("helpers-with-another-name", _planting(_plant_hard_link), frozenset({"hard-links"})),
    Action("a-huge-index", huge_index, frozenset({"sparse"})),
    Action("rows-that-lie", rows_that_lie),
    Action("index-swapped", index_swapped, _LINKS | {"special-files", "hard-links"}),
    Action("names-that-leak", names_that_leak),
)
"""What is tried with names and with the files that serve them."""
