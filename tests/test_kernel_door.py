"""What only the kernel door can do; all that both doors do is tested through both elsewhere."""

from __future__ import annotations

import errno
import fcntl
import functools
import itertools
import mmap
import os
import stat
import struct
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from sidecar import identity, linux
from sysroot_fs.tree.attributes import FS_CASEFOLD_FL, FS_IOC_GETFLAGS, FS_IOC_SETFLAGS
from tests.children import code_of, in_child
from tests.mounts import Mount, Mounter
from tests.waiting import wait_until

_PUNCH_HOLE = 0x02
_KEEP_SIZE = 0x01
_NODUMP = 0x40
_FICLONE = 0x40049409
_BIG = 1 << 20


pytestmark = pytest.mark.parametrize("door", ["kernel"], indirect=True)


@pytest.fixture(params=["auto", "passthrough"])
def mount(request: pytest.FixtureRequest, mounted: Mounter) -> Mount:
    """A mount on a plain volume, whose files are opened in each way."""
    return mounted(f"opens={request.param}")


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


def test_what_waits_in_a_map_is_no_hole(place: Path) -> None:
    """What was just written through a map is data for whoever copies the file by its holes."""
    with open(place / "f", "w+b") as file:
        os.ftruncate(file.fileno(), _BIG)
        with mmap.mmap(file.fileno(), _BIG) as written:
            for start in (100_000, 500_000, 900_000):
                written[start : start + 10] = b"0123456789"
            parts = list(data_in(file.fileno(), _BIG))
            assert [part for part in parts if part.start <= 500_000 and part.stop >= 500_010]
            assert sum(map(len, parts)) < _BIG
            with open(place / "copy", "wb") as copy:
                for part in parts:
                    os.pwrite(
                        copy.fileno(), os.pread(file.fileno(), len(part), part.start), part.start
                    )
                os.ftruncate(copy.fileno(), _BIG)
            assert (place / "copy").read_bytes() == written[:]
            written[700_000:700_010] = b"0123456789"
            hole = os.lseek(file.fileno(), 500_000, os.SEEK_HOLE)
            assert hole <= 700_000 and os.lseek(file.fileno(), hole, os.SEEK_DATA) <= 700_000


def data_in(fd: int, size: int) -> Iterator[range]:
    """The parts of a file that hold data."""
    stop = 0
    while stop < size:
        try:
            start = os.lseek(fd, stop, os.SEEK_DATA)
        except OSError as failure:
            assert failure.errno == errno.ENXIO
            return
        stop = os.lseek(fd, start, os.SEEK_HOLE)
        yield range(start, stop)


def test_a_file_that_was_replaced_is_stale_once(mounted: Mounter) -> None:
    """Nobody tells of the change, and the kernel opens what it knows: the next open is right."""
    mount = mounted("coherence=exclusive")
    (mount.sysroot / "f").write_text("old")
    os.stat(mount.point / "f")
    (mount.sysroot / "other").write_text("new")
    os.replace(mount.sysroot / "other", mount.sysroot / "f")
    assert code_of((mount.point / "f").read_text) == errno.ESTALE
    wait_until(lambda: code_of((mount.point / "f").read_text) == 0)
    assert (mount.point / "f").read_text() == "new"


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


def test_clones(place: Path, workplace: Path) -> None:
    """The kernel has no FICLONE for FUSE, in a mount or out of it: cp(1) copies."""
    (place / "from").write_text("content")
    for target, code in ((place / "to", errno.EOPNOTSUPP), (workplace / "to", errno.EXDEV)):
        with open(place / "from", "rb") as source, open(target, "wb") as copy:
            assert code_of(fcntl.ioctl, copy, _FICLONE, source.fileno()) == code
    subprocess.run(["cp", "--reflink=auto", place / "from", place / "to"], check=True)
    assert (place / "to").read_text() == "content"


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


def written(path: Path) -> None:
    """A write into a file that is there."""
    with open(path, "r+b") as file:
        file.write(b"y")


def shortened(path: Path) -> None:
    """A truncation by name."""
    os.truncate(path, 1)


def opened_anew(path: Path) -> None:
    """A truncation by open(2)."""
    os.close(os.open(path, os.O_WRONLY | os.O_TRUNC))


def allocated(path: Path) -> None:
    """Space added to a file."""
    with open(path, "r+b") as file:
        linux.fallocate(file.fileno(), 0, 0, 4096)


def copied_to(path: Path) -> None:
    """A copy that the volume makes."""
    with open(path, "r+b") as file:
        assert os.copy_file_range(file.fileno(), file.fileno(), 1, 0, 100) == 1


@pytest.mark.parametrize("act", [written, shortened, opened_anew, allocated, copied_to])
@pytest.mark.parametrize(("uid", "kept"), [(0, 0o6777), (1000, 0o777)])
def test_changes_take_set_id_away(
    mount: Mount, act: Callable[[Path], None], uid: int, kept: int
) -> None:
    """A user's change of the content clears the bits at once, root's does not."""
    below = mount.sysroot / "f"
    below.write_text("content")
    below.chmod(0o6777)
    os.stat(mount.point / "f")

    def change() -> int:
        act(mount.point / "f")
        return stat.S_IMODE(os.stat(mount.point / "f").st_mode)

    assert in_child(change, uid=uid, gid=uid) == kept
    assert stat.S_IMODE(below.stat().st_mode) == kept


