"""What all kinds of death share: a mounted sysroot, the states of a mutation, and the judgement."""

from __future__ import annotations

import contextlib
import os
import shutil
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

import attrs

from sidecar import volume
from sidecar.findings import Finding
from sidecar.mending import repair
from tests.matrix.death.mutations import Mutation, Tree, look, unavailable
from tests.matrix.death.tracing import Call, traced
from tests.matrix.findings import findings, pages
from tests.matrix.suite import Setting
from tests.mounts import Mount, Mounter

__all__ = ["Bench", "Lacking", "differences", "told", "walked"]

PATIENCE: Final = 15.0
"""Seconds after which a call that has not returned is taken for one that hangs."""

_LATER_NS: Final = 2 * 3600 * 1_000_000_000


class Lacking(Exception):
    """The volume cannot do what a mutation needs; the message is the reason."""


@attrs.define
class Bench:
    """A sysroot that is mounted again after each death, and new directories in it."""

    setting: Setting
    work: Path
    mounter: Mounter = attrs.field(init=False)
    mount: Mount = attrs.field(init=False)
    traits: volume.Traits = attrs.field(init=False)
    _states: dict[str, Sequence[Tree]] = attrs.field(factory=dict)
    _made: int = 0

    def __attrs_post_init__(self) -> None:
        self.mounter = Mounter(self.work)
        fd = os.open(self.setting.sysroot, os.O_RDONLY | os.O_DIRECTORY)
        try:
            self.traits = volume.probe(fd)
        finally:
            os.close(fd)
        self.mount_again()

    def mount_again(self) -> None:
        """Mount the sysroot, for the first time or after the last server's end."""
        # EIO is what a guest gets, and the log has to say of what.
        self.mount = self.mounter(
            *self.setting.options, sysroot=self.setting.sysroot, host=self.setting.host
        )
        self.mount.expects(r" ERROR sysroot_fs\.fuse\.failures: \w+: \[Errno (5|103|107)\] ")

    def remount(self) -> None:
        """End the server in order and start the next one."""
        self.mount.stop()
        self.mount_again()

    def directory(self) -> str:
        """The name of a new empty directory of the mount."""
        self._made += 1
        name = f"at-{self._made}"
        (self.mount.point / name).mkdir()
        return name

    def prepared(self, mutation: Mutation) -> str:
        """The name of a new directory in which everything is ready for *mutation*."""
        name = self.directory()
        mutation.prepare(self.mount.point / name)
        return name

    def look(self, name: str) -> Tree:
        """What a guest sees in a directory."""
        return look(self.mount.point / name, "xattrs" not in self.setting.lacks)

    def states(self, mutation: Mutation) -> Sequence[Tree]:
        """The trees before the mutation and after each of its steps, where nothing goes wrong.

        Raises `Lacking`.
        """
        if mutation.needs & self.setting.lacks:
            raise Lacking(f"the volume lacks {', '.join(sorted(mutation.needs))}")
        if mutation.name not in self._states:
            name = self.prepared(mutation)
            states = [self.look(name)]
            try:
                for _ in mutation.act(self.mount.point / name):
                    states.append(self.look(name))
            except OSError as error:
                if not (unavailable(error) and "exchange" in mutation.name):
                    raise
                raise Lacking("the volume has no renameat2 that exchanges") from None
            self._states[mutation.name] = states
        return self._states[mutation.name]

    @contextlib.contextmanager
    def patience(self) -> Iterator[None]:
        """Kill the server when the block does not end, so that it does; an AssertionError then."""
        hung = threading.Event()

        def give_up(mount: Mount) -> None:
            hung.set()
            mount.process.kill()

        timer = threading.Timer(PATIENCE, give_up, (self.mount,))
        timer.start()
        try:
            yield
        finally:
            timer.cancel()
            timer.join()
            assert not hung.is_set(), f"a call did not return within {PATIENCE:g} s"

    def finish(self, mutation: Mutation, name: str) -> list[str]:
        """Words where *mutation*, done again from the start, does not come to its end."""
        done, error = walked(mutation, self.mount.point / name)
        if error is not None:
            return [f"a second try, without a fault: step {done + 1} fails: {error}"]
        states = self.states(mutation)
        return [f"after a second try: {word}" for word in differences(self.look(name), states[-1:])]

    def calls(self, mutation: Mutation) -> list[Call]:
        """The system calls that the server makes for *mutation*, in a new directory."""
        top = self.mount.point / self.prepared(mutation)
        with self.patience(), traced(self.mount.process.pid, self.work / "trace") as calls:
            _, error = walked(mutation, top)
        if error is not None:
            raise error
        return calls

    def findings(self, name: str = ".") -> list[Finding]:
        """What `check` would find in a directory below the sysroot that is no mere note."""
        return findings(self.setting.sysroot / name, self.traits)

    def mend(self) -> list[Finding]:
        """What is left to find when `check --repair --yes` was run two hours later."""
        for directory, page in pages(self.setting.sysroot, self.traits):
            assert directory.fd is not None
            # Nothing is done before what came of it is asked for.
            list(repair(directory.fd, page, self.traits, time.time_ns() + _LATER_NS))
        return self.findings()

    @property
    def is_filling(self) -> bool:
        """Whether half of the volume is taken: what is left has to be looked at, and to go."""
        seen = os.statvfs(self.setting.sysroot)
        return seen.f_bavail < seen.f_blocks // 2

    def clear(self) -> list[str]:
        """Remove everything through the mount; what is still on the volume then."""
        for name in os.listdir(self.mount.point):
            shutil.rmtree(self.mount.point / name)
        return [f"the emptied sysroot still holds {n}" for n in os.listdir(self.setting.sysroot)]

    def close(self) -> None:
        """End the last server. Raises AssertionError where one has logged what it should not."""
        self.mounter.close()


def told(finding: Finding) -> str:
    """A finding in words."""
    where = os.fsdecode(finding.stored_directory)
    names = ", ".join(os.fsdecode(name.stored) for name in finding.names)
    return f"check: {finding.what.value} in {where}: {names}: {finding.means}"


def walked(mutation: Mutation, top: Path) -> tuple[int, OSError | None]:
    """Run a mutation: how many of its steps were done, and what the next one failed with."""
    done = 0
    try:
        for _ in mutation.act(top):
            done += 1
    except OSError as error:
        return done, error
    return done, None


def differences(found: Tree, states: Sequence[Tree]) -> list[str]:
    """Words where *found* is none of *states*: against the first of them."""
    if found in states:
        return []
    wanted = states[0]
    words = [f"{name!r} is missing" for name in wanted if name not in found]
    words += [f"{name!r} should not be there" for name in found if name not in wanted]
    words += [
        f"{name!r} is {found[name]}, expected {wanted[name]}"
        for name in found
        if name in wanted and found[name] != wanted[name]
    ]
    return words
