"""Every operation through the mount, in both layers, with Linux's results and errnos.

Each test runs three times: on a plain directory, in the sysroot and on the host behind the mount.
What holds for the plain directory is what Linux does; the mount must do the same.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import functools
import mmap
import os
import shutil
import socket
import stat
import struct
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

from sidecar import linux
from tests.children import code_of, in_child, start_child
from tests.conftest import Spot
from tests.mounts import Mounter

USER: Final = 1000
OTHER: Final = 1001


def mode_of(path: Path) -> int:
    return stat.S_IMODE(path.lstat().st_mode)


def make_exclusively(path: Path) -> None:
    os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY))


def rename_flags(old: Path, new: Path, flags: int) -> int:
    return code_of(
        linux.renameat2, linux.AT_FDCWD, os.fsencode(old), linux.AT_FDCWD, os.fsencode(new), flags
    )


@contextlib.contextmanager
def opened(path: Path, flags: int = os.O_RDWR | os.O_CREAT, mode: int = 0o666) -> Iterator[int]:
    fd = os.open(path, flags, mode)
    try:
        yield fd
    finally:
        os.close(fd)


# --- attributes -------------------------------------------------------------------------------


def test_getattr_is_what_the_volume_says(spot: Spot) -> None:
    """Mode, owner, size, blocks, links and times are the lower file's own."""
    (spot.lower / "f").write_bytes(b"x" * 5000)
    os.chown(spot.lower / "f", 12, 34)
    (spot.lower / "f").chmod(0o6751)
    os.utime(spot.lower / "f", ns=(1_234_567_891, 9_876_543_211))
    seen, below = (spot.path / "f").lstat(), (spot.lower / "f").lstat()
    for field in ("mode", "nlink", "uid", "gid", "size", "blocks", "atime_ns", "mtime_ns"):
        assert getattr(seen, f"st_{field}") == getattr(below, f"st_{field}"), field
    assert seen.st_ctime_ns == below.st_ctime_ns


def test_chmod(place: Path) -> None:
    """Every permission bit is kept, setuid, setgid and sticky too."""
    (place / "f").touch()
    for mode in (0, 0o644, 0o7777, 0o4711, 0o2755, 0o1777):
        (place / "f").chmod(mode)
        assert mode_of(place / "f") == mode


def test_chown(place: Path) -> None:
    """Owner and group change one by one, on a symlink itself too, and set-id bits go."""
    (place / "f").touch()
    (place / "f").chmod(0o6755)
    os.chown(place / "f", 12, -1)
    os.chown(place / "f", -1, 34)
    (place / "l").symlink_to("f")
    os.lchown(place / "l", 56, 78)
    seen = (place / "f").stat()
    assert (seen.st_uid, seen.st_gid, stat.S_IMODE(seen.st_mode)) == (12, 34, 0o755)
    assert ((place / "l").lstat().st_uid, (place / "l").lstat().st_gid) == (56, 78)


def test_chown_is_refused_to_others(place: Path) -> None:
    """A user cannot give files away, nor change another's mode."""
    (place / "f").touch()
    (place / "mine").touch()
    os.chown(place / "mine", USER, USER)
    refused = in_child(
        lambda: [
            code_of(os.chown, place / "f", USER, -1),
            code_of(os.chown, place / "mine", 0, -1),
            code_of(os.chmod, place / "f", 0o777),
            code_of(os.chmod, place / "mine", 0o700),
        ],
        uid=USER,
        gid=USER,
    )
    assert refused == [errno.EPERM, errno.EPERM, errno.EPERM, 0]


def test_truncate(place: Path) -> None:
    """A file shrinks and grows with zeros, by name and by handle."""
    (place / "f").write_bytes(b"0123456789")
    os.truncate(place / "f", 4)
    assert (place / "f").read_bytes() == b"0123"
    with opened(place / "f") as fd:
        os.ftruncate(fd, 6)
        assert os.fstat(fd).st_size == 6
    assert (place / "f").read_bytes() == b"0123\0\0"
    assert code_of(os.truncate, place, 0) == errno.EISDIR


def test_utimens_keeps_nanoseconds(place: Path) -> None:
    """Times before the epoch, beyond 2038 and with single nanoseconds come back."""
    (place / "f").touch()
    for times in ((1, 2), (-1, -1_000_000_001), (4_000_000_000_123_456_789, 987_654_321)):
        os.utime(place / "f", ns=times)
        seen = (place / "f").stat()
        assert (seen.st_atime_ns, seen.st_mtime_ns) == times
    linux.utimens(os.fsencode(place / "f"), None, 77)
    seen = (place / "f").stat()
    assert (seen.st_atime_ns, seen.st_mtime_ns) == (4_000_000_000_123_456_789, 77)


def test_utimens_of_a_link_and_of_now(place: Path) -> None:
    """A symlink's own times can be set, and now is now."""
    (place / "f").touch()
    (place / "l").symlink_to("f")
    os.utime(place / "l", ns=(5, 6), follow_symlinks=False)
    assert (place / "l").lstat().st_mtime_ns == 6
    os.utime(place / "f", ns=(5, 6))
    os.utime(place / "f")
    assert (place / "f").stat().st_mtime > 1_000_000_000


def test_an_unlinked_file_is_still_changed_through_its_handle(place: Path) -> None:
    """Reading, writing, chmod, chown, truncate and utimens go on after unlink; nlink is zero."""
    with opened(place / "f") as fd:
        os.write(fd, b"before")
        os.unlink(place / "f")
        os.write(fd, b" after")
        os.fchmod(fd, 0o4711)
        os.fchown(fd, 12, 34)
        os.ftruncate(fd, 9)
        os.utime(fd, ns=(11, 22))
        seen = os.fstat(fd)
        assert os.pread(fd, 100, 0) == b"before af"
        assert (seen.st_nlink, seen.st_size, seen.st_uid, seen.st_gid) == (0, 9, 12, 34)
        assert (seen.st_atime_ns, seen.st_mtime_ns) in ((11, 22), (seen.st_atime_ns, 22))
        assert os.listdir(place) == []
        # The name is free again, and another file.
        (place / "f").write_bytes(b"new")
        assert os.pread(fd, 100, 0) == b"before af"
    assert (place / "f").read_bytes() == b"new"


