"""Test suites that others wrote for their programs: built once, then unpacked from a cache.

| from          | holds                                                                          |
| ------------- | ------------------------------------------------------------------------------ |
| busybox       | its ``testsuite`` and the configuration that the guest's busybox was built with |
| GNU coreutils | its ``tests`` and the programs, built for this machine; moved anywhere, they run |

Both come out of the sources that the guest's programs are built from.
"""

from __future__ import annotations

import re
import shutil
import sys
import tarfile
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Final

from tests.matrix.building import (
    GuestBuildError,
    Runner,
    exit_status,
    get_sources,
    private_apt,
    say,
)
from tests.matrix.guest_cache import extract, in_cache

__all__ = ["busybox", "busybox_files", "coreutils", "coreutils_facts", "unpack"]

_FACTS: Final = "facts"
#: Sources that the tests read.
_READ: Final = ("src/tail.c", "src/remove.c", "src/stty.c", "lib/config.h", "init.cfg", "COPYING")
_ASKED: Final = ("TESTS", "built_programs", "VERSION", "AWK", "EGREP", "host_os", "host_triplet")


def busybox() -> Path:
    """busybox's testsuite as a tar in the cache, made first where it is missing."""
    return in_cache("busybox-tests", "testsuite of busybox", _busybox)


def coreutils() -> Path:
    """The tests of GNU coreutils and the programs as a tar in the cache, built where missing."""
    return in_cache("coreutils-tests", "tests of GNU coreutils", _coreutils)


def unpack(packed: Path, dest: Path) -> None:
    """Put what `busybox` or `coreutils` gave into the directory *dest*."""
    extract(packed, dest, "symlink")


@cache
def busybox_files() -> tuple[str, ...]:
    """The tests by file, below ``testsuite``: ``cp.tests``, ``cp/cp-copies-empty-file``."""
    with tarfile.open(busybox()) as tar:
        names = [
            member.name.removeprefix("testsuite/")
            for member in tar
            if member.isfile() and member.name.startswith("testsuite/")
        ]
    old = [name for name in names if "/" in name and not name.startswith("mount.testroot/")]
    return (*(name for name in names if re.fullmatch(r"[^/]+\.tests", name)), *old)


@cache
def coreutils_facts() -> Mapping[str, str]:
    """What the makefile knows; ``TESTS`` are the files of the tests, with a blank between."""
    with tarfile.open(coreutils()) as tar:
        member = tar.extractfile(_FACTS)
        assert member is not None
        return _as_mapping(member.read().decode())


# --- building -------------------------------------------------------------------------------


def _busybox(root: Path, work: Path, run: Runner) -> str:
    apt = private_apt(work, run)
    (tree,) = get_sources(["busybox"], work, run, apt)
    run(["make", "defconfig"], cwd=tree)
    shutil.copy(tree / ".config", root / ".config")
    shutil.copytree(tree / "testsuite", root / "testsuite")
    # It would remake the links to the applets at each start, as it says itself; 400 of them.
    runtest = root / "testsuite/runtest"
    text = runtest.read_text()
    for line in ('rm -rf "$LINKSDIR" 2>/dev/null', 'ln -s "$bindir/busybox" "$LINKSDIR/$i"'):
        if line not in text:
            raise GuestBuildError(f"busybox's runtest has changed: {line!r} is not in it")
        text = text.replace(line, ":")
    runtest.write_text(text)
    return tree.name


def _coreutils(root: Path, work: Path, run: Runner) -> str:
    say("  package lists of our own: deb-src")
    apt = private_apt(work, run)
    (tree,) = get_sources(["coreutils"], work, run, apt)
    say("  configuring and compiling coreutils")
    configure = [
        "./configure",
        "--quiet",
        "--disable-nls",
        "--disable-dependency-tracking",
        "--without-selinux",
        "--without-openssl",
        "--enable-install-program=arch,hostname",
        "CFLAGS=-O1 -g0",
    ]
    # As root it refuses; the locale is the one in which it sorts its lists.
    environment = ["env", "FORCE_UNSAFE_CONFIGURE=1", "LC_ALL=C"]
    run([*environment, *configure], cwd=tree)
    make = [*environment, "make", "-f", "Makefile"]
    run([*make, "-j2", "SUBDIRS=.", "MANS=", "man1_MANS=", "all"], cwd=tree)
    echo = "@" + "; ".join(f"echo '{name}=$({name})'" for name in _ASKED)
    facts = run([*make, "-s", "--eval", f"facts: ; {echo}", "facts"], cwd=tree)
    known = _as_mapping(facts)
    tests = known["TESTS"].split()
    run([*make, *(name for name in tests if name.startswith("tests/factor/t"))], cwd=tree)
    (root / _FACTS).write_text(facts)
    shutil.copytree(tree / "tests", root / "tests")
    for name in _READ:
        (root / name).parent.mkdir(exist_ok=True)
        shutil.copy(tree / name, root / name)
    for name in ("getlimits", *known["built_programs"].split()):
        run(["strip", "-o", str(root / "src" / name), str(tree / "src" / name)])
    return tree.name


def _as_mapping(facts: str) -> dict[str, str]:
    return dict(line.split("=", 1) for line in facts.splitlines())


def main() -> None:
    for packed in (busybox(), coreutils()):
        say(f"tests: {packed}")


if __name__ == "__main__":
    # Under the name that it is imported by, which the cache's key is made with.
    from tests.matrix import testsuites as imported

    sys.exit(exit_status(imported.main))
