"""busybox's own testsuite, run by busybox in the guest, in a directory of the mount.

The testsuite itself lies on the host, where the guest reaches it by fallback, at the same path as
in the plain chroot; tests run in a copy that the guest makes in its working directory. What a test
should say is what it says in the chroot.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

import attrs

from tests.matrix import testsuites
from tests.matrix.cases import chroot_command
from tests.matrix.external import Outcome, judge, read_list
from tests.matrix.suite import Reference, Setting, Suite, Tally

__all__ = ["Busybox", "parse"]

_HOME: Final = "opt/busybox"
_WHERE: Final = {"sysroot": "root/tests", "host": "host/tests"}
_SECONDS: Final = 300
"""For the tests of one applet."""
_PATIENCE: Final = 1800.0
_LINES: Final = 12
"""How much of what a test wrote is shown where it differs."""
_RESULT: Final = re.compile(r"(PASS|FAIL|SKIPPED|UNTESTED): (.*)")

_SOURCED: Final = frozenset({"bunzip2.tests", "md5sum.tests"})
"""Files that others read: those of gunzip, sha1sum and the like."""
_ARITHMETIC: Final = re.compile(r"(bc|sha\d+sum)\.tests")

_LEFT_OUT: Final = {
    "all_sourcecode.tests": "it reads busybox's sources",
    "mount.tests": "it mounts loop devices, which are the machine's",
    **{
        f"wget/{name}": "it asks the internet"
        for name in (
            "wget--O-overrides--P",
            "wget-handles-empty-path",
            "wget-retrieves-google-index",
            "wget-supports--P",
        )
    },
}

# An applet's tests in the order in which its testsuite runs them: old style, then new.
_DRIVER: Final = r"""
mkdir "/$2/runtest-tempdir-links"
ln -s /bin/busybox "/$2/busybox"
/bin/busybox --install -s "/$2/runtest-tempdir-links"
cd "$1" && cp -r "/$2/testsuite" . && cd testsuite || exit
limit=$3
shift 3
for applet; do
    echo "=== $applet"
    timeout -k 1 "$limit" ./runtest -v "$applet" 2>&1 || echo "=== status $?"
done
echo "=== end"
"""

_expected: dict[tuple[Reference, str, str], Outcome] = {}


@attrs.frozen
class Busybox(Suite):
    """The files of the testsuite, each with its cases."""

    name: str = "busybox"
    modes: tuple[str, ...] = ("default",)

    def items(self) -> Sequence[str]:
        """The files below ``testsuite``."""
        return testsuites.busybox_files()

    def cut_items(self) -> Sequence[str]:
        """All but those that take most of the time, with arithmetic: md5sum's stands for sums."""
        return [item for item in self.items() if not _ARITHMETIC.fullmatch(item)]

    def run(self, setting: Setting, items: Sequence[str]) -> Tally:
        """Run the files in one guest process."""
        wanted = [item for item in items if item not in _LEFT_OUT]
        expected = _in_chroot(setting, wanted)
        where = _WHERE[setting.cell.place]
        below = setting.host if setting.cell.place == "host" else setting.sysroot
        work, home = below / where, setting.host / _HOME
        work.mkdir(parents=True)
        try:
            _unpack(home, wanted)
            enter = setting.run_command("--pid", "--proc", "fresh", "--unset", "TMPDIR")
            got = _run(enter, where, wanted)
        finally:
            shutil.rmtree(work)
            shutil.rmtree(home.parent)
        tally = judge(setting.cell, expected, got, read_list(self.name))
        left_out = {item: _LEFT_OUT[item] for item in items if item in _LEFT_OUT}
        return attrs.evolve(tally, skipped={**tally.skipped, **left_out})


def _in_chroot(setting: Setting, items: Sequence[str]) -> Mapping[str, Outcome]:
    """What came of the files in a plain chroot of the setting's guest; each is run once."""
    guest, reference = setting.cell.guest, setting.reference
    missing = [item for item in items if (reference, guest, item) not in _expected]
    if missing:
        root = reference.root(guest)
        work, home = root / _WHERE["sysroot"], root / _HOME
        work.mkdir()
        try:
            _unpack(home, missing)
            for item, outcome in _run(chroot_command(root), _WHERE["sysroot"], missing).items():
                _expected[reference, guest, item] = outcome
        finally:
            shutil.rmtree(work)
            shutil.rmtree(home.parent)
    return {item: _expected[reference, guest, item] for item in items}


def _unpack(home: Path, items: Sequence[str]) -> None:
    """The testsuite in *home*, with *items* and what they may read; the applets beside it."""
    testsuites.unpack(testsuites.busybox(), home)
    for name in set(testsuites.busybox_files()) - {*items, *_SOURCED}:
        path = home / "testsuite" / name
        path.unlink()
        if path.parent.name != "testsuite" and not any(path.parent.iterdir()):
            path.parent.rmdir()


def _run(enter: Sequence[str], where: str, items: Sequence[str]) -> dict[str, Outcome]:
    """What came of the files in the guest's directory *where*."""
    applets = list(dict.fromkeys(_applet(item) for item in items))
    driver = ["/bin/sh", "-c", _DRIVER, "-", f"/{where}", _HOME, str(_SECONDS), *applets]
    done = subprocess.run(
        [*enter, "env", "SKIP_INTERNET_TESTS=1", f"bindir=/{_HOME}", *driver],
        env={"PATH": "/usr/bin:/bin:/usr/sbin:/sbin", "HOME": "/root", "LC_ALL": "C", "TZ": "UTC"},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        timeout=_PATIENCE,
        check=False,
    )
    parts = re.split(r"^=== (\S+)\n", done.stdout.decode(errors="replace"), flags=re.MULTILINE)
    said = dict(zip(parts[1::2], parts[2::2], strict=True))
    outcomes: dict[str, Outcome] = {}
    for applet in applets:
        mine = [item for item in items if _applet(item) == applet]
        text = said.get(applet, f"not run; the guest ended with {done.returncode}:\n{parts[-1]}")
        outcomes.update(parse(mine, text))
    return {item: outcomes[item] for item in items}


def _applet(item: str) -> str:
    return item.partition("/")[0].removesuffix(".tests")


def parse(items: Sequence[str], text: str) -> dict[str, Outcome]:
    """The outcomes of an applet's files: old ones say one line each, first; the rest is the new."""
    old = {item.partition("/")[2]: item for item in items if "/" in item}
    new = [item for item in items if "/" not in item]
    verdicts: dict[str, dict[str, str]] = {item: {} for item in items}
    said: dict[str, dict[str, list[str]]] = {item: {} for item in items}
    words: list[str] = []
    for line in text.splitlines():
        found = _RESULT.fullmatch(line)
        if found:
            verdict, case = found.groups()
            item = old.pop(case, None)
            if item is None and not new:
                words.append(line)
                continue
            name = "" if item else case
            item = item or new[0]
            words = [] if verdict == "PASS" else [line]
            verdicts[item][name] = verdict
            said[item][name] = words
        elif line.startswith("====") and len(line) == 22:
            words = []
        elif len(words) < _LINES:
            words.append(line)
    for item in items:
        if not verdicts[item]:
            verdicts[item] = {"": "nothing"}
            said[item] = {"": text.splitlines()[-_LINES:]}
    return {item: Outcome(verdicts[item], said[item]) for item in items}
