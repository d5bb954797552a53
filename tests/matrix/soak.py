"""The suite of endurance: processes and threads at work for a set time, and a model of each.

Every worker knows what it has done: which of its files are there, with what content and how many
names. In the end the mount agrees with all of them, lookups agree with listings, a remount shows
the same, and the server holds what it held before.
"""

from __future__ import annotations

import errno
import functools
import os
import random
import re
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

import attrs

from tests.children import code_of, start_child
from tests.matrix.actions import Action, Actions, Stage
from tests.matrix.races import check_volume

__all__ = ["SOAK"]

_PROCESSES: Final = 3
_THREADS: Final = 2
_DIRECTORIES: Final = ("Shared", "shared", "SHARED", "shared/sub")
_STEMS: Final = ("Name", "name", "NAME", "\u00e9", "e\u0301", "L" * 180, "l" * 180, ".ef=41")


@attrs.define
class _Worker:
    """One worker, its names and what they lead to; files by number, content by file."""

    top: Path
    number: int
    seconds: float
    links: bool
    random: random.Random = attrs.field(init=False)
    names: dict[str, int] = attrs.field(factory=dict)
    content: dict[int, bytes] = attrs.field(factory=dict)
    calls: int = 0

    def __attrs_post_init__(self) -> None:
        self.random = random.Random(self.number)

    def run(self) -> _Worker:
        """Work until the time is over."""
        steps = [self.create, self.create, self.write, self.append, self.rename, self.replace]
        steps += [self.remove, self.list, self.read, self.link, self.make_and_remove]
        end = time.monotonic() + self.seconds
        while time.monotonic() < end:
            self.random.choice(steps)()
            self.calls += 1
        return self

    def fresh(self) -> str:
        """A name of this worker's in a directory that all use; it may be there."""
        directory = self.random.choice(_DIRECTORIES)
        stem = self.random.choice(_STEMS)
        return f"{directory}/{stem}-{self.number}-{self.random.randrange(8)}"

    def known(self) -> str | None:
        return self.random.choice(list(self.names)) if self.names else None

    def create(self) -> None:
        name = self.fresh()
        wanted = errno.EEXIST if name in self.names else 0
        code = code_of(self._make, name)
        assert code == wanted, f"{name}: errno {code} instead of {wanted}"

    def _make(self, name: str) -> None:
        fd = os.open(self.top / name, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644)
        content = f"{name} {self.calls}".encode()
        try:
            os.write(fd, content)
        finally:
            os.close(fd)
        file = max(self.content, default=0) + 1
        self.names[name], self.content[file] = file, content

    def write(self) -> None:
        if (name := self.known()) is not None:
            content = os.urandom(self.random.choice((0, 1, 100, 5000)))
            (self.top / name).write_bytes(content)
            self.content[self.names[name]] = content

    def append(self) -> None:
        if (name := self.known()) is not None:
            with open(self.top / name, "ab") as file:
                file.write(b"more")
            self.content[self.names[name]] += b"more"

    def rename(self) -> None:
        old, new = self.known(), self.fresh()
        if old is not None and new not in self.names:
            os.rename(self.top / old, self.top / new)
            self.names[new] = self.names.pop(old)

    def replace(self) -> None:
        old, new = self.known(), self.known()
        if old is not None and new is not None and self.names[old] != self.names[new]:
            os.rename(self.top / old, self.top / new)
            self.names[new] = self.names.pop(old)

    def remove(self) -> None:
        if (name := self.known()) is not None:
            os.unlink(self.top / name)
            del self.names[name]

    def link(self) -> None:
        old, new = self.known(), self.fresh()
        if self.links and old is not None and new not in self.names:
            os.link(self.top / old, self.top / new)
            self.names[new] = self.names[old]

    def read(self) -> None:
        if (name := self.known()) is not None:
            content = (self.top / name).read_bytes()
            wanted = self.content[self.names[name]]
            assert content == wanted, f"{name} holds {content[:80]!r}, not {wanted[:80]!r}"

    def list(self) -> None:
        directory = self.random.choice(_DIRECTORIES)
        is_mine = re.compile(f".*-{self.number}-[0-9]").fullmatch
        listed = filter(is_mine, os.listdir(self.top / directory))
        wanted = [name.rpartition("/") for name in self.names]
        assert sorted(listed) == sorted(name for where, _, name in wanted if where == directory)

    def make_and_remove(self) -> None:
        path = self.top / f"{self.fresh()}-directory"
        os.makedirs(path / "a/A")
        os.symlink("x", path / "a/link") if self.links else None
        os.rename(path, f"{path}-moved")
        for one in ("a/A", "a"):
            if self.links and one == "a":
                os.unlink(f"{path}-moved/a/link")
            os.rmdir(f"{path}-moved/{one}")
        os.rmdir(f"{path}-moved")


