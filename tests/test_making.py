"""A new directory is one in which something can be made, whatever its number was before."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Final

import pytest

from sidecar import linux
from sidecar.linux import fd_path
from sidecar.making import counts_as_removed, make_directory
from sidecar.volume import probe
from tests.children import code_of
from tests.matrix.volumes import open_volume

_OPEN: Final = os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC


@pytest.fixture(params=["plain", "exfat", "lowntfs", "ntfs-win"])
def kind(request: pytest.FixtureRequest) -> str:
    """A kind of volume: on the disk of the tests, and served by FUSE."""
    return str(request.param)


@pytest.fixture
def room(kind: str, tmp_path: Path) -> Iterator[int]:
    """The root of a new volume, from which ten directories were removed that somebody still has."""
    with ExitStack() as stack:
        opened = os.open(stack.enter_context(open_volume(kind, tmp_path)).path, _OPEN)
        stack.callback(os.close, opened)
        gone = [f"gone{number}" for number in range(10)]
        for name in gone:
            os.mkdir(name, dir_fd=opened)
        for name in gone:
            stack.callback(os.close, os.open(name, _OPEN, dir_fd=opened))
        for name in gone:
            os.rmdir(name, dir_fd=opened)
        yield opened


def fail(*_: object, **__: object) -> None:
    """A volume that does not answer."""
    raise OSError(errno.EIO, os.strerror(errno.EIO))


def test_what_is_made_takes_entries(room: int) -> None:
    """Whichever numbers the volume gives out again; and nothing else is left there."""
    names = [f"d{number}" for number in range(20)]
    for name in names:
        make_directory(room, name.encode(), 0o755)
        os.mkdir(f"{name}/in", dir_fd=room)
    assert sorted(os.listdir(fd_path(room))) == sorted(os.fsencode(name) for name in names)


def test_which_count_as_removed(kind: str, room: int) -> None:
    """What cannot take an entry, and nothing else: on lowntfs mkdir(2) makes some of that kind."""
    told = []
    for number in range(20):
        name = b"d%d" % number
        os.mkdir(name, dir_fd=room)
        told.append(counts_as_removed(room, name))
        assert code_of(os.mkdir, name + b"/in", dir_fd=room) == (errno.ENOENT if told[-1] else 0)
    assert any(told) == (kind == "lowntfs")


def test_the_volume_is_measured_all_the_same(room: int) -> None:
    """The measuring needs a directory of its own in which files can be made."""
    for _ in range(4):
        assert probe(room).measured


def test_where_it_fails_nothing_is_made(room: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A volume that fails when it is asked what it is has no new directory."""
    monkeypatch.setattr(linux, "statx", fail)
    assert code_of(make_directory, room, b"d", 0o755) == errno.EIO
    assert os.listdir(fd_path(room)) == []


def test_where_none_can_be_put_aside_it_is_made(
    kind: str, room: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is there then is what mkdir(2) has made, and no failure."""
    monkeypatch.setattr(os, "rename", fail)
    for number in range(4):
        assert code_of(make_directory, room, b"d%d" % number, 0o755) == 0
    removed = [counts_as_removed(room, b"d%d" % number) for number in range(4)]
    assert any(removed) == (kind == "lowntfs")


def test_it_fails_as_mkdir_does(room: int) -> None:
    """EEXIST for what is there, ENOENT without a way to it."""
    os.mkdir("there", dir_fd=room)
    assert code_of(make_directory, room, b"there", 0o755) == errno.EEXIST
    assert code_of(make_directory, room, b"not/there", 0o755) == errno.ENOENT
