"""GNU coreutils' own tests, with their work directories on the mount.

The programs are the project's, built for this machine and outside of any guest: what is tried is
the file system below their work directory. What a test should say is what it says in a plain
directory. Tests run as root, as ``make check`` does when root starts it; those that refuse root, as
another user.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final

import attrs

from tests.matrix import testsuites
from tests.matrix.external import Outcome, judge, read_list
from tests.matrix.sandbox import only_writing
from tests.matrix.suite import VOLUMES, Reference, Setting, Suite, Tally

__all__ = ["GnuCoreutils"]

_SECONDS: Final = 600.0
_USER: Final = 1000
_PATH: Final = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_REFUSES_ROOT: Final = re.compile(r"skip_if_root_|run as non-root|run this test as root")
_GROUP: Final = 100
"""Many tests want to be in two groups."""
_WORKERS: Final = 2 * (os.cpu_count() or 1)
"""Many of them sleep."""
_VERDICTS: Final = {0: "PASS", 77: "SKIP", 99: "ERROR"}
_LINES: Final = 12
"""How much of what a test wrote is shown where it differs."""
_SKIPPED: Final = "skipped test: "
_ENDS: Final = ("+ fail=1", "+ Exit 1", "+ remove_tmp_")
"""Traces behind which a script only cleans up, or goes on after a failure."""
_SHARE: Final = 3
"""The cut has one of so many of the tests of `_FILES`; it would take minutes otherwise."""
_FILES: Final = re.compile(
    r"(chgrp|chmod|chown|cp|install|ln|ls|mkdir|mv|readlink|rm|rmdir|touch)/.*"
)
"""Directories of tests that are about files."""

_LEFT_OUT: Final = {
    **dict.fromkeys(
        (
            "cp/cp-a-selinux.sh",
            "cp/cp-mv-enotsup-xattr.sh",
            "cp/cross-dev-symlink.sh",
            "cp/sparse-extents-2.sh",
            "df/over-mount-device.sh",
            "df/problematic-chars.sh",
            "mkdir/writable-under-readonly.sh",
            "mv/hardlink-case.sh",
            "rm/read-only.sh",
        ),
        "it formats and mounts loop devices, which are the machine's, and works on those",
    ),
    "df/df-symlink.sh": "it is about the device, of which df shows a mount of ours as well",
}

_expected: dict[tuple[Reference, str], Outcome] = {}


@attrs.frozen
class GnuCoreutils(Suite):
    """The scripts of ``make check``."""

    name: str = "gnu-coreutils"
    guests: tuple[str, ...] = ()
    modes: tuple[str, ...] = ("default",)
    # Not exfat: without modes, owners and links every second script cannot set itself up.
    volumes: tuple[str, ...] = tuple(volume for volume in VOLUMES if volume != "exfat")

    def items(self) -> Sequence[str]:
        """The scripts below ``tests``."""
        tests = testsuites.coreutils_facts()["TESTS"].split()
        return [name.removeprefix("tests/") for name in tests]

    def cut_items(self) -> Sequence[str]:
        """A third of those that are about files."""
        files = [item for item in self.items() if _FILES.fullmatch(item)]
        return files[::_SHARE]

    def run(self, setting: Setting, items: Sequence[str]) -> Tally:
        """Run the scripts side by side, each in a directory of its own."""
        built = setting.base / "coreutils"
        testsuites.unpack(testsuites.coreutils(), built)
        (built / "bin").mkdir()
        (built / "bin/python").symlink_to(os.path.realpath(sys.executable))  # they ask for `python`
        wanted = [item for item in items if item not in _LEFT_OUT]
        missing = [item for item in wanted if (setting.reference, item) not in _expected]
        plain = setting.base / "plain"
        plain.mkdir()
        for item, outcome in _run_all(built, plain, missing).items():
            _expected[setting.reference, item] = outcome
        below = setting.host if setting.cell.place == "host" else setting.sysroot
        work = below / "work"
        work.mkdir()
        try:
            with setting.mounted() as mount:
                got = _run_all(built, mount.point / "work", wanted)
        finally:
            shutil.rmtree(work)
        expected = {item: _expected[setting.reference, item] for item in wanted}
        tally = judge(setting.cell, expected, got, read_list(self.name))
        left_out = {item: _LEFT_OUT[item] for item in items if item in _LEFT_OUT}
        return attrs.evolve(tally, skipped={**tally.skipped, **left_out})


def _run_all(built: Path, top: Path, items: Sequence[str]) -> dict[str, Outcome]:
    """What came of the scripts in directories below *top*."""
    with only_writing(top) as enter, ThreadPoolExecutor(_WORKERS) as pool:
        outcomes = pool.map(lambda item: _run_one(built, top, item, enter), items)
        return dict(zip(items, outcomes, strict=True))


def _run_one(built: Path, top: Path, item: str, enter: Sequence[str]) -> Outcome:
    script = built / "tests" / item
    flat = item.replace("/", "-")
    directory = top / flat
    directory.mkdir()
    user = 0
    if _REFUSES_ROOT.search(script.read_text("latin-1")):
        user = _USER
        os.chown(directory, user, user)
    become = ["setpriv", f"--reuid={user}", f"--regid={user}", f"--groups={user},{_GROUP}"]
    words = [*become, *_command(script, flat)]
    inside = ["sh", "-c", 'cd "$1" && shift && exec "$@" 9>&2', "-", str(directory)]
    try:
        done = subprocess.run(
            [*enter, *inside, *words],
            env=_environment(built, directory, flat),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=_SECONDS,
            check=False,
        )
        verdict, out = _VERDICTS.get(done.returncode, "FAIL"), done.stdout
    except subprocess.TimeoutExpired as late:
        verdict, out = f"nothing within {_SECONDS:.0f} s", late.stdout or b""
    shutil.rmtree(directory, ignore_errors=True)
    said = out.decode(errors="replace").splitlines()
    return Outcome({"": verdict}, {"": _why(verdict, said)})


def _why(verdict: str, said: Sequence[str]) -> Sequence[str]:
    """The lines that tell a person most: why it is skipped, or what came before the failure."""
    if verdict == "SKIP":
        reasons = [line for line in said if _SKIPPED in line] or said[-1:]
        return [line.rpartition(_SKIPPED)[2] for line in reasons[-1:]]
    if "+ __st=0" in said:  # it went well until its directory was to be removed
        return said[-_LINES:]
    ends = [number for number, line in enumerate(said) if line in _ENDS]
    end = ends[0] if ends else len(said)
    return said[max(0, end - _LINES) : end]


def _command(script: Path, flat: str) -> list[str]:
    if script.suffix == ".sh":
        return ["/bin/sh", str(script)]
    taint = ["-T"] if script.suffix == ".xpl" else []
    modules = ["-MCuSkip", "-MCoreutils", f"-MCuTmpdir qw({flat})"]
    return ["perl", *taint, "-w", f"-I{script.parents[1]}", *modules, str(script)]


def _environment(built: Path, directory: Path, flat: str) -> Mapping[str, str]:
    """What the project's makefile gives its tests."""
    facts = testsuites.coreutils_facts()
    return {
        "PATH": f"{built}/src:{built}/bin:{_PATH}",
        "HOME": str(directory),
        "TMPDIR": str(directory),
        "LC_ALL": "C",
        "SHELL": "/bin/sh",
        "VERBOSE": "yes",
        "VERSION": facts["VERSION"],
        "PACKAGE_VERSION": facts["VERSION"],
        "LOCALE_FR": "none",
        "LOCALE_FR_UTF8": "none",
        "abs_top_builddir": str(built),
        "abs_top_srcdir": str(built),
        "abs_srcdir": str(built),
        "top_srcdir": str(built),
        "srcdir": str(built),
        "built_programs": facts["built_programs"],
        "fail": "0",
        "host_os": facts["host_os"],
        "host_triplet": facts["host_triplet"],
        "CONFIG_HEADER": f"{built}/lib/config.h",
        "CU_TEST_NAME": f"coreutils-{facts['VERSION']},{flat}",
        "CC": "gcc",
        "AWK": facts["AWK"],
        "EGREP": facts["EGREP"],
        "EXEEXT": "",
        "MAKE": "make",
        "PERL": "perl",
    }
