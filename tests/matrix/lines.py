"""Suites of cases: the same lines in the guest and in a plain chroot of it, every difference told.

They run in a directory of the sysroot or in one of the host that the guest reaches by fallback.
What differs because the volume cannot do what a line needs is skipped, with the reason: but no
line may hang, be killed or meet an I/O error for that.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import attrs

from sidecar.naming import INDEX_FILE
from tests.matrix.cases import (
    Case,
    CasesError,
    Outcome,
    chroot_command,
    compare,
    reason,
    run_cases,
)
from tests.matrix.parts import Parts
from tests.matrix.suite import Setting, Tally

__all__ = ["Lines", "excuse"]

# Equally long: a line may print how long its path is.
_WHERE: Final = {"sysroot": "root/matrix", "host": "host/matrix"}

_BROKEN: Final = (b"Input/output error", b"I/O error", b"Transport endpoint")
"""What a program says where the mount or the volume is broken."""
_KILLED: Final = 128
"""The least status of a shell that was killed, or whose program was."""

_expected: dict[tuple[Path, str], Outcome] = {}


@attrs.frozen
class Lines(Parts[Case]):
    """Shell scripts, compared with what they do in a plain chroot."""

    def run(self, setting: Setting, items: Sequence[str]) -> Tally:
        """Run the named cases in one guest process."""
        wanted = self.wanted(items)
        try:
            expected = _in_chroot(wanted, setting)
        except CasesError as error:
            words = [f"not run, the plain chroot broke off: {error}"]
            return Tally(failures=dict.fromkeys(items, words))
        where = _WHERE[setting.cell.place]
        on_host = setting.cell.place == "host"
        directory = (setting.host if on_host else setting.sysroot) / where
        directory.mkdir(parents=True)
        if not on_host:
            (setting.sysroot / "root").chmod(0o755)
        broken: dict[str, Sequence[str]] = {}
        try:
            outside = directory if on_host else None
            got = run_cases(wanted, setting.run_command(), f"/{where}", outside=outside)
        except CasesError as error:
            got = error.outcomes
            missing = [case.name for case in wanted if case.name not in got]
            broken = {name: [f"not run: {error}"] for name in missing}
        finally:
            left = sorted(set(os.listdir(directory)) - {os.fsdecode(INDEX_FILE)})
            shutil.rmtree(directory)
        if left:
            broken = {**broken, "(what was left)": left}
        lacks = frozenset() if on_host else setting.lacks
        failures: dict[str, Sequence[str]] = {}
        skipped: dict[str, str] = {}
        for case in wanted:
            if case.name not in got:
                continue
            want, have = expected[case.name], got[case.name]
            words = compare(want, have, lacks)
            if want.trouble:
                failures[case.name] = ["the line is no good: in a plain chroot", *want.trouble]
            elif words and (why := excuse(case, want, have, lacks)):
                skipped[case.name] = why
            elif words:
                failures[case.name] = words
        passed = [name for name in got if name not in failures and name not in skipped]
        return Tally(passed, {**failures, **broken}, skipped)


def excuse(case: Case, expected: Outcome, got: Outcome, lacks: frozenset[str]) -> str | None:
    """Why *got* may differ on a volume that *lacks* something; None where it may not."""
    hung = got.trouble
    killed = got.status >= _KILLED and got.status != expected.status
    broken = any(words in text for words in _BROKEN for text in (got.out, got.err))
    if "special-files" in case.needs & lacks:
        broken = False  # a driver makes a file instead, and EIO is the kernel's answer to that
    return None if hung or killed or broken else reason(case.needs, lacks)


def _in_chroot(cases: Sequence[Case], setting: Setting) -> dict[str, Outcome]:
    """What the cases do in a plain chroot of the setting's guest; run once."""
    root = setting.reference.root(setting.cell.guest)
    missing = [case for case in cases if (root, case.name) not in _expected]
    if missing:
        directory = root / _WHERE["sysroot"]
        directory.mkdir()
        try:
            where = f"/{_WHERE['sysroot']}"
            outcomes = run_cases(missing, chroot_command(root), where)
        finally:
            os.rmdir(directory)
        _expected.update({(root, name): outcome for name, outcome in outcomes.items()})
    return {case.name: _expected[root, case.name] for case in cases}
