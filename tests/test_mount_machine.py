"""A state machine: the mount against a plain directory, call by call, in errno and effect."""

from __future__ import annotations

import contextlib
import functools
import itertools
import os
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from sidecar import linux
from tests import machines
from tests.matrix.volumes import open_volume
from tests.mounts import Mount, Mounter

NAMES: Final = ["a", "A", "b", "B", "caf\u00e9", "cafe\u0301", "n" * 200, "N" * 200, ".ef=41"]
DIRECTORIES: Final = ["d", "D", "e"]

name = st.sampled_from(NAMES)
directory = st.sampled_from([*DIRECTORIES, *(f"{one}/{two}" for one in "dD" for two in "dDe")])
entry = st.builds(
    lambda above, last: f"{above}{last}",
    st.sampled_from(["", "", "", *(f"{one}/" for one in DIRECTORIES), "d/D/", "D/d/"]),
    st.one_of(name, st.sampled_from(DIRECTORIES)),
)
data = st.binary(max_size=12)


def picture(top: Path) -> dict[str, tuple[object, ...]]:
    """Everything below *top*: type, mode, links, content; hard links by the names they share."""
    found: dict[str, tuple[object, ...]] = {}
    files: dict[int, list[str]] = {}
    todo = [top]
    while todo:
        here = todo.pop()
        listed = os.listdir(here)
        assert len(listed) == len(set(listed)), "a name is listed twice"
        for last in listed:
            path = here / last
            relative = str(path.relative_to(top))
            seen = path.lstat()
            mode = stat.filemode(seen.st_mode)
            if stat.S_ISDIR(seen.st_mode):
                todo.append(path)
                found[relative] = (mode,)
            elif stat.S_ISLNK(seen.st_mode):
                found[relative] = (mode, os.readlink(path))
            else:
                found[relative] = (mode, seen.st_nlink, path.read_bytes(), seen.st_size)
                files.setdefault(seen.st_ino, []).append(relative)
    for names in files.values():
        for relative in names:
            found[relative] += (tuple(sorted(names)),)
    return found


