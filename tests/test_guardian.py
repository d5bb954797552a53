"""A server that is told to go while the kernel keeps one of its threads: nobody waits for ever."""

from __future__ import annotations

import errno
import os
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from sidecar import linux
from sysroot_fs.fuse import submounts
from sysroot_fs.fuse.guardian import abort
from sysroot_fs.fuse.kernel import abi
from sysroot_fs.fuse.kernel.mounting import Mounted
from sysroot_fs.fuse.notices import AGAIN_SECONDS, Notices
from sysroot_fs.fuse.options import MountOptions
from tests.mounts import Mounter
from tests.processes import all_processes
from tests.waiting import wait_until

_MKDIR = """
import os, sys
try:
    os.mkdir(sys.argv[1])
except OSError as error:
    print(error.errno)
"""


def _start_mkdir(path: Path) -> subprocess.Popen[str]:
    return subprocess.Popen([sys.executable, "-c", _MKDIR, path], stdout=subprocess.PIPE, text=True)


def _guardian(server: int) -> int:
    """It is started a moment after the mount is there."""
    children = Path(f"/proc/{server}/task/{server}/children")
    wait_until(lambda: children.read_text())
    (guardian,) = children.read_text().split()
    return int(guardian)


def _waits_in(pid: int, function: str) -> bool:
    """Whether a thread of a process waits in the kernel in a function whose name ends so."""
    for thread in Path(f"/proc/{pid}/task").iterdir():
        stack = (thread / "stack").read_text()
        if function in stack:
            return True
    return False


def test_who_waits_for_a_killed_server_is_let_go_of(mounted: Mounter) -> None:
    mount = mounted(module="tests.slow_mkdir")
    (mount.sysroot / "directory").mkdir()
    (mount.sysroot / "directory/file").touch()
    (mount.point / "directory/file").stat()
    guardian = _guardian(mount.process.pid)
    # Told now, when nobody holds the directory, and once more when somebody does.
    (mount.sysroot / "directory/file").unlink()
    wait_until(lambda: not (mount.point / "directory/file").exists())
    with _start_mkdir(mount.point / "directory/new") as waiting:
        wait_until(lambda: _waits_in(mount.process.pid, "fuse_reverse_inval_entry"))
        mount.process.kill()
        said, _ = waiting.communicate(timeout=20)
    assert int(said) in (errno.ECONNABORTED, errno.ENOTCONN)
    mount.kill()
    wait_until(lambda: guardian not in all_processes())


def _answer(device: int, expected: abi.Opcode, body: bytes) -> None:
    """Read a request, which has to be the one that is expected, and answer it."""
    buffer = bytearray(abi.MAX_WRITE + 4096)
    os.readv(device, [buffer])
    _, opcode, unique, *_ = abi.IN_HEADER.unpack_from(buffer)
    assert abi.Opcode(opcode) is expected
    os.write(device, abi.OUT_HEADER.pack(abi.OUT_HEADER.size + len(body), 0, unique) + body)


@pytest.fixture
def device(workplace: Path) -> Iterator[int]:
    """The device of a mount at the workplace that has agreed with the kernel, served by nobody."""
    point = os.fsencode(workplace)
    mounted = Mounted.at(point, MountOptions(source=b"nobody"))
    number = submounts.device_at(point)
    assert number is not None
    limits = 7, 31, 0, 0, 16, 12, 4096, 1, 1, 0, 0, 0
    _answer(mounted.device, abi.Opcode.INIT, abi.INIT_OUT.pack(*limits))
    yield mounted.device
    abort(number)
    linux.umount(point, lazy=True)
    mounted.close()


def test_a_server_that_ends_lets_go_of_whom_its_notices_wait_for(
    device: int, workplace: Path
) -> None:
    notices = Notices(device)
    root = abi.ATTR_OUT.pack(60, 0, 0, 1, *[0] * 8, stat.S_IFDIR | 0o755, 2, *[0] * 5)
    with _start_mkdir(workplace / "new") as waiting:
        _answer(device, abi.Opcode.GETATTR, root)
        # It holds the directory now, and waits for the answer whether the name is there.
        wait_until(lambda: _waits_in(waiting.pid, "fuse_lookup"))
        notices.drop(1, b"other")
        notices.tell()
        wait_until(lambda: _waits_in(os.getpid(), "fuse_reverse_inval_entry"))
        notices.close()
        said, _ = waiting.communicate(timeout=20)
    assert int(said) == errno.ECONNABORTED


def test_guardians_of_servers_that_end_in_order_are_gone_with_them(mounted: Mounter) -> None:
    mount = mounted()
    guardian = _guardian(mount.process.pid)
    line = Path(f"/proc/{guardian}/cmdline")
    wait_until(lambda: line.read_bytes().startswith(b"sysroot-fs: the guardian of "))
    mount.stop()
    assert guardian not in all_processes()


def test_a_guardian_that_is_signalled_by_somebody_else_does_nothing(mounted: Mounter) -> None:
    mount = mounted()
    guardian = _guardian(mount.process.pid)
    os.kill(guardian, 15)
    time.sleep(AGAIN_SECONDS)
    (mount.point / "made").mkdir()
    assert guardian in all_processes()
