"""What must hold when somebody works against the mount: races, rights, limits, full volumes."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import os
import signal
import subprocess
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest

from sidecar import linux
from tests import caches
from tests.children import code_of, in_child
from tests.mounts import Mounter
from tests.waiting import wait_until

_PR_SET_PDEATHSIG = 1


def _exchange(one: Path, other: Path) -> None:
    linux.renameat2(linux.AT_FDCWD, bytes(one), linux.AT_FDCWD, bytes(other), linux.RENAME_EXCHANGE)


def _make_the_kernel_forget() -> None:
    caches.drop()


# --- planted links ------------------------------------------------------------------------------


@contextlib.contextmanager
def _swapping(*directories: Path, target: Path) -> Iterator[None]:
    """Somebody puts a link to *target* in place of each directory and takes it away, on and on."""
    links = []
    for directory in directories:
        link = directory.with_name(directory.name + "-link")
        link.symlink_to(target)
        links.append(link)
    pid = os.fork()
    if pid == 0:
        with contextlib.suppress(BaseException):
            ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
            while True:
                for directory, link in zip(directories, links, strict=True):
                    _exchange(directory, link)
        os._exit(1)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


def test_links_planted_in_a_race_lead_nowhere(mounted: Mounter, workplace: Path) -> None:
    """A guest that follows no link never reaches what a link planted below the server names."""
    outside = workplace / "outside"
    outside.mkdir()
    (outside / "file").write_text("secret")
    mount = mounted("entry_timeout=0", "attr_timeout=0", "negative_timeout=0")
    victims = [mount.sysroot / "both/sub", mount.host / "both/sub", mount.host / "below/sub"]
    for victim in victims:
        victim.mkdir(parents=True)
        (victim / "file").write_text("inside")
    directory = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW
    reached = 0
    seen = set()
    with _swapping(*victims, target=outside):
        end = time.monotonic() + 3
        while time.monotonic() < end:
            for name in ("both", "below"):
                with contextlib.suppress(OSError), contextlib.ExitStack() as opened:
                    fd = os.open(mount.point / name / "sub", directory)
                    opened.callback(os.close, fd)
                    new = os.open("new", os.O_CREAT | os.O_WRONLY, 0o600, dir_fd=fd)
                    opened.callback(os.close, new)
                    os.unlink("new", dir_fd=fd)
                    file = os.open("file", os.O_RDONLY | os.O_NOFOLLOW, dir_fd=fd)
                    opened.callback(os.close, file)
                    seen.add(os.read(file, 100))
                    reached += 1
    assert reached
    assert seen == {b"inside"}
    assert os.listdir(outside) == ["file"]


def test_links_of_the_host_stay_inside_the_host(mounted: Mounter, workplace: Path) -> None:
    """A twin that the host reaches by an absolute link or by .. is looked for below its root."""
    outside = workplace / "outside"
    outside.mkdir()
    (outside / "file").write_text("secret")
    mount = mounted()
    (mount.host / "inside").mkdir()
    (mount.host / "inside/file").write_text("inside")
    for name, target in (
        ("absolute", str(outside)),
        ("climbing", f"../../../../../../../..{outside}"),
        ("good", "/../inside"),
    ):
        (mount.sysroot / name).mkdir()
        (mount.host / name).symlink_to(target)
    assert code_of(os.stat, mount.point / "absolute/file") == errno.ENOENT
    assert code_of(os.stat, mount.point / "climbing/file") == errno.ENOENT
    assert (mount.point / "good/file").read_text() == "inside"


def test_what_is_removed_as_soon_as_it_is_made_costs_nothing(mounted: Mounter) -> None:
    """A file that another writer removes before the server has looked at it is closed again."""
    mount = mounted()
    mount.point.stat()
    before = mount.descriptors()
    made = 0
    pid = os.fork()
    if pid == 0:
        with contextlib.suppress(BaseException):
            ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
            while True:
                with contextlib.suppress(OSError):
                    os.unlink(mount.sysroot / "file")
        os._exit(1)
    try:
        end = time.monotonic() + 2
        while time.monotonic() < end:
            with contextlib.suppress(OSError):
                os.close(os.open(mount.point / "file", os.O_CREAT | os.O_EXCL | os.O_WRONLY))
                made += 1
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    assert made
    _make_the_kernel_forget()
    wait_until(lambda: mount.descriptors() <= before)


# --- rights -------------------------------------------------------------------------------------


def test_an_open_directory_gives_no_rights_on_its_twin(mounted: Mounter) -> None:
    """What the host shows in a directory open to all is removed and moved by the host's rules."""
    mount = mounted()
    for name, mode in (("plain", 0o755), ("sticky", 0o1777), ("open", 0o777)):
        (mount.sysroot / name).mkdir()
        (mount.sysroot / name).chmod(0o777)
        (mount.host / name).mkdir()
        (mount.host / name).chmod(mode)
        (mount.host / name / "file").write_text(name)
        (mount.host / name / "other").write_text("other")
        (mount.host / name / "dir").mkdir()
    (mount.host / "free").mkdir()
    (mount.host / "free").chmod(0o777)
    point = mount.point

    def attack() -> list[int]:
        codes = []
        for name in ("plain", "sticky"):
            codes += [
                code_of(os.unlink, point / name / "file"),
                code_of(os.rmdir, point / name / "dir"),
                code_of(os.rename, point / name / "file", point / "free/stolen"),
                code_of(_exchange, point / name / "file", point / name / "other"),
            ]
        return codes

    assert in_child(attack, uid=1000, gid=1000) == [errno.EACCES] * 4 + [errno.EPERM] * 4
    for name in ("plain", "sticky"):
        assert sorted(os.listdir(mount.host / name)) == ["dir", "file", "other"]
        assert (mount.host / name / "file").read_text() == name
    assert in_child(lambda: code_of(os.unlink, point / "open/file"), uid=1000, gid=1000) == 0