def _in_threads(workers: list[_Worker]) -> list[_Worker]:
    failures: list[BaseException] = []

    def run(worker: _Worker) -> None:
        try:
            worker.run()
        except BaseException as failure:
            failures.append(failure)

    threads = [threading.Thread(target=run, args=(worker,)) for worker in workers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failures:
        raise failures[0]
    return workers


def _expected(workers: list[_Worker]) -> dict[str, tuple[bytes, int]]:
    """Name -> content and number of names of its file, by all models together."""
    expected = {}
    for worker in workers:
        files = list(worker.names.values())
        for name, file in worker.names.items():
            expected[name] = (worker.content[file], files.count(file))
    return expected


def _found(top: Path) -> Iterator[tuple[str, tuple[bytes, int]]]:
    for directory in _DIRECTORIES:
        for entry in os.scandir(top / directory):
            if entry.is_file(follow_symlinks=False):
                path = Path(entry.path)
                yield f"{directory}/{entry.name}", (path.read_bytes(), path.stat().st_nlink)


def _agrees(stage: Stage, expected: dict[str, tuple[bytes, int]]) -> None:
    found = list(_found(stage.point))
    names = [name for name, _ in found]
    assert len(names) == len(set(names)), "a name is listed twice"
    seen = dict(found)
    wrong = [name for name in {*seen, *expected} if seen.get(name) != expected.get(name)]
    words = [f"{n}: {str(seen.get(n))[:90]} instead of {str(expected.get(n))[:90]}" for n in wrong]
    assert not wrong, f"{len(wrong)} of {len(expected)} files: {words[:10]}"


def _soak(seconds: float, *, links: bool) -> Callable[[Stage], None]:
    def soak(stage: Stage) -> None:
        top = stage.point
        for directory in _DIRECTORIES:
            (top / directory).mkdir()
        has_links = not {"hard-links", "symlinks"} & stage.lacks and links
        stage.forget()
        before = stage.mount.descriptors()
        wanted = 3.0 if stage.cut else seconds
        children = []
        for process in range(_PROCESSES):
            workers = [
                _Worker(top, process * _THREADS + thread, wanted, has_links)
                for thread in range(_THREADS)
            ]
            children.append(start_child(functools.partial(_in_threads, workers)))
        done = [worker for child in children for worker in child.result()]
        assert all(worker.calls for worker in done)
        expected = _expected(done)
        _agrees(stage, expected)
        for name in expected:
            other = name.swapcase()
            if other not in expected:
                assert code_of(os.lstat, top / other) == errno.ENOENT, other
        assert stage.comes_back(before), stage.open_files()
        stage.remount()
        _agrees(stage, expected)
        check_volume(stage)

    return soak


SOAK: Final = Actions(
    "soak",
    parts=(
        Action("files-of-many-workers", _soak(30.0, links=False)),
        Action("files-and-links-of-many-workers", _soak(30.0, links=True)),
    ),
)
