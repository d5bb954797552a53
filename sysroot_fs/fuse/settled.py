"""What the process sets up once, so that it need not wait while it serves.

The interpreter looks for garbage that holds itself. What a tree holds is let go of by counting
references, and next to nothing of it refers to itself; there may be a million inodes, and each look
at all of them stops the mount for most of a second.

Linux widens a process's table of descriptors at 64 of them, 128, 256 and so on, and where there are
threads each time waits for all processors (RCU): 5 to 10 ms, in the middle of somebody's request.
"""

from __future__ import annotations

import contextlib
import fcntl
import gc
import os
import resource
from typing import Final

from sysroot_fs.null import open_null

_YOUNG: Final = 10_000
_MIDDLE: Final = 20
_OLD: Final = 50
_DESCRIPTORS: Final = 1 << 14
"""Room for so many takes 128 KiB."""


def settle() -> None:
    """To be called before the mount is there, and before there are threads."""
    gc.freeze()
    gc.set_threshold(_YOUNG, _MIDDLE, _OLD)
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    last = min(soft, _DESCRIPTORS) - 1
    with contextlib.suppress(OSError):  # then it is widened when it has to be
        null = open_null()
        try:
            os.close(fcntl.fcntl(null, fcntl.F_DUPFD_CLOEXEC, last))
        finally:
            os.close(null)
