"""`sysroot-fs run` at a terminal: what a user types, sees, and gets back in the end."""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import signal
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from tests.matrix import guests, programs
from tests.runs import RUN, Guest, Word, run_guest
from tests.terminals import (
    INTERRUPT,
    SUSPEND,
    Terminal,
    children,
    memory,
)
from tests.waiting import wait_until


@pytest.fixture(scope="module")
def full(session_workplace: Path) -> Iterator[Guest]:
    """A guest with all programs, over an empty host."""
    guest = Guest(session_workplace / "terminal-guest", session_workplace / "terminal-host")
    guest.host.mkdir()
    guests.unpack(guest.sysroot)
    programs.unpack(guest.sysroot)
    yield guest


def _quoted(words: Sequence[Word]) -> str:
    return shlex.join(map(os.fsdecode, words))


def at_terminal(
    guest: Guest, *command: Word, options: Sequence[Word] = (), **more: Any
) -> Terminal:
    """A run that is started at a terminal of its own."""
    return Terminal([*RUN, *guest.words(*command, options=options)], **more)


def at_shell(guest: Guest) -> tuple[Terminal, str]:
    """The host's interactive shell at a terminal, and a command line that starts a run."""
    words = _quoted([*RUN, *guest.words()])
    user = Terminal(["bash", "--norc", "--noprofile", "--noediting", "-i"])
    user.send(b"PS1=; echo shell''-ready\n")
    user.read_until(b"shell-ready")
    return user, words


# --- what the program sees ----------------------------------------------------------------------


@pytest.mark.parametrize("dev", ["host", "fresh", "none"])
def test_all_three_are_a_terminal_with_a_name(full: Guest, dev: str) -> None:
    """A pseudo-terminal of its own, in the foreground, whose name is true in the guest."""
    with at_terminal(full, "ptytest", options=["--dev", dev], rows=30, columns=90) as user:
        assert user.wait() == 0
        assert user.screen()[0] == "isatty 1 1 1"
        names = user.screen()[1].split()[1:]
        assert len(set(names)) == 1
        assert dev == "none" or re.fullmatch(r"/dev/pts/\d+", names[0])
        assert user.screen()[2:] == ["foreground yes", "size 30 90"]


def test_errors_go_where_they_were_sent(full: Guest, workplace: Path) -> None:
    """With 2>file the program's standard error is that file, and the other two a terminal."""
    words = _quoted([*RUN, *full.words("ptytest")])
    with Terminal(["sh", "-c", f"{words} 2>{workplace}/errors"]) as user:
        assert user.wait() == 0
        assert user.screen()[0] == "isatty 1 1 0"


def test_without_terminals_pipes_stay_pipes(full: Guest) -> None:
    """--tty makes a terminal all the same, --no-tty hands on the one that there is."""
    assert full.run("ptytest").printed().splitlines()[0] == "isatty 0 0 0"
    forced = full.run("ptytest", options=["--tty"]).out
    assert forced.splitlines()[0] == b"isatty 1 1 1"
    with at_terminal(full, "ptytest", options=["--no-tty"]) as user:
        assert user.wait() == 0
        assert user.screen()[0] == "isatty 1 1 1"


def test_input_from_a_pipe_ends(full: Guest) -> None:
    """With --tty the end of a pipe is the end of the terminal's input."""
    done = run_guest(*full.words("cat", options=["--tty"]), stdin=b"one\ntwo")
    assert done.status == 0
    assert done.out.endswith(b"one\r\ntwo") or b"two" in done.out


def test_prompt_and_answer(full: Guest) -> None:
    """What is typed is echoed once and answered."""
    with at_terminal(full, "ptytest", "echo") as user:
        user.read_until(b"name? ")
        user.send(b"Ann\n")
        user.read_until(b"hello, Ann")
        assert user.wait() == 0
        assert user.screen() == ["name? Ann", "hello, Ann"]


def test_an_end_that_was_typed_ahead_is_one(full: Guest) -> None:
    """^D before the terminal is raw, as script(1) types it whose input is empty, ends the input."""
    with Terminal(["sh", "-c", f"read x; exec {_quoted([*RUN, *full.words('cat')])}"]) as user:
        user.send(b"\n\x04")
        assert user.wait() == 0
        assert b"\0" not in user.output and b"^@" not in user.output


def test_a_new_size_is_told(full: Guest) -> None:
    """From 80x80 to 40x40, by SIGWINCH."""
    with at_terminal(full, "ptytest", "winch", rows=80, columns=80) as user:
        user.read_until(b"size 80 80")
        user.resize(40, 40)
        user.read_until(b"size 40 40")
        user.send(b"\n")
        assert user.wait() == 0


# --- keys that are signals, and how it ends -----------------------------------------------------


