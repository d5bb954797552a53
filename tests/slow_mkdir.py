"""``python -m tests.slow_mkdir ...``: sysroot-fs whose volume never comes back from a mkdir."""

from __future__ import annotations

import sys
import time
from typing import Any

from sysroot_fs.cli import main
from sysroot_fs.tree import mutations


def _never(*_: Any) -> Any:
    time.sleep(3600)


if __name__ == "__main__":
    mutations.mkdir = _never  # type: ignore[assignment]
    sys.exit(main())
