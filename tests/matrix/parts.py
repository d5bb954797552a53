"""Suites whose items are parts: each has a name, and says what the volume must be able to do."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from typing import Generic, Protocol, TypeVar

import attrs

from tests.matrix.cases import reason
from tests.matrix.suite import Suite

__all__ = ["Part", "Parts", "divided"]


class Part(Protocol):
    """What an item is made of; `needs` are of `cases.NEEDS`."""

    @property
    def name(self) -> str: ...

    @property
    def needs(self) -> frozenset[str]: ...


P = TypeVar("P", bound=Part)


@attrs.frozen
class Parts(Suite, Generic[P]):
    """A suite with an item for each of its `parts`."""

    parts: tuple[P, ...] = attrs.field(kw_only=True)

    def items(self) -> Sequence[str]:
        """The parts' names."""
        return [part.name for part in self.parts]

    def needs(self, item: str) -> frozenset[str]:
        """What the part says."""
        return next(part.needs for part in self.parts if part.name == item)

    def wanted(self, items: Collection[str]) -> list[P]:
        """The parts of these names, in the suite's order."""
        return [part for part in self.parts if part.name in items]


def divided(parts: Iterable[P], lacks: frozenset[str]) -> tuple[list[P], dict[str, str]]:
    """Those that a volume which *lacks* something can do; the others' names, with the reason."""
    can, skipped = list[P](), dict[str, str]()
    for part in parts:
        if why := reason(part.needs, lacks):
            skipped[part.name] = why
        else:
            can.append(part)
    return can, skipped
