"""Signals for real."""

from __future__ import annotations

import os
import signal

from sidecar import processes
from tests.children import in_child


def test_signals_are_read_from_a_descriptor() -> None:
    """Blocked signals that have come are read once, and without any the list is empty."""

    def work() -> list[list[signal.Signals]]:
        wanted = [signal.SIGUSR1, signal.SIGTERM]
        signal.pthread_sigmask(signal.SIG_BLOCK, wanted)
        fd = processes.signal_descriptor(wanted)
        seen = [processes.read_signals(fd)]
        for number in (*wanted, signal.SIGUSR1):
            os.kill(os.getpid(), number)
        seen.append(sorted(processes.read_signals(fd)))
        assert not os.get_inheritable(fd)
        return [*seen, processes.read_signals(fd)]

    assert in_child(work) == [[], [signal.SIGUSR1, signal.SIGTERM], []]
