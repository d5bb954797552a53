"""Delta debugging: the fewest calls that still show a fault."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from tests.matrix.parity.world import Call

__all__ = ["shrink"]


def shrink(
    calls: Sequence[Call],
    what_shows_it: Callable[[Sequence[Call]], Sequence[Call] | None],
    seconds: float,
    guess: Sequence[Call] = (),
) -> list[Call]:
    """Take calls away as long as the rest shows it, for about so many seconds.

    *what_shows_it* gives back which of the first calls it takes, None where it does not happen. A
    *guess* of what is needed is tried first. Raises ValueError where not even all show it.
    """
    deadline = time.monotonic() + seconds
    found = (what_shows_it(guess) if guess else None) or what_shows_it(calls)
    if found is None:
        raise ValueError("it does not happen again")
    left = list(found)
    size = max(1, len(left) // 2)
    while time.monotonic() < deadline:
        # From the end: what comes last depends on the rest, and not the rest on it.
        end, before = len(left), len(left)
        while end > 0 and time.monotonic() < deadline:
            begin = max(0, end - size)
            fewer = left[:begin] + left[end:]
            if fewer and (found := what_shows_it(fewer)) is not None:
                left = list(found)
            end = min(begin, len(left))
        if size == 1 and len(left) == before:
            break
        size = max(1, min(size // 2, len(left)))
    return left