def test_the_program_catches_an_interrupt(full: Guest) -> None:
    """^C goes to the program, not to the run; its exit status comes back."""
    with at_terminal(full, "ptytest", "catch-int") as user:
        user.read_until(b"ready")
        user.send(INTERRUPT)
        assert user.wait() == 42


@pytest.mark.parametrize(
    ("script", "status"), [("exit 0", 0), ("exit 42", 42), ("kill -9 $$", 137)]
)
def test_the_exit_status(full: Guest, script: str, status: int) -> None:
    """The program's own, or 128 and the signal's number."""
    with at_terminal(full, "sh", "-c", script) as user:
        assert user.wait() == status


def test_an_interrupt_kills(full: Guest) -> None:
    """A program that does not catch ^C dies of it: 130."""
    with at_terminal(full, "sh", "-c", "echo go; exec sleep 100") as user:
        user.read_until(b"go")
        user.send(INTERRUPT)
        assert user.wait() == 130


def test_what_was_written_last_is_shown(full: Guest) -> None:
    """A program that writes a megabyte and ends at once loses nothing."""
    size = 1 << 20
    with at_terminal(full, "ptytest", "spew", str(size)) as user:
        assert user.wait() == 0
        assert bytes(user.output) == _spewed(size)


def _spewed(size: int) -> bytes:
    return b"".join(b"%07d " % (block % 10**7) for block in range(size // 8 + 1))[:size]


def test_a_refusal_is_readable(full: Guest) -> None:
    """The sentence comes when the terminal is in order again: on a line of its own."""
    with at_terminal(full, "no-such-program") as user:
        assert user.wait() == 127
        assert user.screen()[0].startswith("sysroot-fs: `no-such-program` was not found")
        assert user.output.endswith(b"\r\n")


# --- job control --------------------------------------------------------------------------------


@pytest.mark.parametrize("shell", ["bash", "sh"])
def test_an_interactive_shell_has_job_control(full: Guest, shell: str) -> None:
    """^Z stops what runs in it, which goes on in the foreground and is interrupted there."""
    options = ["--env", "PS1=", "--env", "ENV="]
    words = ("bash", "--norc", "--noediting", "-i") if shell == "bash" else ("sh", "-i")
    with at_terminal(full, *words, options=options) as user:
        user.send(b"echo go''ing; cat\n")
        user.read_until(b"going")
        user.send(b"one\n")
        user.read_until(b"one\r\none\r\n")
        user.send(SUSPEND)
        user.read_until(re.compile(rb"[Ss]topped"))
        user.send(b"jobs; echo lis''ted\n")
        assert b"cat" in user.read_until(b"listed")
        user.send(b"echo re''turning; fg\n")
        user.read_until(b"returning")
        # Answered by the job, which therefore has the terminal.
        user.send(b"two\n")
        user.read_until(re.compile(rb"two\r\n(?:cat\r\n)?two\r\n"))
        user.send(INTERRUPT)
        user.read_until(re.compile(rb"\^C\r?\n"))
        user.send(b"exit 3\n")
        assert user.wait() == 3


def test_suspending_a_program_suspends_the_run(full: Guest) -> None:
    """^Z of a lone program brings back the host's shell with its own modes; fg goes on."""
    user, words = at_shell(full)
    with user:
        user.send(f"{words} ptytest catch-int; echo sta''tus $?\n".encode())
        user.read_until(b"ready")
        user.send(SUSPEND)
        user.read_until(b"Stopped")
        assert not user.is_raw()
        user.send(b"echo ba''ck; fg; echo la''st $?\n")
        user.read_until(b"back")
        wait_until(user.is_raw)
        user.send(INTERRUPT)
        user.read_until(b"last 42")


def test_a_job_in_the_background_leaves_the_terminal_alone(full: Guest) -> None:
    """Started with &, it neither reads nor changes modes; in the foreground it does."""
    user, words = at_shell(full)
    with user:
        user.send(f"{words} ptytest echo & echo star''ted\n".encode())
        user.read_until(b"started")
        user.read_until(b"name? ")
        assert not user.is_raw()
        user.send(b"fg\n")
        wait_until(user.is_raw)
        user.send(b"Bo\n")
        user.read_until(b"hello, Bo")


# --- before the program has started ---------------------------------------------------------------


@contextlib.contextmanager
def held_start(guest: Guest) -> Iterator[tuple[Terminal, Callable[[], None]]]:
    """A run that waits for the guest's /etc/passwd, now a fifo, and what lets it start."""
    passwd = guest.sysroot / "etc/passwd"
    before = passwd.read_bytes()
    passwd.unlink()
    os.mkfifo(passwd)

    def starting() -> list[int]:
        """The program to be, a child of the second of the runner's."""
        _, *monitor = children(user.pid)
        return [program for pid in monitor for program in children(pid)]

    def let_go() -> None:
        (program,) = starting()
        # A fifo has its two ends in one mount: the guest's. This waits until somebody reads.
        with open(f"/proc/{program}/root/etc/passwd", "wb"):
            pass

    try:
        with at_terminal(guest, "echo", "it runs", options=["--user", "1000"]) as user:
            wait_until(user.is_raw)
            wait_until(lambda: any(map(_has_the_terminal, starting())))
            yield user, let_go
    finally:
        passwd.unlink()
        passwd.write_bytes(before)


def _has_the_terminal(pid: int) -> bool:
    """Whether a process leads the foreground group of its terminal."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return int(fields[5]) == pid


def test_suspended_before_the_program_has_started(full: Guest) -> None:
    """^Z while it is being looked for stops it when it starts, and it can go on."""
    with held_start(full) as (user, let_go):
        user.send(SUSPEND)
        user.read_until(b"^Z")
        let_go()
        user.read_until(b"it runs")
        assert user.wait() == 0


def test_interrupted_before_the_program_has_started(full: Guest) -> None:
    """^C while it is being looked for ends it when it starts, and nothing is said."""
    with held_start(full) as (user, let_go):
        user.send(INTERRUPT)
        user.read_until(b"^C")
        let_go()
        assert user.wait() == 128 + signal.SIGINT
        assert user.screen() == ["^C"]


def test_hung_up_before_the_program_has_started(full: Guest) -> None:
    """The end of the terminal is the end of a run that has not started."""
    with held_start(full) as (user, _):
        user.hang_up()
        assert user.wait() == 128 + signal.SIGHUP


# --- the terminal afterwards --------------------------------------------------------------------


@pytest.mark.parametrize("how", ["exit", "TERM", "runner", "server", "program"])
def test_the_terminal_is_given_back(full: Guest, how: str) -> None:
    """However it ends, kill -9 of any of its processes too: modes as before, nothing runs on."""
    script = "trap '' TERM HUP; echo $$; read line"
    if how == "TERM":
        script = "echo $$; read line"
    with at_terminal(full, "sh", "-c", script, keep=True) as user:
        before = user.at_start
        program = int(user.read_until(re.compile(rb"\d+\r\n")))
        wait_until(user.is_raw)
        server = [pid for pid in children(user.pid) if os.getsid(pid) == pid]
        if how == "exit":
            user.send(b"\n")
        elif how == "TERM":
            user.signal(signal.SIGTERM)
        else:
            victim = {"runner": user.pid, "server": server[0], "program": program}[how]
            os.kill(victim, signal.SIGKILL)
        status = user.wait()
        expected = {"exit": 0, "TERM": 143, "runner": -9, "server": 125, "program": 137}
        assert status == expected[how]
        wait_until(lambda: user.modes() == before)
        for pid in (program, *server):
            wait_until(lambda: not os.path.exists(f"/proc/{pid}"))  # noqa: B023


def test_a_closed_window_ends_everything(full: Guest) -> None:
    """The program is hung up, and nothing of the run is left."""
    with at_terminal(full, "sh", "-c", "echo $$; exec sleep 1000") as user:
        program = int(user.read_until(re.compile(rb"\d+\r\n")))
        others = children(user.pid)
        user.hang_up()
        assert user.process.wait(30) == 129
        for pid in (program, *others):
            wait_until(lambda: not os.path.exists(f"/proc/{pid}"))  # noqa: B023


def test_a_reader_that_does_not_read_costs_no_memory(full: Guest) -> None:
    """`yes` is stopped by the terminal, and ^C gets through to it all the same."""
    with at_terminal(full, "yes", "some words to fill the terminal with") as user:
        user.read_until(b"terminal with")
        before = memory(user.pid)
        for _ in range(200):
            user.read_some(0.01)
        assert memory(user.pid) - before < 4 << 20
        user.type_unread(INTERRUPT)
        assert user.wait() == 130


# --- many at once -------------------------------------------------------------------------------

ROUNDS = int(os.environ.get("SYSROOT_FS_STRESS_ROUNDS", "4"))
"""Starts of each of the eight terminals; 100 by `make stress`."""


def test_eight_terminals_at_once(full: Guest) -> None:
    """Started again and again, each running many musl programs: no crash, no lost byte."""
    script = """
    mkdir /tmp/$0
    for n in 1 2 3 4; do ptytest spew 20000 || exit 1; done
    threads /tmp/$0 || exit 2
    rm -r /tmp/$0
    ptytest catch-int
    """

    def one(number: int) -> None:
        for _ in range(ROUNDS):
            with at_terminal(full, "bash", "-c", script, str(number)) as user:
                user.read_until(b"ready", seconds=120)
                user.send(INTERRUPT)
                assert user.wait() == 42, bytes(user.output[-500:])
                text = bytes(user.output)
                assert text.count(_spewed(20000)) == 4, (number, len(text))

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(one, range(8)))
