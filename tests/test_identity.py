"""Acting as somebody else for real: who owns what is created."""

from __future__ import annotations

import ctypes
import os
import stat
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from sidecar import identity
from tests.children import in_child

root_only = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")


def fs_ids() -> tuple[int, int]:
    libc = ctypes.CDLL(None)
    return libc.setfsuid(-1), libc.setfsgid(-1)


def effective() -> str:
    status = Path("/proc/thread-self/status").read_text("ascii")
    return next(line for line in status.splitlines() if line.startswith("CapEff"))


@root_only
def test_acting_as_owns_what_it_creates(tmp_path: Path) -> None:
    """A new file belongs to the caller, even in a directory that the caller may not write."""
    tmp_path.chmod(0o700)
    with identity.acting_as(1234, 2345):
        (tmp_path / "f").touch()
        (tmp_path / "d").mkdir()
    (tmp_path / "mine").touch()
    for name in ("f", "d"):
        found = (tmp_path / name).stat()
        assert (found.st_uid, found.st_gid) == (1234, 2345)
    assert (tmp_path / "mine").stat().st_uid == 0


@root_only
def test_acting_as_inherits_the_group_of_a_setgid_directory(tmp_path: Path) -> None:
    """The volume's own setgid rule decides about the group."""
    os.chown(tmp_path, 0, 777)
    tmp_path.chmod(0o2755)
    with identity.acting_as(1234, 2345):
        (tmp_path / "f").touch()
        (tmp_path / "d").mkdir()
    assert (tmp_path / "f").stat().st_gid == 777
    found = (tmp_path / "d").stat()
    assert (found.st_uid, found.st_gid) == (1234, 777)
    assert found.st_mode & stat.S_ISGID


@root_only
def test_acting_as_keeps_every_capability(tmp_path: Path) -> None:
    """A device can be made and a mode with setgid survives, as for root."""
    before = effective()
    with identity.acting_as(1234, 2345):
        assert effective() == before
        os.mknod(tmp_path / "null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
        fd = os.open(tmp_path / "sgid", os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o6755)
        os.close(fd)
    assert effective() == before
    found = (tmp_path / "null").stat()
    assert (found.st_uid, found.st_rdev) == (1234, os.makedev(1, 3))
    assert stat.S_IMODE((tmp_path / "sgid").stat().st_mode) == 0o6755


@root_only
@pytest.mark.parametrize("ids", [(0, 0), (1234, 0), (0, 2345), (1234, 2345), (4294967294, 7)])
def test_acting_as_is_undone(ids: tuple[int, int]) -> None:
    """The ids are the caller's inside and root's again outside, after an error too."""
    with identity.acting_as(*ids):
        assert tuple(n & 0xFFFFFFFF for n in fs_ids()) == ids
    assert fs_ids() == (0, 0)
    with pytest.raises(ZeroDivisionError), identity.acting_as(*ids):
        _ = 1 / 0
    assert fs_ids() == (0, 0)


@root_only
def test_acting_as_changes_one_thread_only() -> None:
    """Another thread stays root meanwhile."""
    seen: list[tuple[int, int]] = []
    go = threading.Event()

    def look() -> None:
        go.wait()
        seen.append(fs_ids())

    # Started outside: a thread started inside would inherit the ids.
    other = threading.Thread(target=look)
    other.start()
    with identity.acting_as(1234, 2345):
        go.set()
        other.join()
    assert seen == [(0, 0)]


@root_only
def test_acting_as_does_nothing_without_root() -> None:
    """A process that is not root, from the start or since, keeps its own ids."""
    # The module runs a second time as source: the other user may not be able to read this tree.
    program = (
        "import ctypes, os, pathlib, sys\n"
        "from sidecar import identity\n"
        "source = pathlib.Path(identity.__file__).read_text()\n"
        "module = dict(vars(identity))\n"
        "if sys.argv[1] == 'before': os.setuid(4321); exec(source, module)\n"
        "if sys.argv[1] == 'after': os.setuid(4321)\n"
        "for ids in (1234, 2345), (0, 0):\n"
        "    with module['acting_as'](*ids):\n"
        "        print(ctypes.CDLL(None).setfsuid(-1), ctypes.CDLL(None).setfsgid(-1))\n"
    )
    here = Path(__file__).parent.parent
    for when in ("before", "after"):
        done = subprocess.run(
            [sys.executable, "-c", program, when],
            cwd=here,
            env={**os.environ, "PYTHONPATH": str(here)},
            stdout=subprocess.PIPE,
            text=True,
            check=True,
        )
        assert done.stdout == "4321 0\n4321 0\n"


@root_only
def test_in_groups_adds_groups_for_the_moment() -> None:
    """The groups come and go; who may not have them goes on with his own."""

    def groups() -> tuple[set[int], set[int], set[int]]:
        before = set(os.getgroups())
        with identity.in_groups((4321, 5432)):
            inside = set(os.getgroups())
        return before, inside, set(os.getgroups())

    assert in_child(groups, groups=(77,)) == ({77}, {77, 4321, 5432}, {77})
    assert in_child(groups, uid=1000, gid=1000, groups=(77,)) == ({77}, {77}, {77})
