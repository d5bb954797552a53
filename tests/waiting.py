"""Waiting for what nobody announces."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final

PATIENCE: Final = 30.0
"""Seconds after which what should have happened has not: less than the kernel remembers anything
for, so that a test which waits for it to hear of a change does not wait for it to forget."""


def comes(condition: Callable[[], object], seconds: float = PATIENCE) -> bool:
    """Whether *condition* comes to hold in time."""
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            return False
        time.sleep(0.01)
    return True


def wait_until(condition: Callable[[], object], seconds: float = PATIENCE) -> None:
    """Wait until *condition* holds, and fail if it never does."""
    assert comes(condition, seconds), "it never happened"
