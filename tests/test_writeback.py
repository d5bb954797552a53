"""What is written waits in the kernel: programs see no difference, and what is synced is there."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

import pytest

from sysroot_fs.cli.doors import file_options
from sysroot_fs.cli.errors import UsageError
from sysroot_fs.cli.options import collect, split_options
from tests.children import in_child
from tests.counting import requests
from tests.file_calls import ACTS, described, is_searched_for_holes, opened, prepared
from tests.mounts import Mount, Mounter

pytestmark = pytest.mark.parametrize("door", ["kernel"], indirect=True)

_OPTIONS: Final = ("writes=back", "coherence=exclusive", "fallback=none")


@pytest.fixture(params=["auto", "ask"])
def mount(request: pytest.FixtureRequest, mounted: Mounter) -> Mount:
    """A mount to whose tree nobody else writes, whose files are opened in each way."""
    return mounted(*_OPTIONS, f"opens={request.param}")


@pytest.fixture(scope="module", params=["auto", "ask"])
def shared(request: pytest.FixtureRequest, door: str, session_workplace: Path) -> Iterator[Mount]:
    """The same for many tests, each in a directory of its own."""
    work = session_workplace / f"back-{request.param}"
    work.mkdir()
    mounter = Mounter(work)
    try:
        yield mounter(*_OPTIONS, f"opens={request.param}")
    finally:
        mounter.close()


@pytest.mark.parametrize("act", [act for act in ACTS if act is not is_searched_for_holes])
def test_as_on_a_plain_directory(
    shared: Mount, act: Callable[[Path], object], workplace: Path
) -> None:
    """The same values and errnos, and the same tree afterwards, here and below."""
    plain, below = workplace / "plain", shared.sysroot / act.__name__
    prepared(plain)
    prepared(below)
    assert act(shared.point / act.__name__) == act(plain)
    assert described(shared.point / act.__name__) == described(plain)
    assert described(below) == described(plain)


def test_many_small_writes(mount: Mount) -> None:
    """They are few requests, which the kernel sends when it likes, and at the latest for fsync."""
    with opened(mount.point / "f", os.O_WRONLY | os.O_CREAT) as fd:
        os.write(fd, b"first")
        with requests(mount) as made:
            for _ in range(1000):
                os.write(fd, b"x" * 10)
            assert os.fstat(fd).st_size == 10005
            os.fsync(fd)
        assert made["write"] <= 50 and made.total() - made["write"] <= 5
    assert (mount.sysroot / "f").read_bytes() == b"first" + b"x" * 10000


def test_a_part_of_a_page(mount: Mount) -> None:
    """The rest is read through a file that is only open to be written."""
    (mount.sysroot / "f").write_bytes(b"a" * 10000)
    with opened(mount.point / "f", os.O_WRONLY) as fd:
        os.pwrite(fd, b"b", 5000)
    assert (mount.sysroot / "f").read_bytes() == b"a" * 5000 + b"b" + b"a" * 4999


def test_what_was_just_written_is_no_hole(mount: Mount) -> None:
    """Who copies what is not on the volume yet, and looks for holes first, gets it."""
    with opened(mount.point / "f", os.O_RDWR | os.O_CREAT) as fd:
        os.pwrite(fd, b"x" * 100_000, 50_000)
        with opened(mount.point / "f", os.O_RDONLY) as copying:
            assert os.lseek(copying, 50_000, os.SEEK_DATA) == 50_000
            assert os.lseek(copying, 50_000, os.SEEK_HOLE) == 150_000


def test_times_that_are_set(mount: Mount) -> None:
    """They stay, whatever was written before; what is written later has the time of the call."""
    path = mount.point / "f"
    with opened(path, os.O_WRONLY | os.O_CREAT) as fd:
        os.write(fd, b"content")
        os.utime(fd, (1e9, 1e9))
    assert path.stat().st_mtime == (mount.sysroot / "f").stat().st_mtime == 1e9
    with opened(path, os.O_WRONLY) as fd:
        os.write(fd, b"C")
        called = os.fstat(fd).st_mtime_ns
        os.fsync(fd)
    assert called > 10**18
    assert path.stat().st_mtime_ns == called == (mount.sysroot / "f").stat().st_mtime_ns


def test_what_was_synced_outlives_the_server(mount: Mount) -> None:
    """The server is killed: what fsync(2) was told of is below."""
    fd = os.open(mount.point / "f", os.O_WRONLY | os.O_CREAT)
    os.write(fd, b"x" * 100_000)
    os.fsync(fd)
    mount.kill()
    with contextlib.suppress(OSError):
        os.close(fd)
    assert (mount.sysroot / "f").read_bytes() == b"x" * 100_000


def test_what_was_closed_outlives_the_server(mount: Mount) -> None:
    """close(2) hands on what was written."""
    (mount.point / "f").write_bytes(b"x" * 100_000)
    mount.kill()
    assert (mount.sysroot / "f").read_bytes() == b"x" * 100_000


def test_set_id_goes_with_a_write(mount: Mount) -> None:
    """A user's write takes it away at once, for who looks."""
    (mount.sysroot / "f").write_text("content")
    (mount.sysroot / "f").chmod(0o6777)

    def write() -> int:
        with opened(mount.point / "f", os.O_WRONLY) as fd:
            os.pwrite(fd, b"C", 0)
            return os.fstat(fd).st_mode & 0o7777

    assert in_child(write, uid=1000, gid=1000) == 0o777
    assert (mount.sysroot / "f").stat().st_mode & 0o7777 == 0o777


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("writes=back,coherence=exclusive,fallback=none,opens=passthrough", "opens=passthrough"),
        ("writes=back", "coherence=exclusive"),
        ("writes=back,fallback=none", "coherence=exclusive"),
        ("writes=back,coherence=exclusive", "fallback=none"),
        ("writes=back,coherence=exclusive,fallback=none,allow=/tmp", "fallback=none"),
        ("writes=back,host_coherence=exclusive", "coherence=exclusive"),
    ],
)
def test_what_does_not_go_together(door: str, text: str, named: str) -> None:
    """It is refused, and what to do is said."""
    with pytest.raises(UsageError, match=named):
        file_options(collect(split_options(text), privileged=True))


def test_a_host_to_which_nobody_else_writes(door: str) -> None:
    """It may be seen."""
    text = "writes=back,coherence=exclusive,host_coherence=exclusive"
    assert file_options(collect(split_options(text), privileged=True)).writes == "back"
