"""Open files: their handles, reading and writing, locks, and what is lent to the kernel."""

from __future__ import annotations

import errno
import logging
import os
from collections.abc import Callable, Iterator

from attrs import define, field

from sidecar import linux
from sidecar.linux import Stat
from sysroot_fs.fuse.kernel import abi
from sysroot_fs.fuse.kernel.abi import Init, Open
from sysroot_fs.fuse.kernel.holes import Holes
from sysroot_fs.fuse.kernel.locks import Locks, Wanted
from sysroot_fs.fuse.kernel.passthrough import Passthrough
from sysroot_fs.fuse.kernel.replies import Replies
from sysroot_fs.fuse.kernel.request import Masked, Request, umask_left
from sysroot_fs.fuse.options import FileOptions
from sysroot_fs.tree import Tree, attributes, files, mutations
from sysroot_fs.tree.core import error
from sysroot_fs.tree.files import Handle
from sysroot_fs.tree.served import Served

log = logging.getLogger(__name__)

_pack_open = abi.OPEN_OUT.pack


@define(slots=True, eq=False)
class OpenFiles:
    """Those of one mount, and the handlers of requests for them, each named after its opcode."""

    tree: Tree
    replies: Replies
    served: Served
    device: int
    options: FileOptions
    numbers: Iterator[int]
    """For handles."""
    handles: dict[int, Handle] = field(factory=dict, init=False)
    _skips_opens: bool = field(default=False, init=False)
    """Whether the kernel opens files without asking; then reads and writes name an inode."""
    locks: Locks | None = field(default=None, init=False)
    holes: Holes = field(factory=Holes, init=False)
    _passthrough: Passthrough | None = field(default=None, init=False)
    _direct: set[int] = field(factory=set, init=False)
    """Handles that are not lent whatever else is."""
    _late_errors: bool = field(init=False)
    _umask: int = field(default=0, init=False)
    """What of the callers' umasks is to be applied here."""
    _back: bool = field(default=False, init=False)
    """Whether the kernel keeps what is written."""

    def __attrs_post_init__(self) -> None:
        self._late_errors = self.tree.late_errors

    def agreed(self, flags: Init, can_be_skipped: bool) -> None:
        """The kernel and the door have agreed on *flags*.

        *can_be_skipped* says that the kernel can open files without asking.
        """
        self._umask = umask_left(flags)
        self._back = bool(flags & Init.WRITEBACK_CACHE)
        opens = self.options.opens
        self._skips_opens = self.tree.opens_skipped = (
            opens == "auto"
            and can_be_skipped
            and self.tree.opens_do_nothing
            and not self.options.locks
        )
        if flags & Init.POSIX_LOCKS:
            self.locks = Locks(self.tree)
        if opens != "passthrough":
            return
        if flags & Init.PASSTHROUGH:
            self._passthrough = Passthrough(self.device)
        else:
            log.warning("passthrough is off: the kernel has none (it came with Linux 6.9)")

    def _keep(self, handle: Handle, guest_flags: int) -> bytes:
        number = next(self.numbers)
        self.handles[number] = handle
        flags = 0 if self._late_errors or self.locks is not None else int(Open.NOFLUSH)
        backing = None
        if self._passthrough is not None and guest_flags & os.O_DIRECT:
            # Lent, it would be so for good: the kernel does not hear when fcntl takes it away, as
            # dd does for what is not as long as a block.
            self._direct.add(number)
            return _pack_open(number, flags | Open.DIRECT_IO, 0)
        if self._passthrough is not None:
            maps = guest_flags & os.O_ACCMODE == os.O_RDWR
            backing = self._passthrough.opened(handle, maps)
        if backing is None:
            return _pack_open(number, flags | Open.KEEP_CACHE, 0)
        return _pack_open(number, flags | Open.PASSTHROUGH, backing)

    def _handle(self, number: int, node: int, writing: bool = False) -> Handle:
        """The handle *number*; where opens are skipped it is zero, and the inode *node* says it."""
        if not number and self._skips_opens:
            return self.served.writer(node) if writing else self.served.reader(node)
        handle = self.handles.get(number)
        if handle is None or (writing and not handle.writable):
            raise error(errno.EBADF)
        return handle

    def _readable(self, flags: int) -> int:
        """The flags of a file as it has to be opened here.

        A kernel that keeps what is written reads the rest of a page through the same open file.
        """
        if self._back and files.is_writable(flags):
            return flags & ~os.O_ACCMODE | os.O_RDWR
        return flags

    def open(self, request: Request) -> bytes:
        """Open a regular file."""
        if self._skips_opens:
            # The kernel asks no more.
            raise error(errno.ENOSYS)
        flags, more = abi.OPEN_IN.unpack_from(request.body)
        handle = files.open_file(self.tree, request.node, self._readable(flags))
        if more & abi.OPEN_KILL_SUIDGID:
            attributes.drop_set_id(self.tree, handle)
        return self._keep(handle, flags)

    def create(self, request: Request) -> bytes:
        """Make a regular file and open it."""
        flags, mode, umask, _ = abi.CREATE_IN.unpack_from(request.body)
        name = request.name(abi.CREATE_IN.size)
        with Masked(umask & self._umask):
            handle, entry = mutations.create(
                self.tree, request.node, name, mode, self._readable(flags), request.caller
            )
        return self.replies.entry(entry) + self._made(handle, entry.stat, flags)

    def _made(self, handle: Handle, stat: Stat, flags: int) -> bytes:
        """The reply for a file that was made and opened in one."""
        if not self._skips_opens:
            return self._keep(handle, flags)
        # The kernel will not say when it is closed, and will write at once if it does at all.
        self.served.made(handle, stat)
        return _pack_open(0, Open.KEEP_CACHE | Open.NOFLUSH, 0)

    def tmpfile(self, request: Request) -> bytes:
        """Make a regular file that has no name yet, and open it."""
        flags, mode, umask, _ = abi.CREATE_IN.unpack_from(request.body)
        with Masked(umask & self._umask):
            handle, entry = mutations.create_unnamed(
                self.tree, request.node, mode, self._readable(flags), request.caller
            )
        return self.replies.entry(entry) + self._made(handle, entry.stat, flags)

    def read(self, request: Request) -> bytes:
        """Read from an open file."""
        fh, offset, size, *_ = abi.READ_IN.unpack_from(request.body)
        return files.read(self._handle(fh, request.node), offset, min(size, abi.MAX_WRITE))

    def write(self, request: Request) -> bytes:
        """Write to an open file."""
        fh, offset, size, flags, _, opened_with, _ = abi.WRITE_IN.unpack_from(request.body)
        data = request.body[abi.WRITE_IN.size : abi.WRITE_IN.size + size]
        handle = self._handle(fh, request.node, writing=True)
        if flags & abi.WRITE_KILL_SUIDGID:
            attributes.drop_set_id(self.tree, handle)
        done = files.write(handle, offset, data)
        if not fh:
            self.served.written(request.node)
        if not fh and opened_with & os.O_DSYNC:
            # The descriptor in use was not opened with it; O_SYNC has the bit as well.
            files.sync(handle, data_only=opened_with & os.O_SYNC != os.O_SYNC)
        return abi.WRITE_OUT.pack(done, 0)

    def flush(self, request: Request) -> bytes:
        """A descriptor was closed."""
        if not self._late_errors and self.locks is None:
            # The kernel asks no more; local volumes report their errors at write.
            raise error(errno.ENOSYS)
        fh, _, _, owner = abi.FLUSH_IN.unpack_from(request.body)
        handle = self._handle(fh, request.node)
        if self.locks is not None:
            self.locks.flushed(handle, owner)
        if self._late_errors:
            files.flush(handle)
        return b""

    def release(self, request: Request) -> bytes:
        """The last descriptor of an open file was closed."""
        fh, *_ = abi.RELEASE_IN.unpack_from(request.body)
        if fh:
            handle = self._handle(fh, request.node)
            del self.handles[fh]
            files.release(handle)
            if fh in self._direct:
                self._direct.discard(fh)
            elif self._passthrough is not None:
                self._passthrough.closed(handle)
            if self.locks is not None:
                self.locks.closed(handle)
        return b""

    def syncing(self, request: Request) -> Callable[[], None]:
        """What has to be done for FSYNC: it blocks, and may be done in another thread."""
        fh, flags, _ = abi.FSYNC_IN.unpack_from(request.body)
        handle = self._handle(fh, request.node)
        return lambda: files.sync(handle, bool(flags & abi.FSYNC_FDATASYNC))

    def fallocate(self, request: Request) -> bytes:
        """Allocate space, punch holes, zero ranges."""
        fh, offset, length, mode, _ = abi.FALLOCATE_IN.unpack_from(request.body)
        handle = self._handle(fh, request.node, writing=True)
        if request.caller.uid:
            attributes.drop_set_id(self.tree, handle)
        linux.fallocate(handle.descriptor.fd, mode, offset, length)
        return b""

    def lseek(self, request: Request) -> bytes:
        """Find data or a hole."""
        fh, offset, whence, _ = abi.LSEEK_IN.unpack_from(request.body)
        if whence not in (os.SEEK_DATA, os.SEEK_HOLE):
            raise error(errno.EINVAL)
        if self._back:
            # The volume does not know of what the kernel keeps. Unasked, all is data to it.
            raise error(errno.ENOSYS)
        handle = self._handle(fh, request.node)
        if self._passthrough is not None and self._passthrough.is_lent(handle):
            # Maps are of the file itself then.
            return abi.LSEEK_OUT.pack(os.lseek(handle.descriptor.fd, offset, whence))
        return self.holes.sought(request.unique, handle, offset, whence)

    def copy_file_range(self, request: Request) -> bytes:
        """Copy from one open file to another, on the volume where it can do that by itself."""
        source, start, node, target, to, length, _ = abi.COPY_FILE_RANGE_IN.unpack_from(
            request.body
        )
        # Both are held: where descriptors are short the second may take the first out of the cache.
        into = self._handle(target, node, writing=True)
        out_of = self._handle(source, request.node)
        if request.caller.uid:
            attributes.drop_set_id(self.tree, into)
        done = os.copy_file_range(
            out_of.descriptor.fd,
            into.descriptor.fd,
            min(length, abi.LONGEST_COPY),
            start,
            to,
        )
        return abi.WRITE_OUT.pack(done, 0)

    # --- locks -------------------------------------------------------------------------------

    def _asked(self, request: Request) -> tuple[Locks, Wanted]:
        fh, owner, start, end, kind, _, flags, _ = abi.LK_IN.unpack_from(request.body)
        if self.locks is None:
            raise error(errno.ENOSYS)
        handle = self._handle(fh, request.node)
        return self.locks, Wanted(handle, owner, kind, start, end, bool(flags & abi.LK_FLOCK))

    def getlk(self, request: Request) -> bytes:
        """Whether a lock could be taken."""
        locks, wanted = self._asked(request)
        return locks.test(wanted)

    def setlk(self, request: Request) -> bytes:
        """Take a lock or let go of it, without waiting."""
        locks, wanted = self._asked(request)
        locks.take(wanted)
        return b""

    def setlkw(self, request: Request) -> bytes:
        """Take a lock; where that takes time the answer comes later."""
        locks, wanted = self._asked(request)
        locks.wait(wanted, request.unique)
        return b""
