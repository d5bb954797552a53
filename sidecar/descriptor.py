"""A file descriptor that closes itself when nobody holds it any more.

Descriptors are shared: a cache keeps one, a running operation borrows it, a directory's twin
remembers its parents. Counting the holders by hand is how descriptors leak or are closed under
their users; the interpreter's reference count already does it.
"""

from __future__ import annotations

import errno
import os
from typing import Final, final


@final
class Descriptor:
    """Owns the descriptor *fd*: it is closed with the last reference to this object."""

    __slots__ = ("__weakref__", "fd")

    def __init__(self, fd: int) -> None:
        self.fd: Final = fd

    def __del__(self) -> None:
        try:
            os.close(self.fd)
        except OSError as failure:
            # Closed it is; only a volume that died says so, and there is nobody to be told here.
            if failure.errno == errno.EBADF:
                raise

    def __repr__(self) -> str:
        return f"Descriptor({self.fd})"
