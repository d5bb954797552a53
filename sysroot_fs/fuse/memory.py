"""How often the interpreter looks for garbage that holds itself.

What a tree holds is let go of by counting references; next to nothing of it refers to itself. There
may be a million inodes, and each look at all of them stops the mount for most of a second.
"""

from __future__ import annotations

import gc
from typing import Final

_YOUNG: Final = 10_000
_MIDDLE: Final = 20
_OLD: Final = 50


def collect_seldom() -> None:
    """To be called once, when everything that lasts is there."""
    gc.freeze()
    gc.set_threshold(_YOUNG, _MIDDLE, _OLD)
