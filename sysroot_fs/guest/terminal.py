"""The user's terminal and the command's own one: modes, sizes, and whose turn it is.

A command in a guest root gets a pseudo-terminal of its own: `open_pty` makes it, and `set_up` gives
it the modes and the size of the user's terminal (`Outer`). What is typed and written goes between
them through a `relay.Relay`. The user's terminal is shared with the shell: no modes are changed
while it belongs to another job.
"""

import contextlib
import fcntl
import os
import select
import signal
import struct
import termios
from typing import Any, Final, Self, final

import attrs

__all__ = [
    "DEFAULT_SIZE",
    "Attributes",
    "Outer",
    "Size",
    "open_pty",
    "restore_terminal",
    "set_size",
    "set_up",
]

Attributes = list[Any]
"""What termios.tcgetattr returns; it can be pickled and used by another process."""

IFLAG, OFLAG, CFLAG, LFLAG, CC = 0, 1, 2, 3, 6


# --- modes and sizes --------------------------------------------------------------------------


@attrs.frozen
class Size:
    """A terminal's size in characters, and in pixels where the terminal knows (else 0)."""

    rows: int
    columns: int
    width: int = 0
    height: int = 0


DEFAULT_SIZE: Final = Size(24, 80)

_winsize: Final = struct.Struct("HHHH")


def _get_size(fd: int) -> Size:
    return Size(*_winsize.unpack(fcntl.ioctl(fd, termios.TIOCGWINSZ, bytes(_winsize.size))))


def set_size(master: int, size: Size) -> None:
    """Resize the inner terminal; the kernel tells its foreground group (SIGWINCH) if it changed."""
    fcntl.ioctl(master, termios.TIOCSWINSZ, _winsize.pack(*attrs.astuple(size)))


def _raw(saved: Attributes, output_too: bool) -> Attributes:
    """What cfmakeraw(3) makes of `saved`; with `output_too` false output is still processed."""
    modes = [*saved[:CC], list(saved[CC])]
    modes[IFLAG] &= ~(
        termios.IGNBRK
        | termios.BRKINT
        | termios.PARMRK
        | termios.ISTRIP
        | termios.INLCR
        | termios.IGNCR
        | termios.ICRNL
        | termios.IXON
    )
    if output_too:
        modes[OFLAG] &= ~termios.OPOST
    modes[CFLAG] = modes[CFLAG] & ~(termios.CSIZE | termios.PARENB) | termios.CS8
    modes[LFLAG] &= ~(
        termios.ECHO | termios.ECHONL | termios.ICANON | termios.ISIG | termios.IEXTEN
    )
    modes[CC][termios.VMIN] = 1
    modes[CC][termios.VTIME] = 0
    return modes


def _end_is_next(terminal: int) -> bool:
    """Take ^D from a canonical terminal where nothing was typed before it; say if there was one.

    In raw mode it would be read as a NUL. script(1) types it at once if its own input is empty.
    """
    poll = select.poll()
    poll.register(terminal, select.POLLIN)
    try:
        if [events for _, events in poll.poll(0)] != [select.POLLIN]:
            return False
        # Of an end the kernel says that it can be read, and that it has no bytes.
        (size,) = struct.unpack("i", fcntl.ioctl(terminal, termios.FIONREAD, bytes(4)))
        return size == 0 and not os.read(terminal, 1)
    except OSError:
        return False


def restore_terminal(fd: int, saved: Attributes) -> bool:
    """Undo what `Outer.raw` did to the terminal `fd`; say whether that was done.

    For any process that has the terminal open: the background of its session, or another
    session, from where it cleans up after a runner that was killed. A terminal that is gone is
    left alone, and one whose modes are no longer the raw ones of `saved`: a shell that had the
    terminal meanwhile has set its own.
    """
    # tcsetattr from the background would stop this process; blocked, the kernel lets it pass.
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTTOU})
    try:
        now, raw = termios.tcgetattr(fd), _raw(saved, True)
        if (now[IFLAG], now[LFLAG]) != (raw[IFLAG], raw[LFLAG]):
            return False
        termios.tcsetattr(fd, termios.TCSANOW, saved)
        return True
    except termios.error:
        return False
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)


