"""Files that the kernel reads and writes without the server: as on a plain directory."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import logging
import mmap
import os
import stat
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

import pytest

from sidecar.twin import Caller
from sysroot_fs.fuse.kernel.passthrough import Passthrough
from sysroot_fs.tree import Entry, Tree, TreeConfig, files, lookup
from sysroot_fs.tree.inodes import ROOT_ID
from tests import caches
from tests.caseless import Volumes
from tests.children import Child, code_of, in_child, start_child
from tests.counting import counted, requests
from tests.file_calls import ACTS, described, goes_around_the_cache, opened, prepared
from tests.mounts import Mount, Mounter
from tests.waiting import wait_until

pytestmark = pytest.mark.parametrize("door", ["kernel"], indirect=True)

_OFF: Final = "passthrough is off"
_PAGE: Final = mmap.PAGESIZE


_OPTIONS: Final = ("opens=passthrough", "coherence=exclusive", "host_coherence=exclusive")


@pytest.fixture(autouse=True)
def undisturbed() -> Iterator[None]:
    """What the kernel remembers is counted on."""
    with caches.kept():
        yield


@pytest.fixture
def mount(mounted: Mounter) -> Mount:
    """A mount whose files are lent to the kernel, and nobody watches who else writes."""
    return mounted(*_OPTIONS)


@pytest.fixture(scope="module")
def shared(door: str, session_workplace: Path) -> Iterator[Mount]:
    """The same for many tests, each in directories of its own."""
    work = session_workplace / "lent"
    work.mkdir()
    mounter = Mounter(work)
    try:
        yield mounter(*_OPTIONS)
    finally:
        mounter.close()


# --- as on a plain directory -------------------------------------------------------------------


@pytest.mark.parametrize("layer", ["sysroot", "host"])
@pytest.mark.parametrize("act", ACTS)
def test_as_on_a_plain_directory(
    shared: Mount, layer: str, act: Callable[[Path], object], workplace: Path
) -> None:
    """The same values and errnos, the same tree afterwards, and no data through the server."""
    name = f"{layer}-{act.__name__}"
    below = {"sysroot": shared.sysroot, "host": shared.host}[layer] / name
    plain = workplace / "plain"
    for place in (below, plain):
        prepared(place)
    expected = act(plain)
    with requests(shared) as made:
        assert act(shared.point / name) == expected
    # What is opened with O_DIRECT is not lent.
    assert (made["read"] + made["write"] > 0) == (act is goes_around_the_cache)
    for place in (below, shared.point / name):
        assert described(place) == described(plain)
    assert _OFF not in shared.log.read_text()


# --- attributes ---------------------------------------------------------------------------------


def test_times_follow_writes(mount: Mount) -> None:
    """stat(2) has the time of what was written, also through a map and under another name."""
    for name, text in (("f", "content"), ("m", "content")):
        (mount.sysroot / name).write_text(text)
        os.link(mount.sysroot / name, mount.sysroot / f"{name}2")
        for one in (name, f"{name}2"):
            os.utime(mount.sysroot / one, (1e9, 1e9))
            assert os.stat(mount.point / one).st_mtime == 1e9
    with opened(mount.point / "f", os.O_WRONLY) as fd:
        os.pwrite(fd, b"x", 0)
        assert os.fstat(fd).st_mtime_ns == os.stat(mount.sysroot / "f").st_mtime_ns != 10**18
    with opened(mount.point / "m", os.O_RDWR) as fd, mmap.mmap(fd, 0) as memory:
        memory[0:1] = b"x"
    for name in ("f", "f2", "m", "m2"):
        wait_until(lambda: seen(mount.point) == seen(mount.sysroot))  # RELEASE is told later
        assert os.stat(mount.point / name).st_mtime > 1e9


def seen(top: Path) -> list[int]:
    """The times of all files below *top*."""
    return [path.stat().st_mtime_ns for path in sorted(top.iterdir())]


def test_capabilities_go_with_a_write(mount: Mount) -> None:
    """security.capability is gone when anybody has written."""
    for uid in (0, 1000):
        below = mount.sysroot / f"f{uid}"
        below.write_text("content")
        below.chmod(0o777)
        subprocess.run(["setcap", "cap_net_raw+ep", below], check=True)
        assert "security.capability" in os.listxattr(mount.point / below.name)

        def write(path: Path = mount.point / below.name) -> list[str]:
            with opened(path, os.O_WRONLY) as fd:
                os.pwrite(fd, b"x", 0)
                return os.listxattr(path)

        assert in_child(write, uid=uid, gid=uid) == []


def test_set_id_goes_when_a_user_writes_to_what_he_was_handed(mount: Mount) -> None:
    """The volume takes it for the server's write, who may keep the bits."""
    (mount.sysroot / "f").write_text("content")
    (mount.sysroot / "f").chmod(0o6755)
    with opened(mount.point / "f", os.O_WRONLY) as fd:
        in_child(lambda: os.pwrite(fd, b"x", 0), uid=1000, gid=1000)
        assert stat.S_IMODE(os.fstat(fd).st_mode) == 0o755
    assert stat.S_IMODE((mount.sysroot / "f").stat().st_mode) == 0o755


