"""Requests of the kernel on one side, the tree on the other: a handler for each opcode.

A handler is given the request and returns the body of its reply; an OSError is the guest's errno.
What the kernel should not send (a handle that was never given, a body that is too short) is an
errno as well and never a crash.
"""

from __future__ import annotations

import errno
import logging
import os
import stat as stat_module
import struct
from collections.abc import Callable
from typing import Final

from attrs import define, field

from sidecar import linux
from sidecar.linux import Stat
from sidecar.twin import Caller
from sysroot_fs.fuse import status
from sysroot_fs.fuse.epoch import Epoch
from sysroot_fs.fuse.kernel import abi
from sysroot_fs.fuse.kernel.abi import Attr, Init, Opcode, Open
from sysroot_fs.fuse.kernel.features import wanted
from sysroot_fs.fuse.kernel.locks import Locks, Wanted
from sysroot_fs.fuse.kernel.passthrough import Passthrough
from sysroot_fs.fuse.options import FileOptions
from sysroot_fs.fuse.owners import Owners
from sysroot_fs.tree import Entry, Tree, attributes, files, listing, lookup, mutations
from sysroot_fs.tree.attributes import Changes
from sysroot_fs.tree.coherence import Notice
from sysroot_fs.tree.files import Handle
from sysroot_fs.tree.listing import Listing
from sysroot_fs.tree.lookup import Miss
from sysroot_fs.tree.served import Served

log = logging.getLogger(__name__)

_SECOND: Final = 1_000_000_000
_NAME_MAX: Final = 255
_CHANGES: Final = Attr.MODE | Attr.UID | Attr.GID | Attr.SIZE | Attr.ATIME | Attr.MTIME
_NO_NAMES: Final = (b"", b".", b"..")
_DIRENT_HEAD: Final = abi.DIRENT.size
_SIGN: Final = 1 << 63
_POSITIVE: Final = _SIGN - 1
_UNSIGNED: Final = 2 * _SIGN - 1
_BACKGROUND: Final = 64
_CONGESTED: Final = 48
_MAX_PAGES: Final = abi.MAX_WRITE // os.sysconf("SC_PAGE_SIZE")

_pack_entry = abi.ENTRY_OUT.pack
_pack_attr = abi.ATTR_OUT.pack
_pack_open = abi.OPEN_OUT.pack

Reply = bytes | bytearray | memoryview


def _error(number: int) -> OSError:
    return OSError(number, os.strerror(number))


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
            raise _error(errno.EINVAL)
        return text

    def name(self, start: int = 0) -> bytes:
        """The name of an entry that begins at *start*.

        EINVAL for what is none: the kernel sends no such thing, and it would lead elsewhere.
        """
        name = self.text(start)
        if name in _NO_NAMES or b"/" in name:
            raise _error(errno.EINVAL)
        return name


Handler = Callable[[Request], Reply]


class Masked:
    """The process's umask for a moment; at all other times it is zero."""

    __slots__ = ("_umask",)

    def __init__(self, umask: int) -> None:
        self._umask = umask

    def __enter__(self) -> None:
        os.umask(self._umask)

    def __exit__(self, *_: object) -> None:
        os.umask(0)


def _signed(value: int) -> int:
    """Seconds travel as if they had no sign."""
    return value - (value & _SIGN) * 2


