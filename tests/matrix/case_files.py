"""Files of cases, written as a person would type them.

    === PROGRAM[,PROGRAM..] WHAT [NEED..] [user=UID]
    the script, to the next such line

NEED is one of `cases.NEEDS`; ``@NAME@`` stands for a piece of script that the reader is given, and
``@PROGRAM@`` for the program. No file says what is right: that is what a plain chroot does.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final

from tests.matrix.cases import Case

__all__ = ["read_cases"]

_HEAD: Final = re.compile(r"^=== (?P<programs>\S+) (?P<what>\S+)(?P<more>.*)\n", re.MULTILINE)


def read_cases(directory: Path, pieces: Mapping[str, str]) -> tuple[Case, ...]:
    """The cases of all ``*.txt`` in *directory*, with *pieces* put in by their names."""
    return tuple(
        case
        for path in sorted(directory.glob("*.txt"))
        for case in _read(path.read_text("utf-8"), pieces)
    )


def _read(text: str, pieces: Mapping[str, str]) -> Iterator[Case]:
    """The cases of a file."""
    _, *parts = _HEAD.split(text)
    for programs, what, more, script in zip(*[iter(parts)] * 4, strict=True):
        user = 0
        needs = set(more.split())
        for word in [word for word in needs if word.startswith("user=")]:
            needs.remove(word)
            needs |= {"owners", "modes"}
            user = int(word.removeprefix("user="))
        for program in programs.split(","):
            known = {**pieces, "PROGRAM": program}
            full = "".join(
                known[part] if number % 2 else part
                for number, part in enumerate(re.split(r"@([A-Z_]+)@", script))
            )
            name = f"{'bracket' if program == '[' else program}-{what}"
            yield Case(name, program, full.rstrip("\n"), frozenset(needs), user)
