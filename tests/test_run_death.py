"""However a run ends, nothing of it is left: no process, no mount, no lost file."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

from tests.matrix import guests
from tests.matrix.volumes import open_volume
from tests.processes import Run, Starter, all_processes
from tests.waiting import wait_until

# Quiet, for a child that starts when the server is gone already has something to say.
WAITING: Final = "exec 2> /dev/null; sleep 900 & (setsid sleep 900) & echo ready; sleep 900"
WRITING: Final = "echo ready; n=0; while n=$((n+1)); do echo $n >> /data && echo $n; done"
STOPPED: Final = "sleep 900 & echo ready; kill -STOP $$"
STUBBORN: Final = "trap '' TERM HUP INT; echo ready; while :; do sleep 1; done"
ENDING: Final = "(trap '' TERM HUP; while :; do sleep 1; done) & echo ready; exit 3"
STATES: Final = {
    "waiting": WAITING, "writing": WRITING, "stopped": STOPPED, "stubborn": STUBBORN,
    "ending": ENDING,
}  # fmt: skip


@pytest.fixture(scope="module")
def guest(session_workplace: Path) -> Path:
    """A guest root of this module's own."""
    sysroot = session_workplace / "dying-guest"
    guests.unpack(sysroot)
    return sysroot


@pytest.fixture
def start(guest: Path, workplace: Path) -> Iterator[Starter]:
    """Start a shell script in the guest, over a host of the test's own."""
    (workplace / "host").mkdir()
    starter = Starter(guest, workplace / "host", workplace)
    yield starter
    starter.clear()
    (guest / "data").unlink(missing_ok=True)


def started(start: Starter, script: str, *options: str, as_user: bool = False) -> Run:
    """A run whose program has said that it is ready."""
    run = start(script, *options, as_user=as_user)
    line = run.output.readline()
    assert line == "ready\n", (run.runner.wait(), run.said())
    run.find()
    return run


# --- one of them is killed ----------------------------------------------------------------------


@pytest.mark.parametrize("state", STATES)
@pytest.mark.parametrize("victim", ["runner", "server", "monitor", "program"])
def test_nothing_is_left_when_one_is_killed(start: Starter, victim: str, state: str) -> None:
    """Whichever process of a run dies, in whichever state, the others end too."""
    run = started(start, STATES[state])
    run.kill(victim)
    run.output.close()
    assert run.left() == ""


@pytest.mark.parametrize(
    ("victim", "status", "said"),
    [
        ("runner", -9, ""),
        (
            "server",
            125,
            "sysroot-fs: the server of the guest root has died (signal 9): the command was ended\n",
        ),
        ("monitor", 125, "sysroot-fs: the process that waits for the command was killed\n"),
        ("program", 137, ""),
    ],
)
def test_the_status_says_who_was_killed(
    start: Starter, victim: str, status: int, said: str
) -> None:
    """The exit status and one sentence say what has happened."""
    run = started(start, WAITING)
    run.kill(victim)
    assert (run.runner.wait(20), run.said()) == (status, said)


def test_a_dead_server_is_no_crash_of_the_program(start: Starter) -> None:
    """A program that dies of its dead files is not blamed for it."""
    run = started(start, "echo ready; while :; do /bin/true; done 2> /dev/null")
    run.kill("server")
    assert run.runner.wait(20) == 125
    assert "the server of the guest root has died (signal 9)" in run.said()


@pytest.mark.parametrize("victim", ["runner", "server", "monitor", "program"])
def test_nothing_is_left_of_a_process_namespace(start: Starter, victim: str) -> None:
    """The same with processes and a mount of the guest's own."""
    run = started(start, WAITING, "--pid", "--tmpfs=/data")
    run.kill(victim)
    assert run.left() == ""


@pytest.mark.parametrize("victims", [("runner",), ("server",), ("runner", "monitor")])
def test_nothing_is_left_of_a_users_run(start: Starter, victims: tuple[str, ...]) -> None:
    """The same without root."""
    run = started(start, WAITING, as_user=True)
    for victim in victims:
        run.kill(victim)
    assert run.left() == ""


@pytest.mark.parametrize("victim", ["runner", "server", "monitor"])
def test_while_it_starts(start: Starter, victim: str) -> None:
    """Killed at any moment of its start, a run leaves nothing and says at most one line."""
    for step in range(3):
        run = start("exec sleep 900")
        # From the moment at which the process is there on.
        wait_until(lambda run=run: victim in run.find())  # type: ignore[misc]
        time.sleep(0.02 * step)
        run.kill(victim)
        assert run.left() == ""
        assert run.said().count("\n") <= 1
        assert victim == "runner" or run.said().startswith("sysroot-fs: the ")