def test_a_shut_directory_of_the_host_is_shut_for_others_only(mounted: Mounter) -> None:
    """What root has just seen in a shut twin is not there for a user, who makes a file instead."""
    mount = mounted()
    (mount.sysroot / "home").mkdir()
    (mount.sysroot / "home").chmod(0o777)
    (mount.host / "home").mkdir(mode=0o700)
    (mount.host / "home/file").write_text("secret")
    (mount.host / "home/sub").mkdir()
    (mount.host / "home/sub/file").write_text("secret")
    file = mount.point / "home/file"

    def look() -> tuple[int, int, list[str]]:
        below = code_of(os.stat, file.parent / "sub/file")
        return code_of(os.stat, file), below, os.listdir(file.parent)

    assert file.read_text() == (file.parent / "sub/file").read_text() == "secret"
    assert in_child(look, uid=1000, gid=1000) == (errno.ENOENT, errno.ENOENT, [])
    in_child(lambda: file.write_text("mine"), uid=1000, gid=1000)
    assert (mount.host / "home/file").read_text() == "secret"
    assert file.read_text() == (mount.sysroot / "home/file").read_text() == "mine"


# --- stored names -------------------------------------------------------------------------------


def test_no_stored_name_reaches_the_guest(mounted: Mounter) -> None:
    """Listings, getcwd, /proc and link texts show guest names where all are stored otherwise."""
    mount = mounted("names=portable")
    names = ["Upper", "é", "Long" * 50, ".ef=61", ".elfuse_case_index", ".ef_0123456789abcdef"]
    for name in names:
        directory = mount.point / name
        directory.mkdir()
        (directory / name).write_text(name)
        (directory / "link").symlink_to(name)
        assert sorted(os.listdir(directory)) == sorted([name, "link"])
        assert (directory / "link").read_text() == name
        fd = os.open(directory / name, os.O_RDONLY)
        try:
            assert os.readlink(f"/proc/self/fd/{fd}") == str(directory / name)
        finally:
            os.close(fd)

        def cwd(directory: Path = directory) -> tuple[str, str]:
            os.chdir(directory)
            return os.getcwd(), os.readlink("/proc/self/cwd")

        assert in_child(cwd) == (str(directory), str(directory))
    assert sorted(os.listdir(mount.point)) == sorted(names)
    stored = os.listdir(mount.sysroot)
    assert not set(stored) & (set(names) - {".elfuse_case_index"})
    for name in stored:
        # The index file's name is also one that this guest has made itself.
        if name not in names:
            assert code_of(os.lstat, mount.point / name) == errno.ENOENT
    for name in names:
        (mount.point / name / name).rename(mount.point / name / "moved")
        for entry in os.listdir(mount.point / name):
            (mount.point / name / entry).unlink()
        (mount.point / name).rmdir()
    assert os.listdir(mount.point) == []
    assert [name for name in os.listdir(mount.sysroot) if name.startswith(".ef")] == []


