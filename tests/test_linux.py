"""The system calls for real: results and errno."""

from __future__ import annotations

import ctypes
import errno
import os
import stat
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from sidecar import linux

root_only = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")


@pytest.fixture
def dirfd(tmp_path: Path) -> Iterator[int]:
    fd = os.open(tmp_path, os.O_PATH | os.O_DIRECTORY)
    yield fd
    os.close(fd)


def assert_same(mine: linux.Stat, theirs: os.stat_result) -> None:
    assert (
        mine.mode,
        mine.nlink,
        mine.uid,
        mine.gid,
        mine.rdev,
        mine.dev,
        mine.ino,
        mine.size,
        mine.blocks,
        mine.blksize,
        mine.atime_ns,
        mine.mtime_ns,
        mine.ctime_ns,
    ) == (
        theirs.st_mode,
        theirs.st_nlink,
        theirs.st_uid,
        theirs.st_gid,
        theirs.st_rdev,
        theirs.st_dev,
        theirs.st_ino,
        theirs.st_size,
        theirs.st_blocks,
        theirs.st_blksize,
        theirs.st_atime_ns,
        theirs.st_mtime_ns,
        theirs.st_ctime_ns,
    )


# --- openat2 --------------------------------------------------------------------------


def test_openat2_opens_and_creates(dirfd: int) -> None:
    """A file is created with the mode asked for, and its descriptor is not inherited."""
    old = os.umask(0)
    try:
        fd = linux.openat2(dirfd, b"new", os.O_CREAT | os.O_EXCL | os.O_RDWR, mode=0o640)
    finally:
        os.umask(old)
    try:
        assert stat.S_IMODE(os.fstat(fd).st_mode) == 0o640
        assert not os.get_inheritable(fd)
    finally:
        os.close(fd)


@pytest.mark.parametrize(
    ("path", "resolve", "code"),
    [
        (b"missing", 0, errno.ENOENT),
        (b"link", linux.RESOLVE_NO_SYMLINKS, errno.ELOOP),
        (b"link", linux.RESOLVE_BENEATH, errno.EXDEV),
        (b"..", linux.RESOLVE_BENEATH, errno.EXDEV),
        (b"link", 1 << 40, errno.EINVAL),
    ],
)
def test_openat2_errors(tmp_path: Path, dirfd: int, path: bytes, resolve: int, code: int) -> None:
    """The kernel's errno comes out as OSError with the path."""
    (tmp_path / "link").symlink_to("/etc")
    with pytest.raises(OSError) as caught:
        linux.openat2(dirfd, path, os.O_PATH, resolve=resolve)
    assert (caught.value.errno, caught.value.filename) == (code, path)
    assert caught.value.strerror == os.strerror(code)


def test_errors_have_their_subclass(dirfd: int) -> None:
    """`except FileNotFoundError` works as it does for os."""
    with pytest.raises(FileNotFoundError):
        linux.openat2(dirfd, b"missing", os.O_PATH)
    with pytest.raises(FileNotFoundError):
        linux.statx(dirfd, b"missing")


def test_openat2_in_root(tmp_path: Path, dirfd: int) -> None:
    """RESOLVE_IN_ROOT keeps an absolute symlink inside the directory."""
    (tmp_path / "etc").mkdir()
    (tmp_path / "link").symlink_to("/etc")
    fd = linux.openat2(dirfd, b"link", os.O_PATH, resolve=linux.RESOLVE_IN_ROOT)
    try:
        assert os.fstat(fd).st_ino == (tmp_path / "etc").stat().st_ino
    finally:
        os.close(fd)


@pytest.mark.parametrize(("resolve", "patient"), [(linux.RESOLVE_IN_ROOT, True), (0, False)])
def test_openat2_outlasts_renames_elsewhere(
    tmp_path: Path, dirfd: int, monkeypatch: pytest.MonkeyPatch, resolve: int, patient: bool
) -> None:
    """A machine that is busy renaming makes the kernel give up dozens of times: not the caller."""
    (tmp_path / "a").mkdir()
    real = linux._syscall
    refused: list[tuple[object, ...]] = []

    def busy(*arguments: object) -> int:
        if len(refused) < 60:
            refused.append(arguments)
            ctypes.set_errno(errno.EAGAIN)
            return -1
        return int(real(*arguments))

    monkeypatch.setattr(linux, "_syscall", busy)
    if patient:
        os.close(linux.openat2(dirfd, b"a/..", os.O_PATH, resolve=resolve))
    else:
        with pytest.raises(BlockingIOError):
            linux.openat2(dirfd, b"a/..", os.O_PATH, resolve=resolve)


