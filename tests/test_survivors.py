"""Finding the processes of a run by the mount that they live in, and ending them."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import attrs
import pytest

from sysroot_fs.guest.survivors import Survivors
from tests.runs import state_of
from tests.waiting import wait_until


@attrs.frozen
class Cell:
    """A mount namespace whose processes say their numbers; `survivors` looks for them."""

    first: subprocess.Popen[bytes]
    survivors: Survivors
    description: bytes

    def started(self) -> int:
        """The number that the next process says."""
        assert self.first.stdout
        return int(self.first.stdout.readline())


Enter = Callable[[str], Cell]


@pytest.fixture
def enter() -> Iterator[Enter]:
    """Run a shell script in a mount namespace with a mount that nobody else has, a tmpfs.

    The namespace is held, as `Survivors` asks: its number would go to the next run on the machine.
    """
    proc = os.open("/proc", os.O_RDONLY | os.O_DIRECTORY)
    cells: list[Cell] = []
    held: list[int] = []

    def enter_cell(script: str) -> Cell:
        make = 'mount -t tmpfs cell /mnt && echo $$ && exec "$@"'
        first = subprocess.Popen(
            ["unshare", "--mount", "sh", "-c", make, "sh", "sh", "-c", script],
            stdout=subprocess.PIPE,
            stdin=subprocess.PIPE,
            bufsize=0,
        )
        assert first.stdout
        pid = int(first.stdout.readline())
        held.append(os.open(f"/proc/{pid}/ns/mnt", os.O_RDONLY))
        namespace = os.readlink(f"/proc/{pid}/ns/mnt").encode()
        with open(f"/proc/{pid}/mountinfo", "rb") as lines:
            (device,) = {line.split()[2] for line in lines if line.split()[4] == b"/mnt"}
        description = namespace + b" " + device
        cells.append(Cell(first, Survivors.of(proc, description), description))
        return cells[-1]

    yield enter_cell
    for cell in cells:
        cell.survivors.kill()
        cell.first.kill()
        cell.first.communicate()
    for fd in (proc, *held):
        os.close(fd)


@contextmanager
def bystander() -> Iterator[subprocess.Popen[bytes]]:
    """A process that is in no run."""
    with subprocess.Popen(["sleep", "600"]) as process:
        try:
            yield process
        finally:
            process.kill()


def test_a_process_is_described_by_namespace_and_device() -> None:
    """`describe` says what /proc says of the namespace, and the device of the topmost root."""
    proc = os.open("/proc", os.O_RDONLY | os.O_DIRECTORY)
    namespace, device = Survivors.describe(proc, os.getpid()).split(b" ")
    os.close(proc)
    assert namespace == os.readlink("/proc/self/ns/mnt").encode()
    number = os.stat("/").st_dev
    assert device == f"{os.major(number)}:{os.minor(number)}".encode()


def test_all_processes_of_the_namespace_are_found_and_no_others(enter: Enter) -> None:
    """Children and daemons in sessions of their own are found; bystanders are not."""
    cell = enter("sleep 600 & echo $!; setsid sleep 600 & echo $!; wait")
    pids = [cell.first.pid, cell.started(), cell.started()]
    with bystander():
        assert sorted(cell.survivors.find()) == sorted(pids)


def test_a_process_in_a_namespace_of_its_own_is_found(enter: Enter) -> None:
    """Who has unshared its mounts still shows the mount of the run."""
    cell = enter("unshare --mount sh -c 'echo $$; sleep 600' & wait")
    inner = cell.started()
    assert os.readlink(f"/proc/{inner}/ns/mnt") != os.readlink(f"/proc/{cell.first.pid}/ns/mnt")
    assert inner in cell.survivors.find()


def test_the_spared_one_is_not_found(enter: Enter) -> None:
    """The process that looks is in the namespace itself, and does not count."""
    cell = enter("sleep 600 & echo $!; wait")
    child = cell.started()
    spared = frozenset({cell.first.pid})
    assert Survivors.of(cell.survivors.proc, cell.description, spared).find() == [child]


def test_a_zombie_is_not_found(enter: Enter) -> None:
    """Who has ended and was not waited for cannot be ended, and must not be waited for."""
    cell = enter("sh -c 'echo $$; exit' & exec sleep 600")
    zombie = cell.started()
    wait_until(lambda: state_of(zombie) == "Z")
    assert cell.survivors.find() == [cell.first.pid]


def test_ending_asks_first(enter: Enter) -> None:
    """SIGTERM comes alone and first: who cleans up on it has the time to."""
    cell = enter("trap 'echo 42; exit 3' TERM; echo 1; while :; do sleep 0.02; done")
    cell.started()
    cell.survivors.end()
    assert cell.started() == 42
    assert cell.first.wait() == 3


def test_ending_goes_on_to_a_hangup(enter: Enter) -> None:
    """Who ignores SIGTERM, as shells do, gets SIGHUP before it is killed."""
    cell = enter("trap '' TERM; trap 'echo 42; exit 3' HUP; echo 1; while :; do sleep 0.02; done")
    cell.started()
    cell.survivors.end()
    assert cell.started() == 42
    assert cell.first.wait() == 3


def test_ending_kills_whoever_stays(enter: Enter) -> None:
    """Who ignores everything is killed, and nobody else is."""
    cell = enter("trap '' TERM HUP; echo 1; while :; do sleep 600; done")
    cell.started()
    with bystander() as other:
        cell.survivors.end()
        assert cell.first.wait() == -signal.SIGKILL
        assert other.poll() is None


def test_ending_continues_what_is_stopped(enter: Enter) -> None:
    """A stopped process gets to its SIGTERM."""
    cell = enter("trap 'exit 4' TERM; echo 1; kill -STOP $$; while :; do sleep 0.02; done")
    cell.started()
    wait_until(lambda: state_of(cell.first.pid) == "T")
    cell.survivors.end()
    assert cell.first.wait() == 4


def test_ending_catches_children_that_come_late(enter: Enter) -> None:
    """Who starts another process when it is asked to end does not leave that one behind."""
    cell = enter(
        "trap 'setsid sleep 600 & echo $!; exit' TERM; echo 1; while :; do sleep 0.02; done"
    )
    cell.started()
    cell.survivors.end()
    late = cell.started()
    wait_until(lambda: state_of(late) in ("", "Z"))


def test_killing_takes_everyone_at_once(enter: Enter) -> None:
    """`kill` asks nobody, and afterwards nobody is left."""
    cell = enter("trap 'echo asked' TERM; for i in 1 2 3 4 5 6; do sleep 600 & done; echo 1; wait")
    cell.started()
    cell.survivors.kill()
    assert cell.survivors.find() == []
    assert cell.first.wait() == -signal.SIGKILL
