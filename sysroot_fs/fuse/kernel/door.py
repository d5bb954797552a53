"""The connection: what is agreed on with the kernel, and who handles which of its requests.

A handler is given the request and returns the body of its reply; an OSError is the guest's errno
(see `request`). What the kernel should not send (a handle that was never given, a body that is too
short) is an errno as well and never a crash.
"""

from __future__ import annotations

import errno
import itertools
import logging
import os
from collections.abc import Callable
from typing import Final

from attrs import define, field

from sidecar import identity
from sidecar.twin import Caller
from sysroot_fs.fuse import status
from sysroot_fs.fuse.epoch import Epoch
from sysroot_fs.fuse.kernel import abi
from sysroot_fs.fuse.kernel.abi import Init, Opcode
from sysroot_fs.fuse.kernel.attributes import Attributes
from sysroot_fs.fuse.kernel.directories import Directories
from sysroot_fs.fuse.kernel.features import wanted
from sysroot_fs.fuse.kernel.names import Names
from sysroot_fs.fuse.kernel.open_files import OpenFiles
from sysroot_fs.fuse.kernel.replies import Replies
from sysroot_fs.fuse.kernel.request import Handler, Request
from sysroot_fs.fuse.options import FileOptions
from sysroot_fs.tree import Tree
from sysroot_fs.tree.coherence import Notice
from sysroot_fs.tree.core import error
from sysroot_fs.tree.served import Served

log = logging.getLogger(__name__)

_BACKGROUND: Final = 64
_CONGESTED: Final = 48
_MAX_PAGES: Final = abi.MAX_WRITE // os.sysconf("SC_PAGE_SIZE")


@define(slots=True, eq=False)
class Door:
    """The handlers over one tree.

    *ready* is called when the kernel and this door have agreed on a protocol.
    """

    tree: Tree
    device: int
    ready: Callable[[], None]
    mountpoint: bytes | None = None
    """Where it is mounted; None for a mount that somebody else has made."""
    options: FileOptions = field(factory=FileOptions)
    served: Served = field(init=False)
    files: OpenFiles = field(init=False)
    negotiated: bool = field(default=False, init=False)
    epoch: Epoch | None = field(default=None, init=False)
    counts: list[int] = field(factory=lambda: [0] * abi.OPCODES, init=False)
    """Requests of each opcode so far; who reads them counts them."""
    changed: Callable[[Notice], None] | None = field(default=None, init=False)
    """Tells the kernel what has changed behind the mount."""
    watching: Callable[[int], None] | None = field(default=None, init=False)
    """Called with the descriptor that can be read when something has."""
    rings: Callable[[], bool] | None = field(default=None, init=False)
    """Makes ready for requests over io_uring; False where that cannot be had."""
    _names: Names = field(init=False)
    _attributes: Attributes = field(init=False)
    _directories: Directories = field(init=False)

    def __attrs_post_init__(self) -> None:
        tree, replies = self.tree, Replies(self.tree)
        # Shared, so that no file's handle is taken for a directory's.
        numbers = itertools.count(1)
        self.served = Served(tree)
        self.files = OpenFiles(tree, replies, self.served, self.device, self.options, numbers)
        self._names = Names(tree, replies)
        self._attributes = Attributes(tree, replies, self.files.handles, self._told)
        self._directories = Directories(tree, replies, self.served, numbers)

    def handlers(self) -> list[Handler | None]:
        """A handler for each opcode; None where the answer is ENOSYS."""
        table: list[Handler | None] = [None] * abi.OPCODES
        for part in (self, self._names, self._attributes, self.files, self._directories):
            for opcode in Opcode:
                handler = getattr(part, opcode.name.lower(), None)
                if handler is not None:
                    table[opcode] = handler
        return table

    def counted(self) -> dict[str, int]:
        """How many requests of each kind there were so far."""
        return {abi.opcode_name(opcode): count for opcode, count in enumerate(self.counts) if count}

    def _told(self, caller: Caller) -> bytes:
        files, directories = len(self.files.handles), len(self._directories.listings)
        return status.told(self.tree, caller, "kernel", self.counted(), files, directories)

    def init(self, request: Request) -> bytes:
        """Agree on a protocol: its version and what of `WANTED` the kernel has."""
        if self.negotiated:
            raise error(errno.EPROTO)
        major, minor, read_ahead, offered = abi.INIT_IN.unpack_from(request.body)
        if major > abi.KERNEL_VERSION:
            # The kernel asks again with our number.
            return _pack_init(abi.KERNEL_VERSION, abi.KERNEL_MINOR_VERSION)
        if major < abi.KERNEL_VERSION or minor < abi.OLDEST_MINOR:
            raise error(errno.EPROTO)
        if offered & Init.INIT_EXT and len(request.body) >= abi.INIT_IN_EXT.size:
            offered |= abi.INIT_IN_EXT.unpack_from(request.body)[4] << 32
        flags = self._chosen(wanted(self.options) & Init(offered))
        self._names.agreed(flags)
        self._attributes.agreed(flags)
        self.files.agreed(flags, bool(offered & Init.NO_OPEN_SUPPORT))
        self._watch()
        self._directories.agreed(bool(offered & Init.NO_OPENDIR_SUPPORT))
        # Files get exactly the modes asked for: see `umask_left`.
        os.umask(0)
        self.epoch = None if self.mountpoint is None else Epoch.on(self.device, self.mountpoint)
        self.tree.forgets_at_once = self.epoch is not None
        self.negotiated = True
        self.ready()
        return _pack_init(
            abi.KERNEL_VERSION, min(minor, abi.KERNEL_MINOR_VERSION), read_ahead, flags
        )

    def _chosen(self, flags: Init) -> Init:
        """Those of *flags* that can be had here as well."""
        if flags & Init.WRITEBACK_CACHE and not identity.overrides_permissions():
            flags &= ~Init.WRITEBACK_CACHE
            log.warning("writes=back is off: this process may not read all that can be written")
        if flags & Init.OVER_IO_URING:
            if self.rings is None or not self.rings():
                flags &= ~Init.OVER_IO_URING
        elif self.options.uring == "on":
            log.warning("io_uring is off: the kernel does not offer it (see sysroot-fs doctor)")
        return flags

    def _watch(self) -> None:
        if self.changed is not None and self.watching is not None:
            fd = self.tree.coherence.start(self.changed)
            if fd is not None:
                self.watching(fd)

    def destroy(self, request: Request) -> bytes:
        """The last request of a mount."""
        return b""

    def forget(self, request: Request) -> bytes:
        """The kernel lets go of an inode. Not answered."""
        (count,) = abi.FORGET_IN.unpack_from(request.body)
        self.tree.inodes.forget(request.node, count)
        return b""

    def batch_forget(self, request: Request) -> bytes:
        """The kernel lets go of many inodes. Not answered."""
        count, _ = abi.BATCH_FORGET_IN.unpack_from(request.body)
        start = abi.BATCH_FORGET_IN.size
        ones = request.body[start : start + count * abi.FORGET_ONE.size]
        for number, lookups in abi.FORGET_ONE.iter_unpack(ones):
            self.tree.inodes.forget(number, lookups)
        return b""


def _pack_init(major: int, minor: int, read_ahead: int = 0, flags: int = 0) -> bytes:
    return abi.INIT_OUT.pack(
        major, minor, read_ahead, flags & 0xFFFF_FFFF, _BACKGROUND, _CONGESTED, abi.MAX_WRITE, 1,
        _MAX_PAGES, 0, flags >> 32, abi.BACKING_STACK_DEPTH if flags & Init.PASSTHROUGH else 0,
    )  # fmt: skip
