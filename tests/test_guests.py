"""The kinds of guests: each runs on its own loader, or on none, and they have the same names."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

from sysroot_fs.guest import elf
from tests.matrix import guests
from tests.matrix.building import GuestBuildError, exit_status
from tests.runs import Guest

CODE: Final = {
    "musl": {"/usr/bin/cat", "/lib/ld-musl-x86_64.so.1"},
    "musl-static": {"/usr/bin/cat"},
    "glibc": {
        "/usr/bin/cat",
        "/lib64/ld-linux-x86-64.so.2",
        "/lib/x86_64-linux-gnu/libc.so.6",
    },
}
"""The files whose code a running `cat` consists of."""
INTERPRETERS: Final = {
    "musl": b"/lib/ld-musl-x86_64.so.1",
    "musl-static": None,
    "glibc": b"/lib64/ld-linux-x86-64.so.2",
}


@pytest.fixture(scope="module", params=guests.KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    """The name of a kind."""
    return str(request.param)


@pytest.fixture(scope="module")
def root(kind: str, session_workplace: Path) -> Iterator[Guest]:
    """A guest of that kind over an empty host."""
    base = session_workplace / f"kind-{kind}"
    made = Guest(base / "guest", base / "host")
    made.host.mkdir(parents=True)
    guests.unpack(made.sysroot, kind=kind)
    yield made
    shutil.rmtree(base)


def _binaries(sysroot: Path) -> list[Path]:
    """The programs, links left out."""
    places = [*(sysroot / "bin").iterdir(), *(sysroot / "usr/bin").iterdir()]
    return [path for path in places if not path.is_symlink()]


def test_every_program_asks_for_the_guests_loader(root: Guest, kind: str) -> None:
    """A static program asks for none, and needs no library."""
    programs = _binaries(root.sysroot)
    assert len(programs) > 100
    for path in programs:
        image = elf.read(bytes(path))
        assert image is not None and image.interpreter == INTERPRETERS[kind], path
        assert (image.needed == ()) == (kind == "musl-static"), path


@pytest.mark.parametrize("kind", ["glibc"], indirect=True)
def test_every_library_is_in_the_guest(root: Guest) -> None:
    """What programs and libraries need is there, and nothing that none of them needs."""
    places = [*root.sysroot.glob("lib/*/*"), *root.sysroot.glob("lib64/*")]
    libraries = {os.fsencode(path.name): path for path in places}
    needed: set[bytes] = set()
    for path in (*_binaries(root.sysroot), *libraries.values()):
        image = elf.read(bytes(path))
        assert image is not None, path
        needed.update(image.needed)
    assert set(libraries) == needed


def test_the_code_that_runs_is_the_guests(root: Guest, kind: str) -> None:
    """Program, loader and C library are the guest's own files, by device and inode."""
    files = " ".join(sorted(CODE[kind]))
    # No pipe: the maps are those of the program that prints them.
    said = root.sh(f"stat -c '%n %Hd:%Ld %i' {files}; exec cat /proc/self/maps").printed()
    own = re.findall(r"^(/\S+) (\d+):(\d+) (\d+)$", said, re.M)
    ran = {
        (found[4], str(int(found[1], 16)), str(int(found[2], 16)), found[3])
        for found in re.finditer(r"^\S+ ..x. \S+ (\w+):(\w+) (\d+) +(/.*)$", said, re.M)
    }
    assert len(own) == len(CODE[kind]) and ran == set(own)


def test_a_program_of_all_libraries_starts(root: Guest) -> None:
    """`cp`, `expr` and busybox, which in the glibc guest need more than the C library."""
    said = root.sh("cp --version | head -n 1; expr 6 '*' 7; busybox | head -n 1").printed()
    first, number, last = said.splitlines()
    assert first.startswith("cp (GNU coreutils) ") and last.startswith("BusyBox v")
    assert number == "42"


def test_the_shell_is_busybox(root: Guest) -> None:
    """So that a script means the same in all of them, and GNU's programs are found first."""
    assert os.readlink(root.sysroot / "bin/sh") == "busybox"
    said = root.sh(
        "PATH=/usr/bin:/bin; command -v ls; command -v find; ls --version | head -n 1"
    ).printed()
    assert said.startswith("/usr/bin/ls\n/bin/find\nls (GNU coreutils) ")


def test_the_kinds_have_the_same_names(kind: str, root: Guest, guest_root: Guest) -> None:
    """Every kind has each GNU program and the same users, and none a resolv.conf.

    But stdbuf, which has a library loaded into programs that have no other, needs a loader.
    """
    every = set(os.listdir(guest_root.sysroot / "usr/bin"))
    assert "stdbuf" in every
    assert set(os.listdir(root.sysroot / "usr/bin")) == every - (
        {"stdbuf"} if kind == "musl-static" else set()
    )
    assert sorted(os.listdir(root.sysroot / "etc")) == ["group", "passwd"]
    for name in ("etc/group", "etc/passwd"):
        assert (root.sysroot / name).read_text() == (guest_root.sysroot / name).read_text()
    assert (
        root.run("id", "guest").printed() == "uid=1000(guest) gid=1000(guest) groups=1000(guest)\n"
    )


def test_a_copy_without_links_runs(kind: str, workplace: Path) -> None:
    """On a volume without links busybox's names are scripts, and the rest are files."""
    copy = Guest(workplace / "guest", workplace / "host")
    copy.host.mkdir()
    guests.unpack(copy.sysroot, "copy", kind)
    assert not any(path.is_symlink() for path in copy.sysroot.rglob("*"))
    assert copy.sh("ls /etc; /bin/ls /etc; echo /etc/* | xargs -n 1 basename").printed() == (
        "group\npasswd\n" * 3
    )


def test_a_kind_has_a_tar_of_its_own() -> None:
    """Each is built by itself, so that whoever wants one builds one."""
    assert len({guests.ensure(kind) for kind in guests.KINDS}) == len(guests.KINDS)


def test_a_build_that_fails_is_a_line_and_a_status(capsys: pytest.CaptureFixture[str]) -> None:
    """No traceback: it says at which step, and where the log is."""

    def fail() -> None:
        raise GuestBuildError("make failed, see near the end of the log")

    assert exit_status(fail) == 1
    assert capsys.readouterr().err == "error: make failed, see near the end of the log\n"
    assert exit_status(lambda: None) == 0
