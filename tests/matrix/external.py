"""What suites of others have in common: what came of an item is compared with a plain directory.

Where it differs the item has failed, unless a line of the suite's list in ``differences/`` gives
the reason:

    = the reason, for the lines below it
    VOLUME[+VOLUME..] PLACE[+PLACE..][:GUEST[+GUEST..]] ITEM[: CASE]
    plain GUEST[+GUEST..] ITEM[: CASE]

``all`` stands for every volume, place or guest. What neither passes nor is skipped in the plain
directory tells nothing about a mount: it has failed as well, unless a line with ``plain`` gives the
reason. A list may only become shorter: a line for what does not
differ any more is a failure itself. Where the reason is that of a race, which may be won, it stands
behind ``~`` instead of ``=``, and what does not differ is no failure.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Final

import attrs

from tests.matrix.suite import GUESTS, PLACES, VOLUMES, Cell, Tally

__all__ = ["Difference", "Outcome", "judge", "parse_list", "read_list"]

_LISTS: Final = Path(__file__).with_name("differences")
_GUESTS: Final = (*GUESTS, "-")
_SKIPS: Final = ("SKIP", "SKIPPED", "UNTESTED")


@attrs.frozen
class Outcome:
    """What came of an item: a verdict (PASS, SKIP ..) for each of its cases, and its words.

    An item that has no cases has one without a name.
    """

    verdicts: Mapping[str, str]
    said: Mapping[str, Sequence[str]] = attrs.field(factory=dict)


@attrs.frozen
class Difference:
    """A case of an item that differs on some volumes in some places, run by some guests, and why.

    Perhaps `always`; or it fails in the `plain` directory.
    """

    volumes: frozenset[str]
    places: frozenset[str]
    item: str
    case: str
    reason: str
    always: bool
    guests: frozenset[str] = frozenset(_GUESTS)
    plain: bool = False

    def covers(self, cell: Cell) -> bool:
        """Whether it is about *cell*."""
        where = cell.volume in self.volumes and cell.place in self.places
        return where and cell.guest in self.guests


def read_list(suite: str) -> list[Difference]:
    """The list of a suite; ValueError where a line is none."""
    return parse_list((_LISTS / f"{suite}.txt").read_text("utf-8"))


def parse_list(text: str) -> list[Difference]:
    """The differences that *text* lists; ValueError where a line is none."""
    found = []
    sign, reason = "", ""
    for number, line in enumerate(text.splitlines(), 1):
        if line.startswith(("= ", "~ ")):
            sign, _, reason = line.partition(" ")
        elif line and not line.startswith("#"):
            where, who, what = line.split(" ", 2)
            item, _, case = what.partition(": ")
            plain = where == "plain"
            places, _, some = ("all", "", who) if plain else who.partition(":")
            one = Difference(
                volumes=_set("all" if plain else where, VOLUMES),
                places=_set(places, PLACES),
                item=item,
                case=case,
                reason=reason,
                always=sign == "=",
                guests=_set(some or "all", _GUESTS),
                plain=plain,
            )
            known = one.volumes <= {*VOLUMES} and one.places <= {*PLACES}
            if not (reason and known and one.guests <= {*_GUESTS}):
                raise ValueError(f"line {number} of a list of differences: {line}")
            found.append(one)
    return found


def _set(word: str, every: Sequence[str]) -> frozenset[str]:
    return frozenset(every if word == "all" else word.split("+"))


def judge(
    cell: Cell,
    expected: Mapping[str, Outcome],
    got: Mapping[str, Outcome],
    differences: Iterable[Difference],
) -> Tally:
    """What is wrong in *cell* with the items of *got*, given what is *expected* of each.

    Passed is what has passed in the plain directory and here. An item none of whose cases passes
    there is skipped, with what it said, where it skips itself or its failure is listed.
    """
    listed: dict[str, dict[str, Difference]] = {}
    failing: dict[str, dict[str, Difference]] = {}
    for one in differences:
        if one.covers(cell):
            (failing if one.plain else listed).setdefault(one.item, {})[one.case] = one
    passed: list[str] = []
    failures: dict[str, Sequence[str]] = {}
    skipped: dict[str, str] = {}
    for item, outcome in got.items():
        plain, known = expected[item], listed.get(item, {})
        differing = [
            case
            for case in {**plain.verdicts, **outcome.verdicts}
            if plain.verdicts.get(case) != outcome.verdicts.get(case)
        ]
        words = _plainly_wrong(plain, failing.get(item, {}))
        for case in differing:
            if case not in known:
                words += _words(case, plain, outcome)
        for case, one in known.items():
            if one.always and case not in differing:
                words.append(f"{case or item} no longer differs: remove the line from the list")
        if words:
            failures[item] = words
        elif differing:
            skipped[item] = "; ".join(dict.fromkeys(known[case].reason for case in differing))
        elif "PASS" in plain.verdicts.values():
            passed.append(item)
        else:
            reasons = dict.fromkeys(one.reason for one in failing.get(item, {}).values())
            skipped[item] = "; ".join(reasons) or _why_not(plain)
    return Tally(passed, failures, skipped)


def _plainly_wrong(plain: Outcome, known: Mapping[str, Difference]) -> list[str]:
    """Words for what fails in the plain directory and is not *known*, or is and does not fail."""
    failed = [case for case, said in plain.verdicts.items() if said not in ("PASS", *_SKIPS)]
    words: list[str] = []
    for case in failed:
        if case not in known:
            title = f"{case}: " if case else ""
            words.append(f"{title}{plain.verdicts[case]}, in a plain directory already")
            words += plain.said.get(case, ())
    for case, one in known.items():
        if one.always and case not in failed:
            words.append(
                f"{case or one.item} no longer fails in a plain directory: remove the line"
            )
    return words


def _words(case: str, plain: Outcome, outcome: Outcome) -> list[str]:
    have, want = (one.verdicts.get(case, "nothing") for one in (outcome, plain))
    title = f"{case}: " if case else ""
    return [f"{title}{have}, in a plain directory {want}", *outcome.said.get(case, ())]


def _why_not(plain: Outcome) -> str:
    verdicts = " and ".join(sorted(set(plain.verdicts.values()))) or "nothing"
    said = next((words[-1] for words in plain.said.values() if words), "")
    return f"{verdicts} in a plain directory too{': ' if said else ''}{said}"
