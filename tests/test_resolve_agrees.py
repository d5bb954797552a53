"""`resolve` says exactly what the mount does, on random trees and random paths.

Sysroot directories have mode 0755 and the host's 0775, and a file's content names its layer: so
the mount shows which layer answered. The kernel resolves the path below the mount as a guest that
was chrooted there would (RESOLVE_IN_ROOT); `resolve` runs in this process, on the same two trees.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import stat
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import attrs
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sidecar import escape, index, linux
from sysroot_fs.tree import Tree, TreeConfig
from tests.caseless import open_kind
from tests.mounts import Mounter

NAMES: Final = (
    b"a", b"A", b"b", b"Dir", b"dir", "straße".encode(), b"STRASSE", b"\xff",
    escape.encode(b"A"), escape.encode(b"dir"),
)  # fmt: skip
MODES: Final = {"sysroot": 0o755, "host": 0o775}

_numbers = itertools.count()

names = st.sampled_from(NAMES)
dots = st.sampled_from([b"..", b".", b""])
components = st.lists(st.one_of(names, names, names, dots), min_size=1, max_size=5)
directories = st.lists(st.lists(names, min_size=1, max_size=3), max_size=5)
files = st.lists(st.lists(names, min_size=1, max_size=4), max_size=5)
links = st.lists(
    st.tuples(st.lists(names, min_size=1, max_size=3), st.booleans(), components), max_size=4
)


@attrs.frozen
class Content:
    """What to make in one layer: directories, files and links (place, absolute, target)."""

    directories: list[list[bytes]]
    files: list[list[bytes]]
    links: list[tuple[list[bytes], bool, list[bytes]]]

    def make(self, top: bytes, prefix: bytes, layer: str) -> None:
        """Make it below *top*, as far as the volume allows it."""
        mode = MODES[layer]
        _make_directory(top, mode)
        for path in self.directories:
            for length in range(1, len(path) + 1):
                _make_directory(b"/".join([top, *path[:length]]), mode)
        for path in self.files:
            flags = os.O_CREAT | os.O_EXCL | os.O_WRONLY
            with contextlib.suppress(OSError):
                fd = os.open(b"/".join([top, *path]), flags)
                os.write(fd, layer.encode())
                os.close(fd)
        for place, absolute, target in self.links:
            text = b"/".join(target) or b"."
            parent = b"/".join([top, *place[:-1]])
            # Not through a link made before: what is beside `top` the mount may remember.
            if os.path.realpath(parent) == parent:
                with contextlib.suppress(OSError):
                    os.symlink(prefix * absolute + text, parent + b"/" + place[-1])


def _make_directory(path: bytes, mode: int) -> None:
    with contextlib.suppress(OSError):
        os.mkdir(path)
        os.chmod(path, mode)


contents = st.builds(Content, directories, files, links)


@attrs.frozen
class Pair:
    """A mount, and a tree over the same two directories."""

    sysroot: bytes
    host: bytes
    point: int
    tree: Tree

    def mounted(self, path: bytes) -> tuple[int, str]:
        """What the kernel says of *path* below the mount: errno, and the layer if it can tell."""
        flags = os.O_PATH | os.O_NOFOLLOW
        try:
            fd = linux.openat2(self.point, path, flags, resolve=linux.RESOLVE_IN_ROOT)
        except OSError as error:
            assert error.errno is not None
            return error.errno, "none"
        try:
            seen = os.fstat(fd)
            if stat.S_ISDIR(seen.st_mode):
                layers = {mode: layer for layer, mode in MODES.items()}
                return 0, layers[stat.S_IMODE(seen.st_mode)]
            if stat.S_ISREG(seen.st_mode):
                with open(linux.fd_path(fd), encoding="ascii") as file:
                    return 0, file.read()
            return 0, "link"
        finally:
            os.close(fd)

    def resolved(self, path: bytes) -> tuple[int, str, str]:
        """What `resolve` says of it: errno, the layer and the verdict."""
        last = self.tree.walk.resolve(path)[-1]
        return last.error or 0, last.layer, last.verdict


def _settle(tree: Tree) -> None:
    """Wait until what was made elsewhere is seen where lookups fold."""
    if tree.config.lookup == "fold":
        time.sleep(1.2 * index.BELIEF_NS / 1e9)


@pytest.fixture(
    scope="module",
    params=itertools.product(["plain", "caseless"], ["exact", "fold"]),
    ids="-".join,
)
def pair(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Pair]:
    """One mount for all examples, on a plain volume and on one that folds, under each policy."""
    kind, policy = request.param
    base = tmp_path_factory.mktemp("agrees")
    with contextlib.ExitStack() as stack:
        volume = stack.enter_context(open_kind(kind, base))
        sysroot, host = volume.path / "sysroot", base / "host"
        for directory in (sysroot, host):
            directory.mkdir()
        mounter = Mounter(_made(base / "mount"))
        stack.callback(mounter.close)
        mount = mounter(f"lookup={policy}", sysroot=sysroot, host=host)
        tree = Tree(TreeConfig(sysroot=os.fsencode(sysroot), host=os.fsencode(host), lookup=policy))
        stack.callback(tree.close)
        point = os.open(mount.point, os.O_PATH | os.O_DIRECTORY)
        stack.callback(os.close, point)
        yield Pair(os.fsencode(sysroot), os.fsencode(host), point, tree)


def _made(path: Path) -> Path:
    path.mkdir()
    return path


@settings(max_examples=80, deadline=None)
@given(contents, contents, st.lists(components, min_size=1, max_size=12))
def test_resolve_agrees_with_the_mount(
    pair: Pair, sysroot: Content, host: Content, paths: list[list[bytes]]
) -> None:
    """The same errno, and where a layer answers the same one, for each path."""
    top = b"/example-%d" % next(_numbers)
    sysroot.make(pair.sysroot + top, top + b"/", "sysroot")
    host.make(pair.host + top, top + b"/", "host")
    _settle(pair.tree)
    for path in paths:
        # From the example's own directory; where `..` leads above it, the same for both.
        whole = top + b"/" + b"/".join(path)
        code, layer = pair.mounted(whole)
        error, said, verdict = pair.resolved(whole)
        assert (code, whole) == (error, whole), verdict
        if not code and layer != "link" and path[-1] in NAMES:
            assert (layer, whole) == (said, whole), verdict


@settings(max_examples=40, deadline=None)
@given(contents, contents, st.lists(st.lists(names, min_size=1, max_size=4), max_size=6))
def test_resolve_agrees_after_the_mount_made_names(
    pair: Pair, sysroot: Content, host: Content, new: list[list[bytes]]
) -> None:
    """What was made through the mount is found where `resolve(create=True)` said it would go."""
    top = b"/example-%d" % next(_numbers)
    sysroot.make(pair.sysroot + top, top + b"/", "sysroot")
    host.make(pair.host + top, top + b"/", "host")
    _settle(pair.tree)
    for path in new:
        whole = top + b"/" + b"/".join(path)
        before = pair.tree.walk.resolve(whole, create=True)[-1]
        flags = os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_NOFOLLOW
        try:
            fd = linux.openat2(pair.point, whole, flags, mode=0o600, resolve=linux.RESOLVE_IN_ROOT)
        except OSError as error:
            assert before.verdict != "create", error
            continue
        os.write(fd, before.layer.encode())
        os.close(fd)
        _settle(pair.tree)
        after = pair.tree.walk.resolve(whole)[-1]
        assert (before.verdict, after.error) == ("create", None)
        assert (before.layer, before.stored) == (after.layer, after.stored)
        assert pair.mounted(whole) == (0, after.layer)


def test_resolve_agrees_about_virtual_trees(pair: Pair) -> None:
    """Nothing of the host is in /dev, /proc and /sys, whether the sysroot has them or not."""
    for name in (b"proc", b"dev", b"sys"):
        os.makedirs(pair.host + b"/" + name + b"/deep")
        os.close(os.open(pair.host + b"/" + name + b"/deep/x", os.O_CREAT | os.O_WRONLY))
    os.makedirs(pair.sysroot + b"/dev/deep")
    _settle(pair.tree)
    for path in (b"/dev/x", b"/dev/deep/x", b"/proc/deep", b"/proc/deep/x", b"/sys/deep"):
        code, layer = pair.mounted(path)
        assert (code, layer) == pair.resolved(path)[:2], path
        assert code != 0, path
    assert pair.mounted(b"/dev/deep") == (0, "sysroot")