def test_a_removed_directory_that_is_open(place: Path) -> None:
    """A directory that was removed lists empty and takes no new entries."""
    (place / "d").mkdir()
    fd = os.open(place / "d", os.O_RDONLY)
    try:
        (place / "d").rmdir()
        assert os.listdir(fd) == []
        flags = os.O_CREAT | os.O_WRONLY
        assert code_of(os.open, "x", flags, dir_fd=fd) == errno.ENOENT
    finally:
        os.close(fd)


# --- new entries ------------------------------------------------------------------------------


def test_readlink_gives_the_bytes_back(place: Path) -> None:
    """Any bytes, dangling or not, up to the 4095 that Linux allows."""
    for number, target in enumerate([b"a", b"../x//y/.", b"/\xff\xfe\n", b"t" * 4095]):
        name = os.fsencode(place / str(number))
        os.symlink(target, name)
        assert os.readlink(name) == target
        assert os.lstat(name).st_size == len(target)
    (place / "f").touch()
    assert code_of(os.readlink, place / "f") == errno.EINVAL
    assert code_of(os.symlink, "x", place / "f") == errno.EEXIST


def test_mknod_fifo(place: Path) -> None:
    """A fifo joins two processes."""
    os.mkfifo(place / "p", 0o600)
    assert stat.S_ISFIFO((place / "p").lstat().st_mode)

    def say() -> None:
        with open(place / "p", "wb") as pipe:
            pipe.write(b"hello")

    child = start_child(say)
    assert (place / "p").read_bytes() == b"hello"
    child.result()


def test_mknod_socket(place: Path) -> None:
    """A bound socket is a socket, and can be connected to."""
    os.mknod(place / "made", stat.S_IFSOCK | 0o600)
    assert stat.S_ISSOCK((place / "made").lstat().st_mode)
    with socket.socket(socket.AF_UNIX) as server, socket.socket(socket.AF_UNIX) as client:
        server.bind(os.fspath(place / "bound"))
        server.listen()
        client.connect(os.fspath(place / "bound"))
        peer, _ = server.accept()
        peer.close()
    assert code_of(os.open, place / "made", os.O_RDONLY) == errno.ENXIO


