"""Mutations whose volume fails in the middle: what the caller is told is so."""

from __future__ import annotations

import errno
import gc
import os
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from sidecar.twin import Caller
from sysroot_fs.tree import Tree, mutations
from sysroot_fs.tree.core import TreeConfig
from sysroot_fs.tree.inodes import ROOT_ID

ROOT = Caller(0, 0, 0)


@pytest.mark.parametrize(
    "make",
    [
        lambda tree: mutations.create(tree, ROOT_ID, b"New", 0o644, os.O_WRONLY, ROOT),
        lambda tree: mutations.mkdir(tree, ROOT_ID, b"New", 0o755, ROOT),
        lambda tree: mutations.mknod(tree, ROOT_ID, b"New", stat.S_IFIFO | 0o644, 0, ROOT),
        lambda tree: mutations.symlink(tree, ROOT_ID, b"New", b"target", ROOT),
    ],
)
def test_what_cannot_be_looked_at_is_not_made(
    make: Callable[[Tree], object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The caller is told of an error, so nothing may be there, and a second try works."""
    tree = Tree(TreeConfig(sysroot=os.fsencode(tmp_path), host=None))
    gc.collect()  # trees of other tests
    open_before = len(os.listdir("/proc/self/fd"))

    def fail(*_: object) -> None:
        raise OSError(errno.EIO, "gone")

    with monkeypatch.context() as broken:
        # A file is looked at through its descriptor, everything else by its name.
        broken.setattr(mutations, "_found", fail)
        with pytest.raises(OSError) as caught:
            make(tree)
    assert caught.value.errno == errno.EIO
    del caught
    assert os.listdir(tmp_path) == []
    assert len(os.listdir("/proc/self/fd")) == open_before
    make(tree)
    assert os.listdir(tmp_path) == ["New"]
