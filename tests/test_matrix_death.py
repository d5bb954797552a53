"""The tools of the matrix's death: what strace sees and does, and how trees are judged."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.matrix.death.bench import differences
from tests.matrix.death.kills import FAMILIES
from tests.matrix.death.mutations import MUTATIONS
from tests.matrix.death.tracing import Call, changes, failing, killed_at, traced

_WORKER = """
import os, sys
print("ready", flush=True)
sys.stdin.readline()
for name in "one", "two":
    try:
        os.mkdir(name, dir_fd=os.open(".", os.O_RDONLY))
    except OSError as error:
        print(name, error.errno)
print("over", flush=True)
sys.stdin.readline()
"""


@contextmanager
def worker(directory: Path) -> Iterator[subprocess.Popen[str]]:
    """A process that waits for a line, makes two directories, says so and waits again."""
    with subprocess.Popen(
        [sys.executable, "-c", _WORKER],
        cwd=directory, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    ) as process:  # fmt: skip
        assert process.stdout is not None and process.stdout.readline() == "ready\n"
        yield process
        process.kill()


def made(process: subprocess.Popen[str]) -> list[str]:
    """Have the worker work; what it said."""
    assert process.stdin is not None and process.stdout is not None
    process.stdin.write("go\n")
    process.stdin.flush()
    said = []
    for line in process.stdout:
        said.append(line.rstrip())
        if said[-1] == "over":
            break
    return said


def test_calls_are_counted_by_name(tmp_path: Path) -> None:
    """The second call of a name has the number 2."""
    (tmp_path / "work").mkdir()
    with worker(tmp_path / "work") as process:
        with traced(process.pid, tmp_path / "log") as calls:
            made(process)
        assert [call for call in calls if call.name.startswith("mkdir")] == [
            Call("mkdirat", 1), Call("mkdirat", 2),
        ]  # fmt: skip


def test_a_call_fails_alone(tmp_path: Path) -> None:
    """The one that was meant has the error; it was not made, and the others are."""
    (tmp_path / "work").mkdir()
    with worker(tmp_path / "work") as process:
        with failing(process.pid, tmp_path / "log", Call("mkdirat", 2), "ENOSPC") as hit:
            assert made(process) == ["two 28", "over"]
        assert len(hit) == 1
        assert [path.name for path in (tmp_path / "work").iterdir()] == ["one"]


def test_killed_before_a_call(tmp_path: Path) -> None:
    """What came before the call is done; the call is not."""
    (tmp_path / "work").mkdir()
    with worker(tmp_path / "work") as process:
        with killed_at(process.pid, tmp_path / "log", Call("mkdirat", 2)):
            assert made(process) == []
        assert process.wait(10) == -9
        assert [path.name for path in (tmp_path / "work").iterdir()] == ["one"]


def test_which_calls_change_something() -> None:
    """Opening does where it creates or cuts off; looking does not."""
    assert changes(Call("openat", 1, '3</x>, "a", O_WRONLY|O_CREAT|O_EXCL, 0600) = 4'))
    assert not changes(Call("openat", 1, '3</x>, ".", O_RDONLY|O_DIRECTORY) = 4'))
    for name in ("renameat2", "unlinkat", "symlinkat", "write", "fsync", "fchmodat", "setxattr"):
        assert changes(Call(name, 1)), name
    for name in ("statx", "newfstatat", "getdents64", "flock", "read", "readlinkat"):
        assert not changes(Call(name, 1)), name


def test_every_mutation_is_in_one_family() -> None:
    """None is left out of the kills."""
    named = [name for names in FAMILIES.values() for name in names]
    assert sorted(named) == sorted(mutation.name for mutation in MUTATIONS)


def test_what_differs_is_told() -> None:
    """A tree that is one of the states is right; of another it is said in what it differs."""
    old: dict[str, tuple[object, ...]] = {"a": ("file", b"1")}
    new: dict[str, tuple[object, ...]] = {"b": ("file", b"1")}
    assert differences(new, [old, new]) == []
    assert differences({}, [old, new]) == ["'a' is missing"]
    assert differences({**old, **new}, [old, new]) == ["'b' should not be there"]
    assert differences({"a": ("file", b"")}, [old]) == [
        "'a' is ('file', b''), expected ('file', b'1')"
    ]
