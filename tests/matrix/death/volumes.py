"""The volume's own server is killed under ours.

Ours answers with EIO at once, lives on and ends in order; when the volume is mounted again, what
was synced before is there. What else a volume without a journal loses is its own affair.
"""

from __future__ import annotations

import errno
import os
import random
import select
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

import attrs

from tests.children import code_of
from tests.matrix.death.bench import Bench, differences
from tests.matrix.death.kills import of_family, started
from tests.matrix.death.mutations import Tree, look
from tests.mounts import detach, mounted_type

__all__ = ["VolumeServer", "check_volume"]

_PATIENCE: Final = 30.0
_KEPT: Final = ("Makefile", "makefile", "l" * 200, "L" * 200, "NAME.TXT")


@attrs.frozen
class VolumeServer:
    """The process that serves a volume, and how to start it again."""

    pid: int
    command: tuple[bytes, ...]
    point: Path

    @classmethod
    def find(cls, point: Path) -> VolumeServer:
        """The server of the volume at *point*, which is an argument of its.

        It may just be on its way into the background, as another process.
        """
        end = time.monotonic() + _PATIENCE
        while (found := cls._look(point)) is None:
            if time.monotonic() > end:
                state = errno.errorcode.get(code_of(os.statvfs, point), "nothing wrong")
                raise AssertionError(f"nobody serves {mounted_type(point)} at {point}: {state}")
            time.sleep(0.05)
        return found

    @classmethod
    def _look(cls, point: Path) -> VolumeServer | None:
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit():
                try:
                    words = (entry / "cmdline").read_bytes().rstrip(b"\0").split(b"\0")
                except OSError:
                    continue
                if words[-1] == os.fsencode(point):
                    return cls(int(entry.name), tuple(words), point)
        return None

    @property
    def keeps(self) -> bool:
        """Whether what it serves outlives it."""
        return b"tests.caseless" not in self.command

    def kill(self) -> None:
        """It is gone when this returns."""
        waiting = os.pidfd_open(self.pid)
        try:
            signal.pidfd_send_signal(waiting, signal.SIGKILL)
            assert select.select([waiting], [], [], 10)[0], "the volume's server does not die"
        finally:
            os.close(waiting)

    def start_again(self) -> VolumeServer:
        """Mount the volume where it was.

        As long as somebody holds the dead mount, and be it another process's mount namespace, the
        kernel shows that once more instead of a new one.
        """
        end = time.monotonic() + _PATIENCE
        while True:
            detach(self.point)
            done = subprocess.run(
                self.command, stdin=subprocess.DEVNULL, capture_output=True, cwd="/", timeout=60
            )
            assert done.returncode == 0, f"the volume cannot be mounted: {done.stderr.decode()}"
            if code_of(os.statvfs, self.point) != errno.ENOTCONN or time.monotonic() > end:
                return self.find(self.point)
            time.sleep(0.2)


def _keep(top: Path) -> None:
    """Files under names that meet on the volume, all of it synced."""
    for name in _KEPT:
        with open(top / name, "w") as file:
            file.write(f"content of {name}" * 50)
            file.flush()
            os.fsync(file.fileno())
    for directory in (top, top.parent):
        fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
        os.fsync(fd)
        os.close(fd)


def check_volume(bench: Bench, family: str, seed: int) -> list[str]:
    """Kill the volume's server while clients are in mutations of a family; what went wrong.

    Ends with the volume mounted again and an empty sysroot, or, where it keeps nothing, with the
    dead one. Raises `Lacking`.
    """
    chance = random.Random(seed)
    mutations = of_family(bench, family)
    kept = bench.directory()
    top = bench.mount.point / kept
    _keep(top)
    expected = bench.look(kept)
    clients = [started(bench, chance.choice(mutations)) for _ in range(3)]
    for client in clients:
        select.select([client.pipe], [], [], 5)
    time.sleep(chance.uniform(0.0, 0.2))
    server = VolumeServer.find(bench.setting.volume.path)
    words = []
    fd = os.open(top / _KEPT[0], os.O_RDWR)
    with bench.patience():
        server.kill()
        for client in clients:
            code = code_of(client.child.result)
            os.close(client.pipe)
            if code != errno.EIO:
                words.append(f"a client in {client.mutation.name} was told {_name(code)}, not EIO")
        for what, call in _calls(top, fd).items():
            code = code_of(call)
            if code != errno.EIO:
                words.append(f"{what} was told {_name(code)}, not EIO")
        code_of(os.close, fd)
    if bench.mount.process.poll() is not None:
        words.append("the server has died with its volume")
    bench.mount.stop()
    bench.mount.check_log()
    if not server.keeps:
        return words
    server.start_again()
    bench.mount_again()
    words += differences(_there(bench, kept), [expected])
    return words


def _there(bench: Bench, kept: str) -> Tree:
    return look(bench.mount.point / kept, "xattrs" not in bench.setting.lacks)


def _calls(top: Path, fd: int) -> dict[str, Callable[[], object]]:
    """Calls of each kind that have to reach the volume."""
    return {
        "create": lambda: os.open(top / "new", os.O_CREAT | os.O_EXCL | os.O_WRONLY),
        "mkdir": lambda: os.mkdir(top / "new-directory"),
        "unlink": lambda: os.unlink(top / _KEPT[0]),
        "rename": lambda: os.rename(top / _KEPT[0], top / "new"),
        "chmod": lambda: os.chmod(top / _KEPT[0], 0o600),
        "truncate": lambda: os.truncate(top / _KEPT[0], 1),
        # Not a listing: the kernel may have that still.
        "look-up": lambda: os.lstat(top / "never-asked-for"),
        "write": lambda: os.pwrite(fd, b"x", 0),
        "fsync": lambda: os.fsync(fd),
    }


def _name(code: int) -> str:
    return errno.errorcode.get(code, "of success")