class Parity(RuleBasedStateMachine):
    """Every call is made twice, on the mount and on a plain directory."""

    _serial = itertools.count()

    def __init__(self, mount: Mount, plain: Path, exchange: bool) -> None:
        super().__init__()
        number = f"example-{next(self._serial)}"
        self.sides = (mount.point / number, plain / number)
        self.exchange = exchange
        self.open_files: list[tuple[int, int]] = []
        for side in self.sides:
            side.mkdir()

    def both(self, call: Callable[[Path], object]) -> None:
        mine, linux_s = (machines.outcome(functools.partial(call, side)) for side in self.sides)
        assert mine == linux_s

    @rule(path=entry, content=data)
    def write(self, path: str, content: bytes) -> None:
        self.both(lambda side: (side / path).write_bytes(content))

    @rule(path=entry, content=data)
    def append(self, path: str, content: bytes) -> None:
        def call(side: Path) -> None:
            with open(side / path, "ab") as file:
                file.write(content)

        self.both(call)

    @rule(path=entry, mode=st.sampled_from([0o600, 0o644, 0o400]))
    def create_exclusively(self, path: str, mode: int) -> None:
        def call(side: Path) -> None:
            os.close(os.open(side / path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, mode))

        self.both(call)

    @rule(path=entry)
    def read(self, path: str) -> None:
        self.both(lambda side: (side / path).read_bytes())

    @rule(path=entry)
    def look(self, path: str) -> None:
        def call(side: Path) -> tuple[int, int]:
            seen = os.lstat(side / path)
            return stat.S_IFMT(seen.st_mode), 0 if stat.S_ISDIR(seen.st_mode) else seen.st_nlink

        self.both(call)

    @rule(old=entry, new=entry)
    def rename(self, old: str, new: str) -> None:
        self.both(lambda side: os.rename(side / old, side / new))

    @rule(path=st.sampled_from([*NAMES, *DIRECTORIES]))
    def rename_its_case(self, path: str) -> None:
        self.both(lambda side: os.rename(side / path, side / path.swapcase()))

    @rule(old=entry, new=entry, flag=st.sampled_from([1, 2]))
    def rename_with_a_flag(self, old: str, new: str, flag: int) -> None:
        if flag == linux.RENAME_EXCHANGE and not self.exchange:
            return

        self.both(lambda side: machines.rename(side / old, side / new, flag))

    @rule(path=entry)
    def unlink(self, path: str) -> None:
        self.both(lambda side: os.unlink(side / path))

    @rule(path=directory)
    def mkdir(self, path: str) -> None:
        self.both(lambda side: os.mkdir(side / path))

    @rule(path=directory)
    def rmdir(self, path: str) -> None:
        self.both(lambda side: os.rmdir(side / path))

    @rule(path=entry, content=st.sampled_from(["a", "A", "d", "gone", "../a"]))
    def symlink(self, path: str, content: str) -> None:
        self.both(lambda side: os.symlink(content, side / path))

    @rule(old=entry, new=entry)
    def link(self, old: str, new: str) -> None:
        self.both(lambda side: os.link(side / old, side / new, follow_symlinks=False))

    @rule(path=entry, mode=st.sampled_from([0o700, 0o755, 0o640]))
    def chmod(self, path: str, mode: int) -> None:
        self.both(lambda side: os.chmod(side / path, mode))

    @rule(path=entry, size=st.integers(0, 20))
    def truncate(self, path: str, size: int) -> None:
        self.both(lambda side: os.truncate(side / path, size))

    @rule(path=st.one_of(st.just("."), directory))
    def listdir(self, path: str) -> None:
        self.both(lambda side: sorted(os.listdir(side / path)))

    @rule(path=entry)
    def open(self, path: str) -> None:
        handles: list[int] = []

        def call(side: Path) -> None:
            handles.append(os.open(side / path, os.O_RDWR))

        try:
            self.both(call)
        finally:
            if len(handles) == 2:
                self.open_files.append((handles[0], handles[1]))

    @rule(which=st.integers(0, 5), content=data, offset=st.integers(0, 20))
    def write_through_a_handle(self, which: int, content: bytes, offset: int) -> None:
        if which < len(self.open_files):
            seen: list[tuple[Any, ...]] = []
            for fd in self.open_files[which]:
                os.pwrite(fd, content, offset)
                now = os.fstat(fd)
                seen.append((os.pread(fd, 100, 0), now.st_size, now.st_nlink, now.st_mode))
            assert seen[0] == seen[1]

    @rule()
    def close_one(self) -> None:
        if self.open_files:
            for fd in self.open_files.pop(0):
                os.close(fd)

    @invariant()
    def same_picture(self) -> None:
        mine, linux_s = map(picture, self.sides)
        assert mine == linux_s

    def teardown(self) -> None:
        for fd in itertools.chain.from_iterable(self.open_files):
            os.close(fd)


@pytest.fixture(params=["plain", "zfs"])
def machine(request: pytest.FixtureRequest, workplace: Path) -> Iterator[type[Parity]]:
    """Makes state machines over one mount on a volume of that kind."""
    plain = workplace / "model"
    plain.mkdir()
    with contextlib.ExitStack() as stack:
        volume = stack.enter_context(open_volume(request.param, workplace / "volumes"))
        mounter = Mounter(workplace)
        stack.callback(mounter.close)
        mount = mounter(sysroot=volume.path / "sysroot")

        class Here(Parity):
            def __init__(self) -> None:
                super().__init__(mount, plain, exchange=volume.kind == "plain")

        yield Here


def test_parity(machine: type[Parity]) -> None:
    """Whatever is called in whatever order, the mount answers and looks like a plain directory."""
    machines.run(machine, examples=60, steps=40)
