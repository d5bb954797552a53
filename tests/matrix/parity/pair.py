"""Two sides: the same calls in a fresh directory of each, and the first difference between them."""

from __future__ import annotations

import contextlib
import errno
import functools
import itertools
import os
import select
import shutil
import signal
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

import attrs

from tests.children import start_child
from tests.matrix.parity import calls as interpreter
from tests.matrix.parity.world import Call, Failed, LeftOut

__all__ = ["Difference", "HangError", "Pair", "SideError", "shown"]

PATIENCE: Final = 60.0
"""Seconds until a side that has not made its calls is taken to hang."""

_ONLY_LOOK: Final = (
    *("picture", "stat", "fstat", "is_same", "list", "list_open", "list_from", "statvfs", "access"),
    *("getcwd", "descriptor_path", "readlink", "getxattr", "listxattr", "getlk", "pread"),
)
Perform = Callable[[bytes, Sequence[Call], frozenset[str], bool], list[object]]


class SideError(Exception):
    """A side could not make its calls to the end, or what it left cannot be removed."""


class HangError(SideError):
    """A side does not answer: whoever has its server has to end it."""


@attrs.frozen
class Difference:
    """Where the sides part: the call with its place in the list, and what each gave back."""

    index: int
    call: Call
    plain: object
    other: object

    @property
    def kind(self) -> tuple[object, ...]:
        """What another list must show to show the same fault."""
        if isinstance(self.plain, dict) and isinstance(self.other, dict):
            return (self.call.name, frozenset(_columns(self.plain, self.other)))
        if isinstance(self.plain, Failed) or isinstance(self.other, Failed):
            return (self.call.name, *map(_sort_of, (self.plain, self.other)))
        return (self.call.name, frozenset(_columns({0: self.plain}, {0: self.other})))

    def words(self) -> list[str]:
        """The difference for a person."""
        head = f"call {self.index + 1}, by {self.call.actor}: {shown(self.call)}"
        if isinstance(self.plain, dict) and isinstance(self.other, dict):
            parts = [
                f"  {path!r}: plain {_short(self.plain.get(path))}, here {_short(there)}"
                for path in sorted(self.plain.keys() | self.other.keys())
                if self.plain.get(path) != (there := self.other.get(path))
            ]
            return [head, *parts]
        return [head, *_contrast(self.plain, self.other)]


def _contrast(plain: object, other: object) -> list[str]:
    """Only those parts of two values that differ."""
    if isinstance(plain, list) and isinstance(other, list):
        lost, more = (
            [one for one in a if one not in b] for a, b in ((plain, other), (other, plain))
        )
        if lost or more:
            return [f"  only plain has {_short(lost)}, only here is {_short(more)}"]
    if isinstance(plain, tuple) and isinstance(other, tuple) and len(plain) == len(other):
        return [
            w
            for one, two in zip(plain, other, strict=True)
            if one != two
            for w in _contrast(one, two)
        ]
    return [f"  plain {_short(plain)}", f"  here  {_short(other)}"]


def _sort_of(value: object) -> object:
    return value if isinstance(value, Failed) else "a value"


def _columns(plain: dict[object, object], other: dict[object, object]) -> set[object]:
    found: set[object] = set()
    for path in plain.keys() | other.keys():
        one, two = plain.get(path), other.get(path)
        if one is None or two is None:
            found.add("missing" if two is None else "too many")
        elif isinstance(one, tuple) and isinstance(two, tuple):
            both = itertools.zip_longest(one, two)
            found |= {number for number, pair in enumerate(both) if pair[0] != pair[1]}
    return found


def _short(value: object) -> str:
    if isinstance(value, tuple) and not isinstance(value, Failed):
        return f"({', '.join(map(_short, value))})"
    text = value.errno if isinstance(value, Failed) else repr(value)
    return text if len(text) < 400 else f"{text[:380]}... ({len(text)} characters)"


def shown(call: Call) -> str:
    """A call as Python writes it, long runs of one byte as a product."""
    return f"{call.name}({', '.join(map(literal, call.args))})"


def literal(value: object) -> str:
    """A Python expression for an argument, short where it can be."""
    if isinstance(value, bytes) and len(value) > 8:
        for unit in (1, 2, 3):
            times = len(value) // unit
            if value == value[:unit] * times:
                return f"{value[:unit]!r} * {times}"
    if isinstance(value, tuple):
        return f"({''.join(f'{literal(part)}, ' for part in value).rstrip()})"
    return repr(value)


class Pair:
    """The same calls below two directories, in a new one each time.

    `lacks` is what the volume of *other* cannot do: calls that depend on it are left out, and
    counted in `left_out`. With `perform` the calls are made in another way on that side.
    """

    def __init__(
        self,
        plain: Path,
        other: Path,
        lacks: frozenset[str] = frozenset(),
        perform: Perform = interpreter.perform,
    ) -> None:
        self.plain = plain
        self.other = other
        self.lacks = lacks
        self.perform = perform
        self.left_out: Counter[str] = Counter()
        self._serial = itertools.count()

    def first_difference(self, calls: Sequence[Call]) -> Difference | None:
        """Make the calls on both sides. Raises SideError."""
        expected = self.performed(calls)
        kept = [n for n, value in enumerate(expected) if not isinstance(value, LeftOut)]
        self.left_out.update(value.args[0] for value in expected if isinstance(value, LeftOut))
        got = self._perform(self.other, self.perform, [calls[n] for n in kept], False)
        for n, value in zip(kept, got, strict=True):
            if value != expected[n]:
                return Difference(n, calls[n], expected[n], value)
        return None

    def performed(self, calls: Sequence[Call]) -> list[object]:
        """What the calls give back on the plain side. Raises SideError."""
        return self._perform(self.plain, interpreter.perform, calls, True)

    def effective(self, calls: Sequence[Call]) -> list[Call]:
        """The calls that change something on the plain side, and the last one. Raises SideError."""
        said = self.performed(calls)
        return [
            call
            for call, value in zip(calls, said, strict=True)
            if call is calls[-1]
            or not (isinstance(value, Failed | LeftOut) or call.name in _ONLY_LOOK)
        ]

    def _perform(
        self, base: Path, perform: Perform, calls: Sequence[Call], judges: bool
    ) -> list[object]:
        top = base / f"parity-{next(self._serial)}"
        try:
            top.mkdir()
            if "modes" not in self.lacks:
                top.chmod(0o777)
            work = functools.partial(perform, os.fsencode(top), calls, self.lacks, judges)
            child = start_child(work)
            if not select.select([child.pipe], [], [], PATIENCE)[0]:
                os.kill(child.pid, signal.SIGKILL)
                os.close(child.pipe)
                raise HangError(f"no end within {PATIENCE:g} s")
            outcomes: list[object] = child.result()
            _remove(top)
        except HangError:
            raise
        except (OSError, EOFError, AssertionError) as failure:
            with contextlib.suppress(OSError):
                _remove(top)
            raise SideError(f"{base}: {failure}") from failure
        return outcomes


def _remove(top: Path) -> None:
    """Remove a directory; what the calls had open may be closed a moment after their end."""
    deadline = time.monotonic() + 5.0
    while True:
        try:
            return shutil.rmtree(top)
        except OSError as failure:
            if failure.errno != errno.ENOTEMPTY or time.monotonic() > deadline:
                raise
        time.sleep(0.02)
