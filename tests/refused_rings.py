"""``python -m tests.refused_rings ...``: sysroot-fs whose last ring the kernel refuses."""

from __future__ import annotations

import sys

from sysroot_fs.cli import main
from sysroot_fs.fuse.kernel.features import processors
from sysroot_fs.fuse.kernel.ring import Ring

_register = Ring.register


def _misplaced(self: Ring) -> None:
    """The last one is for a processor that there is not."""
    if self.queue == processors() - 1:
        self.queue += 1
    _register(self)


if __name__ == "__main__":
    Ring.register = _misplaced  # type: ignore[method-assign]
    sys.exit(main())
