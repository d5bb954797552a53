"""Finding a name, and forgetting inodes."""

from __future__ import annotations

import errno
from collections.abc import Iterable

from attrs import frozen

from sidecar.twin import Caller
from sidecar.walk import Absent, Found
from sysroot_fs.tree.core import Entry, Tree, error
from sysroot_fs.tree.inodes import Inode


@frozen(slots=True)
class Miss:
    """No such name. *timeout*: seconds for which that may be remembered."""

    timeout: float


def lookup(tree: Tree, parent_id: int, name: bytes, caller: Caller) -> Entry | Miss:
    """What *name* is in the directory *parent_id*: its entry, one lookup more, or a miss."""
    parent = tree.inodes[parent_id]
    found = tree.walk.step(tree.place(parent), name, caller)
    if isinstance(found, Absent):
        return Miss(0.0 if found.private else tree.config.negative_timeout)
    return tree.adopt(parent, name, found)


def require(tree: Tree, parent: Inode, name: bytes, caller: Caller) -> Found:
    """What *name* is in *parent*. Raises ENOENT where it is not."""
    found = tree.walk.step(tree.place(parent), name, caller)
    if isinstance(found, Absent):
        raise error(errno.ENOENT)
    return found


def forget(tree: Tree, counts: Iterable[tuple[int, int]]) -> None:
    """The kernel lets go of inodes: (id, number of lookups) pairs."""
    for number, count in counts:
        tree.inodes.forget(number, count)
