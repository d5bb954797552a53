"""`sysroot-fs run` in tests, run as a user runs it, on a guest and a host of the tests' own.

The host is never the machine's: a guest program that deletes what it should not would delete the
machine's files.
"""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import attrs

CHECKOUT: Final = Path(__file__).resolve().parent.parent
PATIENCE: Final = 60.0
"""Seconds after which something that should have happened has not."""

# Not `-m sysroot_fs`: the checkout's own package has to run in every working directory and with
# every environment, without a PYTHONPATH that the guest would see.
_START: Final = (
    f"import sys; sys.path.insert(0, {str(CHECKOUT)!r}); "
    "from sysroot_fs.cli import main; sys.exit(main())"
)
RUN: Final = (sys.executable, "-P", "-c", _START, "run")

Word = str | bytes | Path


@attrs.frozen
class Result:
    """How a run ended: its exit status (-N where signal N has killed it), and what it wrote."""

    status: int
    out: bytes
    err: bytes

    def printed(self) -> str:
        """What the command wrote; it has succeeded and nobody has complained."""
        assert (self.status, self.err) == (0, b""), self
        return self.out.decode()

    def refused(self, status: int, *parts: str) -> None:
        """The run ended with *status* and one sentence, with all *parts* in it, on stderr."""
        assert (self.status, self.out) == (status, b""), self
        text = self.err.decode()
        assert text.startswith("sysroot-fs: ") and text.count("\n") == 1 and text[-1] == "\n", self
        assert "this is a bug" not in text and "Traceback" not in text, self
        for part in parts:
            assert part in text, self


def run_guest(
    *words: Word,
    stdin: bytes | int = b"",
    env: Mapping[str, str] | None = None,
    before: Sequence[Word] = (),
    **more: Any,
) -> Result:
    """`sysroot-fs run WORDS..` to its end; *before* is a command that runs it, *env* all it gets.

    *stdin* is what it reads, or a descriptor.
    """
    given: dict[str, Any] = {"input": stdin} if isinstance(stdin, bytes) else {"stdin": stdin}
    done = subprocess.run(
        [*before, *RUN, *words], capture_output=True, timeout=PATIENCE, env=env, **given, **more
    )
    return Result(done.returncode, done.stdout, done.stderr)


@attrs.frozen
class Guest:
    """A guest root, and the host's directory underneath."""

    sysroot: Path
    host: Path

    def words(self, *command: Word, options: Sequence[Word] = ()) -> list[Word]:
        """What stands after `run`."""
        return ["--host", self.host, *options, self.sysroot, "--", *command]

    def run(self, *command: Word, options: Sequence[Word] = (), **more: Any) -> Result:
        """Run *command*; the rest is that of `run_guest`."""
        return run_guest(*self.words(*command, options=options), **more)

    def sh(self, script: str, *options: Word, **more: Any) -> Result:
        """Run the guest's shell."""
        return self.run("/bin/sh", "-c", script, options=options, **more)

    @contextmanager
    def start(
        self, script: str, *options: Word, before: Sequence[Word] = (), **more: Any
    ) -> Iterator[subprocess.Popen[bytes]]:
        """The guest's shell in a process group of its own, with pipes; killed if it is left."""
        for stream in ("stdin", "stdout", "stderr"):
            more.setdefault(stream, subprocess.PIPE)
        words = self.words("/bin/sh", "-c", script, options=options)
        more.setdefault("process_group", 0)
        with subprocess.Popen([*before, *RUN, *words], bufsize=0, **more) as process:
            # A test that waits for a line that never comes sees the end instead.
            watchdog = threading.Timer(PATIENCE, process.kill)
            watchdog.start()
            try:
                yield process
            finally:
                watchdog.cancel()
                process.kill()


def state_of(pid: int) -> str:
    """The state of a process as /proc has it (`T` is stopped), nothing where there is none."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return ""


_CELL: Final = r"""
mount --make-rshared / || exit 99
cat /proc/self/mountinfo >"$REPORT.mounts"
"$@"
status=$?
left() {
    set -- /proc/[0-9]*
    [ "$*" = /proc/1 ] || { echo "processes:"; ps -A -o pid,ppid,stat,args; }
    # Fewer are no wonder: whoever removes a mountpoint outside takes the mount away here.
    diff "$REPORT.mounts" /proc/self/mountinfo | grep "^>"
    ls -A "$TMPDIR"
}
for try in 1 2 3 4 5 6 7 8 9 10; do
    left >"$REPORT"
    [ -n "$PATIENT" ] && [ -s "$REPORT" ] || break
    sleep 0.3
done
exit $status
"""


def run_in_cell(
    guest: Guest,
    script: str,
    *options: Word,
    work: Path,
    patient: bool = False,
    before: Sequence[Word] = (),
) -> tuple[Result, str]:
    """Run the guest's shell where nothing else runs or mounts: the result, and what is left of it.

    The cell has processes and mounts of its own, so what is there besides its first process was
    left behind, zombies included. With *patient* what is left may take three seconds to go.
    """
    temporary, report = work / "cell-tmp", work / "cell-report"
    temporary.mkdir()
    report.touch()
    env = {**os.environ, "TMPDIR": str(temporary), "REPORT": str(report)}
    env["PATIENT"] = "yes" if patient else ""
    cell = ["unshare", "--mount", "--pid", "--fork", "--mount-proc", "sh", "-c", _CELL, "sh"]
    result = guest.sh(script, *options, before=[*cell, *before], env=env)
    return result, report.read_text()
