"""Counting the requests that something costs at a mount where nobody else is."""

from __future__ import annotations

import re
import signal
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

from tests.mounts import Mount
from tests.waiting import wait_until

_LINE: Final = re.compile(r"requests: (.*)")
_LATER: Final = {"release", "releasedir", "forget", "batch_forget"}
"""Requests that the kernel sends when it likes; nobody waits for them."""


def counted(mount: Mount) -> Counter[str]:
    """The requests so far, as SIGUSR1 has the server log them."""
    told = len(_LINE.findall(mount.log.read_text()))
    mount.process.send_signal(signal.SIGUSR1)
    wait_until(lambda: len(_LINE.findall(mount.log.read_text())) > told)
    last = _LINE.findall(mount.log.read_text())[-1]
    counts: Counter[str] = Counter()
    for part in filter(None, last.split(", ")):
        name, _, number = part.rpartition(" ")
        counts[name] = int(number)
    return counts


@contextmanager
def requests(mount: Mount) -> Iterator[Counter[str]]:
    """Those that the block costs, in what it is given when it is over."""
    before, made = counted(mount), Counter[str]()
    yield made
    made.update(counted(mount) - before)
    for name in _LATER:
        del made[name]


def cost(mount: Mount, act: Callable[[], object]) -> Counter[str]:
    """The requests of something that was done a few times before.

    Not of the second time: what was really read has its time of access asked for once more, and
    with that the kernel forgets its ACLs.
    """
    for _ in range(3):
        act()
    with requests(mount) as made:
        act()
    return made