# --- two of them --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "victims",
    [
        ("runner", "monitor"), ("server", "runner"), ("server", "monitor"),
        ("program", "runner"), ("monitor", "program"),
    ],
)  # fmt: skip
def test_two_are_killed(start: Starter, victims: tuple[str, str]) -> None:
    """Nothing is left when two processes die at once."""
    run = started(start, WAITING)
    for victim in victims:
        run.kill(victim)
    assert run.left() == ""


@pytest.mark.parametrize(
    ("stopped", "victim"),
    [
        ("monitor", "runner"), ("monitor", "server"), ("server", "runner"), ("server", "monitor"),
        ("program", "runner"), ("program", "server"),
    ],
)  # fmt: skip
def test_one_is_stopped_and_another_killed(start: Starter, stopped: str, victim: str) -> None:
    """A stopped process does not keep the others, nor itself."""
    run = started(start, WAITING)
    run.kill(stopped, signal.SIGSTOP)
    run.kill(victim)
    assert run.left() == ""


@pytest.mark.parametrize(
    ("stopped", "victim", "status"),
    [
        ("runner", "server", 125),
        ("runner", "program", 137),
        ("monitor", "program", 137),
        ("server", "program", 137),
    ],
)
def test_who_is_stopped_goes_on_later(
    start: Starter, stopped: str, victim: str, status: int
) -> None:
    """Who was stopped, the server in the middle of a request too, does its work when let go on."""
    run = started(start, WAITING)
    run.kill(stopped, signal.SIGSTOP)
    run.kill(victim)
    time.sleep(0.1)
    run.kill(stopped, signal.SIGCONT)
    assert run.runner.wait(20) == status
    assert run.left() == ""


def test_a_process_that_waits_for_the_server(start: Starter) -> None:
    """A program in the middle of a request that is never answered is ended with the others."""
    run = started(start, "echo ready; sleep 0.3; cat /bin/busybox > /dev/null; sleep 900")
    run.kill("server", signal.SIGSTOP)
    time.sleep(0.5)
    run.kill("runner")
    assert run.left() == ""


# --- at any moment ------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(4))
def test_at_random(start: Starter, seed: int) -> None:
    """Any process, any state, any moment."""
    chance = random.Random(seed)
    state = chance.choice(list(STATES))
    run = started(start, STATES[state])
    time.sleep(chance.random() * 0.2)
    for victim in chance.sample(["runner", "server", "monitor", "program"], 2):
        run.kill(victim)
        time.sleep(chance.random() * 0.01)
    run.output.close()
    assert run.left() == "", (seed, state)


# --- nothing is lost ----------------------------------------------------------------------------


@pytest.mark.parametrize("victim", ["runner", "server", "monitor", "program"])
def test_what_was_written_is_there(start: Starter, guest: Path, victim: str) -> None:
    """Each line that the program was told is written is in the file afterwards."""
    run = started(start, WRITING)
    for _ in range(50):
        said = run.output.readline()
    run.kill(victim)
    rest = [line for line in run.output.read().splitlines() if line.isdigit()]
    assert run.left() == ""
    last = int(rest[-1] if rest else said)
    written = (guest / "data").read_text().split()
    assert written[:last] == [str(number) for number in range(1, last + 1)]
    assert len(written) <= last + 1


def test_processes_of_others_stay(start: Starter) -> None:
    """What happens to stand beside the run is not ended with it, in its session and group too."""
    beside = subprocess.Popen(["sleep", "900"])
    try:
        run = started(start, WAITING)
        run.kill("monitor")
        assert run.left() == ""
        assert beside.poll() is None
    finally:
        beside.kill()
        beside.wait()


# --- the volume below ---------------------------------------------------------------------------


def _server_of(mount: Path) -> int:
    """The server of the exfat volume at *mount*: the process that was started with its path."""
    for pid in all_processes():
        words = Path(f"/proc/{pid}/cmdline")
        try:
            if os.fsencode(mount) in words.read_bytes().split(b"\0"):
                return pid
        except OSError:
            continue
    raise AssertionError(f"no server of {mount}")


def test_the_volume_dies(workplace: Path) -> None:
    """When the volume's server is killed the program gets errors, and the run ends as it does."""
    (workplace / "host").mkdir()
    with open_volume("exfat", workplace) as volume:
        sysroot = volume.path / "guest"
        guests.unpack(sysroot, "copy")
        starter = Starter(sysroot, workplace / "host", workplace)
        try:
            run = starter(
                "echo ready; while echo x >> /data; do :; done 2> /dev/null; "
                "cat /etc/passwd || exit 7"
            )
            assert run.output.readline() == "ready\n", run.said()
            os.kill(_server_of(volume.path), signal.SIGKILL)
            assert run.runner.wait(20) in (7, 126, 127, 135)
            assert run.left() == ""
        finally:
            starter.clear()
