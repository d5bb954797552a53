"""Attacks by size: many open files, many names, deep directories. What was taken comes back."""

from __future__ import annotations

import contextlib
import errno
import functools
import os
from collections.abc import Callable
from pathlib import Path
from typing import Final

from sidecar import escape
from tests.children import code_of, in_child
from tests.matrix.actions import Action, Stage, become

_FULL: Final = {errno.EMFILE, errno.ENFILE}
_GROWN: Final = 320
"""Bytes that a server may hold more than before for each name that it has seen since, once the
kernel has let go of everything: some of what was freed is the interpreter's to keep, up to 160.
An inode that is not let go of costs from 470 on."""


def many_open_files(stage: Stage) -> None:
    """A guest opens more files than the server has descriptors: others go on, all come back."""
    processes, each, server = (4, 250, 600) if stage.cut else (6, 16_700, 20_000)
    files = 100 if stage.cut else 2000
    stage.remount(descriptors=server)
    mount = stage.mount
    for number in range(files):
        (stage.point / f"f{number}").write_text(str(number))
    (stage.point / "other").mkdir()
    stage.forget()
    before = mount.descriptors()
    reader, ready = os.pipe()
    wait, writer = os.pipe()

    def hold() -> tuple[int, int]:
        held = []
        code = 0
        for number in range(each):
            try:
                held.append(os.open(f"{stage.path}/f{number % files}", os.O_RDONLY))
            except OSError as failure:
                code = failure.errno or 0
                break
        os.write(ready, b".")
        os.read(wait, 1)
        for fd in held:
            os.close(fd)
        return len(held), code

    children = [stage.guest(hold) for _ in range(processes)]
    for _ in children:
        os.read(reader, 1)
    # All that needs no file opened goes on for everybody else.
    top, links = Path(stage.path) / "other", "symlinks" not in stage.lacks
    work = functools.partial(_work_without_opening, top, links=links)
    codes = stage.guest(work).result()
    os.write(writer, b"." * processes)
    counts = [child.result() for child in children]
    for fd in (reader, ready, wait, writer):
        os.close(fd)
    opened = sum(count for count, _ in counts)
    assert opened > server // 2, counts
    assert {code for _, code in counts} <= {0, *_FULL}, counts
    assert set(codes.values()) == {0}, f"with {opened} files open: {codes}"
    assert stage.comes_back(before), f"{mount.descriptors()} instead of {before}"
    assert (stage.point / "f1").read_text() == "1"


def _work_without_opening(top: Path, links: bool) -> dict[str, int]:
    return {
        "mkdir": code_of(os.mkdir, top / "directory"),
        "mkdir below": code_of(os.mkdir, top / "directory/sub"),
        "symlink": code_of(os.symlink, "x", top / "directory/link") if links else 0,
        "rename": code_of(os.rename, top / "directory", top / "moved"),
        "list": code_of(os.listdir, top / "moved"),
        "stat": code_of(os.stat, top / "moved/sub"),
        "rmdir": code_of(os.rmdir, top / "moved/sub"),
    }


def unlinked_open_files(stage: Stage) -> None:
    """Files that are removed while open cost descriptors only as long as they are open."""
    count = 150 if stage.cut else 3000
    mount = stage.mount
    stage.point.stat()
    stage.forget()
    before = mount.descriptors()

    def hold() -> list[str]:
        held = []
        for number in range(count):
            path = Path(stage.path) / f"f{number}"
            held.append(os.open(path, os.O_CREAT | os.O_RDWR, 0o600))
            os.write(held[-1], str(number).encode())
            os.unlink(path)
        wrong = []
        for number, fd in enumerate(held):
            if os.pread(fd, 10, 0) != str(number).encode():
                wrong.append(f"f{number} holds {os.pread(fd, 10, 0)!r}")
        return [*wrong, *os.listdir(stage.path)]

    assert stage.guest(hold).result() == []
    assert stage.comes_back(before), stage.open_files()
    # Some volumes take away what was open a moment later.
    assert [name for name in os.listdir(stage.lower) if name.startswith("f")] == []


