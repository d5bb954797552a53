"""What is wrong, or would go wrong elsewhere, with the names of a tree.

`inspect` takes the directories of `sidecar.listings` and gives for each what it found: names that
would collide, be refused or be too long on kinds of volumes (`sidecar.kinds`), and damage to the
on-disk format (docs/CONTRACT.md section 5). It changes nothing; `sidecar.mending` mends what is
safe. Everything is judged within one directory, but for directories that collide: what they hold
would meet, and is told with them.

A volume is asked about stored names, which are what it would get; names that only the guest sees
as colliding are kept apart by their escapes, and that is a note. A lookup policy is asked about
guest names.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from typing import Final

from attrs import define, frozen

from sidecar import escape, kinds
from sidecar.damage import look_for_damage
from sidecar.findings import Finding, Name, Page, Severity, What
from sidecar.kinds import Kind, Refusal
from sidecar.listings import Directory
from sidecar.naming import HELPER_NAMES, NAME_MAX

__all__ = ["Subject", "inspect"]


@frozen(slots=True, kw_only=True)
class Subject:
    """What to look for.

    *kinds* are asked what they would do to the names. *own* is the volume of the tree where it
    folds: what it keeps apart by escapes is noted. *serves* says that index files are at work on
    that volume, whoever reads them, so that an empty one is certainly no guest's; *plain* that
    the volume keeps every name, so that what looks like the on-disk format may be none.
    """

    kinds: tuple[Kind, ...]
    own: Kind | None = None
    serves: bool = False
    plain: bool = False


def inspect(
    directories: Iterable[Directory], subject: Subject
) -> Iterator[tuple[Directory, list[Finding]]]:
    """Every directory with what was found in it; its descriptor is open until the next one."""
    for directory in directories:
        page = Page(directory)
        if directory.mount:
            page.add(What.OTHER_MOUNT, Severity.NOTE, "another mount: it was not entered")
        if directory.error is not None:
            part = " to its end" if directory.entries else ""
            page.unreadable(directory.error, how=f"cannot be read{part}")
        look_for_damage(page, subject.serves, subject.plain)
        foresight = _Foresight(page, subject)
        foresight.collisions()
        foresight.refusals()
        foresight.unsayable()
        yield directory, page.found


Path = tuple[bytes, ...]
"""The stored names from the directory at hand to something below it."""


@define(slots=True)
class _Foresight:
    """What kinds of volumes and policies would do to the names of one directory."""

    page: Page
    subject: Subject

    def collisions(self) -> None:
        entries = self.page.directory.entries
        # Most directories hold nothing that differs in case or is not ASCII.
        plain = len({name.lower() for name in entries}) == len(entries)
        if plain and not self.page.mapped and all(map(bytes.isascii, entries)):
            return
        mapped, hidden = self.page.mapped, self.page.hidden
        seen = [name for name in entries if name not in hidden]
        groups: dict[tuple[Name, ...], list[Kind]] = defaultdict(list)
        apart: dict[tuple[Name, ...], list[Kind]] = defaultdict(list)
        for kind in (*self.subject.kinds, *filter(None, (self.subject.own,))):
            alike = self._groups((kind.key(mapped.get(name, name)), name) for name in seen)
            if kind.policy:
                lost = alike
            elif kind is self.subject.own:
                lost = set()
            else:
                lost = self._groups((kind.key(name), name) for name in entries)
            for group in lost:
                groups[group].append(kind)
            for group in alike - lost:
                if any(name.stored in mapped for name in group):
                    apart[group].append(kind)
        for group, of in sorted(groups.items()):
            self.collision(group, of)
        for group, of in sorted(apart.items()):
            self.page.add(
                What.COLLISION,
                Severity.NOTE,
                f"one name on {_labels(of)}, and kept apart by how they are stored",
                *group,
                kinds=tuple(kind.name for kind in of),
            )

    def _groups(self, keyed: Iterable[tuple[bytes, bytes]]) -> set[tuple[Name, ...]]:
        """The names that share their key with another, from (key, stored name)."""
        first: dict[bytes, bytes] = {}
        shared: dict[bytes, set[bytes]] = {}
        for key, stored in keyed:
            other = first.setdefault(key, stored)
            if other is not stored:
                shared.setdefault(key, {other}).add(stored)
        mapped = self.page.mapped
        return {
            tuple(sorted(Name(mapped.get(stored, stored), stored) for stored in group))
            for group in shared.values()
        }

    def collision(self, group: tuple[Name, ...], of: Sequence[Kind]) -> None:
        directories = [self.page.directory.entries[name.stored] for name in group]
        volumes = [kind for kind in of if not kind.policy]
        policies = [kind for kind in of if kind.policy]
        parts = []
        if volumes:
            lost = "they would be mixed" if all(directories) else "only one would be left"
            parts.append(f"one name on {_labels(volumes)}, where {lost}")
        if policies:
            word = "policies" if len(policies) > 1 else "policy"
            first = "the first one" if not all(directories) else "the first one, or all by merge"
            parts.append(
                f"with the lookup {word} {_labels(policies)} another spelling reaches {first}"
            )
        self.page.add(
            What.COLLISION,
            Severity.WARNING,
            "; ".join(parts),
            *group,
            kinds=tuple(kind.name for kind in of),
            advice=_KEEP if volumes else _RENAME,
            mergeable=all(directories),
        )
        if all(directories):
            self.mixed(group, of)

    def mixed(self, group: tuple[Name, ...], of: Sequence[Kind]) -> None:
        """Tell which entries meet where the directories of *group* are one."""
        met: dict[tuple[Name, ...], list[Kind]] = defaultdict(list)
        for kind in of:
            for paths in self._meeting([(name.stored,) for name in group], kind):
                names = (Name(b"/".join(map(_guest, path)), b"/".join(path)) for path in paths)
                met[tuple(sorted(names))].append(kind)
        for names_met, kinds_of in sorted(met.items()):
            self.page.add(
                What.COLLISION,
                Severity.WARNING,
                f"one path where {_labels(kinds_of)} makes the directories one",
                *names_met,
                kinds=tuple(kind.name for kind in kinds_of),
                advice=_KEEP if any(not kind.policy for kind in kinds_of) else _WINS,
            )

    def _meeting(self, group: list[Path], kind: Kind) -> Iterator[list[Path]]:
        """The paths below the directories *group* that are one on *kind* and are no directories."""
        waiting = [group]
        while waiting:
            slots: dict[bytes, list[tuple[Path, bool]]] = defaultdict(list)
            for path in waiting.pop():
                # What cannot be read is told when the walk comes there.
                with suppress(OSError):
                    for name, is_directory in self.page.directory.peek(path).items():
                        if name not in HELPER_NAMES:
                            key = kind.key(_guest(name) if kind.policy else name)
                            slots[key].append(((*path, name), is_directory))
            for slot in slots.values():
                paths = [path for path, _ in slot]
                if len({path[:-1] for path in paths}) == 1:
                    continue
                if all(is_directory for _, is_directory in slot):
                    waiting.append(paths)
                else:
                    yield paths

    def refusals(self) -> None:
        volumes = [kind for kind in self.subject.kinds if not kind.policy]
        if not volumes:
            return
        suspects = (n for n in self.page.directory.entries if not kinds.is_harmless(n))
        for stored in sorted(suspects):
            name = Name(self.page.mapped.get(stored, stored), stored)
            for refusal in Refusal:
                against = [kind for kind in volumes if refusal in kind.refusals(stored)]
                if against:
                    self.refused(name, refusal, against, Severity.WARNING)
                doubting = [kind for kind in volumes if refusal in kind.doubts(stored)]
                if doubting:
                    self.refused(name, refusal, doubting, Severity.NOTE)

    def unsayable(self) -> None:
        """Names past Linux's limit: volumes that count in UTF-16 units hold up to 765 bytes."""
        page = self.page
        for stored in sorted(name for name in page.directory.entries if len(name) > NAME_MAX):
            if stored not in page.mapped and stored not in page.hidden:
                page.add(
                    What.TOO_LONG,
                    Severity.WARNING,
                    f"is too long: it has {len(stored)} bytes, and no guest can see more than "
                    f"{NAME_MAX}",
                    Name(stored, stored),
                    advice="give it a shorter name",
                )

    def refused(self, name: Name, refusal: Refusal, of: Sequence[Kind], severity: Severity) -> None:
        means = f"{refusal.value}: {_labels(of)} cannot hold it"
        if severity is Severity.NOTE:
            means = f"{refusal.value}: some systems cannot reach it on {_labels(of)}"
        elif refusal is Refusal.TOO_LONG:
            longest = ", ".join(
                f"{kind.label} holds {kind.name_max} {_UNITS[kind.unit]} of its "
                f"{kind.length(name.stored)}"
                for kind in of
            )
            means = f"{refusal.value}: {longest}"
        self.page.add(
            _REFUSALS.get(refusal, What.REFUSED),
            severity,
            means,
            name,
            kinds=tuple(kind.name for kind in of),
            advice=_KEEP,
        )


_WINS: Final = (
    "rename all but one: without merge each is reached by its own spelling only, with it one wins"
)
_RENAME: Final = "rename all but one if they are not meant to be two"
_KEEP: Final = (
    "rename it, or put the tree there through `sysroot-fs mount`, which stores it under another "
    "name"
)
_REFUSALS: Final = {Refusal.ILL_FORMED: What.ILL_FORMED, Refusal.TOO_LONG: What.TOO_LONG}
_UNITS: Final = {"bytes": "bytes", "utf16": "UTF-16 units", "key": "bytes"}


def _guest(stored: bytes) -> bytes:
    return escape.decode(stored) or stored


def _labels(of: Sequence[Kind]) -> str:
    labels = [kind.label for kind in of]
    return labels[0] if len(labels) == 1 else f"{', '.join(labels[:-1])} and {labels[-1]}"
