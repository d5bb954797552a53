"""The command's terminal and the relay, with a minimal runner on a terminal of the test's own.

What is expected is what the same command does on the user's terminal itself. The runner is
`tests.terminal_driver`; most tests run with the user's descriptors opened again and with that
refused (another user's terminal), which are different ways to read and write.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import random
import re
import select
import signal
import socket
import string
import subprocess
import sys
import termios
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import pytest

from sysroot_fs.guest import relay as relays
from sysroot_fs.guest import terminal
from sysroot_fs.guest.relay import BUFFER, Relay
from sysroot_fs.guest.terminal import (
    DEFAULT_SIZE,
    Outer,
    Size,
    open_pty,
    restore_terminal,
    set_size,
    set_up,
)
from tests.terminals import (
    END,
    INTERRUPT,
    PATIENCE,
    SUSPEND,
    Screen,
    Terminal,
    children,
    marker,
    memory,
)
from tests.waiting import wait_until

CHECKOUT: Final = Path(__file__).parent.parent

READY: Final = marker("ready")
WAITS: Final = r"printf '\033_ready\033\\'; read line"


def runner(*command: str, options: tuple[str, ...] = ()) -> list[str]:
    """The command line that runs *command* on a terminal of its own."""
    return [sys.executable, "-m", "tests.terminal_driver", *options, "--", *command]


def python(text: str) -> list[str]:
    """A command that runs Python text which has `os`, `sys`, `ready()` and a raw mode at hand."""
    return [
        sys.executable,
        "-c",
        "import os, signal, sys, termios, time, tty\n"
        "def ready(): os.write(1, b'\\x1b_ready\\x1b\\\\')\n" + text,
    ]


@pytest.fixture(params=[(), ("--no-reopen",)], ids=["reopened", "shared"])
def options(request: pytest.FixtureRequest) -> tuple[str, ...]:
    """Both ways to use the user's descriptors."""
    found: tuple[str, ...] = request.param
    return found


def on_terminal(*command: str, options: tuple[str, ...] = (), **more: Any) -> Terminal:
    """The runner with *command* on a new terminal."""
    return Terminal(runner(*command, options=options), cwd=CHECKOUT, **more)


TEXT: Final = "".join(random.Random(1).choices(string.ascii_letters, k=1 << 20)).encode()


@pytest.fixture
def text_file(tmp_path: Path) -> Path:
    """1 MiB of letters without a newline."""
    path = tmp_path / "text"
    path.write_bytes(TEXT)
    return path


# --- what a command sees ----------------------------------------------------------------------


def test_all_three_are_a_terminal_of_its_own(options: tuple[str, ...]) -> None:
    """Input, output and errors are one terminal, the controlling one, and not the user's."""
    script = "test -t 0 && test -t 1 && test -t 2 && tty && tty <&2 && tty </dev/tty"
    with on_terminal("sh", "-c", script, options=options, keep=True) as user:
        assert user.wait() == 0
        assert user.slave is not None
        first, second, third = user.screen()
        assert first == second != os.ttyname(user.slave)
        assert third == "/dev/tty"


def test_prompt_echo_and_answer(options: tuple[str, ...]) -> None:
    """What is typed is echoed once, behind the prompt, and answered."""
    script = 'printf "name? "; read name; echo "hello $name"'
    with on_terminal("sh", "-c", script, options=options) as user:
        user.read_until(b"name? ")
        user.send(b"Bob\r")
        assert user.wait() == 0
        assert user.screen() == ["name? Bob", "hello Bob"]


def test_erase_and_end_of_input_work_in_the_line() -> None:
    """The inner terminal edits the line, and ^D ends the input."""
    with on_terminal("sh", "-c", r"printf '\033_ready\033\\'; exec cat") as user:
        # Typed before that, it would be echoed by the outer terminal too.
        user.read_until(READY)
        user.send(b"abd\x7fc\r")
        user.read_until(b"abc\r\n")
        user.send(END)
        assert user.wait() == 0
        assert user.screen() == ["abc", "abc"]


def test_modes_come_from_the_outer_terminal() -> None:
    """A control character that the user has set is the command's too."""

    def modes(attributes: list[Any]) -> None:
        attributes[6][termios.VINTR] = b"\x07"
        attributes[3] &= ~termios.ECHOCTL

    script = f"trap 'echo caught; exit 7' INT; stty -a; {WAITS}; read again"
    with on_terminal("sh", "-c", script, modes=modes) as user:
        said = user.read_until(READY)
        assert b"intr = ^G" in said
        assert b"-echoctl" in said
        user.send(INTERRUPT)
        user.send(b"\x07")
        user.read_until(b"caught")
        assert user.wait() == 7


