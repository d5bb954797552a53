"""`sysroot-fs status`, and the attribute by which servers are asked."""

from __future__ import annotations

import errno
import json
import os
import signal
import time

import pytest

from sysroot_fs.cli import status as verb
from sysroot_fs.fuse.status import NAME
from tests.children import code_of, in_child
from tests.mounts import Mount, Mounter
from tests.test_cli_mount import run


@pytest.fixture
def mount(mounted: Mounter) -> Mount:
    """A mount with an option that is not the default."""
    return mounted("fallback=safe", "deny=/a:/b")


def test_both_ask_for_the_same() -> None:
    """The verb, which loads nothing of the doors, and the doors agree on the attribute."""
    assert os.fsencode(verb.NAME) == NAME


def test_what_is_told(mount: Mount, door: str) -> None:
    """For programs: the mount, what it is made of, its server, and what it has done so far."""
    (mount.sysroot / "f").write_text("x")
    directory = os.open(mount.point, os.O_RDONLY | os.O_DIRECTORY)
    os.stat(mount.point / "f")
    os.listdir(directory)
    result = run("status", "--json", mount.point)
    os.close(directory)
    assert (result.status, result.err) == (0, "")
    (told,) = json.loads(result.out)
    assert told["mountpoint"] == str(mount.point) and told["state"] == "serving"
    assert (told["sysroot"], told["host"]) == (str(mount.sysroot), str(mount.host))
    assert told["options"] == {"fallback": "safe", "deny": ["/a", "/b"]}
    assert (told["door"], told["pid"]) == (door, mount.process.pid)
    assert 1000 < told["memory_kib"] < 1_000_000
    # Where directories are not opened nobody knows which are open.
    opened = int(door == "pyfuse3")
    assert (told["inodes"], told["open_files"], told["open_directories"]) == (2, 0, opened)
    assert told["requests"]["lookup"] >= 1 and told["requests"]["opendir"] == 1


def test_for_people(mount: Mount, mounted: Mounter, door: str) -> None:
    """Without a path all mounts are shown, by name with what people ask first."""
    other = mounted()
    result = run("status")
    assert str(other.point) in result.out
    (block,) = (part for part in result.out.split("\n/") if str(mount.point)[1:] + ":" in part)
    assert f"{mount.sysroot} over {mount.host}" in block and f"pid {mount.process.pid}," in block
    assert f"  door              {door}\n" in block
    assert "  options           deny /a:/b, fallback safe\n" in block


def test_dead_and_hanging(mounted: Mounter) -> None:
    """Each is a line, within the time, and the one that lives is told of all the same."""
    lives, hangs, dead = mounted(), mounted(), mounted()
    hangs.process.send_signal(signal.SIGSTOP)
    dead.process.kill()
    dead.process.wait()
    try:
        began = time.monotonic()
        result = run("status", dead.point, hangs.point, lives.point)
        lasted = time.monotonic() - began
    finally:
        hangs.process.send_signal(signal.SIGCONT)
        dead.kill()
    assert result.status == 1 and lasted >= verb.SECONDS
    first, second, third, *_ = result.out.splitlines()
    assert first.startswith(f"{dead.point}: dead: ") and "fusermount3 -u" in first
    assert second.startswith(f"{hangs.point}: hangs: ")
    assert third.startswith(f"{lives.point}: {lives.sysroot} over ")


def test_where_nothing_is_mounted(mount: Mount) -> None:
    """A path that is no mount of ours is an error in one sentence."""
    run("status", mount.sysroot).assert_sentence(str(mount.sysroot), "nothing of sysroot-fs")


def test_who_is_told(mount: Mount) -> None:
    """Root; for everybody else there is no such attribute."""
    assert json.loads(os.getxattr(mount.point, NAME))["pid"] == mount.process.pid

    def ask() -> int:
        return code_of(os.getxattr, mount.point, NAME)

    assert in_child(ask, uid=1000, gid=1000) == errno.ENODATA


def test_the_attribute_is_the_root_s_and_never_stored(mount: Mount) -> None:
    """It is not listed, cannot be set or removed, and nothing else has it."""
    (mount.sysroot / "f").write_text("x")
    assert os.fsdecode(NAME) not in os.listxattr(mount.point)
    assert code_of(os.setxattr, mount.point, NAME, b"x") == errno.EPERM
    assert code_of(os.removexattr, mount.point, NAME) == errno.EPERM
    assert code_of(os.getxattr, mount.point / "f", NAME) == errno.EOPNOTSUPP
    assert code_of(os.getxattr, mount.sysroot, NAME) == errno.EOPNOTSUPP
