"""``python -m tests.no_sync_threads ...``: sysroot-fs where no thread can be had for fsync."""

from __future__ import annotations

import sys
from concurrent.futures import ThreadPoolExecutor
from typing import NoReturn

import trio

from sysroot_fs.cli import main


def _refuse(*_: object) -> NoReturn:
    raise RuntimeError("can't start new thread")


if __name__ == "__main__":
    vars(trio.to_thread)["run_sync"] = _refuse
    setattr(ThreadPoolExecutor, "submit", _refuse)  # noqa: B010
    sys.exit(main())