@pytest.mark.parametrize("status", [0, 42])
def test_exit_status(status: int) -> None:
    """The status arrives."""
    with on_terminal("sh", "-c", f"exit {status}") as user:
        assert user.wait() == status


def test_resize() -> None:
    """The command starts with the user's size and is told of a new one."""
    program = python(
        "def say(*_):\n"
        "    size = os.get_terminal_size()\n"
        "    print(size.lines, size.columns, flush=True)\n"
        "signal.signal(signal.SIGWINCH, say)\n"
        "say()\n"
        "ready()\n"
        "sys.stdin.readline()\n"
    )
    with on_terminal(*program, rows=80, columns=80) as user:
        assert b"80 80\r\n" in user.read_until(READY)
        user.resize(40, 40)
        user.read_until(b"40 40\r\n")
        user.send(b"\r")
        assert user.wait() == 0
        assert user.screen()[:2] == ["80 80", "40 40"]


def test_interrupt_is_caught(options: tuple[str, ...]) -> None:
    """^C is the command's signal and nobody else's."""
    script = f"trap 'echo caught; exit 7' INT; {WAITS}"
    with on_terminal("sh", "-c", script, options=options) as user:
        user.read_until(READY)
        user.send(INTERRUPT)
        user.read_until(b"^Ccaught")
        assert user.wait() == 7


def test_interrupt_ends() -> None:
    """A command that does not catch ^C dies of it."""
    with on_terminal("sh", "-c", WAITS) as user:
        user.read_until(READY)
        user.send(INTERRUPT)
        assert user.wait() == 128 + signal.SIGINT


def test_job_control_inside(tmp_path: Path) -> None:
    """In an interactive shell ^Z stops the job, fg continues it and ^C ends it."""
    prompt = re.compile(rb"[#$] ")
    # One process: a shell that is just starting a program (vfork) does not stop.
    job = tmp_path / "job"
    job.write_text(
        "import signal\n"
        "signal.signal(signal.SIGINT, signal.SIG_DFL)\n"
        "signal.signal(signal.SIGCONT, lambda *_: print('again', flush=True))\n"
        "print('going', flush=True)\n"
        "while True: signal.pause()\n"
    )
    with on_terminal("sh", "-i", rows=60, columns=400) as user:
        user.read_until(prompt)
        user.send(f"'{sys.executable}' '{job}'\r".encode())
        user.read_until(b"going")
        user.send(SUSPEND)
        user.read_until(b"Stopped")
        user.read_until(prompt)
        user.send(b"jobs; echo li''sted\r")
        assert b"Stopped" in user.read_until(b"listed")
        user.read_until(prompt)
        user.send(b"fg\r")
        # The job says so itself: ^C any earlier would be the shell's.
        user.read_until(b"again")
        user.send(INTERRUPT)
        user.read_until(b"^C")
        user.read_until(prompt)
        user.send(b"exit 5\r")
        assert user.wait() == 5


def test_every_byte_in_raw_mode(options: tuple[str, ...]) -> None:
    """All 256 values pass in both directions when the command has set raw mode."""
    program = python(
        "tty.setraw(0)\n"
        "ready()\n"
        "got = b''\n"
        "while len(got) < 1024: got += os.read(0, 4096)\n"
        "os.write(1, got[::-1])\n"
    )
    data = bytes(range(256)) * 4
    with on_terminal(*program, options=options) as user:
        user.read_until(READY)
        user.send(data)
        assert user.wait() == 0
        assert bytes(user.output).partition(READY)[2] == data[::-1]


def test_closed_and_opened_again() -> None:
    """A command that closes its terminal for a while and opens /dev/tty is still heard."""
    script = "exec <&- >&- 2>&-; sleep 0.2; exec </dev/tty >/dev/tty; echo back; read line; exit 6"
    with on_terminal("sh", "-c", script) as user:
        user.read_until(b"back")
        user.send(b"\r")
        assert user.wait() == 6


# --- output to the last byte ------------------------------------------------------------------


def test_output_just_before_the_end(text_file: Path, options: tuple[str, ...]) -> None:
    """1 MiB that is written just before the exit arrives whole."""
    with on_terminal("cat", str(text_file), options=options) as user:
        assert user.wait() == 0
        assert bytes(user.output) == TEXT


def test_output_survives_a_late_reader(text_file: Path, options: tuple[str, ...]) -> None:
    """What was written before the end waits for a user who looks only afterwards."""
    reader, writer = os.pipe()
    # More than the pipe and the relay hold: the rest waits in the inner terminal.
    size = fcntl.fcntl(writer, fcntl.F_SETPIPE_SZ, 4096) + BUFFER + 2000
    done = text_file.with_name("done")
    script = f"head -c {size} {text_file}; touch {done}"
    with on_terminal("sh", "-c", script, options=options, stdout=writer) as user:
        os.close(writer)
        wait_until(done.exists)
        wait_until(lambda: not children(user.pid))
        # Longer than the patience of `finish`.
        time.sleep(1.5)
        assert user.process.poll() is None
        with open(reader, "rb") as pipe:
            assert pipe.read() == TEXT[:size]
        assert user.wait() == 0