def test_mknod_device(place: Path) -> None:
    """A device node keeps its number and works for whoever may open it."""
    os.mknod(place / "null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
    seen = (place / "null").lstat()
    assert (stat.S_ISCHR(seen.st_mode), seen.st_rdev) == (True, os.makedev(1, 3))
    assert (place / "null").read_bytes() == b""
    assert in_child(
        lambda: code_of(os.mknod, place / "n", stat.S_IFCHR, os.makedev(1, 3)), uid=USER
    ) in (errno.EPERM, errno.EACCES)


def test_new_files_belong_to_the_caller(place: Path) -> None:
    """File, directory, link, fifo are the user's, with the umask taken off."""
    place.chmod(0o777)

    def make() -> None:
        os.close(os.open(place / "f", os.O_CREAT | os.O_WRONLY, 0o666))
        os.mkdir(place / "d", 0o777)
        os.symlink("x", place / "l")
        os.mkfifo(place / "p", 0o666)

    in_child(make, uid=USER, gid=OTHER, umask=0o027)
    for name, mode in (("f", 0o640), ("d", 0o750), ("l", 0o777), ("p", 0o640)):
        seen = (place / name).lstat()
        assert (seen.st_uid, seen.st_gid, stat.S_IMODE(seen.st_mode)) == (USER, OTHER, mode), name


def test_setgid_directories_hand_their_group_on(place: Path) -> None:
    """In a setgid directory everything gets its group, and directories the bit as well."""
    os.chown(place, 0, 777)
    place.chmod(0o2777)

    def make() -> None:
        os.close(os.open(place / "f", os.O_CREAT | os.O_WRONLY, 0o666))
        os.mkdir(place / "d")
        os.mkdir(place / "d" / "e")

    in_child(make, uid=USER, gid=USER)
    assert (place / "f").lstat().st_gid == 777
    assert mode_of(place / "d") & stat.S_ISGID
    assert ((place / "d" / "e").lstat().st_gid, (place / "d" / "e").lstat().st_uid) == (777, USER)


def test_special_bits_survive_creation(place: Path) -> None:
    """Setuid, setgid and sticky given to open, mknod and mkdir are kept, for a user too."""
    place.chmod(0o777)

    def make() -> None:
        os.close(os.open(place / "open", os.O_CREAT | os.O_WRONLY, 0o6711))
        os.mknod(place / "mknod", stat.S_IFREG | 0o4711)
        os.mkdir(place / "mkdir", 0o1777)

    in_child(make, uid=USER, gid=USER, umask=0)
    assert mode_of(place / "open") == 0o6711
    assert mode_of(place / "mknod") == 0o4711
    assert mode_of(place / "mkdir") == 0o1777


def test_a_setgid_file_in_a_foreign_group_loses_the_bit(place: Path) -> None:
    """Who is not in the directory's group cannot create a setgid program for it."""
    os.chown(place, 0, 777)
    place.chmod(0o2777)

    def make() -> None:
        os.close(os.open(place / "f", os.O_CREAT | os.O_WRONLY, 0o2755))

    in_child(make, uid=USER, gid=USER, umask=0)
    assert mode_of(place / "f") == 0o755


def test_a_user_who_writes_takes_setuid_away(place: Path) -> None:
    """Writing, truncating and chown by a user clear setuid and setgid."""
    for name in ("write", "truncate"):
        (place / name).touch()
        os.chown(place / name, USER, USER)
        (place / name).chmod(0o6777)

    def change() -> None:
        with opened(place / "write", os.O_WRONLY) as fd:
            os.write(fd, b"x")
        os.truncate(place / "truncate", 1)

    in_child(change, uid=USER, gid=USER)
    assert (mode_of(place / "write"), mode_of(place / "truncate")) == (0o777, 0o777)


def test_nobody_takes_set_id_away_from_others_files(place: Path) -> None:
    """A chown that changes nothing is refused or does nothing to what one may not write to."""
    (place / "f").touch()
    (place / "f").chmod(0o6755)
    in_child(lambda: code_of(os.chown, place / "f", -1, -1), uid=USER, gid=USER)
    assert mode_of(place / "f") == 0o6755


def test_a_user_who_writes_to_what_he_was_handed_takes_setuid_away(spot: Spot) -> None:
    """He could not open the file himself, but what he writes must not run as another."""
    path = spot.path / "f"
    path.touch()
    path.chmod(0o6755)
    with opened(path, os.O_WRONLY) as fd:
        in_child(lambda: os.write(fd, b"x"), uid=USER, gid=USER)
    assert mode_of(spot.lower / "f") == 0o755
    end = time.monotonic() + 10
    while mode_of(path) != 0o755:
        assert time.monotonic() < end
        time.sleep(0.01)


def test_sticky_directories_protect_others_files(place: Path) -> None:
    """In a sticky directory a user removes and renames only his own."""
    place.chmod(0o1777)
    for name, owner in (("theirs", OTHER), ("mine", USER)):
        (place / name).touch()
        os.chown(place / name, owner, owner)
    codes = in_child(
        lambda: [
            code_of(os.unlink, place / "theirs"),
            code_of(os.rename, place / "theirs", place / "x"),
            code_of(os.rename, place / "mine", place / "x"),
        ],
        uid=USER,
        gid=USER,
    )
    assert codes == [errno.EPERM, errno.EPERM, 0]


def test_mkdir_and_rmdir(place: Path) -> None:
    """The errnos of directories: there already, not empty, no directory, missing."""
    (place / "d" / "e").mkdir(parents=True)
    (place / "f").touch()
    assert (place / "d").lstat().st_nlink == 3
    assert code_of(os.mkdir, place / "d") == errno.EEXIST
    assert code_of(os.mkdir, place / "f" / "x") == errno.ENOTDIR
    assert code_of(os.mkdir, place / "gone" / "x") == errno.ENOENT
    assert code_of(os.rmdir, place / "d") == errno.ENOTEMPTY
    assert code_of(os.rmdir, place / "f") == errno.ENOTDIR
    assert code_of(os.rmdir, place / "gone") == errno.ENOENT
    assert code_of(os.unlink, place / "d") == errno.EISDIR
    os.rmdir(place / "d" / "e")
    os.rmdir(place / "d")
    assert os.listdir(place) == ["f"]


# --- rename and link --------------------------------------------------------------------------


def test_rename(place: Path) -> None:
    """A rename keeps the inode and replaces what is there."""
    (place / "a").write_text("a")
    (place / "b").write_text("b")
    number = (place / "a").stat().st_ino
    os.rename(place / "a", place / "b")
    assert ((place / "b").read_text(), (place / "b").stat().st_ino) == ("a", number)
    assert os.listdir(place) == ["b"]
    assert code_of(os.rename, place / "a", place / "c") == errno.ENOENT


def test_rename_into_another_directory(place: Path) -> None:
    """Files and directories move with everything below them."""
    (place / "one" / "in").mkdir(parents=True)
    (place / "two").mkdir()
    (place / "one" / "in" / "f").write_text("x")
    fd = os.open(place / "one" / "in" / "f", os.O_RDONLY)
    try:
        os.rename(place / "one" / "in", place / "two" / "out")
        assert (place / "two" / "out" / "f").read_text() == "x"
        assert os.fstat(fd).st_ino == (place / "two" / "out" / "f").stat().st_ino
    finally:
        os.close(fd)
    assert os.listdir(place / "one") == []
    assert (place / "one").stat().st_nlink == 2


def test_rename_errnos(place: Path) -> None:
    """Directory over file, file over directory, over a full one, into itself: Linux's errnos."""
    (place / "d").mkdir()
    (place / "full" / "x").mkdir(parents=True)
    (place / "empty").mkdir()
    (place / "f").touch()
    assert code_of(os.rename, place / "d", place / "f") == errno.ENOTDIR
    assert code_of(os.rename, place / "f", place / "d") == errno.EISDIR
    assert code_of(os.rename, place / "d", place / "full") == errno.ENOTEMPTY
    assert code_of(os.rename, place / "full", place / "full" / "x" / "y") == errno.EINVAL
    assert code_of(os.rename, place / "full" / "x", place / "full") == errno.ENOTEMPTY
    assert code_of(os.rename, place / "full", place / "empty") == 0
    assert sorted(os.listdir(place)) == ["d", "empty", "f"]
    assert os.listdir(place / "empty") == ["x"]


def test_rename_noreplace(place: Path) -> None:
    """NOREPLACE refuses an existing name with EEXIST and otherwise renames."""
    (place / "a").write_text("a")
    (place / "b").write_text("b")
    assert rename_flags(place / "a", place / "b", linux.RENAME_NOREPLACE) == errno.EEXIST
    assert rename_flags(place / "a", place / "c", linux.RENAME_NOREPLACE) == 0
    assert ((place / "b").read_text(), (place / "c").read_text()) == ("b", "a")


def test_rename_exchange(place: Path) -> None:
    """EXCHANGE swaps a file with a directory and keeps what is open."""
    (place / "f").write_text("f")
    (place / "d").mkdir()
    (place / "d" / "in").write_text("in")
    with opened(place / "f", os.O_RDONLY) as fd:
        assert rename_flags(place / "f", place / "d", linux.RENAME_EXCHANGE) == 0
        assert os.fstat(fd).st_ino == (place / "d").stat().st_ino
    assert ((place / "d").read_text(), (place / "f" / "in").read_text()) == ("f", "in")
    assert rename_flags(place / "f", place / "gone", linux.RENAME_EXCHANGE) == errno.ENOENT


def test_rename_of_two_names_of_one_file(place: Path) -> None:
    """Renaming one hard link onto another of the same file does nothing."""
    (place / "a").write_text("x")
    os.link(place / "a", place / "b")
    os.rename(place / "a", place / "b")
    assert sorted(os.listdir(place)) == ["a", "b"]


def test_rename_over_an_open_file(place: Path) -> None:
    """What was replaced goes on living in its handle."""
    (place / "a").write_text("new")
    (place / "b").write_text("old")
    with opened(place / "b", os.O_RDWR) as fd:
        os.rename(place / "a", place / "b")
        assert os.pread(fd, 10, 0) == b"old"
        os.pwrite(fd, b"still", 0)
        assert os.fstat(fd).st_nlink == 0
    assert (place / "b").read_text() == "new"


def test_hard_links_are_one_inode(place: Path) -> None:
    """Number, link count, mode, times and content are shared by all names."""
    (place / "a").write_text("x")
    os.link(place / "a", place / "b")
    (place / "d").mkdir()
    os.link(place / "b", place / "d" / "c")
    (place / "b").chmod(0o600)
    os.utime(place / "d" / "c", ns=(1, 2))
    (place / "a").write_text("longer")
    seen = [(place / name).stat() for name in ("a", "b", "d/c")]
    assert len({one.st_ino for one in seen}) == 1
    assert [one.st_nlink for one in seen] == [3, 3, 3]
    assert {stat.S_IMODE(one.st_mode) for one in seen} == {0o600}
    assert (place / "d" / "c").read_text() == "longer"
    os.unlink(place / "a")
    assert (place / "b").stat().st_nlink == 2
    assert (place / "b").read_text() == "longer"


def test_link_errnos(place: Path) -> None:
    """Onto an existing name, of a directory, of nothing; of a symlink itself it works."""
    (place / "f").touch()
    (place / "d").mkdir()
    (place / "l").symlink_to("f")
    assert code_of(os.link, place / "f", place / "d") == errno.EEXIST
    assert code_of(os.link, place / "d", place / "x") == errno.EPERM
    assert code_of(os.link, place / "gone", place / "x") == errno.ENOENT
    os.link(place / "l", place / "m", follow_symlinks=False)
    assert os.readlink(place / "m") == "f"


def test_link_of_an_open_file_by_its_descriptor(place: Path) -> None:
    """A descriptor can be given a second name through /proc/self/fd."""
    with opened(place / "f") as fd, opened(place, os.O_RDONLY | os.O_DIRECTORY) as here:
        os.write(fd, b"x")
        # With a dir_fd only does Python say AT_SYMLINK_FOLLOW.
        os.link(f"/proc/self/fd/{fd}", "g", dst_dir_fd=here, follow_symlinks=True)
    assert (place / "g").read_bytes() == b"x"


# --- open, read, write ------------------------------------------------------------------------


def test_open_flags(place: Path) -> None:
    """O_EXCL, O_TRUNC, O_DIRECTORY, O_NOFOLLOW and writing to a directory, with their errnos."""
    (place / "f").write_bytes(b"content")
    (place / "d").mkdir()
    (place / "l").symlink_to("f")
    (place / "dangling").symlink_to("made")
    new = os.O_CREAT | os.O_EXCL | os.O_WRONLY
    assert code_of(os.open, place / "f", new) == errno.EEXIST
    assert code_of(os.open, place / "dangling", new) == errno.EEXIST
    assert code_of(os.open, place / "f", os.O_DIRECTORY) == errno.ENOTDIR
    assert code_of(os.open, place / "l", os.O_NOFOLLOW) == errno.ELOOP
    assert code_of(os.open, place / "d", os.O_WRONLY) == errno.EISDIR
    assert code_of(os.open, place / "d", os.O_CREAT) == errno.EISDIR
    assert code_of(os.open, place / "gone", os.O_RDONLY) == errno.ENOENT
    assert code_of(os.open, place / "f" / "x", os.O_RDONLY) == errno.ENOTDIR
    with opened(place / "l", os.O_WRONLY | os.O_TRUNC):
        assert (place / "f").stat().st_size == 0
    with opened(place / "dangling", os.O_WRONLY | os.O_CREAT):
        assert (place / "made").exists()
    for flags in (os.O_SYNC, os.O_DSYNC, os.O_NOATIME, os.O_NONBLOCK, os.O_PATH, os.O_NOCTTY):
        with opened(place / "f", os.O_RDONLY | flags) as fd:
            assert stat.S_ISREG(os.fstat(fd).st_mode)
    with opened(place / "f", os.O_RDONLY) as fd:
        assert code_of(os.write, fd, b"x") == errno.EBADF
    with opened(place / "f", os.O_WRONLY) as fd:
        assert code_of(os.read, fd, 1) == errno.EBADF


def test_create_of_a_readonly_file_can_be_written(place: Path) -> None:
    """The mode counts from the next open on; the creator's handle writes."""

    def make() -> None:
        with opened(place / "f", os.O_CREAT | os.O_WRONLY, 0o444) as fd:
            os.write(fd, b"once")

    place.chmod(0o777)
    in_child(make, uid=USER, gid=USER)
    assert (place / "f").read_bytes() == b"once"
    assert in_child(lambda: code_of(os.open, place / "f", os.O_WRONLY), uid=USER) == errno.EACCES


def test_append_from_two_handles(place: Path) -> None:
    """O_APPEND writes go to the end, whoever made the file longer."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND
    with opened(place / "f", flags) as one, opened(place / "f", flags) as two:
        for fd, data in ((one, b"1"), (two, b"22"), (one, b"333"), (two, b"4444")):
            os.write(fd, data)
    assert (place / "f").read_bytes() == b"1223334444"


def test_sparse_files(place: Path) -> None:
    """A hole reads as zeros and takes no space; the size is exact."""
    end = 5 << 30
    with opened(place / "f") as fd:
        os.pwrite(fd, b"end", end)
        assert os.pread(fd, 3, 1 << 20) == b"\0\0\0"
        assert os.pread(fd, 10, end) == b"end"
    seen = (place / "f").stat()
    assert seen.st_size == end + 3
    assert seen.st_blocks * 512 < 1 << 20


def test_large_reads_and_writes(place: Path) -> None:
    """Megabytes in one call, at odd offsets, come back."""
    data = bytes(range(256)) * (12 << 10)
    with opened(place / "f") as fd:
        assert os.pwrite(fd, data, 777) == len(data)
        assert os.pread(fd, len(data) + 10, 777) == data
        assert os.pread(fd, 10, len(data) + 777) == b""


def test_fsync(place: Path) -> None:
    """Files and directories can be synced."""
    with opened(place / "f") as fd:
        os.write(fd, b"x")
        os.fsync(fd)
        os.fdatasync(fd)
    with opened(place, os.O_RDONLY | os.O_DIRECTORY) as fd:
        os.fsync(fd)


def test_copying_inside_the_kernel(place: Path) -> None:
    """copy_file_range, sendfile and posix_fallocate do their work, whatever carries them."""
    (place / "from").write_bytes(b"0123456789" * 1000)
    with opened(place / "from", os.O_RDONLY) as source, opened(place / "to") as sink:
        assert os.copy_file_range(source, sink, 4000) == 4000
        assert os.sendfile(sink, source, 4000, 6000) == 6000
        os.posix_fallocate(sink, 0, 20000)
        assert os.fstat(sink).st_size == 20000
    assert (place / "to").read_bytes()[:10000] == (place / "from").read_bytes()


def test_direct_io(place: Path) -> None:
    """O_DIRECT with an aligned buffer reads and writes."""
    buffer = mmap.mmap(-1, 4096)
    buffer.write(b"d" * 4096)
    with opened(place / "f", os.O_RDWR | os.O_CREAT | os.O_DIRECT) as fd:
        assert os.write(fd, buffer) == 4096
        assert os.preadv(fd, [buffer], 0) == 4096
    assert (place / "f").read_bytes() == b"d" * 4096
    buffer.close()


def test_shared_mapping(place: Path) -> None:
    """What is written to a shared mapping is in the file, an O_APPEND handle changes nothing."""
    (place / "f").write_bytes(b"a" * 5000)
    flags = os.O_RDWR | os.O_APPEND
    with opened(place / "f", flags) as fd, mmap.mmap(fd, 5000) as view:
        view[4990:5000] = b"0123456789"
        view.flush()
        os.write(fd, b"tail")
        assert os.pread(fd, 14, 4990) == b"0123456789tail"
    assert (place / "f").stat().st_size == 5004


def test_private_mapping(place: Path) -> None:
    """A private mapping shows the file and never changes it."""
    (place / "f").write_bytes(b"a" * 5000)
    with opened(place / "f", os.O_RDONLY) as fd, mmap.mmap(fd, 5000, access=mmap.ACCESS_COPY) as m:
        m[0] = 0x62
        assert m[:2] == b"ba"
    assert (place / "f").read_bytes() == b"a" * 5000


# --- listings ---------------------------------------------------------------------------------


class Dirent(ctypes.Structure):
    """struct dirent of a 64-bit glibc."""

    _fields_ = (
        ("d_ino", ctypes.c_uint64),
        ("d_off", ctypes.c_int64),
        ("d_reclen", ctypes.c_uint16),
        ("d_type", ctypes.c_uint8),
        ("d_name", ctypes.c_char * 256),
    )


_libc = ctypes.CDLL(None, use_errno=True)
_libc.opendir.restype = ctypes.c_void_p
_libc.opendir.argtypes = (ctypes.c_char_p,)
_libc.readdir.restype = ctypes.POINTER(Dirent)
_libc.readdir.argtypes = (ctypes.c_void_p,)
_libc.telldir.restype = ctypes.c_long
_libc.telldir.argtypes = (ctypes.c_void_p,)
_libc.seekdir.argtypes = (ctypes.c_void_p, ctypes.c_long)
_libc.rewinddir.argtypes = (ctypes.c_void_p,)
_libc.closedir.argtypes = (ctypes.c_void_p,)


class Stream:
    """A directory stream of the C library."""

    def __init__(self, path: Path) -> None:
        self._stream = _libc.opendir(os.fsencode(path))
        assert self._stream

    def read(self) -> tuple[bytes, int] | None:
        entry = _libc.readdir(self._stream)
        if not entry:
            return None
        return entry.contents.d_name, entry.contents.d_type

    def take(self, count: int) -> list[bytes]:
        found: list[bytes] = []
        while len(found) < count and (entry := self.read()) is not None:
            found.append(entry[0])
        return found

    def rest(self) -> list[bytes]:
        return self.take(1 << 30)

    def tell(self) -> int:
        return int(_libc.telldir(self._stream))

    def seek(self, offset: int) -> None:
        _libc.seekdir(self._stream, offset)

    def rewind(self) -> None:
        _libc.rewinddir(self._stream)

    def close(self) -> None:
        _libc.closedir(self._stream)


@pytest.fixture
def many(spot: Spot) -> Iterator[Stream]:
    """A stream over a directory of 3000 entries, several buffers long."""
    for number in range(3000):
        (spot.lower / f"entry-{number:04}").touch()
    stream = Stream(spot.path)
    yield stream
    stream.close()


def test_a_listing_survives_changes(many: Stream, place: Path) -> None:
    """Entries that stay are listed exactly once while others come and go."""
    found = many.take(100)
    for number in range(0, 3000, 3):
        os.unlink(place / f"entry-{number:04}")
    for number in range(500):
        (place / f"new-{number}").touch()
    found += many.rest()
    assert len(found) == len(set(found))
    stay = {b"entry-%04d" % number for number in range(3000) if number % 3}
    assert stay <= set(found)
    assert {b".", b".."} <= set(found)


def removed_while_read(many: Stream, place: Path) -> set[bytes]:
    """Most of *many*, removed as soon as it is read; what is left."""
    for name in many.take(2500):
        if name not in (b".", b".."):
            os.unlink(os.fsencode(place) + b"/" + name)
    return set(os.listdir(os.fsencode(place)))


def test_who_removes_what_he_reads_gets_it_all(many: Stream, place: Path) -> None:
    """What is left of a directory is listed, though others list it from the beginning meanwhile."""
    left = removed_while_read(many, place)
    assert left
    (place / "new").touch()
    assert set(os.listdir(os.fsencode(place))) == {*left, b"new"}
    rest = many.rest()
    assert left <= set(rest)
    assert len(rest) == len(set(rest))


def test_a_listing_outlasts_those_of_other_directories(many: Stream, place: Path) -> None:
    """What is left of a directory is listed, though many others are listed meanwhile."""
    left = removed_while_read(many, place)
    (place / "below").mkdir()
    for number in range(100):
        (place / "below" / f"{number}").mkdir()
        assert os.listdir(place / "below" / f"{number}") == []
    assert left <= set(many.rest())


def test_rewinddir_reads_again(many: Stream, place: Path) -> None:
    """After a rewind the listing is what the directory is now."""
    many.read()
    os.unlink(place / "entry-0007")
    (place / "new").touch()
    many.rewind()
    found = set(many.rest())
    assert b"new" in found and b"entry-0007" not in found
    assert len(found) == 3002


def test_a_directory_is_read_when_it_is_read(place: Path) -> None:
    """What was made since a directory was opened is in its first listing."""
    fd = os.open(place, os.O_RDONLY | os.O_DIRECTORY)
    try:
        (place / "late").touch()
        assert os.listdir(fd) == ["late"]
    finally:
        os.close(fd)


def test_seekdir_goes_back(many: Stream) -> None:
    """From every remembered position the listing goes on as it did before."""
    marks = []
    order = []
    while True:
        mark = many.tell()
        entry = many.read()
        if entry is None:
            break
        marks.append(mark)
        order.append(entry[0])
    assert len(order) == 3002
    for index in (2900, 3, 1500, 0, 3001):
        many.seek(marks[index])
        assert many.rest() == order[index:]


def test_listings_know_types(place: Path) -> None:
    """The type in a directory entry is that of the file."""
    (place / "f").touch()
    (place / "d").mkdir()
    (place / "l").symlink_to("f")
    os.mkfifo(place / "p")
    stream = Stream(place)
    types = {}
    while (entry := stream.read()) is not None:
        types[entry[0]] = entry[1]
    stream.close()
    assert types == {b".": 4, b"..": 4, b"f": 8, b"d": 4, b"l": 10, b"p": 1}


def test_a_large_directory(spot: Spot) -> None:
    """20 000 entries are listed completely, every one once, and can be looked at."""
    for number in range(20_000):
        os.symlink("x", spot.lower / f"{number}")
    names = os.listdir(spot.path)
    assert len(names) == 20_000
    assert set(names) == {str(number) for number in range(20_000)}
    with os.scandir(spot.path) as entries:
        assert sum(entry.is_symlink() for entry in entries) == 20_000


def test_statfs(spot: Spot) -> None:
    """The volume's own numbers, and names of 255 bytes."""
    seen, below = os.statvfs(spot.path), os.statvfs(spot.lower)
    assert (seen.f_bsize, seen.f_frsize, seen.f_blocks, seen.f_files, seen.f_namemax) == (
        below.f_bsize,
        below.f_frsize,
        below.f_blocks,
        below.f_files,
        255,
    )


# --- extended attributes and ACLs -------------------------------------------------------------


def test_xattrs(place: Path) -> None:
    """Set, get, list, replace and remove, with the errnos of the flags."""
    (place / "f").touch()
    name = place / "f"
    os.setxattr(name, b"user.a", b"1", os.XATTR_CREATE)
    assert code_of(os.setxattr, name, b"user.a", b"2", os.XATTR_CREATE) == errno.EEXIST
    assert code_of(os.setxattr, name, b"user.b", b"2", os.XATTR_REPLACE) == errno.ENODATA
    os.setxattr(name, b"user.a", b"", os.XATTR_REPLACE)
    os.setxattr(name, b"user.bytes", bytes(range(256)) * 8)
    os.setxattr(name, b"trusted.t", b"root's")
    assert os.getxattr(name, b"user.a") == b""
    assert os.getxattr(name, b"user.bytes") == bytes(range(256)) * 8
    listed = {n for n in os.listxattr(name) if n != "security.selinux"}
    assert listed == {"user.a", "user.bytes", "trusted.t"}
    assert in_child(lambda: set(os.listxattr(name)), uid=USER) == {"user.a", "user.bytes"}
    assert code_of(os.getxattr, name, b"user.gone") == errno.ENODATA
    os.removexattr(name, b"user.a")
    assert code_of(os.removexattr, name, b"user.a") == errno.ENODATA
    assert code_of(os.setxattr, name, b"unknown.x", b"") == errno.EOPNOTSUPP


def test_xattrs_beyond_the_volume(place: Path) -> None:
    """A value that the volume below cannot hold is its own ENOSPC; 64 KiB and one is E2BIG."""
    (place / "f").touch()
    below = code_of(os.setxattr, place / "f", b"user.big", b"x" * 65536)
    assert below in (0, errno.ENOSPC)
    assert code_of(os.setxattr, place / "f", b"user.big", b"x" * 65537) == errno.E2BIG


@pytest.fixture
def tmpfs(workplace: Path) -> Iterator[Path]:
    """A tmpfs: it holds extended attributes of every length."""
    path = workplace / "tmpfs"
    path.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "tmpfs", path], check=True)
    yield path
    subprocess.run(["umount", path], check=True)


