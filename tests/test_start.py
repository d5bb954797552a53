"""What a start imports: every module costs a millisecond or more, and a mount waits for all."""

from __future__ import annotations

import argparse
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Final

import pytest

from sysroot_fs.cli.command import VERBS, build_parser
from tests.mounts import PATIENCE, detach, mounted_type
from tests.waiting import wait_until

_LINE: Final = re.compile(r"^import time: +\d+ \| +\d+ \| +(\S+)$", re.MULTILINE)
_COMMAND: Final = (sys.executable, "-X", "importtime", "-m", "sysroot_fs")
_NEEDLESS: Final = (
    "trio", "pyfuse3", "concurrent", "difflib", "elftools", "hashlib", "json", "logging.handlers",
    "secrets", "socket", "subprocess",
    "sysroot_fs.guest",
)  # fmt: skip


def imported_by_mount(workplace: Path, door: str) -> set[str]:
    """The modules that `mount` has loaded until it was unmounted."""
    sysroot, host, point = (workplace / name for name in ("sysroot", "host", "point"))
    for directory in (sysroot, host, point):
        directory.mkdir()
    (sysroot / "f").write_text("content")
    settings = f"host={host},log={workplace / 'log'},door={door}"
    said = workplace / "said"
    with said.open("wb") as file:
        server = subprocess.Popen(
            [*_COMMAND, "mount", "-f", sysroot, point, "-o", settings],
            stderr=file,
            cwd=Path(__file__).parent.parent,
        )
    try:
        wait_until(lambda: mounted_type(point) is not None)
        assert (point / "f").read_text() == "content"
        (point / "g").write_text("new")
        server.send_signal(signal.SIGTERM)
        assert server.wait(PATIENCE) == 0
    finally:
        server.kill()
        server.wait()
        detach(point)
    return set(_LINE.findall(said.read_text()))


def test_a_mount_loads_what_it_needs(workplace: Path) -> None:
    """Through the kernel door neither trio nor pyfuse3, and nothing of other verbs."""
    loaded = imported_by_mount(workplace, "kernel")
    assert "sysroot_fs.fuse.kernel.loop" in loaded
    needless = {name for name in loaded if f"{name}.".startswith(tuple(f"{n}." for n in _NEEDLESS))}
    assert not needless


def test_the_binding_is_loaded_where_it_is_asked_for(workplace: Path) -> None:
    """Through the other door they are there: the list of modules is the server's own."""
    assert {"trio", "pyfuse3._pyfuse3"} <= imported_by_mount(workplace, "pyfuse3")


def verbs_of(parser: argparse.ArgumentParser) -> set[str]:
    """The verbs that a command line has."""
    (action,) = (one for one in parser._actions if isinstance(one, argparse._SubParsersAction))
    return set(action.choices)


@pytest.mark.parametrize("verb", VERBS)
def test_a_verb_is_declared_alone(verb: str) -> None:
    """The command line of one verb is that verb's; without one it has them all."""
    assert verbs_of(build_parser(verb)) == {verb}
    assert verbs_of(build_parser()) == verbs_of(build_parser("no-such-verb")) == set(VERBS)
