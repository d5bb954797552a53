"""Owners that a user namespace has no number for, and the numbers to show instead.

Such an owner reaches the server as the overflow number. The kernel would take that for nobody it
knows and refuse every write, also to a directory that is open to all; so it is told that the
server's own user is the owner, and what that user really may is decided by the volume.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Self, final

from attrs import field, frozen


def _stand_in(kind: str, own: int) -> dict[int, int]:
    """{overflow number: *own*}, or nothing where it is the number of somebody in the namespace."""
    with open(f"/proc/sys/kernel/overflow{kind}", encoding="ascii") as file:
        overflow = int(file.read())
    with open(f"/proc/self/{kind}_map", encoding="ascii") as lines:
        for line in lines:
            first, _, count = map(int, line.split())
            if first <= overflow < first + count:
                return {}
    return {overflow: own}


@final
@frozen
class Owners:
    """Numbers of users and groups to be replaced."""

    users: Mapping[int, int] = field(factory=dict)
    groups: Mapping[int, int] = field(factory=dict)

    @classmethod
    def here(cls) -> Self:
        """For the user namespace in which this process is."""
        return cls(_stand_in("uid", os.geteuid()), _stand_in("gid", os.getegid()))
