"""FUSE over io_uring: what is different from requests that are read."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Final

import pytest

from sysroot_fs.cli.doors import file_options
from sysroot_fs.cli.errors import UsageError
from sysroot_fs.cli.machine import URING, uring_problem
from sysroot_fs.cli.options import collect, split_options
from sysroot_fs.fuse import status
from sysroot_fs.fuse.kernel import features
from sysroot_fs.fuse.kernel.abi import Init
from sysroot_fs.fuse.kernel.ring import ENTRIES
from sysroot_fs.fuse.kernel.rings import Rings
from sysroot_fs.fuse.notices import Notices
from sysroot_fs.fuse.options import FileOptions
from tests.children import start_child
from tests.counting import counted, requests
from tests.mounts import Mount, Mounter
from tests.waiting import wait_until

pytestmark = [
    pytest.mark.parametrize("door", ["kernel"], indirect=True),
    pytest.mark.skipif(not os.path.exists(URING), reason="Linux 6.14 has FUSE over io_uring"),
]

_FILES: Final = 60
_BIG: Final = 3 << 20


@contextlib.contextmanager
def parameter(value: str) -> Iterator[None]:
    """What the kernel offers to mounts that are made meanwhile; for one test at a time."""
    with open(URING, "r+", encoding="ascii") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        before = file.read()
        Path(URING).write_text(value)
        try:
            yield
        finally:
            Path(URING).write_text(before)


@pytest.fixture
def offered() -> Iterator[None]:
    """The kernel offers it."""
    with parameter("Y"):
        yield


@pytest.fixture
def mount(offered: None, mounted: Mounter) -> Mount:
    """A mount with rings."""
    made = mounted("uring=on")
    assert has_rings(made)
    assert json.loads(os.getxattr(made.point, status.NAME))["uring"] is True
    return made


def has_rings(mount: Mount) -> bool:
    """Whether a server has any, when it is there for good."""
    os.stat(mount.point)
    for name in os.listdir(f"/proc/{mount.process.pid}/fd"):
        with contextlib.suppress(FileNotFoundError):
            if "[io_uring]" in os.readlink(f"/proc/{mount.process.pid}/fd/{name}"):
                return True
    return False


def at(processor: int, act: Callable[[], object]) -> Callable[[], None]:
    """The same, pinned to a processor."""

    def pinned() -> None:
        os.sched_setaffinity(0, {processor})
        act()

    return pinned


def work(place: Path, name: str) -> None:
    """A bit of everything, below *place*; raises where something is not as it was made."""
    top = place / name
    top.mkdir()
    content = os.urandom(_BIG)
    (top / "big").write_bytes(content)
    assert (top / "big").read_bytes() == content
    for number in range(_FILES):
        (top / f"f{number}").write_text(name)
    assert len(list(top.iterdir())) == _FILES + 1
    for number in range(_FILES):
        assert (top / f"f{number}").read_text() == name
        (top / f"f{number}").rename(top / f"g{number}")
    (top / "link").symlink_to("big")
    os.link(top / "g0", top / "hard")
    os.setxattr(top / "big", "user.kept", b"value" * 100)
    assert os.getxattr(top / "link", "user.kept") == b"value" * 100
    assert os.readlink(top / "link") == "big" and (top / "hard").stat().st_nlink == 2
    with open(top / "big", "r+b") as file:
        file.truncate(5)
        os.fsync(file.fileno())
    assert not (top / "missing").exists() and (top / "link").read_bytes() == content[:5]
    for number in range(1, _FILES):
        (top / f"g{number}").unlink()


@pytest.mark.parametrize("options", [("opens=auto",), ("opens=ask",), ("opens=passthrough",)])
def test_two_at_once(offered: None, mounted: Mounter, options: tuple[str, ...]) -> None:
    """Two clients on each processor, each with its own queue: all finds its way."""
    mount = mounted("uring=on", *options)
    children = [
        start_child(at(processor, partial(work, mount.point, f"{processor}-{client}")))
        for processor in sorted(os.sched_getaffinity(0))
        for client in range(2)
    ]
    for child in children:
        child.result()
    for top in mount.sysroot.iterdir():
        assert sorted(os.listdir(top)) == ["big", "g0", "hard", "link"]
    assert len(os.listdir(mount.sysroot)) == len(children)


def test_it_costs_the_same_requests(offered: None, mounted: Mounter) -> None:
    """They are the same, whichever way they come."""
    costs = []
    for uring in ("on", "off"):
        mount = mounted(f"uring={uring}", "coherence=exclusive", "host_coherence=exclusive")
        assert has_rings(mount) == (uring == "on")
        with requests(mount) as made:
            os.stat(mount.point)
            for number in range(20):
                (mount.point / f"f{number}").write_text("content")
                (mount.point / f"f{number}").read_text()
                (mount.point / f"f{number}").unlink()
        costs.append(made)
    assert costs[0] == costs[1] and costs[0]["create"] == 20


def test_what_the_kernel_lets_go_of(mount: Mount) -> None:
    """FORGET still comes by read(2), and is heard."""
    for number in range(50):
        (mount.point / f"f{number}").touch()
        (mount.point / f"f{number}").unlink()

    def forgotten() -> int:
        now = counted(mount)
        return now["forget"] + now["batch_forget"]

    wait_until(forgotten)


def test_changes_behind_the_mount(mount: Mount) -> None:
    """They are told to the kernel while clients are busy."""
    seen = mount.point / "seen"
    assert not seen.exists()
    over = threading.Event()

    def busy() -> None:
        number = 0
        while not over.wait(0.001):
            (mount.point / f"f{number}").touch()
            number += 1

    client = threading.Thread(target=busy)
    client.start()
    try:
        (mount.sysroot / "seen").write_text("one")
        wait_until(seen.exists)
        (mount.sysroot / "seen").unlink()
        wait_until(lambda: not seen.exists())
    finally:
        over.set()
        client.join()


def test_what_was_written_can_be_executed(mount: Mount) -> None:
    """The descriptor for writing is closed soon, though another thread waits than the writer's."""
    program = mount.point / "program"
    for turn in range(5):
        program.write_text(f"#!/bin/sh\nexit {turn}\n")
        program.chmod(0o755)
        time.sleep(0.05)
        assert not any(
            os.path.samefile(f"/proc/{mount.process.pid}/fd/{name}", mount.sysroot / "program")
            for name in os.listdir(f"/proc/{mount.process.pid}/fd")
            if os.path.exists(f"/proc/{mount.process.pid}/fd/{name}")
            and fd_flags(mount.process.pid, name) & os.O_ACCMODE != os.O_RDONLY
        )
        assert subprocess.run([program], check=False).returncode == turn


