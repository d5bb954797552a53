"""What was just said of a name is used once, by who was told, and by nobody after a change."""

from __future__ import annotations

import errno
import gc
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from sidecar.twin import Caller
from sidecar.walk import Absent, Found, Layer
from sysroot_fs.tree import Entry, Tree, TreeConfig, answered, lookup, mutations, renames
from tests.children import code_of

WHO = Caller(0, 0, 100)


@pytest.fixture
def tree(workplace: Path) -> Iterator[Tree]:
    """A tree in which answers are believed for longer than a test takes."""
    for name in ("sysroot", "host"):
        (workplace / name).mkdir()
    made = Tree(
        TreeConfig(sysroot=os.fsencode(workplace / "sysroot"), host=os.fsencode(workplace / "host"))
    )
    yield made
    made.close()


@pytest.fixture(autouse=True)
def _patient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(answered, "_BELIEVED_SECONDS", 60.0)


def _before(tree: Tree, name: bytes, who: Caller = WHO) -> Found | Absent:
    return lookup.before_change(tree, tree.inodes.root, name, who)


def test_an_answer_is_used_once_and_by_who_was_told(tree: Tree, workplace: Path) -> None:
    lookup.lookup(tree, 1, b"name", WHO)
    (workplace / "sysroot/name").touch()
    assert isinstance(_before(tree, b"name", Caller(0, 0, 101)), Found)
    assert isinstance(_before(tree, b"name"), Absent)
    assert isinstance(_before(tree, b"name"), Found)


def test_the_names_of_a_rename_are_both_known(tree: Tree, workplace: Path) -> None:
    (workplace / "sysroot/old").touch()
    for name in (b"forgotten", b"old", b"new"):
        lookup.lookup(tree, 1, name, WHO)
    (workplace / "sysroot/new").touch()
    (workplace / "sysroot/forgotten").touch()
    assert isinstance(_before(tree, b"old"), Found)
    assert isinstance(_before(tree, b"new"), Absent)
    assert isinstance(_before(tree, b"forgotten"), Found)


def test_nothing_is_believed_after_a_change(tree: Tree) -> None:
    for name in (b"one", b"two"):
        lookup.lookup(tree, 1, name, WHO)
    mutations.mkdir(tree, 1, b"one", 0o755, WHO)
    lookup.lookup(tree, 1, b"one", WHO)
    renames.rename(tree, 1, b"one", 1, b"two", 0, WHO)
    assert isinstance(_before(tree, b"two"), Found)
    assert isinstance(_before(tree, b"one"), Absent)


def test_no_descriptor_is_kept_for_a_directory_that_the_kernel_forgets(
    tree: Tree, workplace: Path
) -> None:
    (workplace / "sysroot/directory").mkdir()
    entry = lookup.lookup(tree, 1, b"directory", WHO)
    assert isinstance(entry, Entry)
    gc.collect()  # descriptors in the garbage of other tests
    before = len(os.listdir("/proc/self/fd"))
    lookup.lookup(tree, entry.inode.id, b"name", WHO)
    assert len(os.listdir("/proc/self/fd")) > before
    lookup.forget(tree, [(entry.inode.id, 1)])
    assert len(os.listdir("/proc/self/fd")) == before


def test_an_old_answer_is_not_believed(tree: Tree, monkeypatch: pytest.MonkeyPatch) -> None:
    lookup.lookup(tree, 1, b"name", WHO)
    monkeypatch.setattr(answered, "_BELIEVED_SECONDS", 0.0)
    os.mkdir(b"name", dir_fd=tree.walk.sysroot.fd)
    assert isinstance(_before(tree, b"name"), Found)


@pytest.mark.parametrize("layer", [Layer.SYSROOT, Layer.HOST])
def test_what_came_in_between_is_not_overwritten(tree: Tree, workplace: Path, layer: Layer) -> None:
    """The change is exclusive by itself; what came on the host is shadowed, as it always can be."""
    lookup.lookup(tree, 1, b"name", WHO)
    (workplace / layer.value / "name").write_text("mine")
    code = code_of(mutations.mkdir, tree, 1, b"name", 0o755, WHO)
    assert code == (errno.EEXIST if layer is Layer.SYSROOT else 0)
    assert (workplace / layer.value / "name").read_text() == "mine"


def test_what_was_replaced_in_between_is_looked_at_again(tree: Tree, workplace: Path) -> None:
    """The inode that the kernel knows is never taken for the other one: its walk begins anew."""
    (workplace / "sysroot/name").touch()
    lookup.lookup(tree, 1, b"name", WHO)
    os.rename(workplace / "sysroot/name", workplace / "sysroot/kept")
    os.mkfifo(workplace / "sysroot/name")
    assert code_of(mutations.unlink, tree, 1, b"name", WHO) == errno.ESTALE
    assert code_of(mutations.unlink, tree, 1, b"name", WHO) == 0
    assert os.listdir(workplace / "sysroot") == ["kept"]
