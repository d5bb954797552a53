"""Suites of scenarios: the same system calls below the mount and in a plain directory.

A scenario is a function that does things in an empty directory and tells what it saw, a line each;
the lines on the mount must be those on the machine's own disk. It runs in a process of its own,
which starts in that directory. A second directory is in the other layer: the host's where the
first is the sysroot's, and the other way round.

What a line says must not depend on where it is: the two directories' paths are put out of it, inode
numbers and times that were not set are the scenario's to leave out.
"""

from __future__ import annotations

import errno
import os
import shutil
import signal
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Final

import attrs

from tests.children import start_child
from tests.matrix.parts import Parts, divided
from tests.matrix.suite import Setting, Tally

__all__ = ["Calls", "Scenario", "Where", "told"]

_SECONDS: Final = 60


@attrs.frozen
class Where:
    """The scenario's directory, in which it starts, and the one in the other layer."""

    here: bytes
    there: bytes


@attrs.frozen
class Scenario:
    """What to do, and what the volume below has to be able to do for it (of `cases.NEEDS`)."""

    name: str
    steps: Callable[[Where], Iterator[str]]
    needs: frozenset[str] = frozenset()

    @classmethod
    def of(cls, steps: Callable[[Where], Iterator[str]], *needs: str) -> Scenario:
        """The scenario that is named after its function."""
        return cls(steps.__name__.replace("_", "-"), steps, frozenset(needs))


def told(call: Callable[..., object], *arguments: object) -> str:
    """A line: what is called, and what it returns, or the name of the error that it raises."""
    words = ", ".join(map(repr, arguments))
    try:
        result = call(*arguments)
    except OSError as failure:
        result = errno.errorcode.get(failure.errno or 0, repr(failure))
    return f"{getattr(call, '__name__', call)}({words}): {result}"


@attrs.frozen
class Calls(Parts[Scenario]):
    """Scenarios, compared with what they do in a plain directory.

    `both_layers` says that they use both of their directories, so that it counts what the sysroot's
    volume lacks wherever they start.
    """

    both_layers: bool = attrs.field(default=False, kw_only=True)

    def run(self, setting: Setting, items: Sequence[str]) -> Tally:
        """Run the named scenarios, one after the other below one mount."""
        on_host = setting.cell.place == "host"
        lacks = frozenset() if on_host and not self.both_layers else setting.lacks
        layers = [setting.sysroot, setting.host][:: -1 if on_host else 1]
        can, skipped = divided(self.wanted(items), lacks)
        failures: dict[str, Sequence[str]] = {}
        with setting.mounted() as mount:
            for scenario in can:
                expected = _run(scenario, setting.base, [setting.base, setting.base])
                got = _run(scenario, mount.point, layers)
                if words := list(_differences(expected, got)):
                    failures[scenario.name] = words
        passed = [scenario.name for scenario in can if scenario.name not in failures]
        return Tally(passed, failures, skipped)


def _run(scenario: Scenario, top: Path, layers: Sequence[Path]) -> list[str]:
    """The lines of a scenario whose directories below *top* are made in *layers*."""
    names = [f"{scenario.name}-{which}" for which in ("here", "there")]
    made = [layer / name for layer, name in zip(layers, names, strict=True)]
    for directory in made:
        directory.mkdir()
    where = Where(*(os.fsencode(top / name) for name in names))
    try:
        lines: list[str] = start_child(lambda: _lines(scenario, where)).result()
    except (OSError, AssertionError) as error:
        lines = [f"broke off: {error!r}"]
    # By whoever made what is in them; what stays then is told, and taken away from outside.
    for name, directory in zip(names, made, strict=True):
        shutil.rmtree(top / name, ignore_errors=True)
        if directory.exists():
            lines.append(f"left: {os.listdir(directory)}")
            shutil.rmtree(directory)
    return lines


def _lines(scenario: Scenario, where: Where) -> list[str]:
    signal.alarm(_SECONDS)
    os.chdir(where.here)
    lines = []
    try:
        for line in scenario.steps(where):
            for path, name in ((where.here, "@HERE@"), (where.there, "@THERE@")):
                line = line.replace(os.fsdecode(path), name)
            lines.append(line)
    except Exception as error:
        lines.append(f"raised {error!r}")
    return lines


def _differences(expected: Iterable[str], got: Iterable[str]) -> Iterator[str]:
    """The first line that differs, and how far it went well before."""
    want, have = list(expected), list(got)
    if want and want[-1].startswith(("raised ", "broke off: ")):
        yield f"no scenario: on the machine's own disk it {want[-1]}"
        return
    before = "the start"
    for number in range(max(len(want), len(have))):
        left = want[number] if number < len(want) else "nothing more"
        right = have[number] if number < len(have) else "nothing more"
        if left != right:
            yield f"line {number + 1}, after {before[:200]!r}:"
            yield f"    got      {right[:500]!r}"
            yield f"    expected {left[:500]!r}"
            return
        before = left
