"""A file descriptor that closes itself when nobody holds it any more.

Descriptors are shared: a cache keeps one, a running operation borrows it, a directory's twin
remembers its parents. Counting the holders by hand is how descriptors leak or are closed under
their users; the interpreter's reference count already does it.
"""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING, Final, final

if TYPE_CHECKING:
    from sidecar.volume import Traits


@final
class Descriptor:
    """Owns the descriptor *fd*: it is closed with the last reference to this object.

    *traits* are those of a directory's volume, where somebody has asked (`walk.Walk.traits_of`).
    """

    __slots__ = ("__weakref__", "fd", "traits")

    def __init__(self, fd: int) -> None:
        self.fd: Final = fd
        self.traits: Traits | None = None

    def __del__(self) -> None:
        try:
            os.close(self.fd)
        except OSError as failure:
            # Closed it is; only a volume that died says so, and there is nobody to be told here.
            if failure.errno == errno.EBADF:
                raise

    def __repr__(self) -> str:
        return f"Descriptor({self.fd})"
