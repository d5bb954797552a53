"""A state machine: a mount with merged directories against a model on a plain directory.

The model is a copy of the sysroot and the rule of who wins a name, spelled out once more. After
each call both answer the same, and both trees hold the same.
"""

from __future__ import annotations

import errno
import itertools
import os
from pathlib import Path
from typing import Final

import attrs
import pytest
from hypothesis import strategies as st
from hypothesis.stateful import initialize, invariant

from tests.machines import Caseless, fail, fold, run
from tests.mounts import Mounter

NAMES: Final = ["a", "A", "b", "B", "dd", "dD", "DD"]

name = st.sampled_from(NAMES)
path = st.builds(
    lambda above, last: f"{above}{last}",
    st.sampled_from(["", "", "DD/", "dd/", "dD/dd/", "DD/DD/"]),
    name,
)
MADE: Final = [
    f"{above}{last}"
    for above in ("", "DD/", "dD/", "dd/", "DD/dd/", "dD/DD/", "dd/dd/", "dd/dD/")
    for last in NAMES
]


@attrs.frozen
class Found:
    """What a name is: the entries that are it, the first of which leads."""

    entries: tuple[Path, ...]

    @property
    def first(self) -> Path:
        return self.entries[0]

    @property
    def is_directory(self) -> bool:
        return self.first.is_dir()


class Model:
    """The rule: exact spelling, then first part, then byte order; all directories are one."""

    def __init__(self, top: Path) -> None:
        self.top = top

    def step(self, parts: tuple[Path, ...], last: str) -> Found | None:
        members = [
            part / one
            for part in parts
            for one in sorted(os.listdir(part))
            if fold(one) == fold(last)
        ]
        if not members:
            return None
        chosen = next((one for one in members if one.name == last), members[0])
        if not chosen.is_dir():
            return Found((chosen,))
        return Found(tuple(one for one in members if one.is_dir()))

    def place(self, where: str) -> tuple[tuple[Path, ...], str, Found | None]:
        *way, last = where.split("/")
        parts: tuple[Path, ...] = (self.top,)
        for part in way:
            found = self.step(parts, part)
            if found is None:
                raise fail(errno.ENOENT)
            if not found.is_directory:
                raise fail(errno.ENOTDIR)
            parts = found.entries
        return parts, last, self.step(parts, last)

    def file(self, where: str) -> Path:
        found = self.place(where)[2]
        if found is None:
            raise fail(errno.ENOENT)
        if found.is_directory:
            raise fail(errno.EISDIR)
        return found.first

    def read(self, where: str) -> str:
        return self.file(where).read_text()

    def write(self, where: str, text: str) -> None:
        parts, last, found = self.place(where)
        (parts[0] / last if found is None else self.file(where)).write_text(text)

    def mkdir(self, where: str) -> None:
        parts, last, found = self.place(where)
        if found is not None:
            raise fail(errno.EEXIST)
        (parts[0] / last).mkdir()

    def unlink(self, where: str) -> None:
        self.file(where).unlink()

    def rmdir(self, where: str) -> None:
        found = self.place(where)[2]
        if found is None:
            raise fail(errno.ENOENT)
        if not found.is_directory:
            raise fail(errno.ENOTDIR)
        if any(os.listdir(one) for one in found.entries):
            raise fail(errno.ENOTEMPTY)
        for one in found.entries:
            one.rmdir()

    def link(self, old: str, new: str) -> None:
        found = self.place(old)[2]
        if found is None:
            raise fail(errno.ENOENT)
        parts, last, target = self.place(new)
        if target is not None:
            raise fail(errno.EEXIST)
        if found.is_directory:
            raise fail(errno.EPERM)
        os.link(found.first, parts[0] / last)

    def rename(self, old: str, new: str, noreplace: bool) -> None:
        (above, old_last, found), (here, last, target) = self.place(old), self.place(new)
        if found is None:
            raise fail(errno.ENOENT)
        source = found.first
        respells = above[0] == here[0] and fold(old_last) == fold(last) and last != old_last
        if respells and target is not None and target.first.name != last:
            same = target.first == source
            if same or not target.is_directory:
                if len(found.entries) > 1:
                    raise fail(errno.EBUSY)
                os.rename(source, here[0] / last)
                return
        if target is not None and noreplace:
            raise fail(errno.EEXIST)
        if source == here[0] or source in here[0].parents:
            raise fail(errno.EINVAL)
        if target is not None and (target.first == above[0] or target.first in above[0].parents):
            raise fail(errno.ENOTEMPTY)
        if target is not None:
            if os.path.samefile(source, target.first):
                return
            if found.is_directory and not target.is_directory:
                raise fail(errno.ENOTDIR)
            if target.is_directory and not found.is_directory:
                raise fail(errno.EISDIR)
        if len(found.entries) > 1:
            raise fail(errno.EBUSY)
        if target is not None and len(target.entries) > 1:
            raise fail(errno.ENOTEMPTY)
        os.rename(source, here[0] / last if target is None else target.first)

    def listdir(self, where: str) -> list[str]:
        parts: tuple[Path, ...] = (self.top,)
        if where:
            found = self.place(where)[2]
            if found is None:
                raise fail(errno.ENOENT)
            if not found.is_directory:
                raise fail(errno.ENOTDIR)
            parts = found.entries
        shown = set()
        for one in {one for part in parts for one in os.listdir(part)}:
            found = self.step(parts, one)
            assert found is not None
            shown.add(found.first.name if found.is_directory else one)
        return sorted(shown)


