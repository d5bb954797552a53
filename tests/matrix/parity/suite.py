"""The suite: each item is a seed, whose calls the mount and a plain directory must answer alike."""

from __future__ import annotations

import os
import shutil
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

import attrs

from sidecar.naming import INDEX_FILE
from tests.matrix.cases import NEEDS
from tests.matrix.parity.generate import (
    ANY_TARGETS,
    EXCHANGE,
    SPECIAL_BITS,
    calls_of,
    measured_lacks,
    need_of,
)
from tests.matrix.parity.pair import Difference, HangError, Pair, SideError
from tests.matrix.parity.script import script_of
from tests.matrix.parity.shrink import shrink
from tests.matrix.parity.world import (
    DIRECTORY_TIMES,
    FOREIGN_LINKS,
    LINK_COUNTS,
    REMOVED_FILES,
    Call,
)
from tests.matrix.suite import Setting, Suite, Tally
from tests.mounts import Mount

__all__ = ["MEASURED", "Parity", "small"]

_SEEDS: Final = 50
_CALLS: Final = 2000
_CALLS_OF_THE_CUT: Final = 300
_SHRINKING_SECONDS: Final = 120.0
_SHRINKING_SECONDS_OF_THE_CUT: Final = 20.0
_WHERE: Final = {"sysroot": "root", "host": "host"}
MEASURED: Final[Mapping[str, str]] = {
    EXCHANGE: "the volume cannot exchange two names",
    ANY_TARGETS: "the volume refuses targets of symbolic links that are not UTF-8",
    DIRECTORY_TIMES: "the volume does not move a directory's times at every change in it",
    LINK_COUNTS: "the volume miscounts the links of what is renamed or removed while it is open",
    FOREIGN_LINKS: "the volume lets nobody but its owner give a file a second name",
    REMOVED_FILES: "the volume does not give up a removed file in a directory while it is open",
    SPECIAL_BITS: "the volume takes set-id and sticky bits away by itself",
}
"""Reasons for what is not in `NEEDS`."""


_NOT_COMPARED: Final = frozenset(
    {"modes", "owners", "directory-links", "atimes", DIRECTORY_TIMES, LINK_COUNTS}
)


@attrs.frozen
class Parity(Suite):
    """Random calls, compared with what they do on ext4."""

    guests: tuple[str, ...] = ()

    def items(self) -> Sequence[str]:
        """The seeds."""
        return [f"seed-{seed}" for seed in range(_SEEDS)]

    def run(self, setting: Setting, items: Sequence[str]) -> Tally:
        """Make the calls of some seeds, each in a fresh directory of one mount."""
        on_host = setting.cell.place == "host"
        where = _WHERE[setting.cell.place]
        plain = setting.base / "plain"
        below = (setting.host if on_host else setting.sysroot) / where
        for directory in (plain, below):
            directory.mkdir()
        lacks = frozenset() if on_host else setting.lacks | measured_lacks(setting.volume.path)
        if setting.cut:
            run = _Run(lacks, _CALLS_OF_THE_CUT, _SHRINKING_SECONDS_OF_THE_CUT)
        else:
            run = _Run(lacks, _CALLS, _SHRINKING_SECONDS)
        try:
            with setting.mounted() as mount:
                run.mounted(mount, plain, mount.point / where, items)
        except AssertionError as error:
            run.failures["(the server)"] = str(error).splitlines()
        for item in items:
            if item not in run.done:
                run.failures.setdefault(item, ["not run: the server had gone"])
        if left := set(os.listdir(below)) - {os.fsdecode(INDEX_FILE)}:
            run.failures["(what was left)"] = sorted(left)
        shutil.rmtree(below)
        shutil.rmtree(plain)
        skipped = {}
        for need, why in {**NEEDS, **MEASURED}.items():
            if count := run.left_out[need]:
                skipped[f"calls that need {need}"] = f"{why} ({count} calls left out)"
            elif need in lacks & _NOT_COMPARED:
                skipped[f"attributes that need {need}"] = f"{why} (not compared)"
        return Tally(sorted(run.done - run.failures.keys()), run.failures, skipped)


@attrs.define
class _Run:
    """What came of the seeds of one cell so far."""

    lacks: frozenset[str]
    count: int
    seconds: float
    done: set[str] = attrs.Factory(set)
    failures: dict[str, Sequence[str]] = attrs.Factory(dict)
    left_out: Counter[str] = attrs.Factory(Counter)
    _known: dict[tuple[object, ...], str] = attrs.Factory(dict)

    def mounted(self, mount: Mount, plain: Path, other: Path, items: Sequence[str]) -> None:
        """Run every item as long as the server answers."""
        pair = Pair(plain, other, self.lacks)
        pair.left_out = self.left_out
        for item in items:
            self.done.add(item)
            try:
                words = self._one(pair, item) + _complaints(mount)
            except HangError as error:
                words = [f"{item}: {error}"]
                mount.kill()
            if words:
                self.failures[item] = words
            if mount.process.poll() is not None:
                return

    def _one(self, pair: Pair, item: str) -> list[str]:
        seed = int(item.removeprefix("seed-"))
        calls = []
        for call in calls_of(seed, self.count):
            missing = need_of(call) & self.lacks
            self.left_out.update(missing)
            if not missing:
                calls.append(call)
        try:
            difference = pair.first_difference(calls)
        except HangError:
            raise
        except SideError as error:
            return [f"seed {seed}: {error}"]
        if difference is None:
            return []
        words = [f"seed {seed}:", *difference.words()]
        if difference.kind in self._known:
            return [*words, f"(looks like {self._known[difference.kind]})"]
        self._known[difference.kind] = item
        return [*words, *self._shrunk(pair, calls[: difference.index + 1], difference, seed)]

    def _shrunk(self, pair: Pair, calls: Sequence[Call], found: Difference, seed: int) -> list[str]:
        """The script that shows it, in words of the tally."""
        try:
            left = small(pair, calls, found, self.seconds)
        except (ValueError, SideError) as error:
            return [f"in another fresh directory: {error}"]
        title = f"Parity, seed {seed}: {found.call.name} differs."
        return [
            f"{len(calls)} calls, shrunk to {len(left)}; to see it again:",
            *script_of(left, pair.lacks, title).splitlines(),
        ]


def _complaints(mount: Mount) -> list[str]:
    try:
        mount.check_log()
    except AssertionError as error:
        return str(error).splitlines()
    return []


def small(pair: Pair, calls: Sequence[Call], found: Difference, seconds: float) -> list[Call]:
    """As few of the calls as show what was *found*, sought for about so many seconds.

    Raises ValueError where it does not happen again.
    """

    def what_shows_it(some: Sequence[Call]) -> Sequence[Call] | None:
        try:
            difference = pair.first_difference(some)
        except SideError:
            return None
        if difference is None or difference.kind != found.kind:
            return None
        return some[: difference.index + 1]

    before = pair.left_out.copy()
    try:
        return shrink(calls, what_shows_it, seconds, pair.effective(calls))
    finally:
        pair.left_out.clear()
        pair.left_out.update(before)
