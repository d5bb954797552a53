"""Finding a name, and forgetting inodes."""

from __future__ import annotations

import errno
from collections.abc import Iterable
from typing import Final, NamedTuple

from sidecar.twin import Caller
from sidecar.walk import Absent, Found, Layer, Verdict
from sysroot_fs.tree.core import Entry, Tree, error
from sysroot_fs.tree.inodes import Inode
from sysroot_fs.tree.spellings import is_respelling

_SPELLINGS_SECONDS: Final = 60.0
"""How long an absence is remembered of which all spellings have to be known."""


class Miss(NamedTuple):
    """No such name. *timeout*: seconds for which that may be remembered."""

    timeout: float


def lookup(tree: Tree, parent_id: int, name: bytes, caller: Caller) -> Entry | Miss:
    """What *name* is in the directory *parent_id*: its entry, one lookup more, or a miss."""
    parent = tree.inodes[parent_id]
    tree.coherence.watch(parent)
    place = tree.place(parent)
    found = tree.walk.step(place, name, caller)
    if not place.others and not place.has_index(tree.walk.policy):
        tree.answered.note(parent, name, caller, found)
    if isinstance(found, Absent):
        private = found.private or tree.depends_on_spelling(parent, found)
        # When the entry goes that claims the name, the host's shows; the kernel could not be told
        # of every spelling that it remembers.
        private = private or (
            found.verdict is Verdict.CLAIMED and tree.walk.host is not None and not place.mapped
        )
        return Miss(0.0 if private else _remembered(tree, parent, name, place.mapped))
    if found.verdict is Verdict.FOLDED:
        key = parent.spelling().key
        if key is not None and is_respelling(caller, name, key, parent.path):
            return Miss(0.0)
    return tree.adopt(parent, name, found)


def _remembered(tree: Tree, parent: Inode, name: bytes, mapped: bool) -> float:
    """For how many seconds the kernel may remember that *name* is absent."""
    key = None if parent.layer is not Layer.SYSROOT else parent.spelling().key
    if key is not None and not tree.forgets_at_once:
        return 0.0
    seconds = tree.coherence.absent(parent, name, mapped)
    if key is None:
        return seconds
    return tree.spellings.absent(parent.id, key(name), name, min(seconds, _SPELLINGS_SECONDS))


def before_change(tree: Tree, parent: Inode, name: bytes, caller: Caller) -> Found | Absent:
    """What *name* is in *parent*, before that is changed for *caller*."""
    found = tree.answered.take(parent, name, caller)
    return tree.walk.step(tree.place(parent), name, caller) if found is None else found


def require(tree: Tree, parent: Inode, name: bytes, caller: Caller) -> Found:
    """As `before_change`. Raises ENOENT where there is no such name."""
    found = before_change(tree, parent, name, caller)
    if isinstance(found, Absent):
        raise error(errno.ENOENT)
    return found


def forget(tree: Tree, counts: Iterable[tuple[int, int]]) -> None:
    """The kernel lets go of inodes: (id, number of lookups) pairs."""
    for number, count in counts:
        tree.inodes.forget(number, count)
