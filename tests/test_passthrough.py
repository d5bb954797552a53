"""Files that the kernel reads and writes without the server: as on a plain directory."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import logging
import mmap
import os
import resource
import signal
import stat
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import pytest

from sidecar import linux
from sidecar.twin import Caller
from sysroot_fs.fuse.kernel.passthrough import Passthrough
from sysroot_fs.tree import Entry, Tree, TreeConfig, files, lookup
from sysroot_fs.tree.inodes import ROOT_ID
from tests import caches
from tests.caseless import Volumes
from tests.children import Child, code_of, in_child, start_child
from tests.counting import counted, requests
from tests.mounts import Mount, Mounter
from tests.runs import wait_until

pytestmark = pytest.mark.parametrize("door", ["kernel"], indirect=True)

_OFF: Final = "passthrough is off"
_PAGE: Final = mmap.PAGESIZE


_OPTIONS: Final = (
    "opens=passthrough",
    "entry_timeout=1000",
    "attr_timeout=1000",
    "negative_timeout=1000",
)


@pytest.fixture(autouse=True)
def undisturbed() -> Iterator[None]:
    """What the kernel remembers is counted on."""
    with caches.kept():
        yield


@pytest.fixture
def mount(mounted: Mounter) -> Mount:
    """A mount whose files are lent to the kernel; what it remembers lasts."""
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


@contextmanager
def opened(path: Path, flags: int, mode: int = 0o644) -> Iterator[int]:
    """A descriptor of *path*."""
    fd = os.open(path, flags, mode)
    try:
        yield fd
    finally:
        os.close(fd)


# --- what programs do with files ----------------------------------------------------------------
# Each is done to a file "f" of 3 pages in a directory, and returns what can be compared.


def reads(place: Path) -> object:
    """Everywhere, and past the end."""
    with opened(place / "f", os.O_RDONLY) as fd:
        return [os.pread(fd, 10, at) for at in (0, _PAGE - 5, 3 * _PAGE - 5, 3 * _PAGE)]


def writes(place: Path) -> object:
    """In the middle and past the end; the size is there at once, for everybody."""
    with opened(place / "f", os.O_RDWR) as fd:
        done = os.pwrite(fd, b"middle", 100), os.pwrite(fd, b"end", 5 * _PAGE)
        return done, os.fstat(fd).st_size, os.stat(place / "f").st_size, os.pread(fd, 8, 98)


def appends(place: Path) -> object:
    """Two descriptors in turn, and one that is told to later."""
    append = os.O_WRONLY | os.O_APPEND
    with opened(place / "f", append) as one, opened(place / "f", append) as two:
        for fd in (one, two, one):
            os.write(fd, b"%d" % (fd == one))
        os.pwrite(one, b"not at the start", 0)
    with opened(place / "f", os.O_WRONLY) as fd:
        fcntl.fcntl(fd, fcntl.F_SETFL, os.O_APPEND)
        os.write(fd, b"last")
    return (place / "f").read_bytes()[3 * _PAGE :]


def truncates(place: Path) -> object:
    """By descriptor, by name and by open, shorter and longer."""
    sizes = []
    with opened(place / "f", os.O_RDWR) as fd:
        os.ftruncate(fd, 10)
        sizes.append((os.fstat(fd).st_size, os.pread(fd, 20, 0)))
        os.truncate(place / "f", 20)
        sizes.append((os.fstat(fd).st_size, os.pread(fd, 30, 0)))
        os.close(os.open(place / "f", os.O_WRONLY | os.O_TRUNC))
        sizes.append((os.fstat(fd).st_size, os.pread(fd, 20, 0)))
        os.pwrite(fd, b"x", 5)
    return sizes, (place / "f").read_bytes()


def goes_around_the_cache(place: Path) -> object:
    """O_DIRECT takes what is aligned, refuses what is not, and others see it."""
    with mmap.mmap(-1, _PAGE) as block, opened(place / "f", os.O_RDWR | os.O_DIRECT) as fd:
        block[:] = b"d" * _PAGE
        done = os.pwritev(fd, [block], _PAGE)
        odd = code_of(os.pwrite, fd, b"odd", 1)
        back = os.preadv(fd, [block], 0)
        return done, odd, back, block[:20], (place / "f").read_bytes()[_PAGE - 3 : _PAGE + 3]


def maps(place: Path) -> object:
    """Through a map others' writes are seen, and theirs through files; it outlives its file."""
    with opened(place / "f", os.O_RDWR) as fd:
        memory = mmap.mmap(fd, 0)
        os.pwrite(fd, b"written", 10)
        seen = memory[8:20]
        memory[_PAGE : _PAGE + 6] = b"mapped"
        read = os.pread(fd, 10, _PAGE - 2)
    memory[0:3] = b"yes"
    after = (place / "f").read_bytes()[:5]
    memory.flush()
    memory.close()
    return seen, read, after


