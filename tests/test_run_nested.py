"""Runs inside runs, in and beside mounts, and many at once.

Inside a guest the machine's own interpreter and this checkout are reached through the host, which
is read only there: so the guests' runs are real ones, of this very code.
"""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

from tests import users
from tests.matrix import guests
from tests.matrix.volumes import open_volume
from tests.mounts import Mounter
from tests.processes import CHECKOUT, Run, Starter
from tests.users import UID

Finished = subprocess.CompletedProcess[str]
pytestmark = pytest.mark.usefixtures("door")

PYTHON: Final = sys.executable
RUN: Final = [PYTHON, "-m", "sysroot_fs", "run", "-o", "host_writes=ro"]
_AT_ONCE: Final = 8
_IN_ALL: Final = {"plain": 40, "exfat": 16}


@pytest.fixture(scope="module")
def levels(session_workplace: Path) -> list[Path]:
    """Three guest roots that say which they are."""
    made = []
    for number in range(3):
        sysroot = session_workplace / f"level-{number}"
        guests.unpack(sysroot)
        (sysroot / "etc" / "level").write_text(f"level {number}\n")
        # The interpreter may lie there, and the guest's own is the one that is asked.
        (sysroot / "root").chmod(0o755)
        made.append(sysroot)
    return made


def call(words: list[str], who: str = "root") -> Finished:
    """What came of a command of root's or of a user's."""
    return subprocess.run(
        users.command(*words) if who == "user" else words,
        cwd=CHECKOUT,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=80,
    )


def shell(script: str) -> list[str]:
    """The command that runs a shell script."""
    return ["/bin/sh", "-c", script]


def in_guest(sysroot: Path | str, words: list[str]) -> list[str]:
    """The command that runs another one in a guest."""
    return [*RUN, str(sysroot), "--", *words]


# --- runs in runs -------------------------------------------------------------------------------


@pytest.mark.parametrize("who", ["root", "user"])
@pytest.mark.parametrize("depth", [2, 3])
def test_a_run_in_a_run(levels: list[Path], depth: int, who: str) -> None:
    """The innermost guest is the one that is seen, and its status comes out through all."""
    words = shell("cat /etc/level; exit 42")
    for sysroot in reversed(levels[:depth]):
        words = in_guest(sysroot, words)
    done = call(words, who)
    assert (done.returncode, done.stdout) == (42, f"level {depth - 1}\n"), done.stderr


def test_a_user_stays_itself_on_all_levels(levels: list[Path]) -> None:
    """--map-self inside --map-self makes a user namespace in a user namespace."""
    inner = [*RUN, "--map-self", str(levels[1]), "--", "/bin/id", "-u"]
    done = call([*RUN, "--map-self", str(levels[0]), "--", *inner], "user")
    assert (done.stdout, done.stderr) == (f"{UID}\n", "")


def test_the_outer_guest_is_the_inner_ones_host(levels: list[Path], workplace: Path) -> None:
    """What the inner guest lacks comes from the outer one, and through that from the machine."""
    (levels[0] / "etc" / "outer").write_text("from the outer guest\n")
    (workplace / "machine").write_text("from the machine\n")
    script = f"cat /etc/outer {workplace}/machine"
    done = call(in_guest(levels[0], in_guest(levels[1], shell(script))))
    assert (done.stdout, done.stderr) == ("from the outer guest\nfrom the machine\n", "")


def test_what_the_outer_guest_has_bound(levels: list[Path], workplace: Path) -> None:
    """Bind mounts of the outer guest's own directories and files show what they hold."""
    for name in ("one", "two"):
        (workplace / name).mkdir()
        (workplace / f"{name}-file").write_text(f"file {name}\n")
    (workplace / "one" / "inside").write_text("inside\n")
    inner = in_guest(levels[1], shell(f"cat {workplace}/two/inside {workplace}/two-file"))
    script = f"""
mount --bind {workplace}/one {workplace}/two && mount --bind {workplace}/one-file \
    {workplace}/two-file && exec {shlex.join(inner)}
"""
    done = call(in_guest(levels[0], shell(script)))
    assert (done.stdout, done.stderr) == ("inside\nfile one\n", "")


def test_the_end_of_the_outer_one_ends_the_inner_ones(levels: list[Path], workplace: Path) -> None:
    """When the outer runner is killed nothing is left of either guest."""
    starter = Starter(levels[0], Path("/"), workplace)
    try:
        inner = in_guest(levels[1], shell("echo ready; sleep 900 & sleep 900"))
        run = starter(shlex.join(inner), "-o", "host_writes=ro")
        assert run.output.readline() == "ready\n", run.said()
        run.find()
        run.kill("runner")
        assert run.left() == ""
    finally:
        starter.clear()


