"""``python -m tests.slow_sync ...``: sysroot-fs whose volume syncs removed files only."""

from __future__ import annotations

import os
import sys
import time

from sysroot_fs.cli import main
from sysroot_fs.tree import files
from sysroot_fs.tree.files import Handle


def _wait(handle: Handle, data_only: bool) -> None:
    while os.fstat(handle.descriptor.fd).st_nlink:
        time.sleep(0.05)


if __name__ == "__main__":
    files.sync = _wait
    sys.exit(main())