def maps_to_read(place: Path) -> object:
    """What was opened to be read is not mapped to be written, but privately it is."""
    with opened(place / "f", os.O_RDONLY) as fd:
        refused = code_of(mmap.mmap, fd, 0, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE)
        with mmap.mmap(fd, 0, mmap.MAP_PRIVATE, mmap.PROT_READ | mmap.PROT_WRITE) as own:
            own[0:4] = b"mine"
        return refused, os.pread(fd, 4, 0)


def has_two_names(place: Path) -> object:
    """Opened under one, written under the other."""
    os.link(place / "f", place / "g")
    with opened(place / "f", os.O_RDONLY) as one, opened(place / "g", os.O_WRONLY) as two:
        os.pwrite(two, b"linked", 3 * _PAGE)
        sizes = os.fstat(one).st_size, os.stat(place / "f").st_size, os.stat(place / "g").st_size
        return sizes, os.pread(one, 6, 3 * _PAGE), os.fstat(one).st_nlink


def is_replaced(place: Path) -> object:
    """Who has it open keeps it; the name means the other."""
    (place / "other").write_text("another")
    with opened(place / "f", os.O_RDWR) as fd:
        os.rename(place / "other", place / "f")
        os.pwrite(fd, b"old", 0)
        return os.pread(fd, 5, 0), os.fstat(fd).st_nlink, (place / "f").read_bytes()


def is_removed(place: Path) -> object:
    """Who has it open reads, writes, measures, shortens, syncs and maps it."""
    with opened(place / "f", os.O_RDWR) as fd:
        os.unlink(place / "f")
        os.pwrite(fd, b"more", 3 * _PAGE)
        os.ftruncate(fd, 3 * _PAGE + 2)
        os.fsync(fd)
        with mmap.mmap(fd, 0) as memory:
            memory[0:4] = b"gone"
        return os.pread(fd, 6, 0), os.fstat(fd).st_size, os.fstat(fd).st_nlink


def has_holes(place: Path) -> object:
    """Allocated, punched, looked for, copied."""
    with opened(place / "f", os.O_RDWR) as fd:
        linux.fallocate(fd, 0, 0, 8 * _PAGE)
        linux.fallocate(fd, 0x03, 0, _PAGE)
        os.fsync(fd)
        data = os.lseek(fd, 0, os.SEEK_DATA)
        copied = os.copy_file_range(fd, fd, 100, _PAGE, 6 * _PAGE)
        return data, copied, os.fstat(fd).st_size, os.pread(fd, 10, 6 * _PAGE), os.pread(fd, 4, 0)


def is_synced(place: Path) -> object:
    """O_SYNC and the calls that wait."""
    with opened(place / "f", os.O_WRONLY | os.O_SYNC) as fd:
        done = os.write(fd, b"synced")
        os.fdatasync(fd)
        os.fsync(fd)
    return done, code_of(os.posix_fadvise, 0, 0, 0, os.POSIX_FADV_DONTNEED)


def is_sent(place: Path) -> object:
    """sendfile(2) and splice(2), out of it and into it."""
    reader, writer = os.pipe()
    with opened(place / "f", os.O_RDWR) as fd:
        out = os.sendfile(writer, fd, 5, 10), os.read(reader, 20)
        os.write(writer, b"spliced")
        into = os.splice(reader, fd, 7, offset_dst=0)
        back = os.splice(fd, writer, 7, offset_src=0), os.read(reader, 20)
    os.close(reader)
    os.close(writer)
    return out, into, back