def test_a_nul_never_shortens_a_name(dirfd: int) -> None:
    """A name with a NUL is refused before C can read a shorter one."""
    for call in (
        lambda: linux.statx(dirfd, b"a\0b"),
        lambda: linux.openat2(dirfd, b"a\0b", 0),
        lambda: linux.renameat2(dirfd, b"a\0b", dirfd, b"c"),
        lambda: linux.renameat2(dirfd, b"a", dirfd, b"c\0"),
        lambda: linux.utimens(b"a\0b", 0, 0, dirfd),
        lambda: linux.umount(b"/a\0b"),
    ):
        with pytest.raises(ValueError, match="null byte"):
            call()


# --- renameat2 ------------------------------------------------------------------------


def test_rename_exchange(tmp_path: Path, dirfd: int) -> None:
    """RENAME_EXCHANGE swaps two entries in one step."""
    (tmp_path / "a").write_text("1")
    (tmp_path / "b").write_text("2")
    linux.renameat2(dirfd, b"a", dirfd, b"b", linux.RENAME_EXCHANGE)
    assert ((tmp_path / "a").read_text(), (tmp_path / "b").read_text()) == ("2", "1")


def test_rename_noreplace(tmp_path: Path, dirfd: int) -> None:
    """RENAME_NOREPLACE refuses with EEXIST, naming both sides, and changes nothing."""
    (tmp_path / "a").write_text("1")
    (tmp_path / "b").write_text("2")
    with pytest.raises(FileExistsError) as caught:
        linux.renameat2(dirfd, b"a", dirfd, b"b", linux.RENAME_NOREPLACE)
    assert (caught.value.filename, caught.value.filename2) == (b"a", b"b")
    assert (tmp_path / "b").read_text() == "2"
    linux.renameat2(dirfd, b"a", dirfd, b"b")
    assert (tmp_path / "b").read_text() == "1"


# --- statx ----------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["/", "/etc/passwd", "/dev/null", "/proc/self", "/proc", "/dev"])
def test_statx_equals_stat(path: str) -> None:
    """Every number is the one that os.lstat gives."""
    assert_same(linux.statx(linux.AT_FDCWD, path.encode()), os.lstat(path))


def test_statx_flags(tmp_path: Path, dirfd: int) -> None:
    """Symlinks are not followed unless asked; an empty path means the descriptor itself."""
    (tmp_path / "link").symlink_to("target")
    (tmp_path / "target").write_bytes(b"x" * 5000)
    assert_same(linux.statx(dirfd, b"link"), (tmp_path / "link").lstat())
    assert_same(linux.statx(dirfd, b"link", 0), (tmp_path / "target").stat())
    assert_same(linux.statx(dirfd, b"", linux.AT_EMPTY_PATH), tmp_path.stat())
    fd = os.open(tmp_path / "link", os.O_PATH | os.O_NOFOLLOW)
    try:
        assert_same(linux.statx(fd, b"", linux.AT_EMPTY_PATH), (tmp_path / "link").lstat())
    finally:
        os.close(fd)


def test_statx_negative_and_far_times(tmp_path: Path, dirfd: int) -> None:
    """Times before the epoch and beyond 2038 keep their nanoseconds."""
    (tmp_path / "f").touch()
    for when in (-1, -1_000_000_001, 0, 4_000_000_000_123_456_789):
        linux.utimens(b"f", when, when, dirfd)
        found = linux.statx(dirfd, b"f")
        assert (found.atime_ns, found.mtime_ns) == (when, when)
        assert_same(found, (tmp_path / "f").lstat())


def test_statx_birth_time(tmp_path: Path, dirfd: int) -> None:
    """Where there is a birth time it is not after the last change; /proc has none."""
    (tmp_path / "f").touch()
    found = linux.statx(dirfd, b"f")
    assert found.btime_ns is None or 0 < found.btime_ns <= found.ctime_ns
    assert linux.statx(linux.AT_FDCWD, b"/proc/self").btime_ns is None


def test_statx_mounts() -> None:
    """A mount's root says so and carries the id that mountinfo lists."""
    proc = linux.statx(linux.AT_FDCWD, b"/proc")
    assert proc.mount_root
    inside = linux.statx(linux.AT_FDCWD, b"/proc/version")
    assert not inside.mount_root
    assert inside.mount_id == proc.mount_id
    found = linux.mount_type(proc.mount_id)
    assert found is not None
    assert found[0] == "proc"


def test_statx_from_many_threads(tmp_path: Path, dirfd: int) -> None:
    """Threads that ask at once never see one another's answer."""
    sizes = {b"%d" % n: n for n in range(8)}
    for name, size in sizes.items():
        (tmp_path / os.fsdecode(name)).write_bytes(b"x" * size)
    torn: list[object] = []

    def look(name: bytes) -> None:
        torn.extend(1 for _ in range(3000) if linux.statx(dirfd, name).size != sizes[name])

    threads = [threading.Thread(target=look, args=(name,)) for name in sizes]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not torn


# --- times ----------------------------------------------------------------------------


