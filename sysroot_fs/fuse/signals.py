"""The signals of a server, the same for every door: three that end it, one that has it tell.

They are blocked from before the mount on and read from a descriptor: one that came to a server
that does not expect it yet would kill it and leave a dead mount. SIGTERM, SIGINT and SIGHUP
unmount; SIGUSR1 logs how many requests there were.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
from collections.abc import Callable, Iterator, Mapping
from typing import Final, final

from attrs import define, field

from sidecar import processes

log = logging.getLogger(__name__)

_TELLING: Final = signal.SIGUSR1
_HANDLED: Final = processes.ENDING | {_TELLING}


@contextlib.contextmanager
def held_back() -> Iterator[int]:
    """Block the signals of a server while it lasts: the descriptor for `Signals`.

    Threads and programs that are started meanwhile have them blocked as well.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _HANDLED)
    fd = processes.signal_descriptor(_HANDLED)
    try:
        yield fd
    finally:
        # What came while it was ending has nothing left to end, and would kill the process now.
        processes.read_signals(fd)
        os.close(fd)
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@final
@define(slots=True, eq=False)
class Signals:
    """What signals mean to one server: *end* is called for the first that ends it."""

    fd: int
    """Of `held_back`; `take` wants to be called when it can be read."""
    end: Callable[[], object]
    counts: Callable[[], Mapping[str, int]]
    """How many requests of each kind there were so far."""
    _ended: bool = field(default=False, init=False)

    def take(self) -> None:
        """Do what those that have come mean."""
        for number in processes.read_signals(self.fd):
            if number is _TELLING:
                log.info("requests: %s", _listed(self.counts()))
            elif not self._ended:
                self._ended = True
                log.info("%s: unmounting", number.name)
                self.end()

    def check_served(self, negotiated: bool) -> None:
        """Raise RuntimeError where a server has ended and never agreed with the kernel.

        Where a signal came before the first request that is no failure.
        """
        if not negotiated and not self._ended:
            raise RuntimeError("the kernel's FUSE protocol is not one that this door speaks")


def _listed(counts: Mapping[str, int]) -> str:
    """The most frequent first."""
    rows = sorted(((count, name) for name, count in counts.items()), reverse=True)
    return ", ".join(f"{name} {count}" for count, name in rows)
