"""^C where a volume hangs.

What a thread waits for in the kernel, of a FUSE volume or a share whose server does not answer, is
interrupted by the end of the whole process and by nothing else. A signal that has a handler, as
Python gives SIGINT one, waits with it; so does one that a measurement holds back until it has
tidied up.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import sys
import threading
import time
from collections.abc import Iterator
from typing import Final

from sidecar import processes
from sysroot_fs.text import shown

_PATIENCE_SECONDS: Final = 3.0
"""How long a signal may wait for the volume."""


@contextlib.contextmanager
def interruptible(path: bytes) -> Iterator[None]:
    """What is done inside asks the volume of *path*: signals end the process even if that hangs.

    To be entered by the first thread. There is no other one again afterwards.
    """
    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, ())
    heard = {
        number
        for number in processes.ENDING - blocked
        if signal.getsignal(number) is not signal.SIG_IGN
    }
    with contextlib.ExitStack() as stack:
        # All that can fail for lack of descriptors or threads fails here, not in the thread.
        signals = processes.signal_descriptor(heard)
        stack.callback(os.close, signals)
        over, tell_over = os.pipe()
        stack.callback(os.close, over)
        stack.callback(os.close, tell_over)
        words = (over, signals, heard, path)
        watcher = threading.Thread(target=_watch, args=words, daemon=True)
        with processes.ending_signals_held():
            watcher.start()
        try:
            yield
        finally:
            os.write(tell_over, b".")
            watcher.join()
            # join() returns a moment before the kernel's thread has ended, and who forks next must
            # not have one.
            while os.path.exists(f"/proc/self/task/{watcher.native_id}"):
                time.sleep(0.0001)


def _watch(over: int, signals: int, heard: set[signal.Signals], path: bytes) -> None:
    """A thread's whole life: until *over* can be read. *signals* says when one of *heard* comes."""
    while over not in _ready(over, signals):
        if _ready(over, seconds=_PATIENCE_SECONDS):
            break
        # They are never read here: they are the first thread's, which may have had them by now.
        for number in signal.sigpending() & heard:
            _give_up(number, path)


def _ready(*descriptors: int, seconds: float | None = None) -> list[int]:
    # select(2) takes numbers up to 1023 only.
    poll = select.poll()
    for descriptor in descriptors:
        poll.register(descriptor, select.POLLIN)
    return [fd for fd, _ in poll.poll(None if seconds is None else 1000 * seconds)]


def _give_up(number: int, path: bytes) -> None:
    try:
        print(
            f"sysroot-fs: interrupted, because {shown(path)} does not answer",
            file=sys.stderr,
            flush=True,
        )
    finally:
        os._exit(128 + number)
