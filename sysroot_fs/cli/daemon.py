"""A server in the background whose start is still the shell's business.

`run_detached` forks once. The child does the work in a session of its own; the parent waits on
a pipe for one message and turns it into its own result, so that the shell learns from the exit
status whether the mount is up. Call it before anything has started a thread: only the thread
that forks lives on in the child, and locks that others held stay locked.

The message is `R` (ready) or `E` and a sentence; end of file without either means that the
child died, and its wait status says how. Until it is ready the child ends with its parent, however
that ends: who was told that the command was interrupted finds no mount a moment later.
"""

import contextlib
import logging
import os
import signal
import sys
from collections.abc import Callable
from typing import Self, final

from sidecar import processes
from sysroot_fs.cli.errors import MountFailed
from sysroot_fs.null import to_null
from sysroot_fs.text import sentence

Ready = Callable[[], None]
Work = Callable[[Ready], None]

READY = b"R"
ERROR = b"E"

log = logging.getLogger(__name__)


@final
class ErrorsHeldBack:
    """While it lasts, what C code writes to descriptor 2 is kept: `said` gives it back.

    libfuse says why a mount failed on stderr and nowhere else. The user gets it inside our one
    sentence instead of beside it. `release` ends it early; leaving the block ends it anyway.
    With `active` false nothing is kept: who debugs wants to see everything as it comes.
    """

    def __init__(self, active: bool = True) -> None:
        sys.stderr.flush()
        self._kept = os.dup(2)
        self._held = os.memfd_create("stderr")
        self._released = False
        if active:
            os.dup2(self._held, 2)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()
        os.close(self._held)

    def release(self) -> None:
        """Give descriptor 2 back."""
        if not self._released:
            self._released = True
            sys.stderr.flush()
            os.dup2(self._kept, 2)
            os.close(self._kept)

    def said(self) -> str:
        """What was written, on one line."""
        sys.stderr.flush()
        # The offset is shared with the writers, so it is not moved: pread.
        text = os.pread(self._held, 65536, 0).decode("utf-8", "replace")
        return "; ".join(line.strip() for line in text.splitlines() if line.strip())


def _tell(pipe: int, message: bytes) -> None:
    # The parent may be gone (^C), and there is nobody to tell.
    with contextlib.suppress(BrokenPipeError):
        os.write(pipe, message)


def _child(work: Work, pipe: int, parent: int) -> int:
    """The child's whole life; the value is its exit status."""
    signal.signal(signal.SIGPIPE, signal.SIG_IGN)
    told = False

    def ready() -> None:
        nonlocal told
        if not told:
            told = True
            processes.signal_at_parents_end(None)
            _tell(pipe, READY)
            os.close(pipe)

    try:
        processes.signal_at_parents_end(signal.SIGTERM)
        if os.getppid() != parent:
            return 1  # it has ended before
        os.setsid()
        os.chdir("/")
        to_null(0, 1, 2)
        work(ready)
    except BaseException as error:
        if isinstance(error, SystemExit) and error.code in (None, 0):
            error = MountFailed("the server ended before the mount was up")
        if told:
            log.critical("the server died: %s", sentence(error), exc_info=error)
        else:
            log.error("%s", sentence(error), exc_info=error)
            # At most PIPE_BUF, which is written whole or not at all.
            _tell(pipe, (ERROR + sentence(error).encode("utf-8", "surrogateescape"))[:4096])
        return 1
    if not told:
        _tell(pipe, ERROR + b"the server ended before the mount was up")
        return 1
    return 0


def _how_it_died(status: int) -> str:
    if os.WIFSIGNALED(status):
        number = os.WTERMSIG(status)
        with contextlib.suppress(ValueError):
            return f"killed by {signal.Signals(number).name}"
        return f"killed by signal {number}"
    return f"exit status {os.waitstatus_to_exitcode(status)}"


def run_detached(work: Work) -> None:
    """Run `work` in the background; return when it has called the function that it is given.

    Raises MountFailed with the child's sentence when it fails before that, whatever way it
    does. Interrupted while it waits, it ends the child as well.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    reader, writer = os.pipe()
    parent = os.getpid()
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            os.close(reader)
            status = _child(work, writer, parent)
            logging.shutdown()
        finally:
            # Never back into the caller: it has the parent's exit handlers and buffers.
            os._exit(status)
    os.close(writer)
    try:
        with open(reader, "rb") as pipe:
            message = pipe.read()
    except KeyboardInterrupt:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGTERM)
        raise
    if message.startswith(READY):
        return
    _, status = os.waitpid(pid, 0)
    if message.startswith(ERROR):
        raise MountFailed(message[1:].decode("utf-8", "surrogateescape"))
    raise MountFailed(f"the server died before the mount was up ({_how_it_died(status)})")
