"""A running server's system calls, by strace: seen, made to fail, or the last thing it does."""

from __future__ import annotations

import contextlib
import re
import subprocess
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

import attrs

__all__ = ["Call", "changes", "failing", "killed_at", "launched", "traced"]

_CALL: Final = re.compile(r"(\d+) +(\w+)\((.*)")
_CHANGES: Final = re.compile(
    r"(mk(dir|nod)|rename|unlink|(sym)?link|f?chmod|f?chown|utimens|f?truncate)\w*"
    r"|write|pwrite64|fsync|fdatasync|l?(set|remove)xattr"
)
_REPLY: Final = "writev"
_PATIENCE: Final = 5.0


@attrs.frozen
class Call:
    """The system call *name* that its thread made as the *number*-th of that name, from 1."""

    name: str
    number: int
    arguments: str = attrs.field(eq=False, default="")

    def __str__(self) -> str:
        return f"{self.name} number {self.number} ({self.arguments[:160]})"


def changes(call: Call) -> bool:
    """Whether a server that ends before this call has done less than one that ends after it."""
    if call.name == "openat":
        return "O_CREAT" in call.arguments or "O_TRUNC" in call.arguments
    return call.name == _REPLY or _CHANGES.fullmatch(call.name) is not None


@contextlib.contextmanager
def _strace(pid: int, log: Path, *options: str) -> Iterator[subprocess.Popen[str]]:
    """Attached to all threads of *pid* for the length of the block; *log* has what it saw."""
    command = ["strace", "-f", "-y", "-s", "64", "-p", str(pid), "-o", str(log), *options]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as tracer:
        assert tracer.stderr is not None
        said = tracer.stderr.readline()
        if "attached" not in said:
            tracer.kill()
            raise AssertionError(f"strace: {said}{tracer.stderr.read()}")
        try:
            yield tracer
        finally:
            tracer.terminate()
            try:
                tracer.communicate(timeout=_PATIENCE)
            except subprocess.TimeoutExpired:
                tracer.kill()
                tracer.communicate()


@contextlib.contextmanager
def traced(pid: int, log: Path) -> Iterator[list[Call]]:
    """The calls of the server *pid* while the block runs; the list is filled when it ends."""
    calls: list[Call] = []
    with _strace(pid, log):
        yield calls
    calls += _read(log)


def _read(log: Path) -> list[Call]:
    calls: list[Call] = []
    seen: Counter[tuple[str, str]] = Counter()
    for line in log.read_text("utf-8", "replace").splitlines():
        found = _CALL.match(line)
        if found is not None:
            thread, name, arguments = found.groups()
            seen[thread, name] += 1
            calls.append(Call(name, seen[thread, name], arguments))
    return calls


@contextlib.contextmanager
def failing(pid: int, log: Path, call: Call, error: str) -> Iterator[list[str]]:
    """Have *call* fail with *error*, as EIO; afterwards the list has the lines that did."""
    hit: list[str] = []
    inject = f"inject={call.name}:error={error}:when={call.number}"
    with _strace(pid, log, "-e", f"trace={call.name}", "-e", inject):
        yield hit
    lines = log.read_text("utf-8", "replace").splitlines()
    hit += [line for line in lines if "(INJECTED)" in line]


@contextlib.contextmanager
def killed_at(pid: int, log: Path, call: Call) -> Iterator[None]:
    """Have the server be killed when it is about to make *call*."""
    with _strace(pid, log, *_killing(call)) as tracer:
        yield
        # It ends with what it traces. Told to let go of a dying process, it could wait for ever for
        # the first thread, which waits for the others, which wait for it.
        with contextlib.suppress(subprocess.TimeoutExpired):
            tracer.wait(_PATIENCE)


def launched(
    command: Sequence[str], log: Path, killed_before: Call | None = None
) -> tuple[subprocess.CompletedProcess[str], list[Call]]:
    """Run *command* to its end, or until it is about to make a call; what it did, and its calls."""
    options = [] if killed_before is None else _killing(killed_before)
    done = subprocess.run(
        ["strace", "-f", "-y", "-s", "64", "-o", str(log), *options, *command],
        stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    return done, _read(log)


def _killing(call: Call) -> list[str]:
    inject = f"inject={call.name}:signal=SIGKILL:when={call.number}"
    return ["-e", f"trace={call.name}", "-e", inject]
