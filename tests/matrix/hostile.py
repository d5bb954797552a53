"""The suite of attacks: guests, and other writers of the trees, that mean harm.

Whatever they try, nothing outside the sysroot and the host is opened, read or changed, nobody gets
a right that a plain file system would not give, no stored name is told, the server lives, and what
it has taken of memory and descriptors comes back.
"""

from __future__ import annotations

from typing import Final

from tests.matrix import hostile_links, hostile_names, hostile_rights, hostile_scale
from tests.matrix.actions import Actions

__all__ = ["HOSTILE"]

HOSTILE: Final = Actions(
    "hostile",
    parts=(
        *hostile_links.ACTIONS,
        *hostile_names.ACTIONS,
        *hostile_rights.ACTIONS,
        *hostile_scale.ACTIONS,
    ),
)
