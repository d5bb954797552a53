"""The runner of the matrix's cases, and that the cases for coreutils are fit for use."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import attrs
import pytest

from tests.matrix import coreutils
from tests.matrix.cases import (
    Case,
    CasesError,
    Entry,
    Outcome,
    chroot_command,
    compare,
    reason,
    run_cases,
)
from tests.matrix.lines import excuse
from tests.runs import RUN, Guest

_HELD = Outcome(0, b"one\ntwo\n", b"", (Entry(b"f", "file", 0o644, 0, 0, 3, 1, b"", "abc"),))

Run = Callable[..., dict[str, Outcome]]


@pytest.fixture(params=["inside", "outside"])
def run(request: pytest.FixtureRequest, guest_root: Guest) -> Iterator[Run]:
    """Run cases in a chroot of the guest, looked at from inside and from outside."""
    here = guest_root.sysroot / "tmp" / f"cases-{request.param}"
    here.mkdir()
    outside = here if request.param == "outside" else None

    def do(*cases: Case, limit: float = 5) -> dict[str, Outcome]:
        enter = chroot_command(guest_root.sysroot)
        outcomes = run_cases(cases, enter, f"/tmp/{here.name}", outside=outside, limit=limit)
        assert os.listdir(here) == []
        return outcomes

    yield do
    shutil.rmtree(here)


def one(run: Run, script: str, **more: float) -> Outcome:
    """The outcome of one case."""
    return run(Case("only", "sh", script), **more)["only"]


def test_a_chroot_keeps_no_volume_of_others_busy(guest_root: Guest, tmp_path: Path) -> None:
    """A pool cannot be exported as long as any namespace has it, and a program may take minutes."""
    other = tmp_path / "other"
    other.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "tmpfs", str(other)], check=True)
    try:
        words = [*chroot_command(guest_root.sysroot), "cat"]
        with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
            assert process.stdin and process.stdout
            process.stdin.write(b"ready\n")
            process.stdin.flush()
            assert process.stdout.readline() == b"ready\n"
            # As it is seen in there, without the chroot.
            look = ["nsenter", f"--mount=/proc/{process.pid}/ns/mnt", "cat", "/proc/self/mountinfo"]
            mounts = subprocess.run(look, stdout=subprocess.PIPE, check=True, text=True).stdout
            process.stdin.close()
    finally:
        subprocess.run(["umount", str(other)], check=True)
    assert f" {guest_root.sysroot}/proc " in mounts
    assert f" {other} " not in mounts


def test_any_bytes_survive(run: Run) -> None:
    """Output and contents may be any bytes, also ones that look like the runner's own."""
    everything = "".join(f"\\{number:03o}" for number in range(256))
    frame = "CASE only 0 0 0 0 0 0 0 0\\n\\nDONE only\\n"
    script = f"printf '{everything}{frame}'; printf '{everything}' >&2; printf '\\0\\n' >f"
    outcome = one(run, script)
    assert outcome.out == bytes(range(256)) + frame.replace("\\n", "\n").encode()
    assert (outcome.status, outcome.err) == (0, bytes(range(256)))


def test_names_of_any_bytes(run: Run) -> None:
    """Names and link targets in the tree may be any bytes."""
    outcome = one(run, "touch -- 'a\nb' \"$(printf '\\377')\" ' ' -n; ln -s 'x\ny' '*'")
    names = [entry.name for entry in outcome.tree]
    assert names == [b" ", b"*", b"-n", b".", b"a\nb", b"\xff"]
    assert outcome.tree[1].target == b"x\ny"


def test_tree(run: Run) -> None:
    """The tree says kind, mode, owner, size, links, target and content of all there is."""
    script = """
    echo text >f; chown 12:34 f; chmod 4640 f; ln f g
    mkdir d; mkfifo p; mknod n c 1 3; ln -s $PWD/f l
    """
    digest = "b9e68e1bea3e5b19ca6b2f98b73a54b73daafaa250484902e09982e07a12e733"
    assert one(run, script).tree == (
        Entry(b".", "directory", 0o755, 0, 0, 0, 3),
        Entry(b"d", "directory", 0o755, 0, 0, 0, 2),
        Entry(b"f", "file", 0o4640, 12, 34, 5, 2, b"", digest),
        Entry(b"g", "file", 0o4640, 12, 34, 5, 2, b"", digest),
        Entry(b"l", "symlink", 0o777, 0, 0, 5, 1, b"@W@/f"),
        Entry(b"n", "character device", 0o644, 0, 0, 0, 1, b"1:3"),
        Entry(b"p", "fifo", 0o644, 0, 0, 0, 1),
    )