def test_a_survivor_does_not_hold_the_end_up(options: tuple[str, ...]) -> None:
    """A silent process that keeps the terminal open delays the end for a moment only."""
    script = r"(trap '' HUP; exec sleep 1000) & printf '%s done\n' $!"
    with on_terminal("sh", "-c", script, options=options) as user:
        survivor = int(user.read_until(b" done").split()[0])
        try:
            assert user.wait(5) == 0
        finally:
            os.kill(survivor, signal.SIGKILL)


def test_a_chatty_survivor_is_cut_off() -> None:
    """A process that goes on writing after the end does not hold it up either."""
    loop = "trap '' HUP; while :; do echo noise; sleep 0.02; done"
    script = rf"({loop}) & printf '%s done\n' $!"
    with on_terminal("sh", "-c", script) as user:
        survivor = int(re.findall(rb"(\d+) done", user.read_until(b" done"))[0])
        try:
            assert user.wait(10) == 0
        finally:
            os.kill(survivor, signal.SIGKILL)


def test_a_flood_from_a_survivor_is_cut_off() -> None:
    """So does one that writes without a pause."""
    script = r"(trap '' HUP; exec yes) & sleep 0.1; exit 3"
    with on_terminal("sh", "-c", script) as user:
        user.read_until(b"y\r\n")
        # Closing the master ends it: its writes fail then.
        assert user.wait(20) == 3


@pytest.mark.parametrize("reads", [False, True], ids=["stopped", "slow"])
def test_flood_with_a_stuck_reader(options: tuple[str, ...], reads: bool) -> None:
    """Memory stays where it is while nobody reads, or slowly, and ^C gets through."""
    with on_terminal("sh", "-c", r"printf '\033_ready\033\\'; exec yes", options=options) as user:
        user.read_until(READY)
        user.read_until(b"y\r\n")
        before = memory(user.pid)
        deadline = time.monotonic() + 3
        while time.monotonic() < deadline:
            time.sleep(0.02)
            if reads:
                os.read(user.master, 512)
            assert memory(user.pid) < before + 8 * BUFFER
        assert children(user.pid)
        user.type_unread(INTERRUPT)
        wait_until(lambda: not children(user.pid))
        assert user.wait() == 128 + signal.SIGINT


