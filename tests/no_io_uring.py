"""``python -m tests.no_io_uring ...``: sysroot-fs where io_uring is forbidden (seccomp, sysctl)."""

from __future__ import annotations

import ctypes
import errno
import os
import sys

from sidecar import io_uring
from sysroot_fs.cli import main


def _refused(entries: int, params: ctypes.Array[ctypes.c_char]) -> int:
    raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))


if __name__ == "__main__":
    io_uring.setup = _refused
    sys.exit(main())
