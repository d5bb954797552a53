"""How to tell what a killed process of ours left behind from everything else.

By its name, by what it holds, and by its age: each of the three alone could be a user's.
"""

from __future__ import annotations

import os
import re
import stat
from contextlib import suppress
from typing import Final

from sidecar.index_file import DamagedIndex, parse_rows
from sidecar.volume import PROBE_PREFIX

__all__ = [
    "is_old",
    "is_probe",
    "is_spent",
    "may_be_rows",
    "open_probe",
    "remove_probe",
    "sweep_probes",
]

OLD_NS: Final = 3600 * 1_000_000_000
"""What was not touched for an hour belongs to no process that is still at it."""

_PROBE: Final = re.compile(re.escape(PROBE_PREFIX) + rb"[0-9a-f]{16}\Z").match
_PROBE_ENTRIES: Final = 64
_OPEN: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


def is_old(found: os.stat_result, now_ns: int) -> bool:
    """Whether something was not changed for an hour; a time in the future does not say so."""
    return now_ns - found.st_mtime_ns > OLD_NS


def may_be_rows(data: bytes, serves: bool) -> bool:
    """Whether *data* can be a part of an index file: whole rows, and perhaps one cut off.

    Nothing at all can be anybody's, unless index files are known to be at work there (*serves*).
    """
    whole, _, _ = data.rpartition(b"\n")
    if not whole:
        return serves and not data
    try:
        parse_rows(whole + b"\n")
    except DamagedIndex:
        return False
    return True


def is_probe(name: bytes) -> bool:
    """Whether a directory is called as a probe calls its own."""
    return _PROBE(name) is not None


def is_spent(fd: int) -> bool:
    """Whether the directory behind *fd* holds only what a probe makes: nothing with content."""
    entries = [os.fsencode(entry) for entry in os.listdir(fd)]
    return len(entries) <= _PROBE_ENTRIES and all(_is_probes(fd, entry) for entry in entries)


def _is_probes(fd: int, entry: bytes) -> bool:
    found = os.stat(entry, dir_fd=fd, follow_symlinks=False)
    if stat.S_ISREG(found.st_mode):
        # One experiment writes a byte to tell two files apart.
        return found.st_size <= 1 and found.st_nlink <= 2
    if stat.S_ISLNK(found.st_mode):
        return os.readlink(entry, dir_fd=fd) == b"target/of it"
    return stat.S_ISFIFO(found.st_mode)


def open_probe(dirfd: int, name: bytes) -> int:
    """A descriptor of the probe directory *name*, which is followed nowhere."""
    return os.open(name, _OPEN, dir_fd=dirfd)


def remove_probe(dirfd: int, name: bytes, now_ns: int) -> bool:
    """Remove a probe's private directory. False, and nothing is done, where it is none or young."""
    fd = open_probe(dirfd, name)
    try:
        if not (is_probe(name) and is_old(os.fstat(fd), now_ns) and is_spent(fd)):
            return False
        for entry in os.listdir(fd):
            with suppress(FileNotFoundError):
                os.unlink(entry, dir_fd=fd)
    finally:
        os.close(fd)
    os.rmdir(name, dir_fd=dirfd)
    return True


def sweep_probes(dirfd: int, now_ns: int) -> None:
    """Remove what killed probes left in the directory behind *dirfd*, as far as that works.

    It may be an O_PATH descriptor. A guest would see the directories, and nobody else looks.
    """
    with suppress(OSError):
        fd = os.open(b".", _OPEN, dir_fd=dirfd)
        try:
            left = [name for name in map(os.fsencode, os.listdir(fd)) if is_probe(name)]
        finally:
            os.close(fd)
        for name in left:
            with suppress(OSError):
                remove_probe(dirfd, name, now_ns)
