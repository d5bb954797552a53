"""The server is killed: before each change of a mutation, or at any moment under load.

After the next mount the tree is as it was before the call that was under way, or as it is after
it; what had returned is there. What is left of ours is known, harmless and mended.
"""

from __future__ import annotations

import contextlib
import os
import random
import select
import signal
import time
from pathlib import Path
from typing import Final

import attrs

from sidecar.findings import What
from tests import caches
from tests.children import Child, start_child
from tests.matrix.death.bench import Bench, Lacking, differences, told, walked
from tests.matrix.death.mutations import MUTATIONS, Mutation
from tests.matrix.death.tracing import Call, changes, killed_at

__all__ = ["FAMILIES", "check_kills", "check_load", "kill_clients", "of_family", "started"]

FAMILIES: Final = {
    "new-names": ("create", "create-exclusive", "mkdir", "mknod", "symlink", "link"),
    "long-names": ("create-long", "create-row", "mkdir-long", "unlink-long", "unlink-last-row"),
    "removals": ("unlink", "unlink-literal", "rmdir", "rename-onto", "rename-onto-a-directory"),
    "renames": (
        "rename", "rename-noreplace", "rename-exchange", "rename-case",
        "rename-case-of-a-directory", "rename-across",
    ),
    "long-renames": (
        "rename-long", "rename-long-case", "rename-from-long", "rename-onto-long",
        "rename-long-across",
    ),
    "contents": ("write", "save", "truncate", "setattr", "chown", "xattr"),
}  # fmt: skip
"""Mutations that are killed together: a cell of the cut takes one family, and chances in it."""

_HARMLESS: Final = (What.ROW_WITHOUT_OBJECT, What.LEFT_INDEX, What.EMPTY_INDEX)
_CLIENTS: Final = 4
_PATIENCE: Final = 20.0
"""Seconds until the kernel has told what it forgets."""


def of_family(bench: Bench, family: str) -> list[Mutation]:
    """The mutations of a family that the volume can do. Raises `Lacking` where it can none."""
    found = []
    for mutation in MUTATIONS:
        if mutation.name in FAMILIES[family]:
            try:
                bench.states(mutation)
            except Lacking as reason:
                last = reason
            else:
                found.append(mutation)
    if not found:
        raise last
    return found


def check_kills(bench: Bench, family: str, seed: int) -> list[str]:
    """Kill the server before each change that each mutation makes; words of what went wrong.

    In the cut that is one change of two mutations. That it was never killed is wrong as well.
    Raises `Lacking`.
    """
    chance = random.Random(seed)
    mutations = of_family(bench, family)
    if bench.setting.cut:
        mutations = chance.sample(mutations, min(2, len(mutations)))
    words = []
    met = 0
    for mutation in mutations:
        moments = [call for call in bench.calls(mutation) if changes(call)]
        for moment in [chance.choice(moments)] if bench.setting.cut else moments:
            wrong, was_met = _kill(bench, mutation, moment)
            words += [f"{mutation.name}, killed before {moment}: {word}" for word in wrong]
            met += was_met
    if not met:
        words.append("no server was killed: none has made a call as it did when it was traced")
    return words


def _kill(bench: Bench, mutation: Mutation, moment: Call) -> tuple[list[str], bool]:
    """Words of what went wrong, and whether the server was killed at that moment."""
    where = bench.prepared(mutation)
    server = bench.mount.process
    with bench.patience(), killed_at(server.pid, bench.work / "trace", moment):
        done, error = walked(mutation, bench.mount.point / where)
    was_met = server.poll() == -signal.SIGKILL
    # Else the call was not made this time: a thread more, a request less. Nothing is lost by it.
    server.kill()
    server.wait()
    bench.mount.kill()
    bench.mount_again()
    return _judged(bench, mutation, where, done, over=error is None), was_met


def _judged(bench: Bench, mutation: Mutation, where: str, done: int, over: bool) -> list[str]:
    """Words where a directory is not as it was after *done* steps, or one more."""
    states = bench.states(mutation)
    found = bench.look(where)
    words = differences(found, states[done : done + 2])
    words += [
        told(finding)
        for finding in bench.findings(where)
        if finding.what not in _HARMLESS or finding.mend is None
    ]
    if not words and not over and found != states[-1]:
        words += bench.finish(mutation, where)
    return words