def fd_flags(pid: int, name: str) -> int:
    """With which flags a descriptor is open."""
    for line in Path(f"/proc/{pid}/fdinfo/{name}").read_text().splitlines():
        if line.startswith("flags:"):
            return int(line.split()[1], 8)
    raise AssertionError(line)


def test_who_waits_for_fsync_keeps_an_entry(offered: None, mounted: Mounter) -> None:
    """As long as one is left everybody else is served on the same processor."""
    mount = mounted("uring=on", "opens=ask", module="tests.slow_sync")
    processor = min(os.sched_getaffinity(0))
    count = ENTRIES - 1

    def sync(name: str) -> None:
        with open(mount.point / name, "w") as file:
            os.fsync(file.fileno())

    children = [start_child(at(processor, partial(sync, f"f{number}"))) for number in range(count)]
    wait_until(lambda: counted(mount)["fsync"] == count)
    start_child(at(processor, partial((mount.point / "other").write_text, "content"))).result()
    assert (mount.sysroot / "other").read_text() == "content"
    for number in range(count):
        (mount.sysroot / f"f{number}").unlink()
    for child in children:
        child.result()


def test_who_waits_for_fsync_can_be_killed(offered: None, mounted: Mounter) -> None:
    """INTERRUPT comes by read(2), and the answer goes into the ring."""
    mount = mounted("uring=on", "opens=ask", module="tests.slow_sync")

    def sync() -> None:
        with open(mount.point / "f", "w") as file:
            os.fsync(file.fileno())

    child = start_child(sync)
    wait_until(lambda: counted(mount)["fsync"] == 1)
    os.kill(child.pid, signal.SIGKILL)
    assert os.WTERMSIG(os.waitpid(child.pid, 0)[1]) == signal.SIGKILL
    os.close(child.pipe)
    (mount.sysroot / "f").unlink()