@final
class Outer:
    """The terminal that the user sits at, if one of the two descriptors is one.

    `terminal` is its descriptor (stdin before stdout), None where neither is a terminal.
    `has_keys` says that stdin is that terminal: only then is it made raw, for otherwise its keys
    go to somebody else, who needs ^C to be a signal. `saved` is what its modes were before that:
    None until the process has been in the foreground for the first time (a shell that is editing
    a line has modes that are nobody's), and taken anew by a `raw` that follows a `restore`.
    Leaving the context restores the terminal, whatever the reason. A runner that was started
    with 0, 1 or 2 closed fills them (/dev/null) before it opens anything else.
    """

    def __init__(self, stdin: int = 0, stdout: int = 1) -> None:
        self.stdin = stdin
        self.stdout = stdout
        self.has_keys = os.isatty(stdin)
        self.terminal: int | None = None
        if self.has_keys:
            self.terminal = stdin
        elif os.isatty(stdout):
            self.terminal = stdout
        self.saved: Attributes | None = None
        self._shows_output = os.isatty(stdout)
        self._wanted = False
        self._is_raw = False
        self._stale = True
        self._ended = False
        if self.terminal is not None and self.foreground():
            self._save(self.terminal)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.restore()

    @property
    def shows_output(self) -> bool:
        """Whether stdout is a terminal."""
        return self._shows_output

    def foreground(self) -> bool:
        """Whether this process may use the terminal now.

        True too where job control has no say: no terminal, not the one of this session, or one
        that is gone.
        """
        if self.terminal is None:
            return True
        try:
            return os.tcgetpgrp(self.terminal) == os.getpgrp()
        except OSError:
            return True

    def raw(self) -> None:
        """Hand all keys to the command: now, or as soon as this job is in the foreground."""
        self._wanted = True
        self.check()

    def check(self) -> bool:
        """Look again who has the terminal, make it raw if that is due; return `foreground()`."""
        foreground = self.foreground()
        if not foreground:
            # A shell that takes the terminal sets its own modes: nothing of ours is left.
            self._is_raw = False
        elif self._wanted and self.has_keys and not self._is_raw:
            self._make_raw()
        return foreground

    def continued(self) -> bool:
        """The process was stopped and got SIGCONT: others may have used the terminal meanwhile."""
        self._is_raw = False
        return self.check()

    def restore(self) -> None:
        """Give the terminal back as it was; the second time, or with it gone, nothing is done."""
        self._wanted = False
        if self._is_raw and self.terminal is not None and self.saved is not None:
            restore_terminal(self.terminal, self.saved)
            self._is_raw = False
            self._stale = True

    def take_end(self) -> bytes:
        """The ^D that was typed before the terminal was made raw, if it was; said once."""
        if not self._ended or self.saved is None:
            return b""
        self._ended = False
        return bytes(self.saved[CC][termios.VEOF])

    def size(self) -> Size:
        """The terminal's size now; `DEFAULT_SIZE` where there is none."""
        if self.terminal is not None:
            with contextlib.suppress(OSError):
                return _get_size(self.terminal)
        return DEFAULT_SIZE

    def _save(self, terminal: int) -> None:
        with contextlib.suppress(termios.error):
            self.saved = termios.tcgetattr(terminal)
            self._stale = False

    def _make_raw(self) -> None:
        assert self.terminal is not None
        # After a stop that was not ours (SIGSTOP) some shells bring the raw modes back with the
        # job: those must not become what is restored in the end.
        if self._stale:
            self._save(self.terminal)
        if self.saved is None:
            return
        self._is_raw = True
        if self.saved[LFLAG] & termios.ICANON:
            self._ended = _end_is_next(self.terminal)
        with contextlib.suppress(termios.error):
            # SIGTTOU is not blocked: moved to the background since the check, this job stops
            # here like any other, and does it when it is back.
            modes = _raw(self.saved, self._shows_output)
            termios.tcsetattr(self.terminal, termios.TCSANOW, modes)


# --- the pseudo-terminal ----------------------------------------------------------------------

# As on x86, Arm and RISC-V; from the kernel's asm-generic/ioctls.h, not all are in `termios`.
_TIOCSPTLCK: Final = 0x40045431
_TIOCGPTN: Final = 0x80045430
_TIOCGPTPEER: Final = 0x5441
_SLAVE_FLAGS: Final = os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC


def open_pty(directory: bytes = b"/dev") -> tuple[int, int]:
    """Make a pseudo-terminal; return the descriptors of its master and its slave.

    `directory` is where `ptmx` is found: a guest's own /dev has a devpts of its own. The slave
    comes from the master, by no name, and does not become the controlling terminal. Kernels
    without that (Linux before 4.13) get it by its name below `directory`.
    """
    master = os.open(directory + b"/ptmx", _SLAVE_FLAGS)
    try:
        fcntl.ioctl(master, _TIOCSPTLCK, struct.pack("i", 0))
        try:
            return master, fcntl.ioctl(master, _TIOCGPTPEER, _SLAVE_FLAGS)
        except OSError as error:
            return master, _open_by_name(master, directory, error)
    except BaseException:
        os.close(master)
        raise


def _open_by_name(master: int, directory: bytes, error: OSError) -> int:
    (number,) = struct.unpack("i", fcntl.ioctl(master, _TIOCGPTN, bytes(4)))
    slave = os.open(directory + b"/pts/%d" % number, _SLAVE_FLAGS)
    try:
        # In another devpts the name is another user's terminal; both ends share one size.
        proof = Size(*struct.unpack("HHHH", os.urandom(8)))
        set_size(master, proof)
        if _get_size(slave) != proof:
            raise error
        set_size(master, Size(0, 0))
    except BaseException:
        os.close(slave)
        raise
    return slave


def set_up(master: int, outer: Outer) -> None:
    """Give the inner terminal the size and the modes (as they were before raw) of the outer one.

    Without an outer terminal, or one that another job has, it keeps what the kernel gives a new
    one. Call it before the command starts.
    """
    if outer.saved is not None:
        termios.tcsetattr(master, termios.TCSANOW, outer.saved)
    set_size(master, outer.size())