# --- mounts in runs, runs in mounts -------------------------------------------------------------


@pytest.mark.parametrize("who", ["root", "user"])
def test_a_mount_in_a_run(levels: list[Path], workplace: Path, who: str) -> None:
    """`mount` works in a guest, shows the other guest over this one, and goes with the run."""
    point = workplace / "point"
    point.mkdir()
    os.chown(point, UID, UID)
    mount = [PYTHON, "-m", "sysroot_fs", "mount", "-o", "host_writes=ro"]
    words = shlex.join([*mount, str(levels[1]), str(point)])
    script = f"{words} && cat {point}/etc/level && ls -A {point}{point} && ls {point}{workplace}"
    done = call(in_guest(levels[0], shell(script)), who)
    assert (done.stdout, done.stderr) == ("level 1\npoint\n", "")
    assert str(point) not in Path("/proc/self/mountinfo").read_text()


def test_a_run_of_a_sysroot_on_a_mount(levels: list[Path], mounted: Mounter) -> None:
    """The sysroot may be a mount of sysroot-fs itself."""
    mount = mounted(sysroot=levels[1])
    done = call(in_guest(mount.point, shell("cat /etc/level; touch /tmp/made")))
    assert (done.stdout, done.stderr) == ("level 1\n", "")
    (levels[1] / "tmp" / "made").unlink()


@pytest.mark.parametrize("propagation", ["private", "shared"])
def test_a_run_in_a_chroot_of_a_mount(
    levels: list[Path], workplace: Path, propagation: str
) -> None:
    """`run` works in a chroot, also where the mounts around it are shared as systemd makes them."""
    point = workplace / "point"
    point.mkdir()
    mount = [PYTHON, "-m", "sysroot_fs", "mount", "-o", "host_writes=ro"]
    inner = in_guest(levels[2], shell("cat /etc/level"))
    script = f"""
{shlex.join([*mount, str(levels[1]), str(point)])} || exit 1
for tree in proc dev sys; do mount --rbind /$tree {point}/$tree; done
chroot {point} /bin/sh -c {shlex.quote(f"cd {CHECKOUT} && exec {shlex.join(inner)}")}
status=$?
umount -l {point}
exit $status
"""
    done = call(["unshare", "--mount", "--propagation", propagation, *shell(script)])
    assert (done.returncode, done.stdout, done.stderr) == (0, "level 2\n", "")


# --- many at once -------------------------------------------------------------------------------


@pytest.fixture(params=_IN_ALL)
def shared(request: pytest.FixtureRequest, workplace: Path) -> Iterator[Starter]:
    """A guest root on a plain volume, and on one that folds case, for many runs."""
    (workplace / "host").mkdir()
    with open_volume(request.param, workplace) as volume:
        sysroot = volume.path / "guest"
        guests.unpack(sysroot, "symlink" if request.param == "plain" else "copy")
        (sysroot / "work").mkdir()
        starter = Starter(sysroot, workplace / "host", workplace)
        try:
            yield starter
        finally:
            starter.clear()


def _names(number: int) -> list[str]:
    return [f"{stem}-{number}" for stem in ("File", "file", "FILE")]


def test_many_runs_of_one_sysroot(shared: Starter, request: pytest.FixtureRequest) -> None:
    """Eight at a time, each making names that fold together: none is lost, no run harms another."""
    count = _IN_ALL[request.node.callspec.params["shared"]]
    waiting = [
        "cd /work; " + "; ".join(f"echo {name} > {name} || exit 1" for name in _names(number))
        for number in range(count)
    ]
    active: list[Run] = []
    while waiting or active:
        while waiting and len(active) < _AT_ONCE:
            active.append(shared(waiting.pop()))
        run = active.pop(0)
        assert (run.runner.wait(60), run.said()) == (0, "")
    check = shared("cd /work; ls | wc -l; for name in *; do [ $(cat $name) = $name ] || exit; done")
    assert check.output.read().split() == [str(3 * count)]
    assert check.runner.wait(20) == 0
    assert [run.left() for run in shared.runs] == [""] * (count + 1)


def test_a_run_beside_a_mount(mounted: Mounter, levels: list[Path], workplace: Path) -> None:
    """What one writes the other sees, and the mount stays when the run has gone."""
    mount = mounted(sysroot=levels[2])
    starter = Starter(levels[2], mount.host, workplace)
    try:
        (mount.point / "tmp" / "by-the-mount").write_text("text\n")
        run = starter("cat /tmp/by-the-mount; echo more > /tmp/by-the-run")
        assert run.output.read() == "text\n"
        assert run.runner.wait(20) == 0
        assert (mount.point / "tmp" / "by-the-run").read_text() == "more\n"
    finally:
        starter.clear()