def test_the_order_of_a_listing_is_nothing(guest: Guest) -> None:
    """Each link has its own target, also where a directory lists in another order each time."""
    find = guest.sysroot / "usr/bin/find"  # before the guest's own on its path
    find.write_text('#!/bin/sh\n[ "$2" = -type ] || back=-r\nbusybox find "$@" | sort -z $back\n')
    find.chmod(0o755)
    case = Case("only", "sh", "ln -s one a; ln -s two b; ln -s three c")
    tree = run_cases([case], chroot_command(guest.sysroot), "/tmp")["only"].tree
    targets = {entry.name: entry.target for entry in tree if entry.kind == "symlink"}
    assert targets == {b"a": b"one", b"b": b"two", b"c": b"three"}


def test_surroundings(run: Run) -> None:
    """A case has a clean environment, its own directory and no input."""
    outcome = one(run, "cat; umask; /usr/bin/pwd; env -u PWD -u SHLVL -u OLDPWD | sort")
    want = b"0022\n@W@\nHOME=@W@\nLC_ALL=C\nPATH=/usr/bin:/bin\nTZ=UTC\n"
    assert (outcome.out, outcome.err, outcome.status) == (want, b"", 0)


def test_a_user_has_the_directory(run: Run) -> None:
    """A case of another user runs as them, in a directory of theirs."""
    script = "id -u; id -G; touch f; touch /etc/f 2>/dev/null || echo refused"
    outcome = run(Case("user", "sh", script, user=1000))["user"]
    assert outcome.out == b"1000\n1000\nrefused\n"
    assert [(entry.name, entry.owner) for entry in outcome.tree] == [(b".", 1000), (b"f", 1000)]


def test_a_time_limit(run: Run) -> None:
    """A case that hangs is ended, also where it ignores TERM; those behind it run."""
    outcomes = run(
        Case("hangs", "sh", "echo began; sleep 100"),
        Case("stubborn", "sh", "trap '' TERM; while :; do sleep 1; done"),
        Case("says-124", "sh", "exit 124"),
        Case("after", "sh", "echo after"),
        limit=0.4,
    )
    assert outcomes["hangs"].out == b"began\n"
    assert outcomes["hangs"].trouble == outcomes["stubborn"].trouble == ("ran out of time",)
    assert (outcomes["says-124"].status, outcomes["says-124"].trouble) == (124, ())
    assert outcomes["after"].out == b"after\n"


def test_a_case_kills_its_shell(run: Run) -> None:
    """A case that kills its shell or all of its process group ends only itself."""
    outcomes = run(
        Case("shell", "sh", "echo x >f; kill -KILL $$; echo no"),
        Case("group", "sh", "kill -KILL 0; echo no"),
        Case("interrupt", "sh", "kill -INT $$; echo no"),
        Case("after", "sh", "echo after"),
    )
    assert [outcome.status for outcome in outcomes.values()] == [137, 137, 130, 0]
    assert [outcome.out for outcome in outcomes.values()] == [b"", b"", b"", b"after\n"]
    assert outcomes["shell"].tree[1].size == 2


def test_what_a_case_leaves_running_is_ended(run: Run) -> None:
    """A process in the background is killed, not waited for, and writes no more."""
    outcome = one(run, "(sleep 0.3; echo late; echo late >f) & echo done")
    assert outcome == attrs.evolve(outcome, status=0, out=b"done\n", err=b"", trouble=())
    assert [entry.name for entry in outcome.tree] == [b"."]


def test_shut_directories(run: Run) -> None:
    """Directories that a case has shut are looked into all the same, and removed."""
    outcome = one(run, "mkdir -p a/b; echo x >a/b/f; chmod 0 a/b a .")
    assert [(entry.name, entry.mode) for entry in outcome.tree] == [
        (b".", 0),
        (b"a", 0),
        (b"a/b", 0),
        (b"a/b/f", 0o644),
    ]


def test_a_case_removes_its_directory(run: Run) -> None:
    """A case that has removed its directory leaves an empty tree."""
    outcome = one(run, "rmdir $PWD")
    assert (outcome.tree, outcome.trouble) == ((), ())


def test_a_guest_that_breaks_off(tmp_path: Path) -> None:
    """Where the guest ends early the first case without an answer is named."""
    with pytest.raises(CasesError, match="no answer from first; the guest ended with status 7: oh"):
        run_cases([Case("first", "sh", "echo")], ["sh", "-c", "echo oh >&2; exit 7"], str(tmp_path))


def test_names_are_safe() -> None:
    """A case's name is a directory's name on every volume; what it needs is known."""
    with pytest.raises(ValueError, match="is no name for a case"):
        Case("../x", "sh", "true")
    with pytest.raises(ValueError, match="not in NEEDS"):
        Case("x", "sh", "true", frozenset({"wings"}))
    case = Case("x", "sh", "true")
    with pytest.raises(ValueError, match="two cases of one name"):
        run_cases([case, case], [], "/tmp")


def test_reason() -> None:
    """A case may differ only where the volume lacks what the case needs."""
    needs = frozenset({"symlinks"})
    assert reason(needs, frozenset({"modes"})) is None
    assert reason(needs, frozenset({"symlinks", "modes"})) == "the volume has no symbolic links"