def test_xattrs_of_64_kib(workplace: Path, tmpfs: Path) -> None:
    """On a volume that holds them, values of 65536 bytes come back in both layers."""
    (tmpfs / "sysroot").mkdir()
    (tmpfs / "host" / "there").mkdir(parents=True)
    mounter = Mounter(workplace)
    try:
        mount = mounter(sysroot=tmpfs / "sysroot", host=tmpfs / "host")
        value = bytes(range(256)) * 256
        for file in (mount.point / "f", mount.point / "there" / "f", tmpfs / "f"):
            file.touch()
            os.setxattr(file, b"user.v", value)
            assert os.getxattr(file, b"user.v") == value
    finally:
        mounter.close()


def test_file_capabilities(spot: Spot) -> None:
    """setcap gives a program the capability for a user who starts it; writing takes it away."""
    program = spot.path / "grep"
    shutil.copy(shutil.which("grep") or "grep", program)
    subprocess.run(["setcap", "cap_net_raw+ep", program], check=True)
    shown = subprocess.run(["getcap", program], check=True, capture_output=True, text=True)
    assert "cap_net_raw" in shown.stdout
    done = subprocess.run(
        [program, "CapEff", "/proc/self/status"],
        check=True,
        capture_output=True,
        text=True,
        user=USER,
        group=USER,
        extra_groups=[],
    )
    assert int(done.stdout.split()[1], 16) == 1 << 13
    with open(program, "ab") as file:
        file.write(b"x")
    assert code_of(os.getxattr, program, b"security.capability") == errno.ENODATA