def ticks(pid: int) -> int:
    """The processor time that a process has used, in the kernel's unit."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return int(fields[11]) + int(fields[12])


def assert_idle(pid: int) -> None:
    """The process comes to rest and stays so for a second."""

    def rests() -> bool:
        before = ticks(pid)
        time.sleep(0.2)
        return ticks(pid) == before

    wait_until(rests)
    before = ticks(pid)
    time.sleep(1)
    assert ticks(pid) - before < os.sysconf("SC_CLK_TCK") // 5


def test_stuck_reader_costs_no_time(options: tuple[str, ...]) -> None:
    """While nothing can be passed on nothing is done: no spinning around poll."""
    with on_terminal("yes", options=options) as user:
        user.read_until(b"y\r\n")
        assert_idle(user.pid)
        user.type_unread(INTERRUPT)
        assert user.wait() == 128 + signal.SIGINT


def test_waiting_costs_no_time(options: tuple[str, ...]) -> None:
    """Nor while the command waits for the user, on a terminal or behind the end of a pipe."""
    reader, writer = os.pipe()
    os.close(writer)
    script = rf"stty -icanon; {WAITS}"
    with (
        on_terminal("sh", "-c", script, options=options) as user,
        on_terminal("sh", "-c", script, options=options, stdin=reader) as nobody,
    ):
        os.close(reader)
        for each in (user, nobody):
            each.read_until(READY)
            assert_idle(each.pid)


# --- the user's terminal afterwards -----------------------------------------------------------


def odd(attributes: list[Any]) -> None:
    """Modes that nobody has by default."""
    attributes[0] |= termios.IXANY
    attributes[3] &= ~termios.ECHOK
    attributes[6][termios.VERASE] = b"\x08"


@pytest.mark.parametrize(
    ("number", "status"),
    [(None, 0), (signal.SIGTERM, 143), (signal.SIGUSR1, 1)],
    ids=["exit", "SIGTERM", "exception"],
)
def test_modes_are_restored(number: signal.Signals | None, status: int) -> None:
    """However the runner ends, the terminal has the modes from before, and was raw meanwhile."""
    with on_terminal("sh", "-c", WAITS, keep=True, modes=odd) as user:
        before = user.at_start
        user.read_until(READY)
        assert user.is_raw()
        assert user.modes()[1] & termios.OPOST == 0
        if number is None:
            user.send(b"\r")
        else:
            user.signal(number)
        assert user.wait() == status
        assert user.modes() == before


def test_modes_are_restored_by_another_process() -> None:
    """Killed outright, the runner is cleaned up after from outside of its session."""
    with on_terminal("sh", "-c", WAITS, keep=True, modes=odd) as user:
        assert user.slave is not None
        before = user.modes()
        user.read_until(READY)
        user.process.kill()
        assert user.wait() == -signal.SIGKILL
        assert user.is_raw()
        assert restore_terminal(user.slave, before)
        assert user.modes() == before
        # There is nothing left to do.
        assert not restore_terminal(user.slave, before)


def test_modes_of_others_are_left_alone() -> None:
    """Who comes late does not undo what the shell has set since."""
    master, slave = os.openpty()
    saved = termios.tcgetattr(slave)
    editing = termios.tcgetattr(slave)
    editing[3] &= ~(termios.ICANON | termios.ECHO)
    termios.tcsetattr(slave, termios.TCSANOW, editing)
    editing = termios.tcgetattr(slave)
    assert not restore_terminal(slave, saved)
    assert termios.tcgetattr(slave) == editing
    os.close(master)
    # Gone altogether, it is no error either.
    assert not restore_terminal(slave, saved)
    os.close(slave)


def test_restore_twice_and_raw_again() -> None:
    """Restoring is idempotent, and what the user sets between two runs is what is kept."""
    master, slave = os.openpty()
    try:
        with Outer(slave, slave) as outer:
            first = termios.tcgetattr(slave)
            assert outer.saved == first
            outer.raw()
            assert termios.tcgetattr(slave) != first
            outer.restore()
            assert termios.tcgetattr(slave) == first
            odd(second := termios.tcgetattr(slave))
            termios.tcsetattr(slave, termios.TCSANOW, second)
            outer.restore()
            assert termios.tcgetattr(slave) == second
            outer.raw()
            assert outer.saved == second
        assert termios.tcgetattr(slave) == second
    finally:
        os.close(master)
        os.close(slave)


def test_raw_is_what_cfmakeraw_does() -> None:
    """The modes are those of stty's raw with -echo, input is complete at one byte."""
    master, slave = os.openpty()
    try:
        subprocess.run(["stty", "raw", "-echo", "-echonl", "-iexten"], stdin=slave, check=True)
        expected = termios.tcgetattr(slave)
        subprocess.run(["stty", "sane"], stdin=slave, check=True)
        with Outer(slave, slave) as outer:
            outer.raw()
            found = termios.tcgetattr(slave)
        # stty's clears some more of the input flags.
        assert found[1:4] == expected[1:4]
        assert found[0] & ~expected[0] & ~(termios.IXOFF | termios.IMAXBEL | 0o40000) == 0
        assert (found[6][termios.VMIN], found[6][termios.VTIME]) == (1, 0)
    finally:
        os.close(master)
        os.close(slave)


def test_continued_in_the_foreground_is_raw_again() -> None:
    """Stopped from outside and continued, the runner sets raw mode again and still restores."""
    with on_terminal("sh", "-c", WAITS, keep=True) as user:
        before = user.at_start
        user.read_until(READY)
        user.signal(signal.SIGSTOP)
        wait_until(lambda: " T " in Path(f"/proc/{user.pid}/stat").read_text())
        # As a shell does when its job stops.
        assert user.slave is not None
        termios.tcsetattr(user.slave, termios.TCSANOW, before)
        user.signal(signal.SIGCONT)
        wait_until(user.is_raw)
        user.send(b"\r")
        assert user.wait() == 0
        assert user.modes() == before


def test_background_job_leaves_the_terminal_alone() -> None:
    """Started with &, the runner sets no modes, takes no input, and is not stopped."""
    command = " ".join(f"'{word}'" for word in runner("sh", "-c", "echo started; sleep 1; exit 3"))
    script = rf"set -m; {command} & wait $!; echo status $?; read line; echo line $line"
    with Terminal(["sh", "-c", script], cwd=CHECKOUT) as user:
        before = user.at_start
        user.read_until(b"started")
        user.send(b"typed\r")
        assert user.modes() == before
        user.read_until(b"status 3")
        assert user.modes() == before
        # It was for the shell, which reads after that.
        user.read_until(b"line typed")
        assert user.wait() == 0


