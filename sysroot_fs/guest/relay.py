"""The bytes between the user and a command's terminal.

A `Relay` adds none and loses none. Keys such as ^C and ^Z are bytes too: it is the inner terminal
that turns them into signals. Nothing here starts a thread or waits, but for `Relay.drain`, which
says so. The user's open file descriptions are shared with the shell and are given back as they
were: never O_NONBLOCK on them. SIGPIPE has to be ignored, as Python leaves it. One relay serves
one thread, with poll(2): epoll refuses regular files.

The loop is ::

    with Outer() as outer, Relay(outer, master, slave) as relay:
        set_up(master, outer)
        outer.raw()
        while not relay.done:
            for fd, events in poll(relay.interests() | more, relay.timeout()):
                relay.handle(fd, events)

with `Outer.continued` after each SIGCONT, `Relay.resize` after each SIGWINCH, `Relay.hang_up`
when `hung_up` or `reader_gone` has become true, and `Relay.finish` when the command has ended.
"""

import contextlib
import errno
import os
import re
import select
import socket
import stat
import termios
import time
from typing import Final, Self, final

from sysroot_fs.guest.terminal import CC, IFLAG, LFLAG, Attributes, Outer, set_size

BUFFER: Final = 64 * 1024
"""The most that is held of the command's output while the user's side is slow, in bytes."""

TICK: Final = 0.25
"""How often a state is looked at that nothing announces, in seconds.

A shell brings a *running* job to the foreground without a signal (bash: start_job), and no
program says when it gives up raw mode.
"""

# What a pseudo-terminal can hold at most, in bytes: 64 KiB for the buffers of the driver and 4 KiB
# of the line discipline. A writer that nobody reads was stopped after 19520 (Linux 6.18).
_PTY_HOLDS: Final = 68 * 1024

# What is taken from the user at once: no more than an idle terminal takes without being read.
_PIECE: Final = 4096


# --- the user's descriptors -------------------------------------------------------------------

# The kernel writes a run of ordinary characters to a terminal in one go and looks for room again
# at each of these (n_tty.c, process_output_block).
_TERMINAL_PIECE: Final = re.compile(rb"[^\b\t\n\r]{1,256}|.", re.DOTALL)

_PTMX: Final = os.makedev(5, 2)


