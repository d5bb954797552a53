"""What a handler is given and what it gives back.

It is given the request and returns the body of the reply; an OSError is the guest's errno. What the
kernel should not send (a body that is too short, a name that is none) is an errno as well.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from typing import Final

from attrs import define

from sidecar.twin import Caller
from sysroot_fs.fuse.kernel.abi import Init
from sysroot_fs.tree.core import error

_NO_NAMES: Final = (b"", b".", b"..")

Reply = bytes | bytearray | memoryview


@define(slots=True, eq=False)
class Request:
    """One request: what its header says, and its body, which lasts until the next one is read."""

    opcode: int
    unique: int
    node: int
    caller: Caller
    body: memoryview

    def text(self, start: int = 0) -> bytes:
        """The bytes that begin at *start* of the body and end with a NUL."""
        text, end, _ = bytes(self.body[start:]).partition(b"\0")
        if not end:
            raise error(errno.EINVAL)
        return text

    def name(self, start: int = 0) -> bytes:
        """The name of an entry that begins at *start*.

        EINVAL for what is none: the kernel sends no such thing, and it would lead elsewhere.
        """
        name = self.text(start)
        if name in _NO_NAMES or b"/" in name:
            raise error(errno.EINVAL)
        return name


Handler = Callable[[Request], Reply]


def umask_left(flags: Init) -> int:
    """What of a caller's umask is to be applied here where *flags* were agreed on.

    With DONT_MASK the kernel leaves the mode alone: the volume below knows whether a default ACL
    stands in for the umask. Without it the kernel has applied it already.
    """
    return 0o777 if flags & Init.DONT_MASK else 0


class Masked:
    """The process's umask for a moment; at all other times it is zero."""

    __slots__ = ("_umask",)

    def __init__(self, umask: int) -> None:
        self._umask = umask

    def __enter__(self) -> None:
        os.umask(self._umask)

    def __exit__(self, *_: object) -> None:
        os.umask(0)
