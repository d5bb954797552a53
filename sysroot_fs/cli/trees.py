"""From settings to the tree that they describe, with its failures as sentences."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING

import attrs

from sysroot_fs.cli.errors import SysrootError
from sysroot_fs.cli.interrupts import interruptible
from sysroot_fs.cli.options import Settings
from sysroot_fs.text import reason, shown

if TYPE_CHECKING:
    from sysroot_fs.tree import Tree


@contextlib.contextmanager
def measuring(sysroot: bytes) -> Iterator[None]:
    """What is done inside measures the volume of *sysroot*; raises SysrootError."""
    # Imported here: help, usage errors and every early check answer without it.
    from sidecar.volume import ProbeError

    try:
        with interruptible(sysroot):
            yield
    except ProbeError as error:
        raise SysrootError(
            f"the volume of {shown(sysroot)} cannot be probed: {' '.join(str(error).split())}"
        ) from error


def open_tree(sysroot: bytes, settings: Settings) -> Tree:
    """Open the roots and probe the volume; raises SysrootError. The caller closes the tree."""
    # Imported here: help, usage errors and every early check answer without loading the tree.
    from sysroot_fs.tree import Tree, TreeConfig

    # Every field of a tree but the sysroot is a setting of the same name.
    names = (field.name for field in attrs.fields(TreeConfig) if field.name != "sysroot")
    config = TreeConfig(sysroot=sysroot, **{name: getattr(settings, name) for name in names})
    try:
        with measuring(sysroot):
            return Tree(config)
    except OSError as error:
        raise SysrootError(f"sysroot {shown(sysroot)} cannot be opened: {reason(error)}") from error
