"""The suites of death: what is left when the server, its clients or its volume fail or die."""

from __future__ import annotations

import os
import random
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

import attrs

from tests.caseless import open_kind
from tests.matrix.death.bench import Bench, Lacking, differences, told
from tests.matrix.death.errors import check_errors
from tests.matrix.death.kills import FAMILIES, check_kills, check_load, kill_clients
from tests.matrix.death.mutations import MUTATIONS, Tree
from tests.matrix.death.starts import check_start
from tests.matrix.death.volumes import check_volume
from tests.matrix.suite import Setting, Suite, Tally

__all__ = ["SUITES"]

SEED: Final = "DEATH_SEED"
"""The variable that makes a run choose what another one has chosen."""

_AFTERWARDS: Final = "(afterwards)"
_KINDS: Final[dict[str, Callable[[Bench, str, int], list[str]]]] = {
    "server": check_kills,
    "server-under-load": check_load,
    "clients": kill_clients,
}


def _turned(turn: int) -> Sequence[str]:
    """The families, another one first each turn: the cut deals items out to volumes in order."""
    names = tuple(FAMILIES)
    return names[-turn:] + names[:-turn]


_FAMILY_ITEMS: Final = {
    f"{kind}-{family}": (kind, family)
    for turn, kind in enumerate(_KINDS)
    for family in _turned(turn)
}
_START: Final = "server-while-it-starts"
_ERROR_ITEMS: Final = {f"errors-{mutation.name}": mutation.name for mutation in MUTATIONS}


def _seed() -> int:
    return int(os.environ.get(SEED) or random.randrange(1 << 32))


@attrs.define
class _Run:
    """The items of one cell, and what is to be looked at when all are through."""

    bench: Bench
    seed: int
    failures: dict[str, list[str]] = attrs.field(factory=dict)
    skipped: dict[str, str] = attrs.field(factory=dict)
    left: list[tuple[str, str, Tree]] = attrs.field(factory=list)

    def item(self, name: str) -> None:
        """Run one item; the next one has a living server in any case."""
        try:
            self.failed(name, self._words(name))
        except Lacking as reason:
            self.skipped[name] = str(reason)
        except (AssertionError, OSError) as error:
            self.failed(name, [f"it broke off: {error!r}"])
            self.bench.mount.kill()
            self.bench.mount_again()

    def _words(self, name: str) -> list[str]:
        if name in _FAMILY_ITEMS:
            kind, family = _FAMILY_ITEMS[name]
            return _KINDS[kind](self.bench, family, self.seed)
        if name == _START:
            return check_start(self.bench, self.seed)
        words, left = check_errors(self.bench, _ERROR_ITEMS[name], self.seed)
        self.left += [(name, where, tree) for where, tree in left]
        return words

    def failed(self, name: str, words: Sequence[str]) -> None:
        """Note what went wrong in an item, if anything did."""
        if words:
            seed = f"{SEED}={self.seed} chooses the same again"
            self.failures[name] = [*self.failures.get(name, [])[:-1], *words, seed]

    def afterwards(self) -> None:
        """The next server shows what the last one did, `check` can mend all, nothing stays."""
        self.bench.remount()
        while self.left:
            name, where, tree = self.left.pop()
            words = differences(self.bench.look(where), [tree])
            self.failed(name, [f"after a remount of {where}: {word}" for word in words])
        self.failed(_AFTERWARDS, [told(finding) for finding in self.bench.mend()])
        self.failed(_AFTERWARDS, self.bench.clear())


@attrs.frozen
class _Death(Suite):
    """Errors at each system call, a killed server, killed clients."""

    def items(self) -> Sequence[str]:
        return [*_FAMILY_ITEMS, _START, *_ERROR_ITEMS]

    def run(self, setting: Setting, items: Sequence[str]) -> Tally:
        work = Path(tempfile.mkdtemp(prefix="death-", dir=setting.base))
        run = _Run(Bench(setting, work), _seed())
        try:
            for item in items:
                run.item(item)
                if run.bench.is_filling:
                    run.afterwards()
            run.afterwards()
        except (AssertionError, OSError) as error:
            run.failed(_AFTERWARDS, [repr(error)])
        finally:
            try:
                run.bench.close()
            except AssertionError as complaint:
                run.failed(_AFTERWARDS, str(complaint).splitlines())
        bad = {*run.failures, *run.skipped}
        return Tally([item for item in items if item not in bad], run.failures, run.skipped)


@attrs.frozen
class _VolumeDeath(Suite):
    """Volumes whose server is killed, each a new one."""

    def items(self) -> Sequence[str]:
        return tuple(FAMILIES)

    def run(self, setting: Setting, items: Sequence[str]) -> Tally:
        seed = _seed()
        failures: dict[str, Sequence[str]] = {}
        for item in items:
            words = self._words(setting, item, seed)
            if words:
                failures[item] = [*words, f"{SEED}={seed} chooses the same again"]
        return Tally([item for item in items if item not in failures], failures)

    def _words(self, setting: Setting, family: str, seed: int) -> list[str]:
        work = Path(tempfile.mkdtemp(prefix="death-", dir=setting.base))
        with open_kind(setting.cell.volume, work) as volume:
            sysroot = volume.path / "guest"
            sysroot.mkdir()
            own = attrs.evolve(setting, volume=volume, sysroot=sysroot)
            bench = Bench(own, work)
            try:
                return check_volume(bench, family, seed)
            except (AssertionError, OSError) as error:
                return [f"it broke off: {error!r}"]
            finally:
                bench.close()


_MODES: Final = ("default", "long")

SUITES: Final[tuple[Suite, ...]] = (
    _Death("death", guests=(), places=(), modes=_MODES),
    # The zfs daemon is everybody's on the machine, and ext4's server is the kernel.
    _VolumeDeath(
        "volume-death", volumes=("exfat", "lowntfs", "caseless"), guests=(), places=(), modes=_MODES
    ),
)
