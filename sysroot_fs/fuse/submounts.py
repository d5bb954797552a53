"""Whether something is mounted on a mount of ours, in whatever namespace.

Names that the kernel is told to look up anew, whole trees at once, take down what is mounted on
them (see `sysroot_fs.fuse.epoch`). The kernel tells nobody of such mounts: every mount namespace
that this process may look at is asked.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Final

_OWN: Final = "self"


def _mountinfo(process: str) -> Iterator[list[bytes]]:
    """The fields of each mount that a process sees; see proc(5)."""
    with open(f"/proc/{process}/mountinfo", "rb") as lines:
        for line in lines:
            yield line.split(b" ", 5)


def device_at(mountpoint: bytes) -> bytes | None:
    """The device of the topmost mount at *mountpoint*, ``major:minor``, None where there is none.

    The path has no links in it.
    """
    found = None
    # As the kernel shows it: blanks and backslashes in octal.
    wanted = b"".join(
        b"\\%03o" % byte if byte in b" \t\n\\" else bytes((byte,)) for byte in mountpoint
    )
    for _, _, device, _, where, _ in _mountinfo(_OWN):
        if where == wanted:
            found = device
    return found


def is_mounted_on(device: bytes) -> bool:
    """Whether a mount of the filesystem *device* has another on it."""
    seen = set()
    for process in (_OWN, *filter(str.isdigit, os.listdir("/proc"))):
        try:
            namespace = os.readlink(f"/proc/{process}/ns/mnt")
            if namespace in seen:
                continue
            mounts = list(_mountinfo(process))
        except OSError:
            continue  # it has ended, or belongs to somebody else
        seen.add(namespace)
        ours = {number for number, _, found, *_ in mounts if found == device}
        if any(parent in ours for _, parent, *_ in mounts):
            return True
    return False