def test_a_change_of_owner_that_is_none(mount: Mount) -> None:
    """It clears set-id bits too, as on a plain volume."""
    (mount.sysroot / "f").write_text("x")
    (mount.sysroot / "f").chmod(0o6755)
    os.chown(mount.point / "f", -1, -1)
    assert stat.S_IMODE(os.stat(mount.point / "f").st_mode) == 0o755


# --- what the kernel remembers ------------------------------------------------------------------


def test_listing_leaves_the_host_alone(mounted: Mounter) -> None:
    """To list a directory nothing is tried out in it, least of all where nothing may be written."""
    mount = mounted("host_writes=ro")
    directory = mount.host / "d"
    directory.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "tmpfs", directory], check=True)
    try:
        (directory / "f").touch()
        os.utime(directory, (1e9, 1e9))
        before = directory.stat()
        assert os.listdir(mount.point / "d") == ["f"]
        after = directory.stat()
        assert (after.st_mtime_ns, after.st_ctime_ns) == (before.st_mtime_ns, before.st_ctime_ns)
    finally:
        subprocess.run(["umount", "-l", directory], check=True)


def test_times_that_are_set_back(mount: Mount) -> None:
    """A name that came behind the mount is listed although the directory looks as before."""
    below = mount.sysroot / "d"
    below.mkdir()
    (below / "a").touch()
    os.utime(below, (1e9, 1e9))
    time.sleep(1.2)
    for _ in range(2):
        assert os.listdir(mount.point / "d") == ["a"]
    (below / "b").touch()
    os.utime(below, (1e9, 1e9))
    wait_until(lambda: sorted(os.listdir(mount.point / "d")) == ["a", "b"])


def _leads_to(link: Path, target: str) -> bool:
    return os.readlink(link) == target


def test_a_symlink_that_was_replaced(mount: Mount) -> None:
    """Its target is the new one's within a second, also where it has got the old one's number."""
    for number in range(5):
        link = mount.sysroot / f"l{number}"
        link.symlink_to("old")
        assert os.readlink(mount.point / link.name) == "old"
        link.unlink()
        link.symlink_to("new")
    for number in range(5):
        wait_until(functools.partial(_leads_to, mount.point / f"l{number}", "new"))


# --- files that nobody opened -------------------------------------------------------------------


def test_many_files_with_few_descriptors(mounted: Mounter) -> None:
    """Reading more files than the server may open works, and those that are open stay readable."""
    mount = mounted(descriptors=256)
    for number in range(400):
        (mount.sysroot / f"f{number}").write_text(str(number))
    held = [os.open(mount.point / f"f{number}", os.O_RDWR) for number in range(400)]
    try:
        for number in range(40):
            os.unlink(mount.point / f"f{number}")
        for number, fd in enumerate(held):
            assert os.pread(fd, 10, 0) == str(number).encode()
            assert os.pwrite(fd, b"new", 0) == 3
    finally:
        for fd in held:
            os.close(fd)


def test_no_descriptor_is_left(mounted: Mounter) -> None:
    """Where removed files hold what there is, others are used by descriptors of one request."""
    mount = mounted(descriptors=256)
    paths = [mount.point / str(number) for number in range(400)]
    held = [os.open(path, os.O_RDWR | os.O_CREAT) for path in paths]
    try:
        for fd in held:
            os.pwrite(fd, b"old", 0)
        codes = [code_of(os.unlink, path) for path in paths]
        assert set(codes) == {0, errno.ENFILE}
        for fd, other in itertools.pairwise(held):
            assert os.lseek(fd, 0, os.SEEK_DATA) == 0
            os.posix_fallocate(fd, 0, 100)
            assert os.copy_file_range(other, fd, 3, 0, 10) == 3
            assert os.pread(fd, 3, 10) == b"old"
        assert mount.descriptors() < 240
    finally:
        for fd in held:
            os.close(fd)


def test_opens_are_not_skipped_without_rights(mount: Mount) -> None:
    """A server that may not override modes has to open when the guest does."""
    assert identity.overrides_permissions()
    assert not in_child(identity.overrides_permissions, uid=1000, gid=1000)


def test_an_open_file_under_another_name(mounted: Mounter) -> None:
    """A file whose first name was removed is read by its descriptor, whatever else was opened."""
    mount = mounted(descriptors=128)
    (mount.sysroot / "one").write_text("content")
    os.link(mount.sysroot / "one", mount.sysroot / "two")
    for number in range(300):
        (mount.sysroot / f"d{number}").mkdir()
    fd = os.open(mount.point / "one", os.O_RDONLY)
    os.unlink(mount.point / "one")
    for number in range(300):
        os.listdir(mount.point / f"d{number}")
    assert os.pread(fd, 10, 0) == b"content"
    os.close(fd)


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
