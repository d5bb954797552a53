"""The volume fails under the server: an error at each system call of a mutation.

A guest that is told of success has what it asked for; one that is told of an error has nothing
of it, and can try again. The server lives, has had no bug, and leaves nothing of its own.
"""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from typing import Final

from sidecar.findings import Mend
from tests.matrix.death.bench import Bench, differences, told, walked
from tests.matrix.death.mutations import MUTATIONS, Mutation, Tree
from tests.matrix.death.tracing import Call, changes, failing

__all__ = ["check_errors", "faults"]

_FAILS: Final = re.compile(
    r"openat|(newfstat|fstat|statx|getdents|flock|rename|unlink|mkdir|mknod|symlink|link)\w*"
    r"|fcntl|write|pwrite64|fsync|fdatasync|ftruncate|f?chmod\w*|f?chown\w*|utimensat"
    r"|l?(set|remove)xattr"
)
_EVENT: Final = "[eventfd]"
"""What a fault may meet by chance, and no volume be the cause of: one thread tells another."""
_CUT: Final = 4
"""Faults for a mutation in the cut, chosen by chance."""


def faults(bench: Bench, mutation: Mutation) -> list[tuple[Call, str]]:
    """The system calls that the server makes for *mutation*, each with errors that it may have."""
    found = []
    for call in dict.fromkeys(bench.calls(mutation)):
        if not _FAILS.fullmatch(call.name) or "F_DUPFD" in call.arguments:
            continue
        found.append((call, "EIO"))
        if call.name == "openat":
            found.append((call, "EMFILE"))
        if changes(call) and not call.name.startswith("unlink"):
            found.append((call, "ENOSPC"))
        if not call.name.startswith("fcntl"):
            found.append((call, "EINTR"))
    return found


def check_errors(bench: Bench, name: str, seed: int) -> tuple[list[str], list[tuple[str, Tree]]]:
    """Words of what went wrong, and the directories with what must be in them after a remount.

    Raises `Lacking`.
    """
    mutation = next(one for one in MUTATIONS if one.name == name)
    states = bench.states(mutation)
    chosen = faults(bench, mutation)
    if bench.setting.cut:
        chosen = random.Random(seed).sample(chosen, min(_CUT, len(chosen)))
    words: list[str] = []
    left: list[tuple[str, Tree]] = []
    hits = 0
    for call, error in chosen:
        hit, where, wrong = _check(bench, mutation, states, call, error)
        hits += hit
        words += [f"{error} at {call}: {word}" for word in wrong]
        if bench.mount.process.poll() is not None:
            words.append(f"{error} at {call}: the server has died")
            bench.mount.kill()
            bench.mount_again()
        elif not wrong:
            left.append((where, bench.look(where)))
    # Of the few of the cut each may miss: which call is the n-th is not the same each time.
    if not hits and not bench.setting.cut:
        words.append(f"none of {len(chosen)} faults was met")
    return words, left


def _check(
    bench: Bench, mutation: Mutation, states: Sequence[Tree], call: Call, error: str
) -> tuple[bool, str, list[str]]:
    where = bench.prepared(mutation)
    pid, log = bench.mount.process.pid, bench.work / "trace"
    hit: list[str] = []
    try:
        with bench.patience(), failing(pid, log, call, error) as hit:
            done, failure = walked(mutation, bench.mount.point / where)
        more = 2 if failure is not None and mutation.stays else 1
        words = differences(bench.look(where), states[done : done + more])
        outcome = f"step {done + 1} was told {failure}" if failure else "told of success"
        words = [f"{outcome}, but {word}" for word in words]
        if failure is None and done < len(states) - 1:
            words.append(f"only {done} steps")
        words += [
            f"{outcome}: {told(finding)}"
            for finding in bench.findings(where)
            # That a row outlives its object is harmless (docs/CONTRACT.md section 5).
            if failure is not None or finding.mend is not Mend.DROP_ROW
        ]
        if failure is not None and not words:
            words += bench.finish(mutation, where)
        bench.mount.check_log()
    except (AssertionError, OSError) as wrong:
        if any(_EVENT in line for line in hit):
            # Somebody has mounted something meanwhile.
            bench.mount.kill()
            bench.mount_again()
            return False, where, []
        return True, where, [str(wrong)]
    return bool(hit), where, words
