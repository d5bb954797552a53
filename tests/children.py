"""Forked children that are somebody else, and the errno of a call."""

from __future__ import annotations

import contextlib
import os
import pickle
import signal
import traceback
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import attrs

T = TypeVar("T")


@attrs.frozen
class Child:
    """A forked child that runs one function; `result` waits and gives back what came of it."""

    pid: int
    pipe: int

    def result(self) -> Any:
        """What the function returned; what it raised is raised here."""
        with open(self.pipe, "rb") as pipe:
            data = pipe.read()
        _, status = os.waitpid(self.pid, 0)
        assert data, f"the child ended without an answer ({status:#x})"
        good, value = pickle.loads(data)
        if not good:
            raise value
        return value


def start_child(
    work: Callable[[], object],
    *,
    uid: int = 0,
    gid: int = 0,
    groups: tuple[int, ...] = (),
    umask: int = 0o022,
) -> Child:
    """Fork a process that is somebody else and runs *work*.

    A signal that this process handles ends the child, as it ends a program that was executed.
    """
    reader, writer = os.pipe()
    with _signals_held():
        pid = os.fork()
        if not pid:
            _handle_no_signals()
    if pid:
        os.close(writer)
        return Child(pid, reader)
    answer: tuple[bool, object] = (False, RuntimeError("no answer"))
    try:
        os.close(reader)
        os.umask(umask)
        os.setgroups(groups)
        os.setresgid(gid, gid, gid)
        os.setresuid(uid, uid, uid)
        answer = (True, work())
    except BaseException as error:
        # It goes along through the pipe; the traceback does not.
        error.add_note("in the child:\n" + "".join(traceback.format_tb(error.__traceback__)))
        answer = (False, error)
    finally:
        # Never back into the test run: its buffers and exit handlers are the parent's.
        try:
            data = pickle.dumps(answer)
        except Exception as error:
            data = pickle.dumps((False, RuntimeError(f"{answer!r}: {error!r}")))
        with contextlib.suppress(OSError), open(writer, "wb") as pipe:
            pipe.write(data)
        os._exit(0)


@contextlib.contextmanager
def _signals_held() -> Iterator[None]:
    """Signals wait until the block has ended: what they mean may be another thing then."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _handle_no_signals() -> None:
    """What this process handles ends it from now on: the handlers were made for its parent.

    KeyboardInterrupt would unwind the parent's stack here, and take away what is the parent's.
    """
    for number in signal.valid_signals():
        if callable(signal.getsignal(number)):
            signal.signal(number, signal.SIG_DFL)


def in_child(work: Callable[[], T], **who: Any) -> T:
    """What *work* returns in a process that is somebody else; see `start_child`."""
    result: T = start_child(work, **who).result()
    return result


def code_of(call: Callable[..., object], *arguments: Any, **more: Any) -> int:
    """The errno with which *call* fails, 0 where it does not."""
    try:
        call(*arguments, **more)
    except OSError as error:
        assert error.errno is not None
        return error.errno
    return 0