def test_background_job_comes_to_the_foreground() -> None:
    """A shell's fg gives it the terminal: raw then, keys arrive, and all is restored."""
    command = " ".join(runner("cat"))
    # Without line editing, so that the modes are the same at each prompt.
    with Terminal(["bash", "--norc", "--noediting", "-i"], cwd=CHECKOUT) as user:
        user.send(b"echo re''ady\r")
        user.read_until(b"ready")
        before = user.modes()
        user.send(command.encode() + b" & echo star''ted\r")
        user.read_until(b"started")
        assert user.modes() == before
        user.send(b"fg\r")
        wait_until(user.is_raw)
        user.send(b"hello\r")
        user.read_until(b"hello\r\nhello\r\n")
        user.send(END)
        wait_until(lambda: not user.is_raw())
        user.send(b"stty -a; exit 9\r")
        user.read_until(b"icanon")
        assert user.wait() == 9


def test_unread_input_is_left_for_the_next_program() -> None:
    """What is typed after the command's end is the next program's."""
    command = " ".join(f"'{word}'" for word in runner("sh", "-c", "exit 4"))
    script = rf"{command}; printf '\033_ready\033\\'; read line; echo next $line"
    with Terminal(["sh", "-c", script], cwd=CHECKOUT) as user:
        user.read_until(READY)
        user.send(b"typed\r")
        user.read_until(b"next typed")


def test_hung_up_terminal_ends_the_command(options: tuple[str, ...], tmp_path: Path) -> None:
    """When the user's window is closed the command gets SIGHUP, and the runner ends."""
    said = tmp_path / "said"
    script = f"trap 'echo hung up > {said}; exit 3' HUP; {WAITS}; read again"
    with on_terminal("sh", "-c", script, options=options) as user:
        user.read_until(READY)
        user.hang_up()
        assert user.wait() == 3
    assert said.read_text() == "hung up\n"


# --- other things than terminals --------------------------------------------------------------


@pytest.mark.parametrize(
    ("data", "shown"),
    [
        (b"", []),
        (b"one\n", ["one", "one"]),
        (b"one\ntwo", ["one", "twoone", "two"]),
    ],
    ids=["empty", "line", "begun"],
)
def test_end_of_a_pipe(
    data: bytes, shown: list[str], options: tuple[str, ...], tmp_path: Path
) -> None:
    """The end of piped input is the end of the terminal's, in the middle of a line too."""
    reader, writer = os.pipe()
    go = tmp_path / "go"
    # When all is there before it is read, the echo comes before the output.
    script = "while ! test -e $1; do sleep 0.01; done; exec cat"
    with on_terminal("sh", "-c", script, "", str(go), options=options, stdin=reader) as user:
        os.close(reader)
        os.write(writer, data)
        os.close(writer)
        if data:
            user.read_until(data.rpartition(b"\n")[2] or data.strip())
        go.touch()
        assert user.wait() == 0
        assert user.screen() == shown


def test_end_of_a_pipe_that_was_closed_before(options: tuple[str, ...]) -> None:
    """A pipe whose writer has gone before the runner starts ends as well."""
    reader, writer = os.pipe()
    os.write(writer, b"one\n")
    os.close(writer)
    with on_terminal("cat", options=options, stdin=reader) as user:
        os.close(reader)
        assert user.wait() == 0
        assert user.screen() == ["one", "one"]


def test_end_waits_for_canonical_mode() -> None:
    """While the command has raw mode no end is sent, which would be a key; afterwards it is."""
    program = python(
        "saved = termios.tcgetattr(0)\n"
        "tty.setraw(0)\n"
        "ready()\n"
        "key = os.read(0, 100)\n"
        "os.set_blocking(0, False)\n"
        "try:\n"
        "    time.sleep(0.7)\n"
        "    key += os.read(0, 100)\n"
        "except BlockingIOError: pass\n"
        "os.set_blocking(0, True)\n"
        "termios.tcsetattr(0, termios.TCSANOW, saved)\n"
        "print(key, os.read(0, 100))\n"
    )
    reader, writer = os.pipe()
    with on_terminal(*program, stdin=reader) as user:
        os.close(reader)
        user.read_until(READY)
        os.write(writer, b"k")
        os.close(writer)
        user.read_until(b"b'k' b''")
        assert user.wait() == 0


def test_input_from_a_file_is_not_taken_away(tmp_path: Path) -> None:
    """Of a file on standard input only what a terminal holds is read ahead."""
    path = tmp_path / "lines"
    path.write_bytes(b"a line of text\n" * 100_000)
    with open(path, "rb") as lines:
        command = ["sh", "-c", f"stty -echo; {WAITS}; echo got $line; sleep 0.5"]
        with on_terminal(*command, stdin=lines.fileno()) as user:
            user.read_until(b"got a line of text")
            assert user.wait() == 0
        taken = os.lseek(lines.fileno(), 0, os.SEEK_CUR)
    assert 15 <= taken < 32 * 1024


