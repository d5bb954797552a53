"""The host policy: which guest paths may be answered by the host, and whether it may be changed.

`docs/CONTRACT.md` section 7. A rule is a prefix; the longest prefix that covers a path decides.
"""

from __future__ import annotations

from collections.abc import Iterable

from attrs import define, field

# What belongs to the guest's own system: a hole in it must not be filled by the host's.
_SAFE_DENY = (
    b"/usr", b"/bin", b"/sbin", b"/opt", b"/boot", b"/run", b"/srv", b"/var", b"/etc",
)  # fmt: skip
_SAFE_ALLOW = (
    b"/var/folders", b"/var/tmp", b"/etc/resolv.conf", b"/etc/hosts", b"/etc/hostname",
    b"/etc/localtime",
)  # fmt: skip


def _parts(path: bytes) -> tuple[bytes, ...]:
    return tuple(part for part in path.split(b"/") if part)


@define(slots=True)
class HostPolicy:
    """Says of a guest path whether the host may answer for it.

    *fallback* is `all`, `safe` or `none`; *allow* and *deny* are absolute path prefixes on top.
    """

    fallback: str = "all"
    allow: tuple[bytes, ...] = ()
    deny: tuple[bytes, ...] = ()
    trivial: bool = field(init=False)
    _rules: dict[tuple[bytes, ...], bool] = field(init=False, factory=dict)
    _ancestors: frozenset[tuple[bytes, ...]] = field(init=False, factory=frozenset)
    _longest: int = field(init=False, default=0)

    def __attrs_post_init__(self) -> None:
        if self.fallback == "safe":
            self._add(_SAFE_DENY, False)
            self._add(_SAFE_ALLOW, True)
        self._add(self.allow, True)
        self._add(self.deny, False)
        self.trivial = self.fallback == "all" and all(self._rules.values())
        self._longest = max(map(len, self._rules), default=0)
        # The way to an allowed place is open as far as directories go.
        self._ancestors = frozenset(
            rule[:length]
            for rule, allowed in self._rules.items()
            if allowed
            for length in range(1, len(rule))
        )

    def _add(self, prefixes: Iterable[bytes], allowed: bool) -> None:
        for prefix in prefixes:
            self._rules[_parts(prefix)] = allowed

    @property
    def shuts_all(self) -> bool:
        """Whether no path at all may fall back."""
        return self.fallback == "none" and not any(self._rules.values())

    def allows(self, path: bytes) -> bool:
        """Whether the host may answer for the guest path *path*.

        A directory on the way to an allowed prefix may be entered, so that the prefix can be
        reached where the sysroot lacks its parents; what else lies in it stays shut.
        """
        parts = _parts(path)
        return self._open(parts) or parts in self._ancestors

    def _open(self, parts: tuple[bytes, ...]) -> bool:
        """What the longest prefix says, ways to other places left aside."""
        for length in range(min(len(parts), self._longest), -1, -1):
            rule = self._rules.get(parts[:length])
            if rule is not None:
                return rule
        if self.fallback == "none":
            return False
        return not (self.fallback == "safe" and parts and parts[0].startswith(b"lib"))

    def shuts_below(self, path: bytes) -> bool:
        """Whether some path below *path* is shut: moving it would open what is shut.

        A directory that is open only as the way to an allowed place is shut but for that.
        """
        parts = _parts(path)
        return not self._open(parts) or any(
            not allowed and len(rule) > len(parts) and rule[: len(parts)] == parts
            for rule, allowed in self._rules.items()
        )