def comes_without_a_name(place: Path) -> object:
    """O_TMPFILE, written, named, and opened once more."""
    with opened(place, os.O_TMPFILE | os.O_RDWR, 0o600) as fd:
        os.write(fd, b"nameless")
        with opened(place, os.O_RDONLY | os.O_DIRECTORY) as directory:
            os.link(f"/proc/self/fd/{fd}", "g", dst_dir_fd=directory, follow_symlinks=True)
        with opened(place / "g", os.O_WRONLY | os.O_APPEND) as again:
            os.write(again, b" no more")
        return os.pread(fd, 20, 0), os.fstat(fd).st_size


def is_executed(place: Path) -> object:
    """What was just written is run, not while it is open for writing."""
    (place / "program").write_bytes(Path("/bin/true").read_bytes())
    (place / "program").chmod(0o755)
    with opened(place / "program", os.O_WRONLY):
        busy = code_of(subprocess.run, [place / "program"], check=True)
    return busy, subprocess.run([place / "program"], check=True).returncode


def meets_its_limit(place: Path) -> object:
    """RLIMIT_FSIZE is the writer's."""

    def write() -> tuple[int, int, int]:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (4 * _PAGE, 4 * _PAGE))
        with opened(place / "f", os.O_WRONLY) as fd:
            short = os.pwrite(fd, bytes(2 * _PAGE), 3 * _PAGE)
            return short, code_of(os.pwrite, fd, b"x", 4 * _PAGE), os.fstat(fd).st_size

    return in_child(write)


def belongs_to_one_who_only_writes(place: Path) -> object:
    """Mode 0200: its owner writes it and may not read it, whoever the server is."""
    os.chown(place / "f", 1000, 1000)
    os.chmod(place / "f", 0o200)

    def use() -> tuple[object, ...]:
        with opened(place / "f", os.O_WRONLY) as fd:
            done = os.pwrite(fd, b"blind", 0)
            refused = code_of(os.pread, fd, 1, 0)
            return done, refused, code_of(os.open, place / "f", os.O_RDONLY), os.fstat(fd).st_size

    return in_child(use, uid=1000, gid=1000)


def is_made_read_only(place: Path) -> object:
    """A mode without writing, for a file that is made to be written."""

    def use() -> tuple[object, ...]:
        with opened(place / "new", os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o400) as fd:
            done = os.write(fd, b"once")
            return done, os.pread(fd, 4, 0), code_of(os.open, place / "new", os.O_WRONLY)

    os.chmod(place, 0o777)
    return in_child(use, uid=1000, gid=1000)


def is_written_by_others(place: Path) -> object:
    """A process that has it open sees what another writes, and its size."""
    with opened(place / "f", os.O_RDONLY) as fd:
        before = os.fstat(fd).st_size

        def write() -> int:
            with opened(place / "f", os.O_WRONLY | os.O_APPEND) as other:
                return os.write(other, b"by another")

        done = in_child(write)
        return before, done, os.fstat(fd).st_size, os.pread(fd, 20, before)


@pytest.mark.parametrize("layer", ["sysroot", "host"])
@pytest.mark.parametrize(
    "act",
    [
        reads,
        writes,
        appends,
        truncates,
        goes_around_the_cache,
        maps,
        maps_to_read,
        has_two_names,
        is_replaced,
        is_removed,
        has_holes,
        is_synced,
        is_sent,
        comes_without_a_name,
        is_executed,
        meets_its_limit,
        belongs_to_one_who_only_writes,
        is_made_read_only,
        is_written_by_others,
    ],
)
def test_as_on_a_plain_directory(
    shared: Mount, layer: str, act: Callable[[Path], object], workplace: Path
) -> None:
    """The same values and errnos, the same tree afterwards, and no data through the server."""
    name = f"{layer}-{act.__name__}"
    below = {"sysroot": shared.sysroot, "host": shared.host}[layer] / name
    plain = workplace / "plain"
    for place in (below, plain):
        place.mkdir()
        (place / "f").write_bytes(bytes(range(256)) * (3 * _PAGE // 256))
    expected = act(plain)
    with requests(shared) as made:
        assert act(shared.point / name) == expected
    assert made["read"] == made["write"] == 0
    for place in (below, shared.point / name):
        assert described(place) == described(plain)
    assert _OFF not in shared.log.read_text()


def described(place: Path) -> dict[str, tuple[int, int, int, bytes]]:
    """What is in a directory: mode, links, size and content of each."""
    return {
        path.name: (seen.st_mode, seen.st_nlink, seen.st_size, path.read_bytes())
        for path in place.iterdir()
        for seen in [path.stat()]
    }


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
