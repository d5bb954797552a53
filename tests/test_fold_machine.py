"""A state machine: a folding mount against a model that is a dictionary of fold keys."""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import attrs
import pytest
from hypothesis import strategies as st
from hypothesis.stateful import invariant, rule

from tests.caseless import open_kind
from tests.machines import Caseless, fail, fold, run
from tests.mounts import Mounter

NAMES: Final = ["a", "A", "é", "E\u0301", "ß", "ss", "SS", "d", "D"]

name = st.sampled_from(NAMES)
path = st.builds(lambda above, last: f"{above}{last}", st.sampled_from(["", "", "d/", "D/"]), name)


@attrs.define(eq=False)
class Node:
    """A file, which has text, or a directory, which has entries: key -> (spelling, node)."""

    text: str | None = None
    entries: dict[str, tuple[str, Node]] = attrs.Factory(dict)

    @property
    def is_directory(self) -> bool:
        """Whether it has entries and no text."""
        return self.text is None


class Model:
    """What a caseless file system that keeps spellings does."""

    def __init__(self) -> None:
        self.root = Node()

    def _place(self, where: str) -> tuple[Node, str, Node | None]:
        """The directory, the last component, and what that is."""
        *way, last = where.split("/")
        here = self.root
        for part in way:
            if fold(part) not in here.entries:
                raise fail(errno.ENOENT)
            here = here.entries[fold(part)][1]
            if not here.is_directory:
                raise fail(errno.ENOTDIR)
        found = here.entries.get(fold(last))
        return here, last, None if found is None else found[1]

    def read(self, where: str) -> str:
        node = self._place(where)[2]
        if node is None:
            raise fail(errno.ENOENT)
        if node.text is None:
            raise fail(errno.EISDIR)
        return node.text

    def write(self, where: str, text: str) -> None:
        here, last, node = self._place(where)
        if node is None:
            here.entries[fold(last)] = (last, Node(text))
        elif node.is_directory:
            raise fail(errno.EISDIR)
        else:
            node.text = text

    def make(self, where: str, text: str | None) -> None:
        here, last, node = self._place(where)
        if node is not None:
            raise fail(errno.EEXIST)
        here.entries[fold(last)] = (last, Node(text))

    def mkdir(self, where: str) -> None:
        self.make(where, None)

    def unlink(self, where: str) -> None:
        here, last, node = self._place(where)
        if node is None:
            raise fail(errno.ENOENT)
        if node.is_directory:
            raise fail(errno.EISDIR)
        del here.entries[fold(last)]

    def rmdir(self, where: str) -> None:
        here, last, node = self._place(where)
        if node is None:
            raise fail(errno.ENOENT)
        if not node.is_directory:
            raise fail(errno.ENOTDIR)
        if node.entries:
            raise fail(errno.ENOTEMPTY)
        del here.entries[fold(last)]

    def link(self, old: str, new: str) -> None:
        node = self._place(old)[2]
        if node is None:
            raise fail(errno.ENOENT)
        here, last, target = self._place(new)
        if target is not None:
            raise fail(errno.EEXIST)
        if node.is_directory:
            raise fail(errno.EPERM)
        here.entries[fold(last)] = (last, node)

    def rename(self, old: str, new: str, noreplace: bool) -> None:
        old_place, new_place = self._place(old), self._place(new)
        (above, old_last, node), (here, last, target) = old_place, new_place
        if node is None:
            raise fail(errno.ENOENT)
        same_entry = above is here and fold(old_last) == fold(last)
        if same_entry and last not in (old_last, here.entries[fold(last)][0]):
            here.entries[fold(last)] = (last, node)
            return
        if target is not None and noreplace:
            raise fail(errno.EEXIST)
        if node is here:
            raise fail(errno.EINVAL)
        if target is above and target is not self.root:
            raise fail(errno.ENOTEMPTY)
        if target is node:
            return
        if target is not None:
            if node.is_directory and not target.is_directory:
                raise fail(errno.ENOTDIR)
            if target.is_directory and not node.is_directory:
                raise fail(errno.EISDIR)
            if target.entries:
                raise fail(errno.ENOTEMPTY)
        spelling = last if target is None else here.entries[fold(last)][0]
        del above.entries[fold(old_last)]
        here.entries[fold(last)] = (spelling, node)

    def listdir(self, where: str) -> list[str]:
        node = self._place(where)[2] if where else self.root
        if node is None:
            raise fail(errno.ENOENT)
        if not node.is_directory:
            raise fail(errno.ENOTDIR)
        return sorted(spelling for spelling, _ in node.entries.values())


class Folding(Caseless):
    """Against the model, over one mount."""

    paths = path
    model: Model
    _serial = itertools.count()

    def __init__(self, point: Path) -> None:
        super().__init__(point / f"example-{next(self._serial)}", Model())
        self.top.mkdir()

    @rule(where=path)
    def create(self, where: str) -> None:
        def call() -> None:
            os.close(os.open(self.top / where, os.O_CREAT | os.O_EXCL))

        self.both(call, lambda: self.model.make(where, ""))

    @rule(where=path, noreplace=st.booleans())
    def rename_its_case(self, where: str, noreplace: bool) -> None:
        *way, last = where.split("/")
        self.rename(where, "/".join([*way, last.swapcase()]), noreplace)

    @invariant()
    def same_listings(self) -> None:
        for where in ("", "d", "D"):
            self.same_listing(where)

    @invariant()
    def every_spelling_has_its_answer(self) -> None:
        numbers: dict[int, int] = {}
        for where in itertools.chain(NAMES, (f"d/{last}" for last in NAMES)):
            self.read(where)
            try:
                node = self.model._place(where)[2]
            except OSError:
                continue
            if node is not None:
                # One inode for one node, and another for another.
                number = os.stat(self.top / where).st_ino
                assert numbers.setdefault(id(node), number) == number
        assert len(set(numbers.values())) == len(numbers)


KINDS: Final = {
    "plain": ("plain", "sysroot_fs"),
    "old-kernel": ("plain", "tests.without_epoch"),
    "zfs": ("zfs", "sysroot_fs"),
    "caseless": ("caseless", "sysroot_fs"),
}


@pytest.fixture(params=KINDS)
def machine(request: pytest.FixtureRequest, workplace: Path) -> Iterator[type[Folding]]:
    """Makes state machines over one mount on a volume of that kind."""
    kind, module = KINDS[request.param]
    with contextlib.ExitStack() as stack:
        volume = stack.enter_context(open_kind(kind, workplace))
        mounter = Mounter(workplace)
        stack.callback(mounter.close)
        options = ("lookup=fold", "fallback=none", "entry_timeout=1000", "negative_timeout=1000")
        mount = mounter(*options, sysroot=volume.path / "sysroot", module=module)

        class Here(Folding):
            def __init__(self) -> None:
                super().__init__(mount.point)

        yield Here


def test_a_caseless_tree(machine: type[Folding]) -> None:
    """Whatever is called in whatever order, the mount answers as the model does."""
    run(machine, examples=30, steps=25)
