"""From settings to the tree that they describe, with its failures as sentences."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sysroot_fs.cli.errors import SysrootError
from sysroot_fs.cli.options import Settings
from sysroot_fs.text import reason, shown

if TYPE_CHECKING:
    from sysroot_fs.tree import Tree


def open_tree(sysroot: bytes, settings: Settings) -> Tree:
    """Open the roots and probe the volume; raises SysrootError. The caller closes the tree."""
    # Imported here: help, usage errors and every early check answer without loading the tree.
    from sidecar.volume import ProbeError
    from sysroot_fs.tree import Tree, TreeConfig

    config = TreeConfig(
        sysroot=sysroot,
        host=settings.host,
        fallback=settings.fallback,
        allow=settings.allow,
        deny=settings.deny,
        host_writes=settings.host_writes,
        listing=settings.listing,
        names=settings.names,
        lookup=settings.lookup,
        fold=settings.fold,
        exact=settings.exact,
        fold_key=settings.fold_key,
        merge=settings.merge,
        read_only=settings.read_only,
        entry_timeout=settings.entry_timeout,
        attr_timeout=settings.attr_timeout,
        negative_timeout=settings.negative_timeout,
    )
    try:
        return Tree(config)
    except ProbeError as error:
        raise SysrootError(
            f"the volume of {shown(sysroot)} cannot be probed: {' '.join(str(error).split())}"
        ) from error
    except OSError as error:
        raise SysrootError(f"sysroot {shown(sysroot)} cannot be opened: {reason(error)}") from error
