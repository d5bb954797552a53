"""The processes of one run: found by a variable in their environment, never by a name.

Every process of a run keeps the environment that the runner was started with, so what a test kills
or waits for is its own.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Final

from attrs import define, field, frozen

from tests import users
from tests.waiting import comes

CHECKOUT: Final = Path(__file__).resolve().parent.parent
_MARK: Final = "SYSROOT_FS_TEST_RUN"


@frozen
class Process:
    """One line of /proc."""

    pid: int
    parent: int
    state: str
    started: int


def _look(pid: int) -> Process:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return Process(pid, int(fields[1]), fields[0], int(fields[19]))


def all_processes() -> Iterator[int]:
    """The ids of every process on the machine."""
    return (int(name) for name in os.listdir("/proc") if name.isdigit())


@define(eq=False)
class Run:
    """A run that is under way: its runner, and how to find the others."""

    mark: str
    sysroot: Path
    runner: subprocess.Popen[str]
    errors: Path
    _roles: dict[str, int] = field(factory=dict)

    @property
    def output(self) -> IO[str]:
        """What the program writes."""
        assert self.runner.stdout is not None
        return self.runner.stdout

    def processes(self) -> dict[int, Process]:
        """Those that have not ended; zombies are left out."""
        wanted = f"{_MARK}={self.mark}\0".encode()
        found = {}
        for pid in all_processes():
            with contextlib.suppress(OSError):
                if wanted in Path(f"/proc/{pid}/environ").read_bytes() + b"\0":
                    process = _look(pid)
                    if process.state not in "ZX":
                        found[pid] = process
        return found

    def mounts(self) -> list[str]:
        """The lines of every process's mount table that show this sysroot's mount."""
        found = []
        for pid in all_processes():
            with contextlib.suppress(OSError):
                lines = Path(f"/proc/{pid}/mountinfo").read_text().splitlines()
                found += [line for line in lines if f" - fuse.sysroot {self.sysroot} " in line]
        return found

    def find(self) -> dict[str, int]:
        """The ids of runner, server, monitor and program, as far as they are there."""
        every = sorted(self.processes().values(), key=lambda one: (one.started, one.pid))
        self._roles["runner"] = self.runner.pid
        children = [one.pid for one in every if one.parent == self.runner.pid]
        self._roles.update(zip(("server", "monitor"), children, strict=False))
        programs = [one.pid for one in every if one.parent == self._roles.get("monitor")]
        self._roles.update(zip(("program",), programs, strict=False))
        return self._roles

    def kill(self, role: str, number: signal.Signals = signal.SIGKILL) -> None:
        """Send a signal to one of them; one that is gone already is no failure."""
        # A process whose memory is just being replaced shows no environment.
        comes(lambda: role in self._roles or role in self.find() or self.is_over(), 20.0)
        if role in self._roles:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._roles[role], number)

    def said(self) -> str:
        """What came on standard error."""
        return self.errors.read_text()

    def is_over(self) -> bool:
        """Whether nothing is left: no process, no mount in any namespace."""
        return self.runner.poll() is not None and not self.processes() and not self.mounts()

    def left(self, seconds: float = 20.0) -> str:
        """What is left after *seconds*, in words; empty where all is gone in time."""
        if comes(self.is_over, seconds):
            return ""
        return f"{self.find()} {self.processes()} {self.mounts()} {self.said()}"

    def clear(self) -> None:
        """End what a failed test has left."""
        for _ in range(100):
            processes = self.processes()
            if not processes:
                break
            for pid in processes:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            time.sleep(0.02)
        self.runner.wait()
        self.output.close()


@define
class Starter:
    """Starts runs of *sysroot* over *host*, and ends them all."""

    sysroot: Path
    host: Path
    work: Path
    runs: list[Run] = field(factory=list)

    def __call__(self, script: str, *options: str, as_user: bool = False) -> Run:
        """Run a shell script; with *as_user* without root."""
        mark = f"{os.getpid()}-{os.urandom(8).hex()}"
        errors = self.work / f"errors-{mark}"
        words = [sys.executable, "-m", "sysroot_fs", "run", "-o", f"host={self.host}", *options]
        words += [str(self.sysroot), "--", "/bin/sh", "-c", script]
        with open(errors, "wb") as said:
            runner = subprocess.Popen(
                users.command(*words) if as_user else words,
                cwd=CHECKOUT,
                env={**os.environ, _MARK: mark},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=said,
                text=True,
            )
        self.runs.append(Run(mark, self.sysroot, runner, errors))
        return self.runs[-1]

    def clear(self) -> None:
        """End what is left."""
        for run in self.runs:
            run.clear()
