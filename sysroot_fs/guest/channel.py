"""Messages between the processes of a run, with descriptors where they need them.

A message is whole or not there; the end of the channel says that the other process is gone,
however it went.
"""

from __future__ import annotations

import contextlib
import enum
import os
import socket
from typing import Self, final

from attrs import define, field, frozen

_MOST: int = 32768
_FDS: int = 2


class Kind(enum.Enum):
    """What a message says."""

    FAILED = b"F"
    """The guest root cannot be made or entered: *text* is the sentence."""
    ENTERED = b"E"
    """The root is made; *text* says how to tell its processes (`Survivors.describe`).

    The descriptors: its mount namespace and, with a terminal, the master.
    """
    REFUSED = b"R"
    """The program cannot be started: *number* is the exit status, *text* the sentence."""
    STARTED = b"S"
    """The program runs."""
    INTERRUPTED = b"I"
    """The signal *number* came before the program was started, which now never is."""
    STOPPED = b"Z"
    """The program was stopped by the signal *number*."""
    ENDED = b"X"
    """The program has ended; *number* is its wait status."""
    DONE = b"D"
    """Nothing of the guest is left but the monitor, which waits for the runner's end."""
    MOUNT = b"M"
    """The descriptor to serve the mount with, and the user namespace that it belongs to; *text* is
    the mount's device."""
    SIGNAL = b"s"
    """Pass the signal *number* on to the program, or do not start it."""
    CONTINUE = b"c"
    """The program may go on after a stop."""


@frozen
class Message:
    """One message; `fds` belong to who receives it."""

    kind: Kind
    number: int = 0
    text: bytes = b""
    fds: tuple[int, ...] = ()


@final
@define(eq=False)
class Channel:
    """One end of a connection between two processes."""

    _socket: socket.socket = field()

    @classmethod
    def pair(cls) -> tuple[Self, Self]:
        """Two ends; fork, then each side closes the other's."""
        one, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        return cls(one), cls(other)

    def fileno(self) -> int:
        """The descriptor, for poll."""
        return self._socket.fileno()

    def close(self) -> None:
        """Close this end."""
        self._socket.close()

    def say_no_more(self) -> None:
        """Tell the other side that this one is done; it can still be heard."""
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_WR)

    def send(self, message: Message) -> bool:
        """Send; false where the other side is gone."""
        data = b"%s%d %s" % (message.kind.value, message.number, message.text[: _MOST - 64])
        try:
            socket.send_fds(self._socket, [data], list(message.fds))
        except (BrokenPipeError, ConnectionResetError):
            return False
        return True

    def receive(self) -> Message | None:
        """The next message, waiting for it; None where the other side is gone."""
        try:
            data, fds, _, _ = socket.recv_fds(self._socket, _MOST, _FDS)
        except ConnectionResetError:
            return None
        if not data:
            return None
        for fd in fds:
            os.set_inheritable(fd, False)
        number, _, text = data[1:].partition(b" ")
        return Message(Kind(data[:1]), int(number), text, tuple(fds))
