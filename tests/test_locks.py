"""Locks that meet those of other mounts and of programs outside, and waiting for them."""

from __future__ import annotations

import errno
import fcntl
import os
import signal
import struct
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import pytest

from tests.children import Child, code_of, in_child, start_child
from tests.counting import requests
from tests.file_calls import opened
from tests.mounts import Mount, Mounter
from tests.waiting import wait_until

pytestmark = pytest.mark.parametrize("door", ["kernel"], indirect=True)

_RANGE: Final = struct.Struct("@hhqqi4x")

Lock = Callable[[int, int], object]
"""Takes a lock of a whole file: its descriptor, and LOCK_EX, LOCK_SH, LOCK_UN, LOCK_NB."""


def ranged(command: int, fd: int, kind: int, start: int = 0, length: int = 0) -> tuple[int, ...]:
    """fcntl(2) with a range of a file; what it says."""
    asked = _RANGE.pack(kind, os.SEEK_SET, start, length, 0)
    return _RANGE.unpack(fcntl.fcntl(fd, command, asked))


def by_open_file(fd: int, kind: int) -> None:
    """F_OFD_SETLK."""
    kinds = {
        fcntl.LOCK_EX: fcntl.F_WRLCK,
        fcntl.LOCK_SH: fcntl.F_RDLCK,
        fcntl.LOCK_UN: fcntl.F_UNLCK,
    }
    waits = not kind & fcntl.LOCK_NB
    command = fcntl.F_OFD_SETLKW if waits else fcntl.F_OFD_SETLK
    ranged(command, fd, kinds[kind & ~fcntl.LOCK_NB])


every_kind = pytest.mark.parametrize(
    "lock", [fcntl.flock, fcntl.lockf, by_open_file], ids=["flock", "fcntl", "ofd"]
)


@pytest.fixture(scope="module", params=["ask", "passthrough"])
def mounts(
    request: pytest.FixtureRequest, door: str, session_workplace: Path
) -> Iterator[tuple[Mount, Mount]]:
    """Two mounts of one tree whose locks are taken below."""
    work = session_workplace / f"locks-{request.param}"
    work.mkdir()
    mounter = Mounter(work)
    try:
        mount = mounter("locks", f"opens={request.param}")
        yield mount, mounter("locks", sysroot=mount.sysroot, host=mount.host)
    finally:
        mounter.close()


_serial: Final = iter(range(1_000_000))


@pytest.fixture
def mine(mounts: tuple[Mount, Mount]) -> Path:
    """A file in one of the mounts."""
    mount, _ = mounts
    name = f"f{next(_serial)}"
    (mount.sysroot / name).write_text("content")
    return mount.point / name


@pytest.fixture(params=["another mount", "outside", "the same mount"])
def other(request: pytest.FixtureRequest, mounts: tuple[Mount, Mount], mine: Path) -> Path:
    """The same file as somebody else sees it."""
    mount, another = mounts
    tops = {"another mount": another.point, "outside": mount.sysroot}
    top: Path = tops.get(request.param, mount.point)
    return top / mine.name


def taken(lock: Lock, path: Path, kind: int = fcntl.LOCK_EX) -> int:
    """The errno with which another process is refused a lock, 0 where it gets it."""

    def take() -> int:
        with opened(path, os.O_RDWR) as fd:
            return code_of(lock, fd, kind | fcntl.LOCK_NB)

    return in_child(take)


@contextmanager
def locked(lock: Lock, path: Path, kind: int = fcntl.LOCK_EX) -> Iterator[int]:
    """A descriptor through which another process holds a lock, by whose end it goes; its pid."""
    ready, held = os.pipe()

    def hold() -> None:
        with opened(path, os.O_RDWR) as fd:
            lock(fd, kind)
            os.write(held, b"x")
            signal.pause()

    child = start_child(hold)
    assert os.read(ready, 1) == b"x"
    try:
        yield child.pid
    finally:
        os.kill(child.pid, signal.SIGKILL)
        os.waitpid(child.pid, 0)
        for fd in (ready, held, child.pipe):
            os.close(fd)


@every_kind
def test_a_lock_is_seen_elsewhere(mine: Path, other: Path, lock: Lock) -> None:
    """In both directions, until the process that has it is gone."""
    for here, there in ((mine, other), (other, mine)):
        with locked(lock, here):
            assert taken(lock, there) == errno.EAGAIN
            assert taken(lock, there, fcntl.LOCK_SH) == errno.EAGAIN
        wait_until(lambda there=there: taken(lock, there) == 0)  # type: ignore[misc]
        with locked(lock, here, fcntl.LOCK_SH):
            assert taken(lock, there, fcntl.LOCK_SH) == 0
            assert taken(lock, there) == errno.EAGAIN


@every_kind
def test_who_waits_gets_it(mine: Path, other: Path, lock: Lock) -> None:
    """When the other has let go of it; and the mount serves meanwhile."""
    got, told = os.pipe()

    def wait() -> None:
        with opened(mine, os.O_RDWR) as fd:
            os.write(told, b"w")
            lock(fd, fcntl.LOCK_EX)
            os.write(told, b"g")

    with locked(lock, other):
        child: Child = start_child(wait)
        assert os.read(got, 1) == b"w"
        meanwhile = mine.with_name(f"{mine.name}-meanwhile")
        meanwhile.write_text("served")
        assert meanwhile.read_text() == "served"
        os.set_blocking(got, False)
        assert code_of(os.read, got, 1) == errno.EAGAIN
        os.set_blocking(got, True)
    assert os.read(got, 1) == b"g"
    child.result()
    os.close(got)
    os.close(told)