def test_set_id_given_while_it_is_open(mount: Mount) -> None:
    """Bits that came after the file was opened go with the next write of a user's."""
    (mount.sysroot / "f").write_text("content")
    (mount.sysroot / "f").chmod(0o666)
    path = mount.point / "f"
    ready, go = os.pipe()

    def write() -> int:
        with opened(path, os.O_WRONLY) as fd:
            os.pwrite(fd, b"x", 0)
            os.read(ready, 1)
            os.pwrite(fd, b"x", 0)
            return stat.S_IMODE(os.fstat(fd).st_mode)

    writer: Child = start_child(write, uid=1000, gid=1000)
    wait_until(lambda: (mount.sysroot / "f").read_text() == "xontent")
    os.chmod(path, 0o6777)
    os.write(go, b"x")
    assert writer.result() == 0o777
    assert stat.S_IMODE((mount.sysroot / "f").stat().st_mode) == 0o777
    os.close(ready)
    os.close(go)


def test_the_end_of_direct_writing(mount: Mount) -> None:
    """Who takes O_DIRECT away from an open file, as dd does for the last piece, writes on."""
    path = mount.point / "f"
    path.touch()
    with mmap.mmap(-1, _PAGE) as block, opened(path, os.O_WRONLY | os.O_DIRECT) as fd:
        block[:] = b"x" * _PAGE
        assert os.write(fd, block) == _PAGE
        fcntl.fcntl(fd, fcntl.F_SETFL, fcntl.fcntl(fd, fcntl.F_GETFL) & ~os.O_DIRECT)
        assert os.write(fd, b"odd") == 3
        with opened(path, os.O_RDONLY) as reader:
            assert os.pread(reader, 3, _PAGE) == b"odd"
    assert (mount.sysroot / "f").read_bytes() == b"x" * _PAGE + b"odd"


# --- what may not be written --------------------------------------------------------------------


def made_writable(fd: int) -> int:
    """The errno of mprotect(2) on a map of *fd* that is shared and was made to be read."""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.mmap.restype = ctypes.c_void_p
    address = libc.mmap(None, ctypes.c_size_t(_PAGE), mmap.PROT_READ, mmap.MAP_SHARED, fd, 0)
    size = ctypes.c_size_t(_PAGE)
    failed = libc.mprotect(ctypes.c_void_p(address), size, mmap.PROT_READ | mmap.PROT_WRITE)
    code = ctypes.get_errno() if failed else 0
    libc.munmap(ctypes.c_void_p(address), size)
    return code


def test_a_host_that_is_only_read(mounted: Mounter) -> None:
    """EROFS when it is opened to be written; a map of it cannot be written to."""
    mount = mounted("opens=passthrough", "host_writes=ro")
    (mount.host / "f").write_text("content")
    path = mount.point / "f"
    for flags in (os.O_WRONLY, os.O_RDWR, os.O_RDWR | os.O_APPEND, os.O_WRONLY | os.O_TRUNC):
        assert code_of(os.open, path, flags) == errno.EROFS
    with requests(mount) as made, opened(path, os.O_RDONLY) as fd:
        with mmap.mmap(fd, 0, mmap.MAP_SHARED, mmap.PROT_READ) as memory:
            assert memory[:] == os.read(fd, 100) == b"content"
        assert made_writable(fd) == errno.EACCES
        assert code_of(os.pwrite, fd, b"x", 0) == errno.EBADF
    assert made["read"] == 0
    assert (mount.host / "f").read_text() == "content"


