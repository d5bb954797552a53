"""The table that users of this project trust: every volume by every place by every suite.

A cell is one suite run in one guest whose sysroot lies on one volume, once with its working
directory in the sysroot and once on a host directory that the guest reaches by fallback. What is
right is not written down anywhere: the same lines are run in a plain chroot of the same guest on
the machine's own disk, and every difference is a failure. What differs because the volume cannot
do what the line needs is counted as skipped, by name and with the reason.

``python -m tests.matrix.table [ONLY] [--cut] [--report DIR]``; ONLY is ``volume=zfs,suite=..``.
"""

from __future__ import annotations

import argparse
import os
import shlex
import sys
import tempfile
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Final

from tests.caseless import open_kind
from tests.matrix import coreutils, guests, report
from tests.matrix.building import GuestBuildError
from tests.matrix.cases import (
    Case,
    CasesError,
    Outcome,
    chroot_command,
    compare,
    reason,
    run_cases,
)
from tests.matrix.report import Cell, Result
from tests.matrix.volumes import VolumeError

VOLUMES: Final = ("ext4", "zfs", "zfs-formd", "exfat", "lowntfs", "caseless")
PLACES: Final = ("sysroot", "host")
SUITES: Final[Mapping[str, Sequence[Case]]] = {"coreutils": coreutils.CASES}

_FUSE = frozenset({"removed-directories"})
_ZFS = _FUSE | {"xattrs", "fine-times", "blocks", "setgid-kept", "large-ids", "directory-links"}
LACKS: Final[Mapping[str, frozenset[str]]] = {
    "ext4": frozenset(),
    "zfs": _ZFS,
    "zfs-formd": _ZFS,
    # Not that it folds, nor which names it refuses: those the guest does not see.
    "exfat": _ZFS
    | {"symlinks", "hard-links", "modes", "owners", "special-files", "sparse", "atimes"},
    "lowntfs": _FUSE | {"blocks", "directory-links"},
    "caseless": _FUSE | {"xattrs", "blocks", "directory-links", "sparse", "atimes"},
}
"""What a volume cannot do, of `cases.NEEDS`: what differs for it in the sysroot is excused."""

_COMMAND: Final = Path(sys.executable).parent / "sysroot-fs"


def cells(only: Mapping[str, str], cut: bool) -> list[Cell]:
    """The cells that are meant; with *cut* each row and each column at least once."""
    every = [
        Cell(volume, place, suite) for suite in SUITES for volume in VOLUMES for place in PLACES
    ]
    wanted = [cell for cell in every if all(getattr(cell, k) == v for k, v in only.items())]
    if cut:
        # The host place does not depend on the sysroot's volume but by what is walked through.
        wanted = [cell for cell in wanted if cell.place == "sysroot" or cell.volume == "zfs"]
    return wanted


def _links(volume: str) -> guests.Links:
    return "copy" if volume == "exfat" else "symlink"


def run_cell(
    cell: Cell, expected: Mapping[str, Outcome], cases: Sequence[Case], base: Path
) -> Result:
    """Run one cell; raises VolumeError where its volume cannot be had."""
    began = time.monotonic()
    lacks = LACKS[cell.volume] if cell.place == "sysroot" else frozenset()
    kind = "plain" if cell.volume == "ext4" else cell.volume
    with open_kind(kind, base) as volume:
        sysroot, host = volume.path / "guest", base / "host"
        guests.unpack(sysroot, _links(cell.volume))
        host.mkdir()
        where, outside = "/root/matrix", None
        if cell.place == "host":
            # As long as the other one: a line may print how long its path is.
            where, outside = "/host/matrix", host / "host/matrix"
            outside.mkdir(parents=True)
        else:
            (sysroot / "root/matrix").mkdir()
            (sysroot / "root").chmod(0o755)
        enter = [str(_COMMAND), "run", "--no-tty", "--host", str(host), str(sysroot), "--"]
        broken = {}
        try:
            got = run_cases(cases, enter, where, outside=outside)
        except CasesError as error:
            broken, got = {"(the cell itself)": [str(error)]}, error.outcomes
    failures: dict[str, Sequence[str]] = {}
    excused: dict[str, str] = {}
    for case in cases:
        if case.name not in got:
            continue
        words = compare(expected[case.name], got[case.name], lacks)
        if words and (why := reason(case, lacks)):
            excused[case.name] = why
        elif words:
            failures[case.name] = words
    passed = len(got) - len(failures) - len(excused)
    return Result(cell, passed, {**failures, **broken}, excused, time.monotonic() - began)


def run_table(wanted: Iterable[Cell], base: Path) -> list[Result]:
    """Run the cells, one line each."""
    results = []
    expected: dict[str, dict[str, Outcome]] = {}
    root = base / "plain"
    guests.unpack(root)
    (root / "root/matrix").mkdir()
    for cell in wanted:
        cases = SUITES[cell.suite]
        if cell.suite not in expected:
            print(f"{cell.suite}: {len(cases)} lines in a plain chroot ...", flush=True)
            expected[cell.suite] = run_cases(cases, chroot_command(root), "/root/matrix")
        print(f"{cell.name:40} ", end="", flush=True)
        with tempfile.TemporaryDirectory(prefix="cell-", dir=base) as name:
            Path(name).chmod(0o755)
            try:
                result = run_cell(cell, expected[cell.suite], cases, Path(name).resolve())
            except VolumeError as error:
                result = Result(cell, 0, {"(the cell itself)": [str(error)]}, {}, 0.0)
        print(result.line(), flush=True)
        results.append(result)
    return results


def _only(text: str) -> dict[str, str]:
    only = dict(part.split("=", 1) for part in text.split(",") if "=" in part)
    known = {"volume": VOLUMES, "place": PLACES, "suite": tuple(SUITES)}
    for key, value in only.items():
        if key not in known or value not in known[key]:
            choices = "; ".join(f"{key} is one of {', '.join(all)}" for key, all in known.items())
            raise SystemExit(f"matrix: no such cell: {key}={value} ({choices})")
    return only


def main() -> int:
    """Run what was asked for; 1 where something failed."""
    parser = argparse.ArgumentParser(prog="matrix", description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("only", nargs="?", default="", help="volume=V,place=P,suite=S")
    parser.add_argument("--cut", action="store_true", help="each row and column at least once")
    parser.add_argument("--report", type=Path, help="write report.txt, .json and .html there")
    arguments = parser.parse_args()
    if os.geteuid() != 0:
        print("matrix: volumes and chroots need root: run it as root", file=sys.stderr)
        return 1
    wanted = cells(_only(arguments.only), arguments.cut)
    try:
        guests.ensure()
    except GuestBuildError as error:
        print(f"matrix: {error}", file=sys.stderr)
        return 1
    with tempfile.TemporaryDirectory(prefix="sysroot-fs-matrix-") as name:
        Path(name).chmod(0o755)
        results = run_table(wanted, Path(name).resolve())
    print(report.as_text(results))
    if arguments.report is not None:
        report.write(results, arguments.report, _alone)
        print(f"report: {arguments.report}/report.html")
    return 1 if any(result.failures for result in results) else 0


def _alone(cell: Cell) -> str:
    only = f"volume={cell.volume},place={cell.place},suite={cell.suite}"
    return f"make matrix ONLY={shlex.quote(only)}"


if __name__ == "__main__":
    sys.exit(main())