def test_output_to_a_file(tmp_path: Path, text_file: Path) -> None:
    """A file gets each byte, behind what it has, and the shell's offset moves with it."""
    path = tmp_path / "out"
    path.write_bytes(b"before\n")
    with open(path, "ab") as out:
        out.write(b"first\n")
        out.flush()
        with on_terminal("cat", str(text_file), stdout=out.fileno()) as user:
            assert user.wait() == 0
        assert user.output == b""
        out.write(b"last\n")
    assert path.read_bytes() == b"before\nfirst\n" + TEXT + b"last\n"


def test_output_to_a_pipe(text_file: Path, options: tuple[str, ...]) -> None:
    """A pipe gets each byte."""
    reader, writer = os.pipe()
    with on_terminal("cat", str(text_file), options=options, stdout=writer) as user:
        os.close(writer)
        with open(reader, "rb") as pipe:
            assert pipe.read() == TEXT
        assert user.wait() == 0


def test_output_to_a_closed_pipe(options: tuple[str, ...]) -> None:
    """Nobody reads any more: the command is hung up, as by ``ssh -t host command | head``."""
    reader, writer = os.pipe()
    with on_terminal("yes", options=options, stdout=writer) as user:
        os.close(writer)
        assert os.read(reader, 3) == b"y\r\n"
        os.close(reader)
        assert user.wait() == 128 + signal.SIGHUP


def test_stuck_pipe_after_the_end_can_be_interrupted(text_file: Path) -> None:
    """While the rest waits for a reader of a pipe, the user's ^C is a signal again."""
    reader, writer = os.pipe()
    # It fits into the pipe and the relay, not into the pipe alone.
    script = f"{WAITS}; head -c 100000 {text_file}"
    with on_terminal("sh", "-c", script, stdout=writer, keep=True) as user:
        os.close(writer)
        assert os.read(reader, 100) == READY
        assert user.is_raw()
        user.send(b"\r")
        wait_until(lambda: not user.is_raw())
        assert user.process.poll() is None
        user.send(INTERRUPT)
        # Python's own end on SIGINT.
        assert user.wait() == -signal.SIGINT
    os.close(reader)


def test_sockets(text_file: Path) -> None:
    """Sockets carry input and output, and stay as they were."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        command = ["sh", "-c", f"stty -echo; {WAITS}; cat {text_file}; echo $line"]
        user = on_terminal(*command, stdin=theirs.fileno(), stdout=theirs.fileno())
        with user:
            assert ours.recv(100) == READY
            ours.sendall(b"hello\n")
            got = b""
            while len(got) < len(TEXT) + 7:
                assert os.get_blocking(theirs.fileno())
                got += ours.recv(65536)
            assert got == TEXT + b"hello\r\n"
            assert user.wait() == 0


def test_closed_descriptors() -> None:
    """Without standard input and output there is nothing to read and nobody to write to."""
    command = " ".join(f"'{word}'" for word in runner("cat"))
    with Terminal(["sh", "-c", f"{command} <&-"], cwd=CHECKOUT) as user:
        assert user.wait() == 0
    command = " ".join(f"'{word}'" for word in runner("yes"))
    with Terminal(["sh", "-c", f"{command} >&-"], cwd=CHECKOUT) as user:
        assert user.wait() == 128 + signal.SIGHUP


def test_the_users_descriptors_stay_blocking(options: tuple[str, ...]) -> None:
    """What is shared with the shell never gets O_NONBLOCK."""
    reader, writer = os.pipe()
    into, out = os.pipe()
    with (
        on_terminal("sh", "-c", WAITS, options=options, keep=True) as on_tty,
        on_terminal("sh", "-c", WAITS, options=options, stdin=reader, stdout=out) as on_pipes,
    ):
        on_tty.read_until(READY)
        assert os.read(into, 100) == READY
        assert on_tty.slave is not None
        for fd in (on_tty.slave, reader, out):
            assert not fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_NONBLOCK
        on_tty.send(b"\r")
        os.write(writer, b"\n")
        assert (on_tty.wait(), on_pipes.wait()) == (0, 0)
    for fd in (reader, writer, into, out):
        os.close(fd)


# --- the pieces -------------------------------------------------------------------------------


@pytest.fixture
def pty() -> Iterator[tuple[int, int]]:
    """A new pseudo-terminal, closed afterwards where it is still open."""
    master, slave = open_pty()
    identity = os.fstat(master), os.fstat(slave)
    yield master, slave
    for fd, found in zip((master, slave), identity, strict=True):
        try:
            if os.path.samestat(os.fstat(fd), found):
                os.close(fd)
        except OSError as error:
            assert error.errno == errno.EBADF


def test_open_pty(pty: tuple[int, int]) -> None:
    """The two ends are connected, not inherited, and of the default modes."""
    master, slave = pty
    assert not os.get_inheritable(master) and not os.get_inheritable(slave)
    os.write(slave, b"x\n")
    assert os.read(master, 10) == b"x\r\n"


def test_open_pty_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    """A kernel that cannot open the peer gives it by its name, with no size left behind."""
    monkeypatch.setattr(terminal, "_TIOCGPTPEER", 0x54FF)
    master, slave = open_pty()
    os.write(slave, b"x\n")
    assert os.read(master, 10) == b"x\r\n"
    assert os.get_terminal_size(slave) == (0, 0)
    os.close(master)
    os.close(slave)


def test_open_pty_refuses_a_stranger(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A name that leads to another terminal is not taken for the peer."""
    monkeypatch.setattr(terminal, "_TIOCGPTPEER", 0x54FF)
    other, stranger = os.openpty()
    (tmp_path / "ptmx").symlink_to("/dev/ptmx")
    (tmp_path / "pts").mkdir()
    for number in range(100):
        (tmp_path / "pts" / str(number)).symlink_to(os.ttyname(stranger))
    with pytest.raises(OSError):
        open_pty(os.fsencode(tmp_path))
    os.close(other)
    os.close(stranger)