# --- limits -------------------------------------------------------------------------------------


def _fill(top: Path, directories: int, files: int) -> None:
    for number in range(directories):
        directory = top / f"d{number}/e"
        directory.mkdir(parents=True)
        for file in range(files):
            os.close(os.open(directory / f"{top.name}-{file}", os.O_CREAT | os.O_WRONLY))


def _walk(top: Path) -> int:
    def fail(error: OSError) -> None:
        raise error

    count = 0
    for directory, _, files in os.walk(top, onerror=fail):
        for file in files:
            os.lstat(os.path.join(directory, file))
            count += 1
    return count


def test_a_walk_of_both_layers_within_1024_descriptors(mounted: Mounter) -> None:
    """A server with the usual limit of descriptors walks 5 000 files and holds few of them open."""
    mount = mounted("listing=union", descriptors=1024)
    for top in (mount.sysroot, mount.host):
        _fill(top, 100, 25)
    assert _walk(mount.point) == 5000
    assert mount.descriptors() < 900
    # And files that are really open work beside what the walk has left behind.
    with contextlib.ExitStack() as opened:
        for number in range(100):
            name = mount.point / f"d{number}/e" / f"{mount.sysroot.name}-0"
            opened.enter_context(open(name))


def test_what_was_not_removed_is_not_kept_open(mounted: Mounter) -> None:
    """Directories that rmdir refuses and files that keep another name cost no descriptors."""
    mount = mounted(descriptors=256)
    for number in range(400):
        os.makedirs(mount.point / f"d{number}/x")
        (mount.point / f"f{number}").touch()
        os.link(mount.point / f"f{number}", mount.point / f"g{number}")
    for number in range(400):
        assert code_of(os.rmdir, mount.point / f"d{number}") == errno.ENOTEMPTY
        os.unlink(mount.point / f"f{number}")
    assert sum(1 for name in os.listdir(mount.point) if name.startswith("g")) == 400
    assert mount.descriptors() < 200


def test_twins_of_many_deep_directories_share_descriptors(mounted: Mounter) -> None:
    """Host files below many deep sysroot directories are reached with few descriptors."""
    mount = mounted(descriptors=256)
    below = "a/b/c/d/e/f/g/h"
    for number in range(60):
        for top in (mount.sysroot, mount.host):
            os.makedirs(top / f"deep{number}" / below)
        (mount.host / f"deep{number}" / below / "file").write_text(str(number))
    for number in range(60):
        assert (mount.point / f"deep{number}" / below / "file").read_text() == str(number)


def _hold(path: Path, flags: int) -> tuple[list[int], int]:
    """Descriptors of the files in *path*, opened over and over until that fails, and the errno.

    Zero where so many could be opened that none fails.
    """
    held: list[int] = []
    names = os.listdir(path)
    while len(held) < 2000:
        try:
            held.append(os.open(path / names[len(held) % len(names)], flags))
        except OSError as failure:
            return held, failure.errno or 0
    return held, 0