def test_utimens_omits(tmp_path: Path, dirfd: int) -> None:
    """None leaves that time alone."""
    file = tmp_path / "f"
    file.touch()
    linux.utimens(b"f", 11_000_000_001, 22_000_000_002, dirfd)
    linux.utimens(b"f", None, 33_000_000_003, dirfd)
    assert (file.stat().st_atime_ns, file.stat().st_mtime_ns) == (11_000_000_001, 33_000_000_003)
    linux.utimens(b"f", -5, None, dirfd)
    assert (file.stat().st_atime_ns, file.stat().st_mtime_ns) == (-5, 33_000_000_003)
    before = file.stat()
    linux.utimens(b"f", None, None, dirfd)
    assert file.stat().st_mtime_ns == before.st_mtime_ns


def test_utimens_on_links_and_descriptors(tmp_path: Path, dirfd: int) -> None:
    """A symlink's own times can be set, and those of an O_PATH descriptor."""
    (tmp_path / "target").touch()
    (tmp_path / "link").symlink_to("target")
    linux.utimens(b"link", 1, 2, dirfd, follow=False)
    assert (tmp_path / "link").lstat().st_mtime_ns == 2
    linux.utimens(b"link", 3, 4, dirfd)
    assert (tmp_path / "target").stat().st_mtime_ns == 4
    fd = os.open(tmp_path / "link", os.O_PATH | os.O_NOFOLLOW)
    try:
        linux.utimens(b"", 5, 6, fd)
    finally:
        os.close(fd)
    assert (tmp_path / "link").lstat().st_mtime_ns == 6


def test_utimens_error(dirfd: int) -> None:
    """A missing file is ENOENT."""
    with pytest.raises(FileNotFoundError):
        linux.utimens(b"missing", 0, 0, dirfd)


# --- descriptors, mounts, locks -------------------------------------------------------


def test_fd_path(tmp_path: Path, dirfd: int) -> None:
    """The magic link leads to what is open."""
    assert os.readlink(linux.fd_path(dirfd)) == os.fsencode(tmp_path)


def test_mount_type_of_no_mount() -> None:
    """An id that no mount has is None."""
    assert linux.mount_type(0x7FFFFFFF) is None


@root_only
def test_umount(tmp_path: Path) -> None:
    """Busy is EBUSY, lazy takes it away all the same, and a source with a space is unescaped."""
    mountpoint = os.fsencode(tmp_path)
    subprocess.run(["mount", "-t", "tmpfs", "a b\\c", tmp_path], check=True)
    here = linux.statx(linux.AT_FDCWD, mountpoint)
    assert linux.mount_type(here.mount_id) == ("tmpfs", "a b\\c")
    fd = os.open(tmp_path, os.O_RDONLY)
    try:
        with pytest.raises(OSError) as caught:
            linux.umount(mountpoint)
        assert caught.value.errno == errno.EBUSY
        linux.umount(mountpoint, lazy=True)
    finally:
        os.close(fd)
    assert not linux.statx(linux.AT_FDCWD, mountpoint).mount_root
    with pytest.raises(OSError) as caught:
        linux.umount(mountpoint)
    assert caught.value.errno == errno.EINVAL


def test_lock_excludes_and_gives_up(tmp_path: Path) -> None:
    """A second opener waits no longer than it said and then gets EBUSY."""
    one = os.open(tmp_path / "lock", os.O_CREAT | os.O_RDWR)
    two = os.open(tmp_path / "lock", os.O_RDWR)
    try:
        with linux.same_file_lock(one, 0):
            start = time.monotonic()
            with pytest.raises(OSError) as caught, linux.same_file_lock(two, 0.05):
                pytest.fail("locked twice")
            assert caught.value.errno == errno.EBUSY
            assert 0.04 < time.monotonic() - start < 2
        with linux.same_file_lock(two, 0):
            pass
    finally:
        os.close(one)
        os.close(two)


def test_lock_that_cannot_be_let_go(tmp_path: Path) -> None:
    """What was done under it has been done: closing the file lets go of it."""
    fd = os.open(tmp_path / "lock", os.O_CREAT | os.O_RDWR)
    with linux.same_file_lock(fd, 0):
        os.close(fd)
    with pytest.raises(OSError):
        linux.same_file_lock(fd, 0).__enter__()


def test_lock_waits(tmp_path: Path) -> None:
    """A lock that is released in time is taken."""
    one = os.open(tmp_path / "lock", os.O_CREAT | os.O_RDWR)
    two = os.open(tmp_path / "lock", os.O_RDWR)
    try:
        held = linux.same_file_lock(one, 0)
        held.__enter__()
        timer = threading.Timer(0.05, held.__exit__, (None, None, None))
        timer.start()
        with linux.same_file_lock(two, 5):
            pass
        timer.join()
    finally:
        os.close(one)
        os.close(two)