def many_names(stage: Stage) -> None:
    """A listing of names that all look stored is right at any size; its memory comes back."""
    count = 120 if stage.cut else 5000
    mount = stage.mount
    names = [escape.encode(b"n%d" % number) for number in range(count // 2)]
    names += [b".ef_%016x" % number for number in range(count - len(names))]
    point = bytes(stage.point)
    os.mkdir(point + b"/warm")
    levels, descriptors = [], []
    for _ in range(3):
        for name in names:
            os.close(os.open(b"%s/%s" % (point, name), os.O_CREAT | os.O_WRONLY))
        assert sorted(os.listdir(point)) == sorted([*names, b"warm"])
        for name in names:
            os.lstat(b"%s/%s" % (point, name))
        for name in names:
            os.unlink(b"%s/%s" % (point, name))
        assert os.listdir(point) == [b"warm"]
        stage.forget()
        levels.append(mount.memory_kib())
        descriptors.append(mount.descriptors())
    grown = (levels[2] - levels[0]) * 1024 / (2 * count)
    assert grown < _GROWN, (
        f"{grown:.0f} bytes for each name; KiB after each of three rounds: {levels}"
    )
    assert stage.comes_back(descriptors[0]), descriptors


def memory_after_forgetting(stage: Stage) -> None:
    """After a walk of many files, and another of others, the server holds what it held before."""
    count = 300 if stage.cut else 4000
    levels, held = [], []
    stage.point.stat()
    stage.forget()
    before = stage.mount.descriptors()
    for turn in range(3):
        for number in range(10):
            directory = stage.lower / f"t{turn}-{number}"
            directory.mkdir()
            for file in range(count // 10):
                os.close(os.open(directory / f"{turn}-{file}", os.O_CREAT | os.O_WRONLY))
        # The listing of their parent may be that of the turn before: they are made below.
        seen = [
            path.lstat()
            for number in range(10)
            for path in (stage.point / f"t{turn}-{number}").iterdir()
        ]
        assert len(seen) == count, f"{len(seen)} of {count} files are seen in turn {turn}"
        del seen
        held.append(stage.mount.descriptors())
        assert stage.comes_back(before), f"{held}, {before} before: {stage.open_files()[:20]}"
        levels.append(stage.mount.memory_kib())
    grown = (levels[2] - levels[0]) * 1024 / (2 * count)
    assert grown < _GROWN, (
        f"{grown:.0f} bytes for each name; KiB after each of three rounds: {levels}"
    )


def deep_directories(stage: Stage) -> None:
    """A path longer than PATH_MAX is made, used, moved and removed as on a plain file system."""
    depth = 24 if stage.cut else 120
    # By default a listing of the sysroot has no names of the host.
    listed = stage.setting.cell.place != "host"

    def dig(top: Path) -> list[object]:
        name = "d" * 200
        os.chdir(top)
        done: list[object] = []
        for _ in range(depth):
            os.mkdir(name)
            os.chdir(name)
        Path("file").write_text("deep")
        if listed:
            # Past PATH_MAX the C library looks for each name in the directory above.
            done.append(code_of(os.getcwd))
        done.append(Path("file").read_text())
        done.append(code_of(os.stat, "/".join(["..", name] * 400)))
        os.rename(top / name, top / "moved")
        done.append(Path("file").read_text())
        os.rename("file", "FILE")
        done.append(sorted(os.listdir(".")))
        os.unlink("FILE")
        for level in range(depth):
            os.chdir("..")
            os.rmdir(name if level < depth - 1 else "moved")
        done.append(os.listdir("."))
        return done

    stage.remount(descriptors=256)
    _compare(stage, dig)


def many_levels(stage: Stage) -> None:
    """A thousand levels of short names do not end the server, however few descriptors it has."""
    depth = 150 if stage.cut else 1000
    stage.remount(descriptors=128)
    names = ("D", "d")

    def dig() -> int:
        os.chdir(stage.path)
        for level in range(depth):
            for name in names:
                os.mkdir(name)
            os.chdir(names[level % 2])
        file = Path("file")
        file.write_text("deep")
        with contextlib.suppress(OSError):
            os.listdir("../../..")
        found = 0
        for level in reversed(range(depth)):
            if level == depth - 1:
                found += file.read_text() == "deep"
                file.unlink()
            os.chdir("..")
            for name in names:
                os.rmdir(name)
        return found

    assert stage.guest(dig).result() == 1
    assert os.listdir(stage.point) == []


def long_link_chains(stage: Stage) -> None:
    """Chains and loops of links, and texts of the longest length, end as on a plain file system."""

    def chain(top: Path) -> list[int]:
        os.chdir(top)
        Path("end").write_text("end")
        for number in range(45):
            os.symlink(f"l{number - 1}" if number else "end", f"l{number}")
        os.symlink("loop", "loop")
        codes = [code_of(os.stat, f"l{number}") for number in range(45)]
        codes.append(code_of(os.stat, "loop"))
        for length in (1, 4094, 4095, 4096):
            codes.append(code_of(os.symlink, "x" * length, f"long{length}"))
            codes.append(len(os.readlink(f"long{length}")) if not codes[-1] else 0)
        return codes

    _compare(stage, chain)


def _compare(stage: Stage, work: Callable[[Path], object]) -> None:
    """Do *work* in the stage's directory of a plain root and of the mount: it says the same."""
    plain = stage.root(stage.setting.base / f"plain-{stage.name}")
    do = functools.partial(become, functools.partial(work, Path(stage.path)))
    expected, got = (in_child(functools.partial(do, root)) for root in (plain, stage.mount.point))
    assert got == expected, (got, expected)


ACTIONS: Final = (
    Action("many-open-files", many_open_files),
    Action("unlinked-open-files", unlinked_open_files),
    Action("many-names", many_names),
    Action("memory-after-forgetting", memory_after_forgetting),
    Action("deep-directories", deep_directories),
    Action("many-levels", many_levels),
    Action("long-link-chains", long_link_chains, frozenset({"symlinks"})),
)
"""What is tried by sheer number."""