def test_open_files_leave_descriptors_for_others(mounted: Mounter, door: str) -> None:
    """Whatever one guest holds open, names are found, made, listed and removed by the others.

    Where opens are skipped a file that is open costs the server nothing.
    """
    mount = mounted(descriptors=256)
    for name in ("many", "other"):
        (mount.point / name).mkdir()
    for number in range(300):
        (mount.point / f"many/{number}").touch()
    _make_the_kernel_forget()
    before = mount.descriptors()
    held, code = _hold(mount.point / "many", os.O_RDONLY)
    try:
        assert code == (errno.ENFILE if door == "pyfuse3" else 0)
        assert len(held) > 100
        assert code_of(os.unlink, mount.point / "many/0") in (0, errno.ENFILE)
        for number in range(100):
            path = mount.point / "other" / str(number)
            path.mkdir()
            (path / "sub").mkdir()
            path.rename(path.with_name(f"moved-{number}"))
            assert os.listdir(path.with_name(f"moved-{number}")) == ["sub"]
            (path.with_name(f"moved-{number}") / "sub").rmdir()
    finally:
        for fd in held:
            os.close(fd)
    (mount.point / "other/file").write_text("again")
    _make_the_kernel_forget()
    wait_until(lambda: mount.descriptors() <= before + 8)


def test_removed_files_leave_descriptors_for_others(mounted: Mounter) -> None:
    """Removed files that a guest holds without having opened them take no descriptor for good."""
    mount = mounted("opens=ask", descriptors=256)
    (mount.point / "many").mkdir()
    for number in range(400):
        (mount.point / f"many/{number}").touch()
    held = [os.open(mount.point / f"many/{number}", os.O_PATH) for number in range(400)]
    try:
        for number in range(400):
            os.unlink(mount.point / f"many/{number}")
        (mount.point / "file").write_text("good")
        assert (mount.point / "file").read_text() == "good"
        # What had room is as it was; the others are gone.
        assert {code_of(os.fstat, fd) for fd in held} <= {0, errno.ESTALE}
        assert os.fstat(held[0]).st_nlink == 0
    finally:
        for fd in held:
            os.close(fd)


def _opened_as_far_as_they_can_be(place: Path, names: Iterable[int]) -> list[int]:
    held: list[int] = []
    for name in names:
        try:
            held.append(os.open(place / str(name), os.O_RDWR | os.O_CREAT))
        except OSError as failure:
            assert failure.errno == errno.ENFILE
            break
    return held


def test_a_file_that_is_open_is_not_lost_by_its_removal(mounted: Mounter) -> None:
    """Where too many of them are removed that is refused, and other files are made as before."""
    mount = mounted(descriptors=256)
    held = _opened_as_far_as_they_can_be(mount.point, range(400))
    assert len(held) > 50
    try:
        for number, fd in enumerate(held):
            os.pwrite(fd, b"%d" % number, 0)
        codes = [code_of(os.unlink, mount.point / str(number)) for number in range(len(held))]
        assert set(codes) <= {0, errno.ENFILE}
        for number in range(50):
            (mount.point / f"other-{number}").mkdir()
        if len(held) == 400:
            (mount.point / "file").write_text("good")
        for number, fd in enumerate(held):
            assert os.pread(fd, 10, 0) == b"%d" % number
            assert os.fstat(fd).st_nlink == bool(codes[number])
    finally:
        for fd in held:
            os.close(fd)


def test_a_mount_below_a_renamed_directory_stays(mounted: Mounter) -> None:
    """Renaming a directory leaves what is mounted below it where it is."""
    mount = mounted()
    os.makedirs(mount.point / "old/inner")
    subprocess.run(["mount", "-t", "tmpfs", "none", mount.point / "old/inner"], check=True)
    try:
        (mount.point / "old/inner/file").write_text("kept")
        os.rename(mount.point / "old", mount.point / "new")
        # The kernel is told to forget from a thread: give a wrong message time to arrive.
        os.listdir(mount.point)
        time.sleep(0.2)
        assert (mount.point / "new/inner/file").read_text() == "kept"
    finally:
        subprocess.run(["umount", "-l", mount.point / "new/inner"], check=False)


def test_a_renamed_directory_loses_its_twin(mounted: Mounter) -> None:
    """A host file seen below a sysroot directory is not seen below its new name."""
    mount = mounted("entry_timeout=1000", "attr_timeout=1000")
    os.makedirs(mount.sysroot / "old")
    os.makedirs(mount.host / "old")
    (mount.host / "old/file").write_text("host")
    assert (mount.point / "old/file").read_text() == "host"
    os.rename(mount.point / "old", mount.point / "new")
    wait_until(lambda: not (mount.point / "new/file").exists())


