"""The processes that a run has left behind, found by the mount that they live in, and ended.

A process belongs to a run if it is in the run's mount namespace, or in one that was made from it
and shows the run's mount still. Who has mounted itself out of that, as a nested sandbox does, is
found by its descent: the monitor adopts every orphan of the run.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Callable
from typing import Final, final

from attrs import define, field

from sidecar import linux

GRACE_SECONDS: Final = 2.0
"""How long a process may take to end after SIGTERM before it is killed."""
_KILL_SECONDS: Final = 5.0
_PAUSE_SECONDS: Final = 0.01


@final
@define(eq=False)
class Survivors:
    """*proc* is the descriptor of a /proc that shows the run's processes.

    *namespace* is what /proc/PID/ns/mnt says of a process of the run, *device* the number of its
    FUSE mount as /proc/PID/mountinfo has it. *spared* is this process itself where it is one: all
    that descends from it belongs to the run.

    The kernel gives the numbers of a namespace and of a mount that are gone to the next ones, which
    may be another run's. So the caller has the namespace open meanwhile, or *current* says whether
    the mount is still there, asked after a process was looked at and before it is ended.
    """

    proc: int
    namespace: bytes
    device: bytes
    spared: frozenset[int] = field(default=frozenset())
    current: Callable[[], bool] = field(default=lambda: True)
    _others: dict[bytes, bool] = field(factory=dict, init=False)
    _descendants: set[int] = field(factory=set, init=False)

    @classmethod
    def describe(cls, proc: int, pid: int) -> bytes:
        """Namespace and device of the process *pid*, whose root is the run's mount."""
        namespace = os.readlink(b"%d/ns/mnt" % pid, dir_fd=proc)
        for line in _mountinfo(proc, pid):
            fields = line.split(b" ")
            if fields[4] == b"/":
                return namespace + b" " + fields[2]
        raise ProcessLookupError

    @staticmethod
    def describe_mount(mount: int) -> bytes:
        """The device alone, of a mount that has no server yet."""
        device = linux.statx(mount, b"", linux.AT_EMPTY_PATH | linux.AT_STATX_DONT_SYNC).dev
        return b"%d:%d" % (os.major(device), os.minor(device))

    @classmethod
    def of(cls, proc: int, description: bytes, spared: frozenset[int] = frozenset()) -> Survivors:
        """From what `describe` has said."""
        namespace, _, device = description.partition(b" ")
        return cls(proc, namespace, device, spared)

    def find(self) -> list[int]:
        """The process ids."""
        found = []
        self._others.clear()
        self._descend()
        for entry in os.listdir(self.proc):
            if entry.isdigit() and int(entry) not in self.spared:
                # Gone in the meantime, or another user's, which no process of the run is.
                with contextlib.suppress(OSError):
                    if self._is_one(int(entry)):
                        found.append(int(entry))
        return found

    def _descend(self) -> None:
        self._descendants.clear()
        todo = list(self.spared)
        while todo:
            # Gone in the meantime, or a kernel without these lists (CONFIG_PROC_CHILDREN).
            with contextlib.suppress(OSError):
                children = _children(self.proc, todo.pop())
                self._descendants.update(children)
                todo += children

    def _is_one(self, pid: int) -> bool:
        # Fails for a zombie.
        namespace = os.readlink(b"%d/ns/mnt" % pid, dir_fd=self.proc)
        if namespace == self.namespace or pid in self._descendants:
            return True
        if namespace not in self._others:
            self._others[namespace] = any(
                line.split(b" ")[2] == self.device for line in _mountinfo(self.proc, pid)
            )
        return self._others[namespace]

    def end(self) -> None:
        """End them all: asked first, then killed. Their children in between too.

        Shells ignore SIGTERM and obey SIGHUP. Not both at once: who cleans up on the one would die
        of the other.
        """
        asked: dict[int, signal.Signals] = {}
        began = time.monotonic()
        while left := self.find():
            waited = time.monotonic() - began
            if waited > GRACE_SECONDS:
                self.kill()
                return
            request = signal.SIGTERM if waited < GRACE_SECONDS / 2 else signal.SIGHUP
            for pid in left:
                if asked.get(pid) is not request:
                    asked[pid] = request
                    self._send(pid, request, signal.SIGCONT)
            time.sleep(_PAUSE_SECONDS)

    def kill(self) -> None:
        """End them all at once."""
        began = time.monotonic()
        while (left := self.find()) and time.monotonic() - began < _KILL_SECONDS:
            for pid in left:
                self._send(pid, signal.SIGKILL)
            time.sleep(_PAUSE_SECONDS)

    def _send(self, pid: int, *numbers: signal.Signals) -> None:
        with contextlib.suppress(OSError):
            process = os.pidfd_open(pid)
            try:
                # Another process may have got the number in the meantime, never the descriptor; and
                # another namespace the number of one that was looked at before.
                self._others.clear()
                self._descend()
                if self._is_one(pid) and self.current():
                    for number in numbers:
                        signal.pidfd_send_signal(process, number)
            finally:
                os.close(process)


def _children(proc: int, pid: int) -> list[int]:
    found: list[int] = []
    tasks = os.open(b"%d/task" % pid, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=proc)
    try:
        for task in os.listdir(tasks):
            fd = os.open(f"{task}/children", os.O_RDONLY | os.O_CLOEXEC, dir_fd=tasks)
            with open(fd, "rb") as numbers:
                found += map(int, numbers.read().split())
    finally:
        os.close(tasks)
    return found


def _mountinfo(proc: int, pid: int) -> list[bytes]:
    fd = os.open(b"%d/mountinfo" % pid, os.O_RDONLY | os.O_CLOEXEC, dir_fd=proc)
    with open(fd, "rb") as lines:
        return lines.read().splitlines()
