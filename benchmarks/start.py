"""What it costs to start `true` in a guest and come back: `python -m benchmarks.start [ROUNDS]`.

Everything is measured in the same rounds, in turn, so that a busy machine is busy for all; what
counts is the difference to a plain chroot of the same guest, with Python's own start taken off.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Final

from tests.matrix import guests

ROUNDS: Final = 20
ALLOWED_MS: Final = 250.0
"""What `run` may cost more than a chroot once Python is up."""

_COMMAND: Final = Path(sys.executable).parent / "sysroot-fs"


def _once(words: list[str]) -> float:
    """Milliseconds of one command."""
    began = time.perf_counter()
    subprocess.run(words, check=True, stdin=subprocess.DEVNULL)
    return 1000 * (time.perf_counter() - began)


def main() -> int:
    """Measure and print; exit status 1 where it costs more than allowed."""
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else ROUNDS
    if os.geteuid() != 0:
        print("benchmark: chroot needs root, so this does too", file=sys.stderr)
        return 1
    with tempfile.TemporaryDirectory(prefix="sysroot-fs-benchmark-") as name:
        guest = Path(name) / "guest"
        guests.unpack(guest)
        run = [str(_COMMAND), "run"]
        commands = {
            "python -c pass": [sys.executable, "-c", "pass"],
            "chroot GUEST true": ["chroot", str(guest), "/bin/true"],
            "unshare -m chroot GUEST true": ["unshare", "-m", "chroot", str(guest), "/bin/true"],
            "sysroot-fs run GUEST true": [*run, str(guest), "/bin/true"],
            "sysroot-fs run --pid GUEST true": [*run, "--pid", str(guest), "/bin/true"],
            "sysroot-fs run --tty GUEST true": [*run, "--tty", str(guest), "/bin/true"],
        }
        times: dict[str, list[float]] = {label: [] for label in commands}
        for number in range(rounds + 1):
            for label, words in commands.items():
                lasted = _once(words)
                if number:  # the first round fills caches
                    times[label].append(lasted)
    middle = {label: statistics.median(spent) for label, spent in times.items()}
    chroot, python = middle["chroot GUEST true"], middle["python -c pass"]
    print(f"start to `true` and back, median of {rounds} rounds, load {os.getloadavg()[0]:.1f}")
    print(f"  {'':32} {'ms':>7} {'least':>7}   more than chroot, Python's start taken off")
    for label, spent in times.items():
        more = f"{middle[label] - chroot - python:7.0f}" if label.startswith("sysroot") else ""
        print(f"  {label:32} {middle[label]:7.1f} {min(spent):7.1f}   {more}")
    more_ms = middle["sysroot-fs run GUEST true"] - chroot - python
    held = more_ms <= ALLOWED_MS
    print(f"allowed: {ALLOWED_MS:.0f} ms more; {'held' if held else 'NOT held'}")
    return 0 if held else 1


if __name__ == "__main__":
    sys.exit(main())