def test_acls_are_enforced(place: Path) -> None:
    """A user named in the ACL may read, another may not, and the mask limits."""
    (place / "f").write_text("x")
    (place / "f").chmod(0o600)
    subprocess.run(["setfacl", "-m", f"u:{USER}:r", place / "f"], check=True)
    shown = subprocess.run(
        ["getfacl", "-n", "-c", "-p", place / "f"], check=True, capture_output=True, text=True
    )
    assert f"user:{USER}:r--" in shown.stdout
    assert in_child(lambda: (place / "f").read_text(), uid=USER) == "x"
    assert in_child(lambda: code_of(os.open, place / "f", os.O_WRONLY), uid=USER) == errno.EACCES
    assert in_child(lambda: code_of(os.open, place / "f", os.O_RDONLY), uid=OTHER) == errno.EACCES
    assert mode_of(place / "f") == 0o640
    (place / "f").chmod(0o600)
    assert in_child(lambda: code_of(os.open, place / "f", os.O_RDONLY), uid=USER) == errno.EACCES


def test_default_acls_are_inherited(place: Path) -> None:
    """A new file gets its directory's default ACL, a new directory hands it on."""
    subprocess.run(["setfacl", "-m", f"d:u:{USER}:rwx,d:o::-", place], check=True)

    def make() -> None:
        os.close(os.open(place / "f", os.O_CREAT | os.O_WRONLY, 0o666))
        os.mkdir(place / "d", 0o777)

    in_child(make, umask=0)
    shown = subprocess.run(
        ["getfacl", "-n", "-c", "-p", place / "f"], check=True, capture_output=True, text=True
    ).stdout
    assert f"user:{USER}:rwx" in shown and "mask::rw-" in shown and "other::---" in shown
    assert mode_of(place / "f") == 0o660
    shown = subprocess.run(
        ["getfacl", "-n", "-c", "-p", place / "d"], check=True, capture_output=True, text=True
    ).stdout
    assert f"default:user:{USER}:rwx" in shown