def test_a_full_volume(mounted: Mounter, workplace: Path) -> None:
    """ENOSPC comes with the write, and what fitted is there."""
    small = workplace / "small"
    small.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", small], check=True)
    try:
        mount = mounted("opens=passthrough", sysroot=small)
        with opened(mount.point / "f", os.O_WRONLY | os.O_CREAT) as fd:
            done = os.pwrite(fd, bytes(1 << 20), 0)
            assert 0 < done <= 1 << 16
            assert code_of(os.pwrite, fd, b"x", done) == errno.ENOSPC
            assert os.fstat(fd).st_size == done == (small / "f").stat().st_size
        mount.stop()
    finally:
        subprocess.run(["umount", "-l", small], check=True)


# --- where it cannot be -------------------------------------------------------------------------


def used(path: Path) -> bytes:
    """Write a file that is new, and read it in two ways."""
    with opened(path, os.O_RDWR | os.O_CREAT) as fd, opened(path, os.O_RDONLY) as other:
        os.pwrite(fd, b"content", 0)
        with mmap.mmap(fd, 0) as memory:
            memory[0:1] = b"C"
            return os.pread(other, 10, 0)


def test_a_volume_that_is_served_by_somebody(mounted: Mounter, volumes: Volumes) -> None:
    """Files on it go through the cache, with one line in the log; the others are lent."""
    volume = volumes["caseless"]
    mount = mounted("opens=passthrough", sysroot=volume.path)
    (mount.host / "there").mkdir()
    with requests(mount) as made:
        for name in ("a", "b"):
            assert used(mount.point / name) == b"Content"
    assert made["write"] > 0
    with requests(mount) as made:
        assert used(mount.point / "there/c") == b"Content"
    assert made["write"] == made["read"] == 0
    assert mount.log.read_text().count(_OFF) == 1
    mount.stop()


def test_a_stack(mounted: Mounter, workplace: Path) -> None:
    """The kernel takes no files of an overlay: they go through the cache."""
    base = workplace / "base"
    base.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "tmpfs", base], check=True)
    lower, upper, work, top = (base / name for name in ("lower", "upper", "work", "top"))
    for directory in (lower, upper, work, top):
        directory.mkdir()
    ways = f"lowerdir={lower},upperdir={upper},workdir={work}"
    subprocess.run(["mount", "-t", "overlay", "-o", ways, "overlay", top], check=True)
    try:
        mount = mounted("opens=passthrough", sysroot=top)
        for name in ("a", "b"):
            assert used(mount.point / name) == b"Content"
        assert mount.log.read_text().count(_OFF) == 1
        mount.stop()
    finally:
        subprocess.run(["umount", "-l", top], check=True)
        subprocess.run(["umount", "-l", base], check=True)


def test_a_kernel_that_takes_no_files(
    tmp_path: Path, door: str, caplog: pytest.LogCaptureFixture
) -> None:
    """It is asked once, and the log has one line."""
    for name in ("a", "b"):
        (tmp_path / name).write_text("content")
    tree = Tree(TreeConfig(sysroot=bytes(tmp_path), host=None))
    reader, writer = os.pipe()
    with caplog.at_level(logging.WARNING):
        lent = Passthrough(reader)
        for one in (b"a", b"b"):
            entry = lookup.lookup(tree, ROOT_ID, one, Caller(0, 0, 0))
            assert isinstance(entry, Entry)
            handle = files.open_file(tree, entry.inode.id, os.O_RDONLY)
            assert lent.opened(handle, maps=True) is None
            lent.closed(handle)
    assert len(caplog.messages) == 1 and _OFF in caplog.text
    os.close(reader)
    os.close(writer)
    tree.close()


# --- what it costs ------------------------------------------------------------------------------


def test_data_costs_nothing(mount: Mount) -> None:
    """4 KiB written or read are no request, and no attribute is asked for before."""
    (mount.sysroot / "f").write_bytes(bytes(_PAGE))
    with opened(mount.point / "f", os.O_RDWR) as fd:
        os.pwrite(fd, bytes(_PAGE), 0)
        with requests(mount) as made:
            for number in range(20):
                os.pwrite(fd, bytes(_PAGE), number * _PAGE)
                assert len(os.pread(fd, _PAGE, number * _PAGE)) == _PAGE
    assert not made


def test_an_open_and_its_close(mount: Mount) -> None:
    """Of a file that is known they are OPEN and RELEASE."""
    (mount.sysroot / "f").write_text("content")
    path = mount.point / "f"
    os.close(os.open(path, os.O_RDONLY))
    with requests(mount) as made:
        for _ in range(5):
            os.close(os.open(path, os.O_RDWR))
    assert made == {"open": 5}
    wait_until(lambda: counted(mount)["release"] == 6)
