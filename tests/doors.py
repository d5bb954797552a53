"""Which door the tests go through, and what only one of them can do."""

from __future__ import annotations

from typing import Final

from sysroot_fs.cli.doors import chosen

DOOR: Final = chosen("auto")
"""The door of mounts that do not ask for one: SYSROOT_FS_DOOR says which."""