def test_umask_under_a_default_acl(spot: Spot, door: str) -> None:
    """Linux does not apply the umask there; with the binding the kernel always does.

    pyfuse3 cannot ask for FUSE_DONT_MASK, so the bits are gone before the server hears of the
    file. It errs on the side of fewer rights.
    """
    place = spot.path
    subprocess.run(["setfacl", "-m", "d:u::rwx,d:g::rwx,d:o::rx", place], check=True)

    def make() -> None:
        os.close(os.open(place / "f", os.O_CREAT | os.O_WRONLY, 0o666))
        os.mkdir(place / "d", 0o777)

    in_child(make, umask=0o077)
    as_linux = spot.kind == "plain" or door == "kernel"
    wanted = (0o664, 0o775) if as_linux else (0o600, 0o700)
    assert (mode_of(place / "f"), mode_of(place / "d")) == wanted


def test_access(place: Path) -> None:
    """access(2) answers for the user who asks."""
    (place / "f").touch()
    (place / "f").chmod(0o640)
    os.chown(place / "f", 0, 777)

    def ask() -> tuple[bool, ...]:
        return tuple(os.access(place / "f", wish) for wish in (os.F_OK, os.R_OK, os.W_OK, os.X_OK))

    assert ask() == (True, True, True, False)
    assert in_child(ask, uid=USER, gid=USER) == (True, False, False, False)
    assert in_child(ask, uid=USER, gid=USER, groups=(777,)) == (True, True, False, False)


