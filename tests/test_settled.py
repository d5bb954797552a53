"""What a server sets up before it serves."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.mounts import Mounter


@pytest.mark.parametrize(("limit", "room"), [(256, 256), (4000, 4000)])
def test_the_table_of_descriptors_is_wide(mounted: Mounter, limit: int, room: int) -> None:
    """There is room from the start: to make it costs milliseconds where there are threads."""
    mount = mounted(descriptors=limit)
    told = Path(f"/proc/{mount.process.pid}/status").read_text()
    found = re.search(r"^FDSize:\s*(\d+)$", told, re.MULTILINE)
    assert found is not None
    assert int(found[1]) >= room
