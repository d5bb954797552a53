"""A user at a terminal, for tests: starts a program on a pseudo-terminal, types, looks, waits.

`Terminal` is the side of the terminal emulator. Wait for milestones (`read_until`), never for
time. A milestone that must not be seen goes into an application program command, which terminals
and `Screen` do not show: `marker("ready")` is what the program writes and what the test waits for.
What is typed comes back as an echo: a milestone in a typed command has to be spelt differently
there (``echo re''ady``).
"""

from __future__ import annotations

import errno
import fcntl
import os
import re
import select
import signal
import struct
import subprocess
import termios
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, Self, final

import pyte

PATIENCE: Final = 30.0
"""How long a milestone may take, in seconds, before the test fails."""

INTERRUPT: Final = b"\x03"
END: Final = b"\x04"
SUSPEND: Final = b"\x1a"


def marker(name: str) -> bytes:
    """Bytes that a terminal does not show, to be written by a program as a milestone."""
    return b"\x1b_" + name.encode() + b"\x1b\\"


def memory(pid: int) -> int:
    """The resident memory of a process in bytes."""
    text = Path(f"/proc/{pid}/status").read_text()
    found = re.search(r"^VmRSS:\s*(\d+) kB$", text, re.MULTILINE)
    assert found, text
    return 1024 * int(found[1])


def children(pid: int) -> list[int]:
    """The children of a process with one thread, those not waited for too."""
    return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


class _Tolerant(pyte.Screen):
    """pyte's screen takes no argument for the private forms of this sequence."""

    def select_graphic_rendition(self, *attributes: int, **more: object) -> None:
        if not more.get("private"):
            super().select_graphic_rendition(*attributes)


# Strings (APC, DCS, PM, SOS) up to their end, and queries of keyboard modes: pyte shows them.
_STRINGS: Final = re.compile(rb"\x1b[_P^X].*?(?:\x1b\\|\x07)|\x1b\[[<>=][0-9;]*[a-zA-Z]", re.DOTALL)
_UNFINISHED: Final = re.compile(rb"\x1b(?:\Z|[_P^X]|\[[<>=]?[0-9;]*\Z)")


@final
class Screen:
    """What a terminal of this size shows of the bytes written to it."""

    def __init__(self, rows: int = 24, columns: int = 80) -> None:
        self._screen = _Tolerant(columns, rows)
        self._stream = pyte.ByteStream(self._screen)
        self._rest = b""

    def feed(self, data: bytes) -> None:
        """Write to the terminal; sequences may be cut anywhere."""
        data = _STRINGS.sub(b"", self._rest + data)
        cut = _UNFINISHED.search(data)
        end = cut.start() if cut else len(data)
        self._rest = data[end:]
        self._stream.feed(data[:end])

    def resize(self, rows: int, columns: int) -> None:
        """The window has another size now; lines are lost at the top, as few as possible."""
        screen = self._screen
        row, column = screen.cursor.y, screen.cursor.x
        # pyte drops as many lines as there are fewer, whether there is text below or not.
        fewer = max(0, screen.lines - rows)
        spared = min(fewer, screen.lines - 1 - row)
        screen.cursor_position(0, 0)
        screen.insert_lines(spared)
        screen.resize(rows, columns)
        screen.cursor_position(row - (fewer - spared) + 1, column + 1)

    def lines(self) -> list[str]:
        """The lines from the top, without blanks at the right, up to the last one with text."""
        lines = [line.rstrip() for line in self._screen.display]
        while lines and not lines[-1]:
            lines.pop()
        return lines

    def cursor(self) -> tuple[int, int]:
        """Row and column of the cursor, from 0."""
        return self._screen.cursor.y, self._screen.cursor.x


