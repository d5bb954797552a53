"""The mount of a server, as fusermount3 makes it and takes it away."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import NoReturn

import pytest

from sysroot_fs.fuse.kernel.mounting import Mounted
from sysroot_fs.fuse.options import MountOptions
from tests.mounts import detach, mounted_type


def _refuse(*_: object, **__: object) -> NoReturn:
    raise BlockingIOError(11, "Resource temporarily unavailable")


def test_unmounting_is_tried_again(workplace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where there were too many processes for fusermount3 the mount goes when there are fewer."""
    mounted = Mounted.at(os.fsencode(workplace), MountOptions(source=b"nobody"))
    mounted.by_helper = True
    try:
        with monkeypatch.context() as patch:
            patch.setattr(subprocess, "run", _refuse)
            mounted.unmount()
        assert mounted_type(workplace) is not None
        mounted.unmount()
        assert mounted_type(workplace) is None
    finally:
        mounted.close()
        detach(workplace)
