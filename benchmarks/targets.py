"""What is to be reached, line by line."""

from __future__ import annotations

from typing import Final

from benchmarks.results import Line, Target

WHOLE_MEAN: Final = 0.7
"""At most this times the best of the others, whole work in the geometric mean."""
FOLDING: Final = 1.3
_ABSOLUTE: Final = {
    # Milliseconds until a mount is there, once Python is up.
    "mount": 150,
    # What `run` may cost more than a chroot, once Python is up.
    "run, more than a chroot": 250,
    # Resident with 100 000 known inodes.
    "memory, 100000 files": 60,
}

_LIKE_THE_BEST: Final = ("stat", "missing", "open", "read", "readdir", "write")
_NEARLY: Final = ("create", "unlink", "rename", "mkdir")
_LIKE_NATIVE: Final = ("stat,", "missing, again", "open+read", "readdir")


def targets(line: Line) -> list[Target]:
    """The targets of a line, none where it is only told."""
    found = []
    kind = line.name.split(" ")[0].rstrip(",").split("+")[0]
    if line.group.startswith("micro"):
        if kind in _LIKE_THE_BEST:
            found.append(Target("peer", 1.0))
        if kind in _NEARLY:
            found.append(Target("peer", 1.2))
        warm = line.name.startswith(_LIKE_NATIVE) and "first" not in line.name
        if warm:
            found.append(Target("native", 1.5))
    if line.group in ("work", "guest"):
        found.append(Target("peer", 1.0))
    if line.group == "folding":
        found.append(Target("native", FOLDING))
    if line.name in _ABSOLUTE:
        found.append(Target("nothing", _ABSOLUTE[line.name]))
    return found