def test_it_ends_in_order_with_files_open(mount: Mount) -> None:
    """SIGTERM: what is open is of no use any more, and nobody waits."""
    with open(mount.point / "f", "w") as file:
        mount.stop()
        assert mount.process.returncode == 0
        with pytest.raises(OSError) as failed:
            os.fstat(file.fileno())
            os.pread(file.fileno(), 1, 0)
    assert failed.value.errno in (errno.ENOTCONN, errno.ECONNABORTED, errno.EBADF)


def test_it_ends_in_order_among_requests(mount: Mount) -> None:
    """So it does while clients ask."""
    children = [
        start_child(at(processor, lambda: endlessly(mount.point)))
        for processor in sorted(os.sched_getaffinity(0))
    ]
    wait_until(lambda: counted(mount)["lookup"] > 100)
    mount.stop()
    for child in children:
        child.result()


def endlessly(place: Path) -> None:
    """Ask for one missing name after the other, until the mount fails."""
    fd = os.open(place, os.O_PATH | os.O_DIRECTORY)
    number = 0
    while True:
        number += 1
        try:
            os.stat(f"missing-{os.getpid()}-{number}", dir_fd=fd)
        except FileNotFoundError:
            continue
        except OSError:
            return


def test_it_is_killed_among_requests(mount: Mount) -> None:
    """Who asks at that moment hears of it, and the process is gone at once."""
    children = [
        start_child(at(processor, lambda: endlessly(mount.point)))
        for processor in sorted(os.sched_getaffinity(0))
    ]
    wait_until(lambda: counted(mount)["lookup"] > 100)
    mount.process.kill()
    assert mount.process.wait(10) == -signal.SIGKILL
    for child in children:
        child.result()
    mount.kill()


# --- where there are none -------------------------------------------------------------------------


def test_a_kernel_that_does_not_offer_it(mounted: Mounter) -> None:
    """Requests are read; the log says so where somebody has asked for rings."""
    with parameter("N"):
        for uring, told in (("on", 1), ("auto", 0), ("off", 0)):
            mount = mounted(f"uring={uring}")
            work(mount.point, "work")
            assert not has_rings(mount)
            assert mount.log.read_text().count("io_uring is off") == told
        assert "not enabled" in str(uring_problem())


@pytest.mark.parametrize("module", ["tests.no_io_uring", "tests.refused_rings"])
def test_rings_that_cannot_be_had(offered: None, mounted: Mounter, module: str) -> None:
    """Where io_uring is forbidden, or the kernel refuses a ring, requests are read."""
    mount = mounted("uring=auto", module=module)
    work(mount.point, "work")
    assert "io_uring is off" in mount.log.read_text()


def test_a_number_of_processors_that_is_not_told(
    door: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Without /sys nobody asks for rings: with too few the kernel would hold all requests back."""
    assert features.wanted(FileOptions(uring="on")) & Init.OVER_IO_URING
    assert not features.wanted(FileOptions(uring="off")) & Init.OVER_IO_URING
    monkeypatch.setattr(features, "_POSSIBLE", str(tmp_path / "none"))
    assert not features.wanted(FileOptions(uring="auto")) & Init.OVER_IO_URING
    assert not _rings().make()


def _rings() -> Rings:
    """Those of a connection that there is not."""
    with open(os.devnull, "rb") as file:
        notices = Notices(file.fileno())
    notices.close()
    return Rings(-1, notices, lambda request: None, lambda: None)


def test_many_processors(door: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """They have rings where somebody says so."""
    monkeypatch.setattr(features, "_POSSIBLE", str(tmp_path / "possible"))
    for told, number in (("0\n", 1), ("0-1\n", 2), ("0-3,8-63\n", 64)):
        (tmp_path / "possible").write_text(told)
        assert features.processors() == number
        few = bool(features.wanted(FileOptions(uring="auto")) & Init.OVER_IO_URING)
        assert few == (number <= 2)
    assert features.wanted(FileOptions(uring="on")) & Init.OVER_IO_URING


def test_it_is_found_where_it_is(door: str, offered: None) -> None:
    """The doctor's question."""
    assert uring_problem() is None


def test_locks_exclude_it(offered: None, mounted: Mounter) -> None:
    """Who waits for a lock would keep an entry: together they are refused, or it is off."""
    with pytest.raises(UsageError, match="exclude each other"):
        file_options(collect(split_options("locks,uring=on"), privileged=True))
    assert not has_rings(mounted("locks"))