@pytest.mark.parametrize(
    "change",
    [
        {"trouble": ("ran out of time",)},
        {"status": 139},
        {"err": b"cp: f: Input/output error\n"},
        {"out": b"f: Transport endpoint is not connected\n"},
    ],
)
def test_what_no_volume_excuses(change: dict[str, Any]) -> None:
    """A line that hangs, is killed or meets an I/O error fails, whatever the volume lacks."""
    case = Case("x", "ln", "ln -s a b", frozenset({"symlinks"}))
    lacks = frozenset({"symlinks"})
    assert excuse(case, _HELD, attrs.evolve(_HELD, status=1), lacks)
    assert excuse(case, _HELD, attrs.evolve(_HELD, **change), lacks) is None
    killed = attrs.evolve(_HELD, status=139)
    assert excuse(case, killed, attrs.evolve(killed, tree=()), lacks)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({}, []),
        ({"status": 1}, ["exit status 1, expected 0"]),
        ({"out": b"one\nthree\n"}, [r"stdout line 2 is b'three\n', expected b'two\n'"]),
        ({"out": b"one\n"}, [r"stdout ends after line 1, expected b'two\n' more"]),
        ({"err": b"oh"}, ["stderr goes on after line 0 with b'oh'"]),
        ({"tree": ()}, ["'f' (file) is missing"]),
        ({"trouble": ("ran out of time",)}, ["ran out of time"]),
    ],
)
def test_compare(change: dict[str, Any], words: list[str]) -> None:
    """What differs is said in words."""
    assert compare(_HELD, attrs.evolve(_HELD, **change)) == words


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"name": b"\xff"}, ["'f' (file) is missing", r"'\udcff' (file) should not be there"]),
        ({"kind": "fifo"}, ["'f' is a fifo, expected a file"]),
        ({"mode": 0o4755}, ["'f' has mode 4755, expected 0644"]),
        ({"owner": 1, "group": 2}, ["'f' belongs to 1:2, expected 0:0"]),
        ({"links": 2}, ["'f' has 2 links, expected 1"]),
        ({"content": "def"}, ["'f' has another content, both of 3 bytes"]),
        ({"content": "unreadable"}, ["'f' has another content: unreadable, expected abc"]),
    ],
)
def test_compare_entries(change: dict[str, Any], words: list[str]) -> None:
    """What differs in a tree is said with the entry's name."""
    tree = (attrs.evolve(_HELD.tree[0], **change),)
    assert compare(_HELD, attrs.evolve(_HELD, tree=tree)) == words


def test_compare_leaves_out_what_the_volume_lacks() -> None:
    """A volume without modes differs in the modes of every case; that is not said each time."""
    other = attrs.evolve(_HELD, tree=(attrs.evolve(_HELD.tree[0], mode=0o755, owner=7),))
    assert compare(_HELD, other, frozenset({"modes", "owners"})) == []


# --- the cases for coreutils --------------------------------------------------------------------


def test_every_program_has_a_case(guest_root: Guest) -> None:
    """Each GNU program of the guest is in at least one case, by a name that means GNU's."""
    there = {path.name for path in (guest_root.sysroot / "usr/bin").iterdir()}
    assert there == {case.program for case in coreutils.CASES}
    for case in coreutils.CASES:
        word = re.escape(case.program)
        if case.program in coreutils.BUILT_IN:
            word = f"{coreutils.PLACE}/{word}"
        assert re.search(rf"(?<![\w-]){word}(?![\w-])", case.script), case.name


def test_the_programs_are_gnu(guest_root: Guest, run: Run) -> None:
    """What a case's PATH leads to is GNU's program, not busybox's."""
    names = sorted({case.program for case in coreutils.CASES})
    for name in names:
        program = guest_root.sysroot / "usr/bin" / name
        assert not program.is_symlink() and b"GNU coreutils" in program.read_bytes(), name
    asked = " ".join(name for name in names if name not in coreutils.BUILT_IN)
    outcome = one(run, f"for name in {asked}; do command -v $name; done")
    assert outcome.out.decode().split() == [f"/usr/bin/{name}" for name in asked.split()]


_QUICK = ("cp", "mv", "ln", "install", "mkdir", "truncate", "chmod", "readlink", "id")


def test_a_cut_of_the_cases_agrees(guest_root: Guest, run: Run, workplace: Path) -> None:
    """A cut of the cases has one outcome in a chroot and in `sysroot-fs run`."""
    cases = [case for case in coreutils.CASES if case.program in _QUICK]
    plain = run(*cases)
    assert [name for name, outcome in plain.items() if outcome.trouble] == []
    host = workplace / "host"
    (host / "srv/cases").mkdir(parents=True)
    enter = [*RUN, "--host", str(host), str(guest_root.sysroot), "--"]
    got = run_cases(cases, enter, "/srv/cases", outside=host / "srv/cases")
    differences = {name: compare(plain[name], got[name]) for name in plain}
    assert {name: words for name, words in differences.items() if words} == {}
