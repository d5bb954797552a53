"""A volume with an entry that nobody can look at any more."""

from __future__ import annotations

import errno
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.children import code_of
from tests.mounts import Mounter


@pytest.fixture
def damaged(workplace: Path) -> Iterator[Path]:
    """A directory of an ext4 volume that lists a, b and c; the inode of b is spoilt."""
    image, point = workplace / "image", workplace / "volume"
    with open(image, "xb") as file:
        file.truncate(16 << 20)
    point.mkdir()
    subprocess.run(["mkfs.ext4", "-q", "-F", image], check=True)
    mounting: list[str | Path] = ["mount", "-o", "loop,errors=continue", image, point]
    subprocess.run(mounting, check=True)
    (point / "d").mkdir()
    for name in "abc":
        (point / "d" / name).touch()
    subprocess.run(["umount", point], check=True)
    spoil: list[str | Path] = ["debugfs", "-w", "-R", "clri /d/b", image]
    subprocess.run(spoil, check=True, capture_output=True)
    subprocess.run(mounting, check=True)
    try:
        yield point
    finally:
        subprocess.run(["umount", "-l", point], check=True)


def test_what_cannot_be_looked_at_is_listed(damaged: Path, mounted: Mounter, door: str) -> None:
    """One spoilt entry spoils no listing; who asks for it by its name meets the error."""
    mount = mounted(sysroot=damaged)
    assert code_of(os.stat, damaged / "d/b") == errno.EUCLEAN
    # pyfuse3 has no entry without attributes.
    shown = {"a", "b", "c"} if door == "kernel" else {"a", "c"}
    assert set(os.listdir(mount.point / "d")) == shown
    assert code_of(os.stat, mount.point / "d/b") == errno.EUCLEAN
    assert code_of(os.stat, mount.point / "d/a") == 0