def test_no_outer_terminal(pty: tuple[int, int]) -> None:
    """Between pipes the inner terminal has the kernel's modes and 80 columns of 24 lines."""
    master, slave = pty
    reader, writer = os.pipe()
    before = termios.tcgetattr(slave)
    with Outer(reader, writer) as outer:
        outer.raw()
        assert outer.terminal is None and outer.saved is None
        assert outer.foreground()
        set_up(master, outer)
    assert termios.tcgetattr(slave) == before
    assert os.get_terminal_size(slave) == (80, 24)
    assert outer.size() == DEFAULT_SIZE == Size(24, 80)
    os.close(reader)
    os.close(writer)


def test_output_terminal_only(pty: tuple[int, int]) -> None:
    """With keys that come from elsewhere the terminal gives its size but is never raw."""
    master, slave = pty
    set_size(master, Size(11, 22, 33, 44))
    before = termios.tcgetattr(slave)
    reader, writer = os.pipe()
    with Outer(reader, slave) as outer:
        outer.raw()
        assert termios.tcgetattr(slave) == before
        assert outer.size() == Size(11, 22, 33, 44)
    os.close(reader)
    os.close(writer)


def test_input_terminal_only(pty: tuple[int, int]) -> None:
    """With output to a pipe the terminal still processes what the pipe's readers write to it."""
    _, slave = pty
    reader, writer = os.pipe()
    with Outer(slave, writer) as outer:
        outer.raw()
        modes = termios.tcgetattr(slave)
        assert modes[1] & termios.OPOST
        assert not modes[3] & (termios.ICANON | termios.ISIG | termios.ECHO)
    os.close(reader)
    os.close(writer)


@pytest.mark.parametrize("newlines", [False, True])
def test_careful_writes_do_not_wait(pty: tuple[int, int], newlines: bool) -> None:
    """After POLLOUT the pieces fit into a terminal that was not opened again, up to the last."""
    master, slave = pty
    os.set_blocking(master, False)
    end = relays._End(slave, os.O_WRONLY)
    end.close()
    end.eager = False
    data = bytearray((b"some text and a newline\n" if newlines else b"x" * 24) * 4000)
    room, rest = select.poll(), select.poll()
    room.register(slave, select.POLLOUT)
    rest.register(master, select.POLLIN)
    # Waiting would be for ever: this is the only reader.
    before = signal.signal(signal.SIGALRM, lambda *_: pytest.fail("a write waits"))
    signal.alarm(int(PATIENCE))
    try:
        while data:
            if room.poll(0):
                del data[: end.write(data)]
            elif rest.poll(100):
                os.read(master, 100)
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def test_drain_before_the_end(pty: tuple[int, int]) -> None:
    """A runner that is about to stop itself passes on what there is, and not for ever."""
    master, slave = pty
    reader, writer = os.pipe()
    null = os.open(os.devnull, os.O_RDONLY)
    with Relay(Outer(null, writer), master, slave) as relay:
        os.write(slave, b"x" * 5000)
        assert relay.drain(PATIENCE)
        assert os.read(reader, 10_000) == b"x" * 5000
        os.set_blocking(writer, False)
        with pytest.raises(BlockingIOError):
            while True:
                os.write(writer, b"y" * 4096)
        os.set_blocking(writer, True)
        os.write(slave, b"z")
        assert not relay.drain(0.1)
        assert not relay.done
    for fd in (reader, writer, null):
        os.close(fd)