def test_a_lease_does_not_stop_the_mount(mounted: Mounter) -> None:
    """Whoever holds a lease on a file makes its truncation fail or wait, nobody else's call."""
    mount = mounted()
    (mount.sysroot / "leased").write_text("content")
    held = os.open(mount.sysroot / "leased", os.O_RDONLY)
    before = signal.signal(signal.SIGIO, signal.SIG_IGN)
    try:
        fcntl.fcntl(held, fcntl.F_SETLEASE, fcntl.F_RDLCK)
        assert code_of(os.truncate, mount.point / "leased", 3) == errno.EAGAIN
    finally:
        os.close(held)
        signal.signal(signal.SIGIO, before)
    os.truncate(mount.point / "leased", 3)
    assert (mount.sysroot / "leased").read_text() == "con"


def test_memory_and_descriptors_come_back(mounted: Mounter) -> None:
    """After the kernel has forgotten its inodes, a second walk of other files needs no more."""
    mount = mounted()
    levels = []
    for turn in range(3):
        top = mount.sysroot / f"turn-{turn}"
        top.mkdir()
        _fill(top, 20, 150)
        assert _walk(mount.point / top.name) == 3000
        held = mount.descriptors()
        _make_the_kernel_forget()
        wait_until(lambda held=held: mount.descriptors() < held / 2)  # type: ignore[misc]
        levels.append(mount.memory_kib())
    # Three thousand inodes that stayed would be two MiB a turn.
    assert levels[2] - levels[0] < 2048, levels


# --- a full volume ------------------------------------------------------------------------------


@pytest.fixture
def small(workplace: Path) -> Iterator[Path]:
    """A volume of one MiB."""
    path = workplace / "small"
    path.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "none", path], check=True)
    try:
        yield path
    finally:
        # Lazily: the mount below it is taken away after this.
        subprocess.run(["umount", "-l", path], check=True)


def test_a_full_volume(small: Path, mounted: Mounter) -> None:
    """ENOSPC comes where the room ends; what was counted as written is there, the rest goes on."""
    mount = mounted(sysroot=small)
    kept = mount.point / "kept"
    kept.write_bytes(b"k" * 5000)
    fd = os.open(mount.point / "big", os.O_CREAT | os.O_RDWR, 0o644)
    block = bytes(range(256)) * 400
    written, code = 0, 0
    try:
        while not code and written < 4 << 20:
            try:
                written += os.write(fd, block)
            except OSError as error:
                code = error.errno or 0
        assert code == errno.ENOSPC
        assert 0 < written == os.fstat(fd).st_size < 1 << 20
        content = os.pread(fd, written + 1, 0)
        assert content == (block * (written // len(block) + 1))[:written]
    finally:
        os.close(fd)
    assert code_of((mount.point / "more").write_bytes, b"m" * 9000) == errno.ENOSPC
    assert kept.read_bytes() == b"k" * 5000
    (mount.point / "big").rename(mount.point / "moved")
    (mount.point / "moved").unlink()
    wait_until(lambda: code_of((mount.point / "more").write_bytes, b"m" * 9000) == 0)


# --- a server that dies -------------------------------------------------------------------------


def test_what_was_done_before_the_server_died_is_there(mounted: Mounter) -> None:
    """kill -9 loses no call that had returned, and of a rename one name is always whole."""
    mount = mounted("names=portable")
    done, point = 0, mount.point
    timer = subprocess.Popen(["sh", "-c", f"sleep 0.7; kill -9 {mount.process.pid}"])
    with contextlib.suppress(OSError):
        while done < 100_000:
            (point / f"New{done}").write_bytes(b"%d" % done)
            (point / f"New{done}").rename(point / f"Old{done}")
            done += 1
    timer.wait()
    mount.kill()
    again = mounted("names=portable", sysroot=mount.sysroot)
    names = set(os.listdir(again.point))
    old = {f"Old{number}" for number in range(done)}
    assert done > 0
    assert old <= names
    assert len(names - old) <= 1
    for number in range(done):
        assert (again.point / f"Old{number}").read_bytes() == b"%d" % number