@attrs.frozen
class Client:
    """A process that goes through a mutation in one directory after another, and says how far."""

    mutation: Mutation
    where: str
    child: Child
    pipe: int


def check_load(bench: Bench, family: str, seed: int) -> list[str]:
    """Kill the server at a moment at which several clients are in mutations of a family.

    Raises `Lacking`.
    """
    chance = random.Random(seed)
    mutations = of_family(bench, family)
    words = []
    for _ in range(1 if bench.setting.cut else 10):
        clients = [started(bench, chance.choice(mutations)) for _ in range(_CLIENTS)]
        delay = chance.uniform(0.0, 0.3)
        for client in clients:
            # Once it has said something it is at work.
            select.select([client.pipe], [], [], 5)
        time.sleep(delay)
        bench.mount.kill()
        said = [_ended(client) for client in clients]
        bench.mount_again()
        for client, progress in zip(clients, said, strict=True):
            words += [
                f"{client.mutation.name}, killed {delay:.3f} s after its clients began: {word}"
                for word in _progress_kept(bench, client, progress)
            ]
    return words


def started(bench: Bench, mutation: Mutation) -> Client:
    """A client that goes through *mutation* in one directory after another, until one fails."""
    where = bench.directory()
    reader, writer = os.pipe()
    top = bench.mount.point / where

    def work() -> None:
        os.close(reader)
        for turn in range(100_000):
            here = top / f"turn-{turn}"
            here.mkdir()
            mutation.prepare(here)
            os.write(writer, b"p")
            for _ in mutation.act(here):
                os.write(writer, b".")

    child = start_child(work)
    os.close(writer)
    return Client(mutation, where, child, reader)


def _ended(client: Client) -> str:
    """What the client has said, now that it has failed or was killed."""
    with open(client.pipe, "rb") as pipe:
        said = pipe.read().decode()
    os.waitpid(client.child.pid, 0)
    os.close(client.child.pipe)
    return said


def _progress_kept(bench: Bench, client: Client, said: str) -> list[str]:
    """Words where a directory of the client is not as far as it said, or one call further."""
    turns = said.split("p")[1:]
    top = bench.mount.point / client.where
    found = sorted(os.listdir(top), key=lambda name: int(name.rpartition("-")[2]))
    expected = [f"turn-{turn}" for turn in range(len(turns))]
    # One more may be there that was being prepared.
    if found[: len(expected)] != expected or len(found) > len(expected) + 1:
        return [f"{client.where} holds {found}, expected {len(expected)} turns"]
    words = []
    for turn, dots in enumerate(turns):
        over = turn < len(turns) - 1
        where = f"{client.where}/turn-{turn}"
        wrong = _judged(bench, client.mutation, where, len(dots), over)
        words += [f"{where}, after {len(dots)} steps: {word}" for word in wrong]
    return words


def kill_clients(bench: Bench, family: str, seed: int) -> list[str]:
    """Kill clients in the middle of their mutations: the server lives on and holds nothing.

    Raises `Lacking`.
    """
    chance = random.Random(seed)
    mutations = of_family(bench, family)
    before = _descriptors(bench)
    words = []
    for _ in range(1 if bench.setting.cut else 10):
        clients = [started(bench, chance.choice(mutations)) for _ in range(_CLIENTS)]
        for client in clients:
            select.select([client.pipe], [], [], 5)
            delay = chance.uniform(0.0, 0.1)
            time.sleep(delay)
            os.kill(client.child.pid, signal.SIGKILL)
        for client in clients:
            wrong = _progress_kept(bench, client, _ended(client))
            words += [f"{client.mutation.name}, its client was killed: {word}" for word in wrong]
    deadline = time.monotonic() + _PATIENCE
    while len(held := _descriptors(bench)) > len(before) and time.monotonic() < deadline:
        time.sleep(0.5)
    if len(held) > len(before):
        words.append(f"the server holds {sorted(held)}, before {sorted(before)}")
    return words


def _descriptors(bench: Bench) -> list[str]:
    """What the server has open, once the kernel has forgotten what nobody uses."""
    caches.drop()
    found = []
    for entry in Path(f"/proc/{bench.mount.process.pid}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):
            found.append(os.readlink(entry))
    return found