def _timeout(seconds: float) -> tuple[int, int]:
    whole = int(seconds)
    return whole, int((seconds - whole) * _SECOND)


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
    skips_opens: bool = field(default=False, init=False)
    """Whether the kernel opens files without asking; then reads and writes name an inode."""
    skips_opendirs: bool = field(default=False, init=False)
    """The same of directories."""
    negotiated: bool = field(default=False, init=False)
    epoch: Epoch | None = field(default=None, init=False)
    counts: list[int] = field(factory=lambda: [0] * abi.OPCODES, init=False)
    """Requests of each opcode so far; who reads them counts them."""
    _owners: Owners = field(factory=Owners.here, init=False)
    _handles: dict[int, Handle] = field(factory=dict, init=False)
    locks: Locks | None = field(default=None, init=False)
    _passthrough: Passthrough | None = field(default=None, init=False)
    _direct: set[int] = field(factory=set, init=False)
    """Handles that are not lent whatever else is."""
    _listings: dict[int, Listing] = field(factory=dict, init=False)
    _next: int = field(default=1, init=False)
    _late_errors: bool = field(init=False)
    changed: Callable[[Notice], None] | None = field(default=None, init=False)
    """Tells the kernel what has changed behind the mount."""
    watching: Callable[[int], None] | None = field(default=None, init=False)
    """Called with the descriptor that can be read when something has."""
    rings: Callable[[], bool] | None = field(default=None, init=False)
    """Makes ready for requests over io_uring; False where that cannot be had."""
    _timeouts: dict[float, tuple[int, int]] = field(factory=dict, init=False)
    _flags: Init = field(default=Init(0), init=False)
    _masks: bool = field(default=False, init=False)
    """Whether modes come as the caller has given them, and its umask with them."""
    _back: bool = field(default=False, init=False)
    """Whether the kernel keeps what is written."""
    _misses: dict[float, bytes] = field(factory=dict, init=False)
    """Replies for absences, by how long they may be remembered."""

    def __attrs_post_init__(self) -> None:
        self._late_errors = self.tree.late_errors
        self.served = Served(self.tree)

    def handlers(self) -> list[Handler | None]:
        """A handler for each opcode; None where the answer is ENOSYS."""
        table: list[Handler | None] = [None] * abi.OPCODES
        for opcode in Opcode:
            table[opcode] = getattr(self, opcode.name.lower(), None)
        return table

    def counted(self) -> dict[str, int]:
        """How many requests of each kind there were so far."""
        return {abi.opcode_name(opcode): count for opcode, count in enumerate(self.counts) if count}

    # --- replies -----------------------------------------------------------------------------

    def _attr(self, number: int, stat: Stat) -> tuple[int, ...]:
        owners = self._owners
        rdev = 0
        if stat.rdev_major or stat.rdev_minor:
            rdev = _device_number(stat.rdev)
        return (
            number, stat.size, stat.blocks,
            stat.atime & _UNSIGNED, stat.mtime & _UNSIGNED, stat.ctime & _UNSIGNED,
            stat.atime_part, stat.mtime_part, stat.ctime_part, stat.mode, stat.nlink,
            owners.users.get(stat.uid, stat.uid), owners.groups.get(stat.gid, stat.gid),
            rdev, stat.blksize, 0,
        )  # fmt: skip

    def _entry(self, entry: Entry) -> bytes:
        inode, stat = entry.inode, entry.stat
        number = inode.id
        timeout = self._timeout(entry.timeout)
        valid, valid_ns = self._timeout(self.tree.coherence.attributes(inode, stat))
        generation = 0
        if stat_module.S_ISLNK(stat.mode):
            # The kernel remembers targets: another symlink that has got the number is another.
            generation = (stat.mtime_ns + stat.size) & _POSITIVE
        return _pack_entry(
            number, generation, timeout[0], valid, timeout[1], valid_ns, *self._attr(number, stat)
        )

    def _timeout(self, seconds: float) -> tuple[int, int]:
        timeout = self._timeouts.get(seconds)
        if timeout is None:
            timeout = self._timeouts[seconds] = _timeout(seconds)
        return timeout

    def _remembered(self, number: int, stat: Stat) -> tuple[int, int]:
        """For how long the attributes *stat* of the inode *number* may be."""
        tree = self.tree
        return self._timeout(tree.coherence.attributes(tree.inodes[number], stat))

    def _attributes(self, number: int, stat: Stat) -> bytes:
        return _pack_attr(*self._remembered(number, stat), 0, *self._attr(number, stat))

    def _keep(self, handle: Handle, guest_flags: int) -> bytes:
        number = self._next
        self._next += 1
        self._handles[number] = handle
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
        if not number and self.skips_opens:
            return self.served.writer(node) if writing else self.served.reader(node)
        handle = self._handles.get(number)
        if handle is None or (writing and not handle.writable):
            raise _error(errno.EBADF)
        return handle

    # --- the connection ----------------------------------------------------------------------

    def init(self, request: Request) -> bytes:
        """Agree on a protocol: its version and what of `WANTED` the kernel has."""
        if self.negotiated:
            raise _error(errno.EPROTO)
        major, minor, read_ahead, offered = abi.INIT_IN.unpack_from(request.body)
        if major > abi.KERNEL_VERSION:
            # The kernel asks again with our number.
            return _pack_init(abi.KERNEL_VERSION, abi.KERNEL_MINOR_VERSION)
        if major < abi.KERNEL_VERSION or minor < abi.OLDEST_MINOR:
            raise _error(errno.EPROTO)
        if offered & Init.INIT_EXT and len(request.body) >= abi.INIT_IN_EXT.size:
            offered |= abi.INIT_IN_EXT.unpack_from(request.body)[4] << 32
        self._flags = wanted(self.options) & Init(offered)
        if self._flags & Init.WRITEBACK_CACHE and not linux.overrides_permissions():
            self._flags &= ~Init.WRITEBACK_CACHE
            log.warning("writes=back is off: this process may not read all that can be written")
        self._masks = bool(self._flags & Init.DONT_MASK)
        self._back = bool(self._flags & Init.WRITEBACK_CACHE)
        self._choose_rings()
        self._choose_opens(bool(offered & Init.NO_OPEN_SUPPORT))
        self._watch()
        self.skips_opendirs = (
            bool(offered & Init.NO_OPENDIR_SUPPORT) and self.tree.coherence.listings_last
        )
        # Files get exactly the modes asked for: see `_masked`.
        os.umask(0)
        self.epoch = None if self.mountpoint is None else Epoch.on(self.device, self.mountpoint)
        self.tree.forgets_at_once = self.epoch is not None
        self.negotiated = True
        self.ready()
        return _pack_init(
            abi.KERNEL_VERSION, min(minor, abi.KERNEL_MINOR_VERSION), read_ahead, self._flags
        )

    def _watch(self) -> None:
        if self.changed is not None and self.watching is not None:
            fd = self.tree.coherence.start(self.changed)
            if fd is not None:
                self.watching(fd)

    def _choose_rings(self) -> None:
        if self._flags & Init.OVER_IO_URING:
            if self.rings is None or not self.rings():
                self._flags &= ~Init.OVER_IO_URING
        elif self.options.uring == "on":
            log.warning("io_uring is off: the kernel does not offer it (see sysroot-fs doctor)")

    def _choose_opens(self, can_be_skipped: bool) -> None:
        opens = self.options.opens
        self.skips_opens = self.tree.opens_skipped = (
            opens == "auto"
            and can_be_skipped
            and self.tree.opens_do_nothing
            and not self.options.locks
        )
        if self._flags & Init.POSIX_LOCKS:
            self.locks = Locks(self.tree)
        if opens != "passthrough":
            return
        if self._flags & Init.PASSTHROUGH:
            self._passthrough = Passthrough(self.device)
        else:
            log.warning("passthrough is off: the kernel has none (it came with Linux 6.9)")

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

    # --- names -------------------------------------------------------------------------------

    def lookup(self, request: Request) -> bytes:
        """A name in a directory: its entry, or an absence that may be remembered."""
        found = lookup.lookup(self.tree, request.node, request.name(), request.caller)
        if isinstance(found, Miss):
            if found.timeout == 0:
                raise _error(errno.ENOENT)
            reply = self._misses.get(found.timeout)
            if reply is None:
                valid, valid_ns = self._timeout(found.timeout)
                reply = _pack_entry(0, 0, valid, 0, valid_ns, *[0] * 17)
                self._misses[found.timeout] = reply
            return reply
        return self._entry(found)

    def readlink(self, request: Request) -> bytes:
        """The bytes of a symlink."""
        return attributes.readlink(self.tree, request.node)

    def _masked(self, umask: int) -> Masked:
        """Make files with the caller's umask; the server's own files have none.

        With DONT_MASK the kernel leaves the mode alone: the volume below knows whether a default
        ACL stands in for the umask. Without it the kernel has applied it already.
        """
        return Masked(umask & 0o777 if self._masks else 0)

    def mknod(self, request: Request) -> bytes:
        """Make a fifo, a socket, a device or an empty regular file."""
        mode, rdev, umask, _ = abi.MKNOD_IN.unpack_from(request.body)
        name = request.name(abi.MKNOD_IN.size)
        number = os.makedev((rdev >> 8) & 0xFFF, (rdev & 0xFF) | ((rdev >> 12) & 0xFFF00))
        with self._masked(umask):
            made = mutations.mknod(self.tree, request.node, name, mode, number, request.caller)
        return self._entry(made)

    def mkdir(self, request: Request) -> bytes:
        """Make a directory."""
        mode, umask = abi.MKDIR_IN.unpack_from(request.body)
        name = request.name(abi.MKDIR_IN.size)
        with self._masked(umask):
            made = mutations.mkdir(self.tree, request.node, name, mode, request.caller)
        return self._entry(made)

    def symlink(self, request: Request) -> bytes:
        """Make a symlink."""
        name = request.name()
        target = request.text(len(name) + 1)
        return self._entry(mutations.symlink(self.tree, request.node, name, target, request.caller))

    def link(self, request: Request) -> bytes:
        """Give an inode one more name."""
        (old,) = abi.LINK_IN.unpack_from(request.body)
        name = request.name(abi.LINK_IN.size)
        return self._entry(mutations.link(self.tree, old, request.node, name, request.caller))

    def unlink(self, request: Request) -> bytes:
        """Remove a name that is no directory."""
        mutations.unlink(self.tree, request.node, request.name(), request.caller)
        return b""

    def rmdir(self, request: Request) -> bytes:
        """Remove an empty directory."""
        mutations.rmdir(self.tree, request.node, request.name(), request.caller)
        return b""

    def rename(self, request: Request) -> bytes:
        """Rename without flags."""
        (new_parent,) = abi.RENAME_IN.unpack_from(request.body)
        return self._rename(request, new_parent, 0, abi.RENAME_IN.size)

    def rename2(self, request: Request) -> bytes:
        """Rename with the flags of renameat2(2)."""
        new_parent, flags, _ = abi.RENAME2_IN.unpack_from(request.body)
        return self._rename(request, new_parent, flags, abi.RENAME2_IN.size)

    def _rename(self, request: Request, new_parent: int, flags: int, start: int) -> bytes:
        old = request.name(start)
        new = request.name(start + len(old) + 1)
        mutations.rename(self.tree, request.node, old, new_parent, new, flags, request.caller)
        return b""

    # --- attributes --------------------------------------------------------------------------

    def getattr(self, request: Request) -> bytes:
        """The attributes of an inode."""
        return self._attributes(request.node, attributes.getattr_(self.tree, request.node))

    def statx(self, request: Request) -> bytes:
        """The same with what only statx(2) asks for: the time of birth."""
        number = request.node
        stat = attributes.getattr_(self.tree, number)
        attr = self._attr(number, stat)
        # STATX_BASIC_STATS, and STATX_BTIME where the volume knows it.
        mask = 0x7FF if stat.btime_ns is None else 0xFFF
        times: list[int] = []
        for time in (stat.atime_ns, stat.btime_ns or 0, stat.ctime_ns, stat.mtime_ns):
            times += (*divmod(time, _SECOND), 0)
        return abi.STATX_OUT.pack(
            *self._remembered(number, stat), 0,
            mask, stat.blksize, 0, stat.nlink, attr[11], attr[12], stat.mode, 0,
            number, stat.size, stat.blocks, 0,
            *times,
            os.major(stat.rdev), os.minor(stat.rdev), 0, 0,
        )  # fmt: skip

    def setattr(self, request: Request) -> bytes:
        """Change attributes of an inode."""
        (
            valid, _, fh, size, _, atime, mtime, _, atime_ns, mtime_ns, _, mode, _, uid, gid, _,
        ) = abi.SETATTR_IN.unpack_from(request.body)  # fmt: skip
        changes = Changes(
            mode=mode if valid & Attr.MODE else None,
            uid=uid if valid & Attr.UID else None,
            gid=gid if valid & Attr.GID else None,
            size=size if valid & Attr.SIZE else None,
            # Also where now is meant: the kernel says what time it is.
            atime_ns=_signed(atime) * _SECOND + atime_ns if valid & Attr.ATIME else None,
            mtime_ns=_signed(mtime) * _SECOND + mtime_ns if valid & Attr.MTIME else None,
        )
        handle = self._handles.get(fh) if valid & Attr.FH else None
        fd = handle.descriptor.fd if handle is not None and handle.writable else None
        # With nothing to change it is set-id bits and capabilities that have to go, before a write
        # or by a chown that changes nothing.
        drop = bool(valid & Attr.KILL_SUIDGID) or not valid & _CHANGES
        stat = attributes.setattr_(self.tree, request.node, changes, fd, drop_privileges=drop)
        return self._attributes(request.node, stat)

    def getxattr(self, request: Request) -> bytes:
        """One extended attribute, or its size."""
        size, _ = abi.GETXATTR_IN.unpack_from(request.body)
        name = request.text(abi.GETXATTR_IN.size)
        if status.is_meant(request.node, name):
            files, directories = len(self._handles), len(self._listings)
            return _sized(
                status.told(
                    self.tree, request.caller, "kernel", self.counted(), files, directories
                ),
                size,
            )
        return _sized(attributes.getxattr(self.tree, request.node, name), size)

    def listxattr(self, request: Request) -> bytes:
        """The names of the extended attributes, or how long they are together."""
        size, _ = abi.GETXATTR_IN.unpack_from(request.body)
        names = attributes.listxattr(self.tree, request.node, request.caller)
        return _sized(b"".join(name + b"\0" for name in names), size)

    def setxattr(self, request: Request) -> bytes:
        """Set an extended attribute."""
        size, flags, more, _ = abi.SETXATTR_IN.unpack_from(request.body)
        start = abi.SETXATTR_IN.size
        if not self._flags & Init.SETXATTR_EXT:
            start, more = abi.COMPAT_SETXATTR_IN_SIZE, 0
        name = request.text(start)
        start += len(name) + 1
        value = bytes(request.body[start : start + size])
        if len(value) < size:
            raise _error(errno.EINVAL)
        status.check_not_meant(request.node, name)
        attributes.setxattr(self.tree, request.node, name, value, flags)
        if more & abi.SETXATTR_ACL_KILL_SGID:
            attributes.drop_setgid(self.tree, request.node)
        return b""

    def removexattr(self, request: Request) -> bytes:
        """Remove an extended attribute."""
        name = request.text()
        status.check_not_meant(request.node, name)
        attributes.removexattr(self.tree, request.node, name)
        return b""

    def statfs(self, request: Request) -> bytes:
        """The numbers of the volume on which the inode lies."""
        below = attributes.statfs(self.tree, request.node)
        return abi.STATFS_OUT.pack(
            below.f_blocks, below.f_bfree, below.f_bavail, below.f_files, below.f_ffree,
            below.f_bsize, _NAME_MAX, below.f_frsize, 0,
        )  # fmt: skip

    # --- files -------------------------------------------------------------------------------

    def _readable(self, flags: int) -> int:
        """The flags of a file as it has to be opened here.

        A kernel that keeps what is written reads the rest of a page through the same open file.
        """
        if self._back and files.is_writable(flags):
            return flags & ~os.O_ACCMODE | os.O_RDWR
        return flags

    def open(self, request: Request) -> bytes:
        """Open a regular file."""
        if self.skips_opens:
            # The kernel asks no more.
            raise _error(errno.ENOSYS)
        flags, more = abi.OPEN_IN.unpack_from(request.body)
        handle = files.open_file(self.tree, request.node, self._readable(flags))
        if more & abi.OPEN_KILL_SUIDGID:
            attributes.drop_set_id(handle.descriptor.fd)
        return self._keep(handle, flags)

    def create(self, request: Request) -> bytes:
        """Make a regular file and open it."""
        flags, mode, umask, _ = abi.CREATE_IN.unpack_from(request.body)
        name = request.name(abi.CREATE_IN.size)
        with self._masked(umask):
            handle, entry = mutations.create(
                self.tree, request.node, name, mode, self._readable(flags), request.caller
            )
        return self._entry(entry) + self._made(handle, entry.stat, flags)

    def _made(self, handle: Handle, stat: Stat, flags: int) -> bytes:
        """The reply for a file that was made and opened in one."""
        if not self.skips_opens:
            return self._keep(handle, flags)
        # The kernel will not say when it is closed, and will write at once if it does at all.
        self.served.made(handle, stat)
        return _pack_open(0, Open.KEEP_CACHE | Open.NOFLUSH, 0)

    def tmpfile(self, request: Request) -> bytes:
        """Make a regular file that has no name yet, and open it."""
        flags, mode, umask, _ = abi.CREATE_IN.unpack_from(request.body)
        with self._masked(umask):
            handle, entry = mutations.create_unnamed(
                self.tree, request.node, mode, self._readable(flags), request.caller
            )
        return self._entry(entry) + self._made(handle, entry.stat, flags)

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
            attributes.drop_set_id(handle.descriptor.fd)
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
            raise _error(errno.ENOSYS)
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
            del self._handles[fh]
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
        fd = self._handle(fh, request.node, writing=True).descriptor.fd
        if request.caller.uid:
            attributes.drop_set_id(fd)
        linux.fallocate(fd, mode, offset, length)
        return b""

    def lseek(self, request: Request) -> bytes:
        """Find data or a hole."""
        fh, offset, whence, _ = abi.LSEEK_IN.unpack_from(request.body)
        if whence not in (os.SEEK_DATA, os.SEEK_HOLE):
            raise _error(errno.EINVAL)
        return abi.LSEEK_OUT.pack(
            os.lseek(self._handle(fh, request.node).descriptor.fd, offset, whence)
        )

    def copy_file_range(self, request: Request) -> bytes:
        """Copy from one open file to another, on the volume where it can do that by itself."""
        source, start, node, target, to, length, _ = abi.COPY_FILE_RANGE_IN.unpack_from(
            request.body
        )
        into = self._handle(target, node, writing=True).descriptor.fd
        if request.caller.uid:
            attributes.drop_set_id(into)
        done = os.copy_file_range(
            self._handle(source, request.node).descriptor.fd,
            into,
            min(length, abi.LONGEST_COPY),
            start,
            to,
        )
        return abi.WRITE_OUT.pack(done, 0)

    def ioctl(self, request: Request) -> bytes:
        """The flags of an inode (lsattr, chattr); everything else is ENOTTY."""
        _, _, command, _, in_size, _ = abi.IOCTL_IN.unpack_from(request.body)
        value = request.body[abi.IOCTL_IN.size : abi.IOCTL_IN.size + in_size]
        if command == attributes.FS_IOC_GETFLAGS:
            told = attributes.get_flags(self.tree, request.node)
            return abi.IOCTL_OUT.pack(0, 0, 0, 0) + struct.pack("=I", told)
        if command == attributes.FS_IOC_SETFLAGS:
            (wanted,) = struct.unpack_from("=I", value)
            attributes.set_flags(self.tree, request.node, wanted, request.caller)
            return abi.IOCTL_OUT.pack(0, 0, 0, 0)
        if command == attributes.FS_IOC_FSGETXATTR:
            extended = attributes.get_extended_flags(self.tree, request.node)
            return abi.IOCTL_OUT.pack(0, 0, 0, 0) + extended
        if command == attributes.FS_IOC_FSSETXATTR:
            attributes.set_extended_flags(self.tree, request.node, bytes(value), request.caller)
            return abi.IOCTL_OUT.pack(0, 0, 0, 0)
        raise _error(errno.ENOTTY)

    # --- locks -------------------------------------------------------------------------------

    def _asked(self, request: Request) -> tuple[Locks, Wanted]:
        fh, owner, start, end, kind, _, flags, _ = abi.LK_IN.unpack_from(request.body)
        if self.locks is None:
            raise _error(errno.ENOSYS)
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

    # --- directories -------------------------------------------------------------------------

    def opendir(self, request: Request) -> bytes:
        """Open a directory."""
        if self.skips_opendirs:
            # The kernel asks no more.
            raise _error(errno.ENOSYS)
        number = self._next
        self._next += 1
        opened = listing.open_listing(self.tree, request.node, request.caller)
        self._listings[number] = opened
        flags = int(Open.CACHE_DIR) if opened.lasting else 0
        if opened.same:
            # Otherwise the kernel drops what it remembers: times can be set back.
            flags |= Open.KEEP_CACHE
        return _pack_open(number, flags, 0)

    def readdir(self, request: Request) -> Reply:
        """A piece of a listing, names and kinds."""
        return self._listed(request, with_entries=False)

    def readdirplus(self, request: Request) -> Reply:
        """A piece of a listing with what a lookup of each name would say."""
        return self._listed(request, with_entries=True)

    def _listed(self, request: Request, with_entries: bool) -> Reply:
        fh, start, size, *_ = abi.READ_IN.unpack_from(request.body)
        opened = self._listings.get(fh)
        if opened is None:
            if fh or not self.skips_opendirs:
                raise _error(errno.EBADF)
            opened = self.served.listing(request.node, start, request.caller)
        piece = bytearray()
        inodes = self.tree.inodes
        head = _DIRENT_HEAD + (abi.ENTRY_OUT.size if with_entries else 0)
        try:
            for name, entry, offset in listing.read(self.tree, opened, start):
                number = entry.inode.id
                counted = name not in (b".", b"..")
                length = head + len(name)
                if len(piece) + length + 7 & ~7 > size:
                    if counted:
                        inodes.forget(number, 1)
                    break
                if with_entries:
                    # Of the dots the kernel takes no more than the number.
                    piece += self._entry(entry) if counted else bytes(abi.ENTRY_OUT.size)
                elif counted:
                    inodes.forget(number, 1)
                kind = stat_module.S_IFMT(entry.stat.mode) >> 12
                piece += abi.DIRENT.pack(number, offset, len(name), kind)
                piece += name
                piece += bytes(-length % 8)
        except OSError:
            # What was handed on carries lookups: an error now would lose their count. The kernel
            # comes back for the rest and meets the error first.
            if not piece:
                raise
        return piece

    def releasedir(self, request: Request) -> bytes:
        """The last descriptor of an open directory was closed."""
        fh, *_ = abi.RELEASE_IN.unpack_from(request.body)
        if self._listings.pop(fh, None) is None:
            raise _error(errno.EBADF)
        return b""

    def fsyncdir(self, request: Request) -> bytes:
        """Wait until a directory's entries are on the volume."""
        files.sync_directory(self.tree, self.tree.inodes[request.node])
        return b""


def _pack_init(major: int, minor: int, read_ahead: int = 0, flags: int = 0) -> bytes:
    return abi.INIT_OUT.pack(
        major, minor, read_ahead, flags & 0xFFFF_FFFF, _BACKGROUND, _CONGESTED, abi.MAX_WRITE, 1,
        _MAX_PAGES, 0, flags >> 32, abi.BACKING_STACK_DEPTH if flags & Init.PASSTHROUGH else 0,
    )  # fmt: skip


def _device_number(number: int) -> int:
    """As the kernel packs a device number into 32 bits."""
    major, minor = os.major(number), os.minor(number)
    return (minor & 0xFF) | major << 8 | (minor & ~0xFF) << 12


def _sized(value: bytes, size: int) -> bytes:
    """An answer to somebody who asks for so many bytes, or with zero for how many there are."""
    if size == 0:
        return abi.GETXATTR_OUT.pack(len(value), 0)
    if len(value) > size:
        raise _error(errno.ERANGE)
    return value
