"""Mounts for tests: a real server in a process of its own, unmounted and checked afterwards.

A server that logs an error that was not announced (`Mount.expects`) is a complaint.
"""

from __future__ import annotations

import contextlib
import os
import re
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import attrs

from sysroot_fs.fuse import submounts
from sysroot_fs.fuse.guardian import abort

PATIENCE: Final = 20.0
"""Seconds for a server to come up or to go."""

_ALARMING: Final = re.compile(r" (ERROR|CRITICAL) |Traceback|^\w*Error: ", re.MULTILINE)
_CHECKOUT: Final = Path(__file__).parent.parent

_live: dict[int, Mount] = {}


def kill_servers() -> None:
    """Kill all that run: calls that hang in their mounts fail then."""
    for mount in list(_live.values()):
        mount.process.kill()
    for mount in list(_live.values()):
        _let_go(mount.point)


def _let_go(point: Path) -> None:
    """Have all calls fail in the mount of a server that is killed, whatever the kernel waits for.

    Not through the mount, where this would wait too.
    """
    with contextlib.suppress(OSError):
        number = submounts.device_at(os.fsencode(point))
        if number is not None and mounted_type(point) == "fuse.sysroot":
            abort(number)


@contextlib.contextmanager
def watchdog(seconds: float) -> Iterator[threading.Event]:
    """Kill the servers where the block takes longer: its hanging calls fail then, and it is told.

    What is started afterwards has as long again.
    """
    killed, over = threading.Event(), threading.Event()

    def watch() -> None:
        while not over.wait(seconds):
            killed.set()
            kill_servers()

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield killed
    finally:
        over.set()
        thread.join()


@attrs.define(eq=False)
class Mount:
    """A mounted sysroot: where it is seen, what it is made of, and its server."""

    sysroot: Path
    host: Path
    point: Path
    log: Path
    process: subprocess.Popen[bytes]
    expected: list[str] = attrs.Factory(list)
    _read: int = 0

    def expects(self, pattern: str) -> None:
        """Announce error lines of the server's log, a regular expression."""
        self.expected.append(pattern)

    def descriptors(self) -> int:
        """How many descriptors the server has open."""
        return len(os.listdir(f"/proc/{self.process.pid}/fd"))

    def memory_kib(self) -> int:
        """How much memory the server holds."""
        lines = Path(f"/proc/{self.process.pid}/status").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS:"))

    def check_log(self) -> None:
        """Fail where the server has logged an error that was not announced."""
        text = self.log.read_text("utf-8", "replace")
        fresh, self._read = text[self._read :], len(text)
        lines = [
            line
            for line in fresh.splitlines()
            if _ALARMING.search(line)
            and not any(re.search(pattern, line) for pattern in self.expected)
        ]
        assert not lines, f"the server logged:\n{fresh}"

    def kill(self) -> None:
        """The server dies without a last word; what is mounted is taken away."""
        self.process.kill()
        try:
            self.process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            _let_go(self.point)
            self.process.wait()
        detach(self.point)
        _live.pop(self.process.pid, None)

    def stop(self) -> None:
        """Unmount as a user's signal does; the server has to end in order."""
        if self.process.pid not in _live:
            return
        self.process.send_signal(signal.SIGTERM)
        try:
            status = self.process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            self.kill()
            raise AssertionError(f"the server hangs:\n{self.log.read_text()}") from None
        finally:
            detach(self.point)
            _live.pop(self.process.pid, None)
        assert status == 0, f"exit status {status}:\n{self.log.read_text()}"


def mounted_type(point: Path) -> str | None:
    """The filesystem type of the mount at *point*, None where nothing is mounted."""
    wanted = os.fsencode(point)
    found = None
    for line in Path("/proc/self/mountinfo").read_bytes().splitlines():
        fields = line.split(b" ")
        if fields[4] == wanted:
            found = fields[fields.index(b"-", 6) + 1].decode()
    return found


def detach(point: Path) -> None:
    """Take away what is mounted at *point*, whoever uses it."""
    while mounted_type(point) is not None:
        subprocess.run(["umount", "-l", point], check=True)


def start(
    sysroot: Path,
    host: Path,
    point: Path,
    *options: str,
    log: Path,
    descriptors: int | None = None,
    module: str = "sysroot_fs",
) -> Mount:
    """Start a server (*module*) in the foreground and wait until its mount is there."""
    settings = ",".join([f"host={host}", f"log={log}", *options])
    command = [sys.executable, "-m", module, "mount", "-f"]
    command += [str(sysroot), str(point), "-o", settings]
    if descriptors is not None:
        # The hard limit too: the server raises the other to it.
        command = ["prlimit", f"--nofile={descriptors}:{descriptors}", *command]
    with open(log, "ab") as said:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=said, stderr=said, cwd=_CHECKOUT
        )
    mount = Mount(sysroot, host, point, log, process)
    _live[process.pid] = mount
    deadline = time.monotonic() + PATIENCE
    with open("/proc/self/mountinfo", "rb") as table:
        # The kernel reports changes of this table to poll(2) as an error condition.
        changes = select.poll()
        changes.register(table, select.POLLERR | select.POLLPRI)
        while mounted_type(point) != "fuse.sysroot":
            if process.poll() is not None or time.monotonic() > deadline:
                mount.kill()
                raise AssertionError(f"no mount:\n{log.read_text()}")
            changes.poll(50)
    return mount


class Mounter:
    """Makes mounts below one directory and takes them away again."""

    def __init__(self, work: Path) -> None:
        self.work = work
        self.mounts: list[Mount] = []

    def __call__(
        self,
        *options: str,
        sysroot: Path | None = None,
        host: Path | None = None,
        descriptors: int | None = None,
        module: str = "sysroot_fs",
    ) -> Mount:
        """Mount *sysroot* over *host*; both are new empty directories where not given."""
        number = len(self.mounts)
        made = [self.work / f"{what}-{number}" for what in ("sysroot", "host", "point")]
        sysroot, host = sysroot or made[0], host or made[1]
        for directory in (sysroot, host, made[2]):
            directory.mkdir(exist_ok=True)
        log = self.work / f"log-{number}"
        self.mounts.append(
            start(sysroot, host, made[2], *options, log=log, descriptors=descriptors, module=module)
        )
        return self.mounts[-1]

    def close(self) -> None:
        """Stop every server; the first complaint is raised when all are gone."""
        complaints: list[AssertionError] = []
        for mount in reversed(self.mounts):
            try:
                mount.stop()
                mount.check_log()
            except AssertionError as complaint:
                complaints.append(complaint)
        if complaints:
            raise complaints[0]
