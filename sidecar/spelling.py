"""Where names are looked up in every spelling, and where in the exact one only.

The lookup policy of a tree (`docs/CONTRACT.md` section 6) is a rule for its root and, where a
subtree differs, for prefixes; the longest prefix decides. A rule is handed down from a directory to
its children, so that a walk never needs the path.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

from attrs import field, frozen

Key = Callable[[bytes], bytes]
_Prefix = tuple[tuple[bytes, ...], bool]


@frozen(slots=True, eq=False)
class Spelling:
    """The rule of one directory, for the names in it.

    *key* is the fold key under which two names are one, None where every spelling is a name of its
    own. *above* says that a directory above it, or it, may have been reached in another spelling.
    """

    key: Key | None = None
    above: bool = False
    children: Mapping[bytes, Spelling] = field(factory=dict)
    below: Spelling = field(init=False)
    """The rule of every child that has none of its own."""

    def __attrs_post_init__(self) -> None:
        above = self.above or self.key is not None
        same = above == self.above and not self.children
        object.__setattr__(self, "below", self if same else Spelling(self.key, above))

    def child(self, name: bytes) -> Spelling:
        """The rule of the directory that is called *name* in this one."""
        if not self.children:
            return self.below
        return self.children.get(name if self.key is None else self.key(name), self.below)


EXACT = Spelling()
"""Every spelling is a name of its own, everywhere."""


def rules(
    key: Key, everywhere: bool, fold: Iterable[bytes] = (), exact: Iterable[bytes] = ()
) -> Spelling:
    """The rule of the root: *everywhere* says what holds where no prefix does.

    *fold* and *exact* are guest paths; of the same path given twice the last one in *exact* counts.
    """
    prefixes = [
        (tuple(part for part in prefix.split(b"/") if part), folds)
        for paths, folds in ((fold, True), (exact, False))
        for prefix in paths
    ]
    return _rule(key, prefixes, everywhere, False)


def _rule(key: Key, prefixes: Iterable[_Prefix], folds: bool, above: bool) -> Spelling:
    """The rule of the directory from which *prefixes* lead on."""
    below: list[tuple[bytes, _Prefix]] = []
    for path, wish in prefixes:
        if path:
            below.append((path[0], (path[1:], wish)))
        else:
            folds = wish
    # Two spellings of one directory may both lead on.
    groups: dict[bytes, list[_Prefix]] = {}
    for name, prefix in below:
        groups.setdefault(key(name) if folds else name, []).append(prefix)
    children = {name: _rule(key, group, folds, above or folds) for name, group in groups.items()}
    return Spelling(key if folds else None, above, children)
