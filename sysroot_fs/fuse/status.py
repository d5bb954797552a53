"""What a server tells of itself: the value of an extended attribute that only the root has.

The attribute is answered, never stored and never listed. No volume can have one of its name, which
is in none of the namespaces that Linux knows (xattr(7)): FUSE alone hands such names on.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Mapping
from typing import Any, Final

import attrs

from sidecar.twin import Caller
from sysroot_fs import __version__
from sysroot_fs.text import json_fields
from sysroot_fs.tree import Tree, TreeConfig
from sysroot_fs.tree.core import error
from sysroot_fs.tree.inodes import ROOT_ID

NAME: Final = b"sysroot-fs.status"
_SHOWN_ALONE: Final = ("sysroot", "host")
_PAGE_KIB: Final = os.sysconf("SC_PAGE_SIZE") // 1024


def is_meant(number: int, name: bytes) -> bool:
    """Whether the attribute *name* of the inode *number* is this one."""
    return name == NAME and number == ROOT_ID


def check_not_meant(number: int, name: bytes) -> None:
    """Raise EPERM where somebody would set or remove it."""
    if is_meant(number, name):
        raise error(errno.EPERM)


def told(
    tree: Tree, caller: Caller, door: str, counts: Mapping[str, int], files: int, directories: int
) -> bytes:
    """The value for *caller*, JSON. ENODATA for all but root and the server's own user."""
    if caller.uid not in (0, os.geteuid()):
        raise error(errno.ENODATA)
    # Imported here: few mounts are ever asked.
    import json

    config = tree.config
    host = {"host": None} if config.host is None else json_fields("host", config.host)
    return json.dumps({
        "version": __version__,
        **json_fields("sysroot", config.sysroot),
        **host,
        "door": door,
        "options": _options(config),
        "pid": os.getpid(),
        "memory_kib": _memory_kib(),
        "inodes": len(tree.inodes),
        "open_files": files,
        "open_directories": directories,
        "requests": dict(sorted(counts.items())),
        **{name: report() for name, report in tree.reports.items()},
    }).encode()  # fmt: skip


def _options(config: TreeConfig) -> dict[str, Any]:
    """Those that are not what they are where nobody says anything."""
    found = {}
    for field in attrs.fields(TreeConfig):
        value = getattr(config, field.name)
        if field.name not in _SHOWN_ALONE and value != field.default:
            found[field.name] = _plain(value)
    return found


def _plain(value: object) -> object:
    if isinstance(value, bytes):
        return value.decode("utf-8", "backslashreplace")
    return [_plain(one) for one in value] if isinstance(value, tuple) else value


def _memory_kib() -> int:
    """Resident, as ps(1) shows it."""
    with open("/proc/self/statm", encoding="ascii") as file:
        return int(file.read().split()[1]) * _PAGE_KIB
