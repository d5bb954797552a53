"""``python -m tests.noted_wishes ...``: sysroot-fs on a machine that halts idle processors at once.

What it writes to /dev/cpu_dma_latency is written to the file $NOTED_WISHES.
"""

from __future__ import annotations

import os
import sys

from sysroot_fs.cli import main
from sysroot_fs.fuse import awake

if __name__ == "__main__":
    awake.DEVICE = os.environ["NOTED_WISHES"]
    awake.driver = lambda: "haltpoll"
    sys.exit(main())
