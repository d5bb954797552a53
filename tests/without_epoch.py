"""``python -m tests.without_epoch ...``: sysroot-fs as on a kernel that knows no epochs."""

from __future__ import annotations

import sys

from sysroot_fs.cli import main
from sysroot_fs.fuse.epoch import Epoch

if __name__ == "__main__":
    Epoch.on = classmethod(lambda cls, fd, mountpoint: None)  # type: ignore[assignment, method-assign]
    sys.exit(main())