def _reopened(fd: int, flags: int) -> int | None:
    """An open file description of our own on what `fd` is, or None where that is refused."""
    try:
        own = os.open(f"/proc/self/fd/{fd}", flags | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    except OSError:
        # Another user's, or hung up, or no /proc.
        return None
    if os.path.samestat(os.fstat(own), os.fstat(fd)):
        return own
    os.close(own)
    return None


@final
class _End:
    """One of the user's descriptors, read or written without waiting.

    It is `fd` itself that is polled: a pipe that is opened again does not report that its last
    writer went away before (fs/pipe.c: EPOLLHUP needs a writer seen since the open).

    `eager` says that `write` never waits; otherwise only after POLLOUT, and then it writes what
    the kernel has room for at that moment (256 bytes on a terminal, PIPE_BUF in a pipe). Another
    process that fills the same pipe at the same time can make that wait after all.
    """

    def __init__(self, fd: int, flags: int) -> None:
        self.fd = fd
        self.is_file = False
        self.is_terminal = os.isatty(fd)
        self.eager = True
        self._socket: socket.socket | None = None
        self._own: int | None = None
        try:
            found = os.fstat(fd)
        except OSError:
            return  # closed (`<&-`): each use says EBADF
        if stat.S_ISSOCK(found.st_mode):
            self._socket = socket.socket(fileno=os.dup(fd))
        elif stat.S_ISREG(found.st_mode):
            # Never waits, and its offset (and O_APPEND) belongs to this description.
            self.is_file = True
        # Opening makes a new object of some devices: /dev/ptmx a terminal.
        elif stat.S_ISFIFO(found.st_mode) or (self.is_terminal and found.st_rdev != _PTMX):
            self._own = _reopened(fd, flags)
            self.eager = self._own is not None
        elif found.st_rdev != os.makedev(1, 3):  # /dev/null
            self.eager = False

    def read(self, size: int) -> bytes:
        """At most `size` bytes, none at the end; BlockingIOError where there is nothing yet."""
        if self._socket is not None:
            return self._socket.recv(size, socket.MSG_DONTWAIT)
        return os.read(self.fd if self._own is None else self._own, size)

    def write(self, data: bytearray) -> int:
        """Write some of `data` and say how much; BlockingIOError where there is no room."""
        with memoryview(data) as view:
            if self._socket is not None:
                return self._socket.send(view, socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
            if self._own is not None:
                return os.write(self._own, view)
            if self.eager:
                return os.write(self.fd, view)
        if self.is_terminal:
            match = _TERMINAL_PIECE.match(data)
            return os.write(self.fd, match[0]) if match else 0
        return os.write(self.fd, data[: select.PIPE_BUF])

    def give_back(self, size: int) -> None:
        """The last `size` bytes that were read were not used: the next reader gets them."""
        if self.is_file and size:
            with contextlib.suppress(OSError):
                os.lseek(self.fd, -size, os.SEEK_CUR)

    def gone(self) -> bool:
        """Whether it is a terminal that was hung up."""
        if not self.is_terminal:
            return False
        try:
            termios.tcgetattr(self.fd)
        except termios.error as error:
            return bool(error.args[0] == errno.EIO)
        return False

    def close(self) -> None:
        if self._socket is not None:
            self._socket.close()
        if self._own is not None:
            os.close(self._own)
            self._own = None


# --- the relay --------------------------------------------------------------------------------


def _at_line_start(last: int | None, modes: Attributes) -> bool:
    """Whether the inner terminal begins a line after the input byte `last` (None: no input)."""
    if last is None or last == 0x0A:
        return True
    if last == 0x0D:
        return bool(modes[IFLAG] & termios.ICRNL and not modes[IFLAG] & termios.IGNCR)
    characters = [modes[CC][i] for i in (termios.VEOF, termios.VEOL, termios.VEOL2)]
    return last != 0 and bytes((last,)) in characters


@final
class Relay:
    """Copies the user's input to the command's terminal, and its output to the user.

    Takes ownership of `master` and `slave`, but not of the user's descriptors. The slave is kept
    open until `finish`, so that a command that closes its terminal and opens /dev/tty later is
    not taken for one that has ended; without it, output ends when nobody has the slave open.

    Input is read only when the inner terminal takes it, so what is typed ahead of a command that
    does not read waits where the next program finds it, but for what a terminal holds (19520
    bytes on Linux 6.18). Of the output at most `BUFFER` bytes are held.

    `hung_up`: the user's terminal is gone. `reader_gone`: nothing can be written to stdout any
    more, `output_error` says why; output is read and dropped until `hang_up`, which is what the
    runner should call then: the command gets SIGHUP like that of ``ssh -t host command | head``.
    """

    def __init__(self, outer: Outer, master: int, slave: int | None = None) -> None:
        self.hung_up = False
        self.reader_gone = False
        self.output_error: OSError | None = None
        self._outer = outer
        self._master: int | None = master
        self._slave = slave
        # This description is ours alone.
        os.set_blocking(master, False)
        self._in = _End(outer.stdin, os.O_RDONLY)
        self._out = _End(outer.stdout, os.O_WRONLY)
        self._input = bytearray()
        self._output = bytearray()
        self._last: int | None = None  # the input byte that was passed on last
        self._full = False  # the inner terminal had no room for input
        self._input_over = False
        self._eof_due = False
        self._output_over = False
        # Of `finish`: until when, how much was read since, when the last of it came.
        self._deadline: float | None = None
        self._quiet = 0.0
        self._late = 0
        self._last_read = 0.0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Let go of everything; what still runs on the inner terminal is hung up."""
        self.hang_up()
        self._in.close()
        self._out.close()

    # what the poll loop asks

    @property
    def done(self) -> bool:
        """Whether the command has ended and all of its output was passed on (or has no reader)."""
        self._expire()
        return self._deadline is not None and self._output_over and not self._output

    def interests(self) -> dict[int, int]:
        """What to poll for now, by descriptor; asked anew before each poll.

        It does what is due by itself as well: raw mode when the job comes to the foreground, the
        end of input when the command's terminal can be told.
        """
        wanted = self._output_interests()
        readable = self._outer.check() or not self._outer.has_keys
        if self._deadline is None:
            self._input += self._outer.take_end()
            self._pass_eof()
            if self._master is not None and (self._input or self._full):
                wanted[self._master] = wanted.get(self._master, 0) | select.POLLOUT
            if not self._input_over:
                if readable and not self._input and not self._full:
                    wanted[self._in.fd] = wanted.get(self._in.fd, 0) | select.POLLIN
                elif self._in.is_terminal:
                    # That it is gone is reported unasked. A pipe would report for ever.
                    wanted.setdefault(self._in.fd, 0)
        return wanted

    def timeout(self) -> float | None:
        """After how many seconds `interests` has to be asked again even if nothing happens."""
        if self._deadline is not None:
            if self._output_over or self._no_room():
                return None
            return max(0.0, min(self._deadline, self._last_read + self._quiet) - time.monotonic())
        waiting = self._outer.has_keys and not self._input_over and not self._outer.foreground()
        return TICK if waiting or self._eof_due else None

    def handle(self, fd: int, events: int) -> None:
        """Do what poll(2) says can be done; other descriptors than ours are ignored."""
        if fd == self._master:
            if events & (select.POLLIN | select.POLLHUP | select.POLLERR):
                self._read_output()
            if events & select.POLLOUT:
                self._full = False
                self._write_input()
        if fd == self._in.fd and events & ~select.POLLOUT:
            if events & ~select.POLLIN and not self._input_over and self._in.gone():
                self.hung_up = self._input_over = True
            self._read_input()
        if fd == self._out.fd and events & ~select.POLLIN:
            self._write_output()

    # what the runner says

    def hung_up_now(self) -> bool:
        """Whether the user's terminal is gone, asked of it now."""
        self.hung_up = self.hung_up or self._in.gone() or self._out.gone()
        return self.hung_up

    def resize(self) -> None:
        """The outer terminal has another size now (SIGWINCH, or after a stop)."""
        if self._master is not None:
            set_size(self._master, self._outer.size())

    def hang_up(self) -> None:
        """Close the command's terminal: its session gets SIGHUP, its reads say end of file.

        What was read before still goes to the user; what the kernel holds is lost.
        """
        for fd in (self._slave, self._master):
            if fd is not None:
                os.close(fd)
        self._slave = self._master = None
        self._input_over = self._output_over = True
        self._eof_due = False
        self._input.clear()

    def finish(self, seconds: float = 1.0, quiet: float = 0.1) -> None:
        """The command has ended: no more input, and `done` when its last output has gone out.

        All that was written before this call is passed on, however slow the reader is. When a
        process that outlives the command keeps the terminal open, its output ends when none has
        come for `quiet` seconds, or after `seconds` in any case. Where stdout is not the
        terminal, the terminal is restored at once: ^C can then end a wait for a stuck reader.
        """
        if self._deadline is not None:
            return
        if self._slave is not None:
            os.close(self._slave)
            self._slave = None
        self._in.give_back(len(self._input))
        self._input.clear()
        self._eof_due = False
        self._input_over = True
        self._late = 0
        self._last_read = time.monotonic()
        self._deadline = self._last_read + seconds
        self._quiet = quiet
        # Without the slave of our own its last close may have been seen and left alone before.
        self._output_over = self._master is None
        if not self._outer.shows_output:
            self._outer.restore()

    def drain(self, seconds: float | None = None) -> bool:
        """Wait, at most so long, until the output so far has been passed on; say whether it is.

        After `finish` that is `done`. Before it, it is for a runner that is about to stop itself:
        all that the command has written by now.
        """
        until = None if seconds is None else time.monotonic() + seconds
        while not (self.done if self._deadline is not None else self._settled()):
            times = [] if until is None else [until - time.monotonic()]
            if times and times[0] <= 0:
                return False
            if self._deadline is not None and (pause := self.timeout()) is not None:
                times.append(pause)
            poll = select.poll()
            for fd, events in self._output_interests().items():
                poll.register(fd, events)
            # Rounded up: rounded down, the last millisecond would be spent spinning.
            for fd, events in poll.poll(1000 * min(times) + 1 if times else None):
                self.handle(fd, events)
        return True

    # the command's output

    def _no_room(self) -> bool:
        return len(self._output) >= BUFFER

    def _output_interests(self) -> dict[int, int]:
        wanted = {}
        if self._master is not None and not self._output_over and not self._no_room():
            wanted[self._master] = select.POLLIN
        if self._output:
            wanted[self._out.fd] = select.POLLOUT
        return wanted

    def _settled(self) -> bool:
        if self._output:
            return False
        if self._master is None or self._output_over:
            return True
        poll = select.poll()
        poll.register(self._master, select.POLLIN)
        return not poll.poll(0)

    def _read_output(self) -> None:
        if self._master is None or self._output_over or self._no_room():
            return
        try:
            data = os.read(self._master, BUFFER - len(self._output))
        except BlockingIOError:
            return
        except OSError:
            # EIO: the last slave descriptor is closed and everything has been read.
            data = b""
        if not data:
            self._output_over = True
            return
        self._last_read = time.monotonic()
        self._late += len(data)
        if self.reader_gone:
            return
        self._output += data
        if self._out.eager:
            self._write_output()

    def _write_output(self) -> None:
        if not self._output:
            return
        try:
            written = self._out.write(self._output)
        except BlockingIOError:
            return
        except OSError as error:
            self.reader_gone = True
            self.output_error = error
            self.hung_up = self.hung_up or self._out.gone()
            self._output.clear()
            return
        del self._output[:written]

    def _expire(self) -> None:
        """End the output of a finished command whose terminal somebody keeps open."""
        if self._deadline is None or self._output_over or self._no_room():
            return
        now = time.monotonic()
        if now < min(self._deadline, self._last_read + self._quiet):
            return
        # The clock alone proves nothing, this process may have been waiting for its reader. What
        # the command wrote is there without a wait (a read of nothing flushes the driver's
        # buffers first), and it is no more than a terminal holds.
        before = self._late
        self._read_output()
        if self._late == before or (now >= self._deadline and self._late > _PTY_HOLDS):
            self._output_over = True

    # the user's input

    def _room(self) -> bool:
        assert self._master is not None
        poll = select.poll()
        poll.register(self._master, select.POLLOUT)
        return bool(poll.poll(0))

    def _read_input(self) -> None:
        if self._input_over or self._input or self._full or self._master is None:
            return
        # Since the poll the job may have moved to the background, where reading stops it.
        if self._outer.has_keys and not self._outer.foreground():
            return
        if not self._room():
            self._full = True
            return
        try:
            data = self._in.read(_PIECE)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if data:
            self._input += data
            self._write_input()
        else:
            self._input_over = True
            self.hung_up = self.hung_up or self._in.gone()
            self._eof_due = not self.hung_up

    def _write_input(self) -> None:
        if not self._input or self._master is None:
            return
        try:
            written = os.write(self._master, self._input)
        except BlockingIOError:
            self._full = True
            return
        except OSError:
            written = len(self._input)
        if written:
            self._last = self._input[written - 1]
            del self._input[:written]

    def _pass_eof(self) -> None:
        """Tell the end of the user's input to the command, as its terminal's ^D.

        Only a terminal in canonical mode knows an end; in another mode it would be a key.
        """
        if not self._eof_due or self._input or self._master is None:
            return
        try:
            modes = termios.tcgetattr(self._master)
        except termios.error:
            return
        end = modes[CC][termios.VEOF]
        if modes[LFLAG] & termios.ICANON and end != b"\0":
            # It ends a line that has been begun, and is the end of input after that.
            self._input += end if _at_line_start(self._last, modes) else end + end
            self._eof_due = False
            self._write_input()