def test_directories_without_search_permission(place: Path) -> None:
    """What lies below a closed directory is EACCES for a user, after root has looked as well."""
    (place / "d").mkdir(mode=0o700)
    (place / "d" / "f").write_text("x")
    assert (place / "d" / "f").read_text() == "x"
    codes = in_child(
        lambda: [
            code_of(os.stat, place / "d" / "f"),
            code_of(os.listdir, place / "d"),
            code_of(os.mkdir, place / "d" / "n"),
            code_of(os.mkdir, place / "n"),
        ],
        uid=USER,
        gid=USER,
    )
    assert codes == [errno.EACCES] * 4


# --- programs and locks -----------------------------------------------------------------------


def test_exec(place: Path) -> None:
    """A program copied in runs, a script too, and a running program cannot be written."""
    shutil.copy(shutil.which("sleep") or "sleep", place / "sleep")
    (place / "script").write_text("#!/bin/sh\necho $0 $1\n")
    (place / "script").chmod(0o755)
    said = subprocess.run([place / "script", "x"], check=True, capture_output=True, text=True)
    assert said.stdout == f"{place / 'script'} x\n"
    with subprocess.Popen([place / "sleep", "30"]) as running:
        assert code_of(os.open, place / "sleep", os.O_WRONLY) == errno.ETXTBSY
        running.kill()
    (place / "script").chmod(0o644)
    assert code_of(subprocess.run, [place / "script"]) == errno.EACCES


def test_setuid_programs(place: Path) -> None:
    """A setuid program of root's gives a user root's rights."""
    shutil.copy(shutil.which("id") or "id", place / "id")
    (place / "id").chmod(0o4755)
    said = subprocess.run(
        [place / "id", "-u"],
        check=True,
        capture_output=True,
        text=True,
        user=USER,
        group=USER,
        extra_groups=[],
    )
    assert said.stdout == "0\n"


def test_flock(place: Path) -> None:
    """A lock that one process holds is refused to another until it is let go."""

    def attempt() -> int:
        with opened(place / "f") as mine:
            return code_of(fcntl.flock, mine, fcntl.LOCK_EX | fcntl.LOCK_NB)

    with opened(place / "f") as fd:
        fcntl.flock(fd, fcntl.LOCK_EX)
        assert in_child(attempt) == errno.EWOULDBLOCK
        fcntl.flock(fd, fcntl.LOCK_UN)
        assert in_child(attempt) == 0