@every_kind
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_who_waits_can_be_ended(mine: Path, lock: Lock, number: signal.Signals) -> None:
    """By a signal, and then does not get the lock when it is free."""

    def wait() -> None:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        with opened(mine, os.O_RDWR) as fd:
            lock(fd, fcntl.LOCK_EX)

    with locked(lock, mine):
        child = start_child(wait)
        wait_until(lambda: state(child.pid) in "SD" and sleeps_in_request(child.pid))
        os.kill(child.pid, number)
        assert os.WTERMSIG(os.waitpid(child.pid, 0)[1]) == number
        os.close(child.pipe)
        assert taken(lock, mine) == errno.EAGAIN
    wait_until(lambda: taken(lock, mine) == 0)


def state(pid: int) -> str:
    """The letter that ps(1) shows."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


def sleeps_in_request(pid: int) -> bool:
    """Whether a process waits for the server's answer."""
    return Path(f"/proc/{pid}/wchan").read_text() == "request_wait_answer"


def test_ranges(mine: Path, other: Path) -> None:
    """Ranges that do not meet do not disturb; F_GETLK says what is in the way."""
    with opened(mine, os.O_RDWR) as fd:
        ranged(fcntl.F_SETLK, fd, fcntl.F_WRLCK, 10, 10)
        ranged(fcntl.F_SETLK, fd, fcntl.F_UNLCK, 12, 2)

        def look() -> list[object]:
            with opened(other, os.O_RDWR) as theirs:
                free = [
                    code_of(ranged, fcntl.F_SETLK, theirs, fcntl.F_WRLCK, start, 1)
                    for start in (9, 10, 11, 12, 13, 14, 19, 20)
                ]
                return [free, ranged(fcntl.F_GETLK, theirs, fcntl.F_WRLCK, 13, 100)[:4]]

        free, found = in_child(look)
        busy = errno.EAGAIN
        assert free == [0, busy, busy, 0, 0, busy, busy, 0]
        assert found == (fcntl.F_WRLCK, os.SEEK_SET, 14, 6)
    # Closed: the process has no lock left.
    wait_until(lambda: taken(fcntl.lockf, other) == 0)


def test_what_a_close_lets_go_of(mine: Path, other: Path) -> None:
    """fcntl's with any descriptor of the file; flock's and an open file's with the last one."""
    with opened(mine, os.O_RDWR) as fd:
        ranged(fcntl.F_SETLK, fd, fcntl.F_WRLCK)
        assert taken(fcntl.lockf, other) == errno.EAGAIN
        os.close(os.open(mine, os.O_RDONLY))
        assert taken(fcntl.lockf, other) == 0
    for lock in (fcntl.flock, by_open_file):
        with opened(mine, os.O_RDWR) as fd:
            lock(fd, fcntl.LOCK_EX)
            os.close(os.dup(fd))
            os.close(os.open(mine, os.O_RDONLY))
            assert taken(lock, other) == errno.EAGAIN
        wait_until(lambda lock=lock: taken(lock, other) == 0)  # type: ignore[misc]


def test_reading_and_writing(mine: Path, other: Path) -> None:
    """Who has it open to be read takes shared locks, and turns them into others where it can."""
    with opened(mine, os.O_RDONLY) as reading, opened(mine, os.O_RDWR) as fd:
        assert code_of(ranged, fcntl.F_SETLK, reading, fcntl.F_WRLCK) == errno.EBADF
        ranged(fcntl.F_SETLK, reading, fcntl.F_RDLCK)
        assert taken(fcntl.lockf, other, fcntl.LOCK_SH) == 0
        ranged(fcntl.F_SETLK, fd, fcntl.F_WRLCK)
        assert taken(fcntl.lockf, other, fcntl.LOCK_SH) == errno.EAGAIN


def test_without_the_option(mounted: Mounter) -> None:
    """Locks are the kernel's own: they meet in the mount, and cost no request."""
    mount = mounted()
    (mount.sysroot / "f").write_text("content")
    with opened(mount.point / "f", os.O_RDWR) as fd:
        with requests(mount) as made:
            fcntl.flock(fd, fcntl.LOCK_EX)
            ranged(fcntl.F_SETLK, fd, fcntl.F_WRLCK)
        assert not made
        assert taken(fcntl.flock, mount.point / "f") == errno.EAGAIN
        assert taken(fcntl.flock, mount.sysroot / "f") == 0


# --- signals for who waits for fsync ------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_who_waits_for_a_volume_can_be_ended(mounted: Mounter, number: signal.Signals) -> None:
    """Whatever came before: a signal that is not fatal leaves it waiting, as on a plain disk."""
    mount = mounted("opens=ask", module="tests.slow_sync")

    def sync() -> None:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        signal.signal(signal.SIGUSR1, lambda *_: None)
        with opened(mount.point / "f", os.O_RDWR | os.O_CREAT) as fd:
            os.fsync(fd)

    child = start_child(sync)
    wait_until(lambda: sleeps_in_request(child.pid))
    os.kill(child.pid, signal.SIGUSR1)
    time.sleep(0.3)
    assert sleeps_in_request(child.pid)
    os.kill(child.pid, number)
    assert os.WTERMSIG(os.waitpid(child.pid, 0)[1]) == number
    os.close(child.pipe)
    (mount.point / "f").unlink()
