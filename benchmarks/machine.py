"""The machine on which a run was made, and how busy it was."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
import time
from pathlib import Path

from benchmarks.contestants import versions


def describe(backing: Path) -> dict[str, str]:
    """What a reader has to know to compare; *backing* is where the trees are."""
    model = next(
        (
            line.partition(":")[2].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if line.startswith("model name")
        ),
        platform.machine(),
    )
    kind = subprocess.run(
        ["stat", "-f", "-c", "%T", backing], capture_output=True, text=True, check=True
    ).stdout.strip()
    return {
        "date": time.strftime("%Y-%m-%d"),
        "processors": f"{os.cpu_count()} x {model}",
        "memory": f"{os.sysconf('SC_PHYS_PAGES') * os.sysconf('SC_PAGE_SIZE') >> 30} GiB",
        "kernel": platform.release(),
        "python": sys.version.split()[0],
        "trees on": kind,
        "revision": _revision(),
        **versions(),
    }


def _revision() -> str:
    done = subprocess.run(
        ["git", "-C", Path(__file__).parent, "describe", "--always", "--dirty"],
        capture_output=True,
        text=True,
        check=False,
    )
    return done.stdout.strip() or "unknown"


def load() -> str:
    """The load of the last minute."""
    return f"{os.getloadavg()[0]:.1f}"