@final
class Terminal:
    """A pseudo-terminal with a program on it, which leads a session of its own there.

    Standard input and output can be something else (descriptors); the standard error output and
    the controlling terminal are this one in any case. With ``keep=True`` the program's side stays
    open here as `slave`, and its modes can be looked at when the program has gone.
    """

    def __init__(
        self,
        command: Sequence[str | bytes | os.PathLike[str]],
        *,
        rows: int = 24,
        columns: int = 80,
        env: Mapping[str, str] | None = None,
        cwd: Path | None = None,
        stdin: int | None = None,
        stdout: int | None = None,
        pass_fds: Sequence[int] = (),
        keep: bool = False,
        modes: Callable[[list[Any]], None] | None = None,
    ) -> None:
        self.master, slave = os.openpty()
        self._size(rows, columns)
        if modes is not None:
            wanted = termios.tcgetattr(slave)
            modes(wanted)
            termios.tcsetattr(slave, termios.TCSANOW, wanted)
        self.at_start = termios.tcgetattr(slave)
        """The modes before the program was there to change them."""
        self.output = bytearray()
        """Everything that was read so far."""
        self._looked = 0
        self._shown = 0
        self._over = False
        self._screen = Screen(rows, columns)
        self.process = subprocess.Popen(
            command,
            stdin=slave if stdin is None else stdin,
            stdout=slave if stdout is None else stdout,
            stderr=slave,
            env=env,
            cwd=cwd,
            pass_fds=pass_fds,
            start_new_session=True,
            preexec_fn=lambda: fcntl.ioctl(2, termios.TIOCSCTTY, 0),
        )
        self.slave: int | None = slave
        if not keep:
            os.close(slave)
            self.slave = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.hang_up()
        self.process.wait()
        if self.slave is not None:
            os.close(self.slave)

    @property
    def pid(self) -> int:
        """The process that was started."""
        return self.process.pid

    def hang_up(self) -> None:
        """The user closes the window."""
        if self.master >= 0:
            os.close(self.master)
            self.master = -1

    def send(self, data: bytes) -> None:
        """Type; what the program writes meanwhile is read, so that none waits for the other."""
        deadline = time.monotonic() + PATIENCE
        poll = select.poll()
        poll.register(self.master, select.POLLIN | select.POLLOUT)
        while data:
            assert time.monotonic() < deadline, f"{len(data)} bytes cannot be typed"
            for _, events in poll.poll(100):
                if events & select.POLLOUT:
                    # POLLOUT promises 256 bytes, more could wait.
                    data = data[os.write(self.master, data[:256]) :]
                elif events & select.POLLIN:
                    self._read()

    def type_unread(self, data: bytes) -> None:
        """Type a few keys without reading what the program writes."""
        assert os.write(self.master, data) == len(data)

    def resize(self, rows: int, columns: int) -> None:
        """The user changes the window's size."""
        self.screen()
        self._screen.resize(rows, columns)
        self._size(rows, columns)

    def read_until(self, pattern: bytes | re.Pattern[bytes], seconds: float = PATIENCE) -> bytes:
        """Read up to the end of *pattern* (text as it is, or an expression); return all of it.

        The next call looks behind that.
        """
        expression = re.compile(re.escape(pattern)) if isinstance(pattern, bytes) else pattern
        deadline = time.monotonic() + seconds
        while not (found := expression.search(self.output, self._looked)):
            left = deadline - time.monotonic()
            if self._over or left <= 0:
                why = "ended" if self._over else f"{seconds} s have gone"
                tail = bytes(self.output[self._looked :][-2000:])
                raise AssertionError(f"no {expression.pattern!r} ({why}), but {tail!r}")
            self._wait(left)
        start, self._looked = self._looked, found.end()
        return bytes(self.output[start : self._looked])

    def read_some(self, seconds: float) -> bytes:
        """Whatever comes next within the time."""
        before = len(self.output)
        self._wait(seconds)
        return bytes(self.output[before:])

    def screen(self) -> list[str]:
        """The lines of text on the screen after what was read."""
        self._screen.feed(bytes(self.output[self._shown :]))
        self._shown = len(self.output)
        return self._screen.lines()

    def cursor(self) -> tuple[int, int]:
        """Row and column of the cursor after what was read, from 0."""
        self.screen()
        return self._screen.cursor()

    def modes(self) -> list[Any]:
        """The terminal's modes, as its programs see them."""
        return termios.tcgetattr(self.master)

    def is_raw(self) -> bool:
        """Whether keys go through unprocessed."""
        flags = self.modes()[3]
        return not flags & (termios.ICANON | termios.ECHO | termios.ISIG)

    def wait(self, seconds: float = PATIENCE) -> int:
        """The exit status (-N: killed by signal N); reads to the end of the output meanwhile."""
        deadline = time.monotonic() + seconds
        ended = os.pidfd_open(self.process.pid)
        poll = select.poll()
        poll.register(ended, select.POLLIN)
        try:
            while not poll.poll(0):
                left = deadline - time.monotonic()
                assert left > 0, f"still running after {seconds} s: {bytes(self.output[-2000:])!r}"
                self._wait(min(left, 0.05))
        finally:
            os.close(ended)
        while not self._over and self._wait(0):
            pass
        return self.process.wait()

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to the process that was started."""
        os.kill(self.pid, number)

    def _size(self, rows: int, columns: int) -> None:
        fcntl.ioctl(self.master, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    def _wait(self, seconds: float) -> bool:
        if self._over or self.master < 0:
            # Nothing can come: time passes all the same.
            time.sleep(seconds)
            return False
        poll = select.poll()
        poll.register(self.master, select.POLLIN)
        ready = bool(poll.poll(seconds * 1000))
        if ready:
            self._read()
        return ready

    def _read(self) -> None:
        data = b""
        try:
            data = os.read(self.master, 65536)
        except OSError as error:
            # The last one that had the terminal open is gone.
            if error.errno != errno.EIO:
                raise
        self._over = not data
        self.output += data