def test_record_locks(place: Path) -> None:
    """fcntl locks exclude by byte range, tell who holds them and end with their process."""

    def attempt(start: int) -> int:
        with opened(place / "f") as mine:
            return code_of(fcntl.lockf, mine, fcntl.LOCK_EX | fcntl.LOCK_NB, 10, start)

    def holder() -> int:
        with opened(place / "f") as mine:
            ask = struct.pack("hhqqi4x", fcntl.F_WRLCK, 0, 0, 10, 0)
            return int(struct.unpack("hhqqi4x", fcntl.fcntl(mine, fcntl.F_GETLK, ask))[4])

    with opened(place / "f") as fd:
        fcntl.lockf(fd, fcntl.LOCK_EX, 10, 0)
        assert in_child(lambda: attempt(5)) in (errno.EAGAIN, errno.EACCES)
        assert in_child(lambda: attempt(10)) == 0
        assert in_child(holder) == os.getpid()
        fcntl.lockf(fd, fcntl.LOCK_UN, 10, 0)
        assert in_child(lambda: attempt(5)) == 0


# --- names and depth --------------------------------------------------------------------------


def test_every_byte_in_a_name(place: Path) -> None:
    """Every byte but the slash and NUL, alone and in ill-formed sequences."""
    here = os.fsencode(place)
    names = {b"x" + bytes([byte]) for byte in range(1, 256) if byte != 0x2F}
    names |= {bytes([byte]) for byte in range(1, 256) if byte not in (0x2E, 0x2F)}
    names |= {b"\xed\xa0\x80", b"\xff" * 255, b"e\xcc\x81", b"\xc3\xa9", b"...", b" ", b"a\\b"}
    for name in names:
        with open(here + b"/" + name, "xb") as file:
            file.write(name)
    assert set(os.listdir(here)) == names
    for name in names:
        with open(here + b"/" + name, "rb") as file:
            assert file.read() == name


def test_names_of_255_bytes(place: Path) -> None:
    """255 bytes are a name, 256 are ENAMETOOLONG, for every call."""
    long, longer = "x" * 255, "x" * 256
    (place / long).write_text("x")
    os.rename(place / long, place / ("y" * 255))
    assert os.listdir(place) == ["y" * 255]
    for call in (os.stat, os.unlink, os.mkdir, os.rmdir, os.mkfifo, os.readlink):
        assert code_of(call, place / longer) == errno.ENAMETOOLONG
    assert code_of(os.rename, place / ("y" * 255), place / longer) == errno.ENAMETOOLONG


def test_names_that_stored_names_look_like(place: Path) -> None:
    """On a byte-exact volume an escape, a token and the index file are ordinary names."""
    names = {".ef=414243", ".ef_0123456789abcdef", ".elfuse_case_index", ".ciopfs"}
    for name in names:
        (place / name).write_text(name)
    assert set(os.listdir(place)) == names
    assert all((place / name).read_text() == name for name in names)


def test_deeper_than_path_max(place: Path) -> None:
    """Directories go deeper than a path can be written, and getcwd gives up as in Linux."""
    name = "d" * 200

    def go() -> tuple[bytes, int]:
        os.chdir(place)
        for _ in range(40):
            os.mkdir(name)
            os.chdir(name)
        Path("f").write_text("deep")
        os.rename("f", "g")
        content = Path("g").read_bytes()
        os.unlink("g")
        depth = 0
        while os.listdir("..") == [name]:
            os.chdir("..")
            os.rmdir(name)
            depth += 1
        return content, depth

    content, depth = in_child(go)
    assert (content, depth) == (b"deep", 40)


# --- several clients --------------------------------------------------------------------------


def test_four_clients_at_once(place: Path) -> None:
    """Processes that create, rename, list and remove in one directory lose nothing."""

    def work(client: int) -> None:
        for number in range(60):
            name = place / f"{client}-{number}"
            name.write_text(str(number))
            os.rename(name, place / f"{client}-{number}-done")
            assert f"{client}-{number}-done" in os.listdir(place)
            if number % 2:
                os.unlink(place / f"{client}-{number}-done")

    children = [start_child(functools.partial(work, client)) for client in range(4)]
    for child in children:
        child.result()
    wanted = {f"{client}-{number}-done" for client in range(4) for number in range(0, 60, 2)}
    assert set(os.listdir(place)) == wanted
    assert all((place / name).read_text() == name.split("-")[1] for name in wanted)


def test_exclusive_creation_has_one_winner(place: Path) -> None:
    """Of four processes that create one name with O_EXCL exactly one succeeds, each time."""

    def race() -> list[int]:
        return [code_of(make_exclusively, place / str(number)) for number in range(50)]

    children = [start_child(race) for _ in range(4)]
    outcomes = [child.result() for child in children]
    for attempt in zip(*outcomes, strict=True):
        assert sorted(attempt) == [0, errno.EEXIST, errno.EEXIST, errno.EEXIST]


def test_two_mounts_of_one_sysroot(mounted: Mounter) -> None:
    """What one mount does the other sees, and exclusive creation has one winner over both."""
    fresh = ("entry_timeout=0", "attr_timeout=0", "negative_timeout=0")
    one = mounted(*fresh)
    two = mounted(*fresh, sysroot=one.sysroot, host=one.host)
    (one.point / "d").mkdir()
    (one.point / "d" / "f").write_text("one")
    assert (two.point / "d" / "f").read_text() == "one"
    os.rename(two.point / "d" / "f", two.point / "d" / "g")
    assert os.listdir(one.point / "d") == ["g"]
    assert code_of(os.stat, one.point / "d" / "f") == errno.ENOENT
    os.rename(one.point / "d", one.point / "e")
    assert (two.point / "e" / "g").read_text() == "one"

    def race(point: Path) -> list[int]:
        return [code_of(make_exclusively, point / f"race-{number}") for number in range(50)]

    children = [start_child(functools.partial(race, mount.point)) for mount in (one, two, one, two)]
    for attempt in zip(*[child.result() for child in children], strict=True):
        assert sorted(attempt) == [0, errno.EEXIST, errno.EEXIST, errno.EEXIST]


def test_a_mounts_source_and_type(mounted: Mounter) -> None:
    """The table of mounts shows the sysroot as the source of a fuse.sysroot mount."""
    mount = mounted()
    lines = Path("/proc/mounts").read_text().splitlines()
    (line,) = [line for line in lines if line.split()[1] == str(mount.point)]
    assert line.split()[0] == str(mount.sysroot)
    assert line.split()[2] == "fuse.sysroot"
