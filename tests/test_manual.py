"""The manual pages: what is kept is what the command line says, and roff takes it."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from sysroot_fs.cli.manual import pages
from sysroot_fs.cli.options import OPTIONS

KEPT = Path(__file__).parent.parent / "docs/man"


@pytest.mark.parametrize("name", ["sysroot-fs.1", "sysroot-fs-run.1"])
def test_the_kept_page_is_what_would_be_written_now(name: str) -> None:
    """An option that was added, changed or removed changes the page (`make man`)."""
    assert (KEPT / name).read_text("utf-8") == pages()[name]


def _formatted(name: str) -> str:
    done = subprocess.run(
        ["groff", "-man", "-Tutf8", "-ww", "-P-c", KEPT / name],
        capture_output=True,
        check=True,
        text=True,
    )
    assert done.stderr == ""
    return re.sub(r".\x08", "", done.stdout)


@pytest.mark.parametrize("name", ["sysroot-fs.1", "sysroot-fs-run.1"])
def test_roff_has_nothing_to_complain_about(name: str) -> None:
    """The page is formatted without a warning."""
    assert "EXIT STATUS" in _formatted(name)


def test_every_mount_option_is_described() -> None:
    """No option is left out of the page that lists them."""
    text = " ".join(_formatted("sysroot-fs.1").split())
    missing = [option.name for option in OPTIONS if option.name not in text]
    assert missing == []


def test_text_keeps_its_backslashes_and_dashes() -> None:
    """What roff could take for its own comes out as it was written."""
    text = _formatted("sysroot-fs.1")
    assert "a comma inside a value is writ" in text
    assert r"\," in text
    assert "--fallback" in text.replace("\u2010", "-")
