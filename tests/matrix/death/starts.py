"""A server is killed while it measures the volume, before it has mounted anything.

The next one mounts all the same, and the one after an hour shows no guest what was left.
"""

from __future__ import annotations

import os
import random
import signal
import sys
import time
from pathlib import Path
from typing import Final

from sidecar.volume import PROBE_PREFIX
from tests.matrix.death.bench import Bench
from tests.matrix.death.tracing import Call, changes, launched

__all__ = ["check_start"]

_MOMENTS: Final = 25
"""How many changes of a start are tried, where it makes so many."""
_HOURS: Final = 3 * 3600
_SAID: Final = 500
"""How many characters of its last words are told."""


def check_start(bench: Bench, seed: int) -> list[str]:
    """Kill at changes that the start makes, chosen by chance; words of what went wrong."""
    # It opens the tree as a mount does, and ends by itself.
    command = [
        sys.executable, "-m", "sysroot_fs", "resolve", "--host", str(bench.setting.host),
        str(bench.setting.sysroot), "/",
    ]  # fmt: skip
    ended, calls = launched(command, bench.work / "trace")
    assert ended.returncode == 0, ended.stderr
    moments = [call for call in calls if changes(call) and _is_in_a_probe(call)]
    assert moments, "the start made no change that belongs to a probe"
    count = min(1 if bench.setting.cut else _MOMENTS, len(moments))
    chosen = random.Random(seed).sample(moments, count)
    words = []
    for moment in chosen:
        ended, _ = launched(command, bench.work / "trace", killed_before=moment)
        if ended.returncode != -signal.SIGKILL:
            said = ended.stderr[-_SAID:]
            words.append(f"{moment} was not met: it ended with {ended.returncode}: {said}")
        words += [f"killed before {moment}: {word}" for word in _wrong(bench)]
    return words


def _is_in_a_probe(call: Call) -> bool:
    return os.fsdecode(PROBE_PREFIX) in call.arguments


def _wrong(bench: Bench) -> list[str]:
    """What is wrong with the next mount, and with the first one that is hours later."""
    bench.mount.stop()
    bench.mount_again()
    name = bench.directory()
    (bench.mount.point / name / "File").write_text("content")
    long_ago = time.time() - _HOURS
    for path in bench.setting.sysroot.iterdir():
        if _is_left(path):
            os.utime(path, (long_ago, long_ago))
    bench.remount()
    left = [path.name for path in bench.mount.point.iterdir() if _is_left(path)]
    words = [f"a guest sees {entry}" for entry in left]
    if (bench.mount.point / name / "File").read_text() != "content":
        words.append("a file has lost its content")
    return words


def _is_left(path: Path) -> bool:
    return os.fsencode(path.name).startswith(PROBE_PREFIX)