def test_drain_after_the_end(pty: tuple[int, int]) -> None:
    """What is in the kernel when the command has ended comes out, and that is the end."""
    master, slave = pty
    reader, writer = os.pipe()
    null = os.open(os.devnull, os.O_RDONLY)
    with Relay(Outer(null, writer), master, slave) as relay:
        os.write(slave, b"x" * 5000)
        assert not relay.done
        relay.finish()
        assert relay.drain(PATIENCE)
        assert relay.done
        assert os.read(reader, 10_000) == b"x" * 5000
    for fd in (reader, writer, null):
        os.close(fd)


def step(relay: Relay) -> bool:
    """One round of a runner's loop that does not wait; say whether there was something to do."""
    poll = select.poll()
    for fd, events in relay.interests().items():
        poll.register(fd, events)
    ready = poll.poll(0)
    for fd, events in ready:
        relay.handle(fd, events)
    return bool(ready)


def fill(master: int, slave: int) -> None:
    """Type until the terminal takes no more."""
    modes = termios.tcgetattr(slave)
    modes[3] &= ~(termios.ICANON | termios.ECHO)
    termios.tcsetattr(slave, termios.TCSANOW, modes)
    os.set_blocking(master, False)
    poll = select.poll()
    poll.register(master, select.POLLOUT)
    while poll.poll(200):
        os.write(master, b"x" * 256)


def waiting(fd: int) -> int:
    """How many bytes a pipe or a terminal has for its reader."""
    return int.from_bytes(fcntl.ioctl(fd, termios.FIONREAD, bytes(4)), sys.byteorder)


def test_a_file_keeps_what_was_not_passed_on(pty: tuple[int, int], text_file: Path) -> None:
    """The offset of a file moves by what the command's terminal got, to the byte."""
    master, slave = pty
    modes = termios.tcgetattr(slave)
    modes[3] &= ~(termios.ICANON | termios.ECHO)
    termios.tcsetattr(slave, termios.TCSANOW, modes)
    reads = os.dup(slave)
    null = os.open(os.devnull, os.O_WRONLY)
    with open(text_file, "rb", buffering=0) as file:
        with Relay(Outer(file.fileno(), null), master, slave) as relay:
            while step(relay):
                pass
            relay.finish()
            got = b""
            poll = select.poll()
            poll.register(reads, select.POLLIN)
            while poll.poll(200):
                got += os.read(reads, 4096)
        assert got == TEXT[: file.tell()]
        assert len(got) < 3 * BUFFER
    os.close(reads)
    os.close(null)


def test_keys_wait_outside_of_a_full_terminal(pty: tuple[int, int]) -> None:
    """While the command's terminal takes nothing, nothing is taken from the user, at no cost."""
    master, slave = pty
    reader, writer = os.pipe()
    with Relay(Outer(reader, writer), master, slave) as relay:
        fill(master, slave)
        os.write(writer, b"key")
        assert step(relay)
        assert not step(relay)
        assert waiting(reader) == 3
        os.set_blocking(slave, False)
        while waiting(reader):
            with contextlib.suppress(BlockingIOError):
                os.read(slave, 4096)
            step(relay)
    os.close(reader)
    os.close(writer)


def test_hung_up_while_nothing_can_be_read(pty: tuple[int, int]) -> None:
    """That the user's terminal is gone is seen when the command's takes no input too."""
    master, slave = pty
    user, theirs = os.openpty()
    with Relay(Outer(theirs, theirs), master, slave) as relay:
        fill(master, slave)
        os.write(user, b"key\n")
        assert step(relay)
        assert not step(relay)
        assert not relay.hung_up
        os.close(user)
        assert step(relay)
        assert relay.hung_up
        assert not step(relay)
    os.close(theirs)


def test_full_disk_is_reported(pty: tuple[int, int]) -> None:
    """A write that fails is kept for the runner to report; output is dropped, not held."""
    master, slave = pty
    null, full = os.open(os.devnull, os.O_RDONLY), os.open("/dev/full", os.O_WRONLY)
    with Relay(Outer(null, full), master, slave) as relay:
        os.write(slave, b"x")
        assert relay.drain(PATIENCE)
        assert relay.reader_gone
        assert relay.output_error is not None
        assert relay.output_error.errno == errno.ENOSPC
        relay.finish()
        assert relay.drain(PATIENCE)
    os.close(null)
    os.close(full)


def test_screen_shows_no_markers() -> None:
    """The model of the screen hides markers, cut anywhere, and shows the text around them."""
    data = b"a" + marker("ready") + b"b\x1b[>4;1mc\x1b]0;title\x07d\x1b[1me\x1b[0m"
    for cut in range(len(data)):
        screen = Screen(2, 10)
        screen.feed(data[:cut])
        screen.feed(data[cut:])
        assert screen.lines() == ["abcde"]
        assert screen.cursor() == (0, 5)
