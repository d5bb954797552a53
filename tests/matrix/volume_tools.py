"""What volumes are made with: the tools of the machine, and what is said when one fails."""

from __future__ import annotations

import subprocess
import tempfile
from collections.abc import Sequence
from typing import Final

#: Seconds until a server that does not react is treated as hung.
PATIENCE: Final = 5.0


class VolumeError(Exception):
    """A volume could not be made; the message is one sentence with the tool's own words."""


class VolumeBusy(VolumeError):
    """A volume cannot be taken away: somebody uses it."""


def run(*command: str, env: dict[str, str] | None = None) -> str:
    """What a command printed; `VolumeError` where it failed."""
    done = call(command, env)
    if done.returncode:
        words = " ".join(done.stderr.split()) or f"exit {done.returncode}"
        raise VolumeError(f"{command[0]} failed: {words}")
    return done.stdout


def succeeds(*command: str) -> bool:
    """Whether a command ends with 0."""
    return call(command).returncode == 0


def call(
    command: Sequence[str], env: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """A command's status and words; `VolumeError` where it is not there or takes a minute."""
    # Output goes to a file: a daemon that keeps the pipe open would keep us waiting for its end.
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
        try:
            code = subprocess.run(
                command,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
                env=env,
                cwd="/",
                timeout=60,
                check=False,
            ).returncode
        except FileNotFoundError as error:
            raise VolumeError(f"{command[0]} is not installed: run `make setup`") from error
        except subprocess.TimeoutExpired as error:
            raise VolumeError(f"{command[0]} did not end within a minute") from error
        out.seek(0)
        err.seek(0)
        return subprocess.CompletedProcess(command, code, out.read(), err.read())
