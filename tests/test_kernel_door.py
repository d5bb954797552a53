"""What only the kernel door can do; all that both doors do is tested through both elsewhere."""

from __future__ import annotations

import errno
import fcntl
import functools
import os
import stat
import struct
import subprocess
from pathlib import Path

import pytest

from sidecar import linux
from sysroot_fs.tree.attributes import FS_CASEFOLD_FL, FS_IOC_GETFLAGS, FS_IOC_SETFLAGS
from tests.children import code_of, in_child
from tests.mounts import Mount, Mounter
from tests.runs import wait_until

_PUNCH_HOLE = 0x02
_KEEP_SIZE = 0x01
_NODUMP = 0x40
_BIG = 1 << 20


pytestmark = pytest.mark.parametrize("door", ["kernel"], indirect=True)


@pytest.fixture
def mount(mounted: Mounter) -> Mount:
    """A mount on a plain volume."""
    return mounted()


@pytest.fixture(params=["sysroot", "host"])
def place(request: pytest.FixtureRequest, mount: Mount) -> Path:
    """A directory in either layer, seen through the mount."""
    layer = mount.sysroot if request.param == "sysroot" else mount.host
    (layer / "place").mkdir()
    return mount.point / "place"


def test_space_is_allocated_and_given_back(place: Path) -> None:
    """fallocate(2) reaches the volume: blocks appear, a hole takes them away, the size stays."""
    with open(place / "f", "wb") as file:
        linux.fallocate(file.fileno(), 0, 0, _BIG)
        assert os.fstat(file.fileno()).st_size == _BIG
        full = os.stat(place / "f").st_blocks
        linux.fallocate(file.fileno(), _PUNCH_HOLE | _KEEP_SIZE, 0, _BIG // 2)
    after = os.stat(place / "f")
    assert after.st_size == _BIG and full * 512 >= _BIG
    assert after.st_blocks <= full * 5 // 8


def test_holes_are_seen(place: Path) -> None:
    """SEEK_DATA and SEEK_HOLE say where the file has something."""
    with open(place / "f", "wb") as file:
        os.ftruncate(file.fileno(), _BIG)
        os.pwrite(file.fileno(), b"x" * 4096, 64 * 4096)
        os.fsync(file.fileno())
        assert os.lseek(file.fileno(), 0, os.SEEK_DATA) == 64 * 4096
        assert os.lseek(file.fileno(), 64 * 4096, os.SEEK_HOLE) == 65 * 4096
        with pytest.raises(OSError) as failed:
            os.lseek(file.fileno(), 65 * 4096, os.SEEK_DATA)
    assert failed.value.errno == errno.ENXIO


def test_a_file_without_a_name(place: Path) -> None:
    """O_TMPFILE makes a file that nobody sees, and a link gives it a name."""
    fd = os.open(place, os.O_TMPFILE | os.O_RDWR, 0o640)
    try:
        assert os.listdir(place) == [] and os.fstat(fd).st_nlink == 0
        os.write(fd, b"kept")
        assert stat.S_IMODE(os.fstat(fd).st_mode) == 0o640
        directory = os.open(place, os.O_RDONLY | os.O_DIRECTORY)
        # Without a directory's descriptor it would be link(2), which does not follow.
        os.link(f"/proc/self/fd/{fd}", "named", dst_dir_fd=directory, follow_symlinks=True)
        os.close(directory)
        assert os.fstat(fd).st_nlink == 1
    finally:
        os.close(fd)
    assert (place / "named").read_text() == "kept"


def test_a_file_without_a_name_belongs_to_its_maker(mount: Mount) -> None:
    """The caller owns it, and goes without it when he may not write there."""
    (mount.sysroot / "open").mkdir()
    (mount.sysroot / "open").chmod(0o777)
    (mount.sysroot / "shut").mkdir()

    def make(where: Path) -> tuple[int, int]:
        fd = os.open(where, os.O_TMPFILE | os.O_RDWR, 0o600)
        try:
            return os.fstat(fd).st_uid, os.fstat(fd).st_gid
        finally:
            os.close(fd)

    assert in_child(lambda: make(mount.point / "open"), uid=1000, gid=1000) == (1000, 1000)
    shut = mount.point / "shut"
    assert in_child(lambda: code_of(make, shut), uid=1000, gid=1000) == errno.EACCES


def test_copies_stay_below(place: Path) -> None:
    """copy_file_range copies the bytes and says how many."""
    (place / "from").write_bytes(bytes(range(256)) * 64)
    with open(place / "from", "rb") as source, open(place / "to", "wb") as target:
        done = os.copy_file_range(source.fileno(), target.fileno(), 1 << 20, 256, 0)
        assert done == 63 * 256
    assert (place / "to").read_bytes() == bytes(range(256)) * 63


def test_the_time_of_birth(mount: Mount, place: Path) -> None:
    """statx(2) gives the volume's, and every other field as stat(2) has it."""
    (place / "f").write_text("x")
    seen = linux.statx(linux.AT_FDCWD, os.fsencode(place / "f"))
    layer = mount.sysroot if (mount.sysroot / "place").exists() else mount.host
    below = linux.statx(linux.AT_FDCWD, os.fsencode(layer / "place/f"))
    assert seen.btime_ns == below.btime_ns and seen.btime_ns is not None
    assert (seen.size, seen.mode, seen.mtime_ns) == (below.size, below.mode, below.mtime_ns)


def flags_of(path: Path) -> int:
    """What lsattr(1) would show."""
    fd = os.open(path, os.O_RDONLY)
    try:
        told: int = struct.unpack("=I", fcntl.ioctl(fd, FS_IOC_GETFLAGS, bytes(4)))[0]
        return told
    finally:
        os.close(fd)


def set_flags(path: Path, flags: int) -> None:
    """What chattr(1) does."""
    fd = os.open(path, os.O_RDONLY)
    try:
        fcntl.ioctl(fd, FS_IOC_SETFLAGS, struct.pack("=I", flags))
    finally:
        os.close(fd)


def test_flags_of_inodes(place: Path) -> None:
    """lsattr and chattr work on files and directories; other ioctls are ENOTTY."""
    (place / "f").write_text("x")
    (place / "d").mkdir()
    for path in (place / "f", place / "d"):
        before = flags_of(path)
        set_flags(path, before | _NODUMP)
        assert flags_of(path) == before | _NODUMP
    fd = os.open(place / "f", os.O_RDONLY)
    try:
        assert code_of(fcntl.ioctl, fd, 0x80086603, bytes(8)) == errno.ENOTTY
    finally:
        os.close(fd)


def test_only_the_owner_sets_flags(mount: Mount) -> None:
    """Another user is refused as on a plain volume, and nobody makes a file immutable for root."""
    (mount.sysroot / "f").write_text("x")
    (mount.sysroot / "f").chmod(0o666)
    assert (
        in_child(lambda: code_of(set_flags, mount.point / "f", _NODUMP), uid=1000, gid=1000)
        == errno.EPERM
    )


def test_folding_is_told_as_it_is(mounted: Mounter) -> None:
    """A directory whose names fold has the flag that says so, whatever its volume does."""
    mount = mounted("fold=/sdk")
    (mount.sysroot / "sdk/inc").mkdir(parents=True)
    (mount.sysroot / "src").mkdir()
    assert flags_of(mount.point / "sdk") & FS_CASEFOLD_FL
    assert flags_of(mount.point / "sdk/inc") & FS_CASEFOLD_FL
    assert not flags_of(mount.point / "src") & FS_CASEFOLD_FL
    assert code_of(set_flags, mount.point / "src", FS_CASEFOLD_FL) == errno.EOPNOTSUPP


def test_each_path_has_its_own_volume_s_numbers(mount: Mount, workplace: Path) -> None:
    """`df` of a host path shows the volume that it is on."""
    small = mount.host / "small"
    small.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", small], check=True)
    try:
        assert os.statvfs(mount.point / "small").f_blocks == os.statvfs(small).f_blocks
        assert os.statvfs(mount.point).f_blocks == os.statvfs(mount.sysroot).f_blocks
    finally:
        subprocess.run(["umount", "-l", small], check=True)


def test_a_write_takes_set_id_away(mount: Mount) -> None:
    """A user's write, truncation and open with O_TRUNC clear the bits, root's do not."""

    def write(path: Path) -> None:
        with open(path, "r+b") as file:
            file.write(b"y")

    def shorten(path: Path) -> None:
        os.truncate(path, 1)

    def open_anew(path: Path) -> None:
        os.close(os.open(path, os.O_WRONLY | os.O_TRUNC))

    for number, act in enumerate((write, shorten, open_anew)):
        path = mount.point / f"f{number}"
        for uid, kept in ((0, 0o6777), (1000, 0o777)):
            (mount.sysroot / path.name).write_text("content")
            (mount.sysroot / path.name).chmod(0o6777)
            os.stat(path)
            in_child(functools.partial(act, path), uid=uid, gid=uid)
            assert stat.S_IMODE((mount.sysroot / path.name).stat().st_mode) == kept, (act, uid)


def test_an_append_after_a_removal(place: Path) -> None:
    """A file that was removed while it is open is read, written and measured as before."""
    with open(place / "f", "a+b") as file:
        file.write(b"one")
        file.flush()
        os.unlink(place / "f")
        file.write(b"two")
        file.flush()
        os.fsync(file.fileno())
        file.seek(0)
        assert file.read() == b"onetwo"
        assert os.fstat(file.fileno()).st_nlink == 0


def test_what_was_written_can_be_executed_at_once(mount: Mount) -> None:
    """The server keeps nothing open for writing that the guest has closed."""
    program = mount.point / "program"
    program.write_bytes(Path("/bin/true").read_bytes())
    program.chmod(0o755)
    subprocess.run([program], check=True)
    # Outside a descriptor that is still open for writing would be ETXTBSY.
    wait_until(lambda: code_of(subprocess.run, [mount.sysroot / "program"], check=True) == 0)


def test_read_only_host_is_refused_at_open(mounted: Mounter) -> None:
    """Where the host may not be written to, open(2) says so and not the first write."""
    mount = mounted("host_writes=ro")
    (mount.host / "f").write_text("x")
    assert code_of(os.open, mount.point / "f", os.O_WRONLY) == errno.EROFS
    assert (mount.point / "f").read_text() == "x"