def everything(top: Path) -> dict[str, str | None]:
    """Every path below *top* with what is in the file, None for a directory."""
    return {
        str(one.relative_to(top)): None if one.is_dir() else one.read_text()
        for one in top.rglob("*")
    }


class Merging(Caseless):
    """Against the model, over one mount."""

    paths = path
    model: Model
    _serial = itertools.count()

    def __init__(self, point: Path, sysroot: Path, plain: Path) -> None:
        example = f"example-{next(self._serial)}"
        super().__init__(point / example, Model(plain / example))
        self.lower, self.plain = sysroot / example, plain / example

    @initialize(made=st.lists(st.tuples(st.sampled_from(MADE), st.booleans()), max_size=16))
    def fill(self, made: list[tuple[str, bool]]) -> None:
        """What is there already, through no mount."""
        self.plain.mkdir()
        self.top.mkdir()
        for top in (self.plain, self.lower):
            for where, is_directory in made:
                entry = top / where
                if any(above.is_file() for above in entry.parents) or entry.exists():
                    continue
                entry.parent.mkdir(parents=True, exist_ok=True)
                if is_directory:
                    entry.mkdir()
                else:
                    entry.write_text(where)

    @invariant()
    def same_trees(self) -> None:
        if self.plain.exists():
            assert everything(self.lower) == everything(self.plain)

    @invariant()
    def same_view(self) -> None:
        if not self.plain.exists():
            return
        for where in ("", "dd", "DD", "dD/DD"):
            self.same_listing(where)
        numbers: dict[tuple[int, int], int] = {}
        for where in MADE:
            self.read(where)
            try:
                found = self.model.place(where)[2]
            except OSError:
                continue
            if found is not None:
                real = found.first.stat()
                number = os.stat(self.top / where).st_ino
                assert numbers.setdefault((real.st_dev, real.st_ino), number) == number
        assert len(set(numbers.values())) == len(numbers)


@pytest.fixture(params=["sysroot_fs", "tests.without_epoch"])
def machine(request: pytest.FixtureRequest, mounted: Mounter) -> type[Merging]:
    """Makes state machines over one mount, with a kernel that forgets at once and without."""
    mount = mounted(
        "lookup=fold", "merge", "fallback=none", "entry_timeout=1000", "negative_timeout=1000",
        module=request.param,
    )  # fmt: skip
    plain = mount.sysroot.parent / "plain"
    plain.mkdir()

    class Here(Merging):
        def __init__(self) -> None:
            super().__init__(mount.point, mount.sysroot, plain)

    return Here


def test_merged_directories(machine: type[Merging]) -> None:
    """Whatever is called in whatever order, the mount answers as the model does."""
    run(machine, examples=10, steps=20, derandomize=True)
