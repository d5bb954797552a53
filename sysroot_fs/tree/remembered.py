"""What the kernel was told for long of the names in one directory."""

from __future__ import annotations

from attrs import define, field


@define(slots=True, eq=False)
class Remembered:
    """The *names*, each with its inode's number, zero for an absence.

    *watched* says that changes in the directory itself are reported, *beside* that those in its
    twin and in all twins above are.
    """

    names: dict[bytes, int] = field(factory=dict)
    watched: bool = False
    beside: bool = False
