"""The door for pyfuse3: its calls and types on one side, the tree on the other, nothing else.

Every handler answers at once and never awaits, except for fsync, which really blocks and goes to
a thread. An OSError from the tree is the guest's errno; anything else is a bug in a handler: it
is logged with its traceback, the guest gets EIO, and the mount goes on.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import logging
import os
from collections import Counter
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, ParamSpec, TypeVar

import pyfuse3
import trio
from pyfuse3 import EntryAttributes, FileInfo, FUSEError, RequestContext, StatvfsData

from sidecar.linux import Stat
from sidecar.twin import Caller
from sysroot_fs.fuse import status
from sysroot_fs.fuse.awake import REST_SECONDS, Awake
from sysroot_fs.fuse.epoch import Epoch, device_of_this_process
from sysroot_fs.fuse.failures import errno_of
from sysroot_fs.fuse.notices import Notices
from sysroot_fs.fuse.owners import Owners
from sysroot_fs.tree import Entry, Tree, attributes, files, listing, lookup, mutations, renames
from sysroot_fs.tree.attributes import Changes
from sysroot_fs.tree.files import Handle
from sysroot_fs.tree.inodes import Inode
from sysroot_fs.tree.listing import Listing
from sysroot_fs.tree.lookup import Miss
from sysroot_fs.tree.watching import COLLECT_SECONDS

log = logging.getLogger(__name__)
P = ParamSpec("P")
R = TypeVar("R")


def _answering(
    handler: Callable[P, Coroutine[Any, Any, R]],
) -> Callable[P, Coroutine[Any, Any, R]]:
    """Count its requests, make what it raises an errno, tell the kernel what it has to forget."""
    kind = handler.__name__

    @functools.wraps(handler)
    async def answer(*args: P.args, **kwargs: P.kwargs) -> R:
        door = args[0]
        assert isinstance(door, Door)
        door.counts[kind] += 1
        if door.awake.asked():
            trio.lowlevel.spawn_system_task(door.rest)
        try:
            return await handler(*args, **kwargs)
        except FUSEError:
            raise
        except Exception as failure:
            raise FUSEError(errno_of(kind, failure)) from None
        finally:
            if door.tree.forgotten:
                door.tell_kernel()
            if door.notices is not None and door.notices.waiting:
                # When the binding has sent the reply, which it does before anything else runs.
                trio.lowlevel.current_trio_token().run_sync_soon(door.notices.tell)

    return answer


def _sync(handle: Handle, data_only: bool) -> OSError | None:
    """Sync in a thread; what came of it is given back.

    Raised through the threads' machinery its traceback would be a cycle, and hold the file open
    after the guest has closed it.
    """
    try:
        files.sync(handle, data_only)
    except OSError as failure:
        return failure.with_traceback(None)
    return None


async def _sync_beside(handle: Handle, data_only: bool) -> OSError | None:
    try:
        return await trio.to_thread.run_sync(_sync, handle, data_only)
    except RuntimeError:
        # No thread can be had. What is stored must not be told to be lost: all wait for it.
        return _sync(handle, data_only)


def _caller(ctx: RequestContext) -> Caller:
    return Caller(ctx.uid, ctx.gid, ctx.pid)


class Door(pyfuse3.Operations):
    """The request handlers over one tree."""

    supports_dot_lookup = False
    enable_writeback_cache = False
    enable_acl = True

    def __init__(
        self,
        tree: Tree,
        ready: Callable[[], None],
        mountpoint: bytes | None = None,
        awake: str = "off",
    ) -> None:
        super().__init__()
        self._mountpoint = mountpoint
        self._epoch: Epoch | None = None
        self._owners = Owners.here()
        self.tree = tree
        self.negotiated = False
        self.awake = Awake.chosen(awake)
        tree.reports["awake"] = self.awake.report
        self.counts: Counter[str] = Counter()
        """Requests of each kind so far."""
        self._ready = ready
        self.notices: Notices | None = None
        self._changes: int | None = None
        self._started = trio.Event()
        self._handles: dict[int, Handle] = {}
        self._listings: dict[int, Listing] = {}
        self._next = 1
        self._late_errors = tree.late_errors

    # --- small conversions -------------------------------------------------------------------

    def _attributes(self, inode: Inode, stat: Stat, entry_timeout: float) -> EntryAttributes:
        entry: Any = EntryAttributes()
        entry.st_ino = inode.id
        entry.generation = 0
        entry.entry_timeout = entry_timeout
        entry.attr_timeout = self.tree.coherence.attributes(inode, stat)
        entry.st_mode = stat.mode
        entry.st_nlink = stat.nlink
        entry.st_uid = self._owners.users.get(stat.uid, stat.uid)
        entry.st_gid = self._owners.groups.get(stat.gid, stat.gid)
        entry.st_rdev = stat.rdev
        entry.st_size = stat.size
        entry.st_blksize = stat.blksize
        entry.st_blocks = stat.blocks
        entry.st_atime_ns = stat.atime_ns
        entry.st_mtime_ns = stat.mtime_ns
        entry.st_ctime_ns = stat.ctime_ns
        return entry  # type: ignore[no-any-return]

    def _entry(self, entry: Entry) -> EntryAttributes:
        return self._attributes(entry.inode, entry.stat, entry.timeout)

    def _keep(self, handle: Handle) -> FileInfo:
        number = self._next
        self._next += 1
        self._handles[number] = handle
        return FileInfo(fh=number, keep_cache=True)

    def tell_kernel(self) -> None:
        """Have the kernel forget what the tree says that it must."""
        forgotten = self.tree.forgotten
        if self._epoch is not None:
            if self._epoch.begin():
                forgotten.clear()
            else:
                # From now on less is remembered; what was is forgotten a moment later.
                self._epoch, self.tree.forgets_at_once = None, False
        while forgotten:
            parent, name = forgotten.pop()
            if self.notices is not None:
                self.notices.drop(parent, name)
            else:
                pyfuse3.invalidate_entry_async(parent, name, ignore_enoent=True)

    # --- names -------------------------------------------------------------------------------

    @_answering
    async def lookup(self, parent: int, name: bytes, ctx: RequestContext) -> EntryAttributes:
        found = lookup.lookup(self.tree, parent, name, _caller(ctx))
        if isinstance(found, Miss):
            if found.timeout == 0:
                raise FUSEError(errno.ENOENT)
            # An entry with inode zero is a negative answer that the kernel remembers.
            missing: Any = EntryAttributes()
            missing.st_ino = 0
            missing.entry_timeout = found.timeout
            return missing  # type: ignore[no-any-return]
        return self._entry(found)

    async def forget(self, inode_list: Sequence[tuple[int, int]]) -> None:
        self.counts["forget"] += 1
        try:
            lookup.forget(self.tree, inode_list)
        except Exception:
            log.exception("a bug in forget")

    @_answering
    async def readlink(self, inode: int, ctx: RequestContext) -> bytes:
        return attributes.readlink(self.tree, inode)

    @_answering
    async def mknod(
        self, parent: int, name: bytes, mode: int, rdev: int, ctx: RequestContext
    ) -> EntryAttributes:
        return self._entry(mutations.mknod(self.tree, parent, name, mode, rdev, _caller(ctx)))

    @_answering
    async def mkdir(
        self, parent: int, name: bytes, mode: int, ctx: RequestContext
    ) -> EntryAttributes:
        return self._entry(mutations.mkdir(self.tree, parent, name, mode, _caller(ctx)))

    @_answering
    async def symlink(
        self, parent: int, name: bytes, target: bytes, ctx: RequestContext
    ) -> EntryAttributes:
        return self._entry(mutations.symlink(self.tree, parent, name, target, _caller(ctx)))

    @_answering
    async def link(
        self, inode: int, new_parent: int, new_name: bytes, ctx: RequestContext
    ) -> EntryAttributes:
        return self._entry(mutations.link(self.tree, inode, new_parent, new_name, _caller(ctx)))

    @_answering
    async def unlink(self, parent: int, name: bytes, ctx: RequestContext) -> None:
        mutations.unlink(self.tree, parent, name, _caller(ctx))

    @_answering
    async def rmdir(self, parent: int, name: bytes, ctx: RequestContext) -> None:
        mutations.rmdir(self.tree, parent, name, _caller(ctx))

    @_answering
    async def rename(
        self,
        parent_old: int,
        name_old: bytes,
        parent_new: int,
        name_new: bytes,
        flags: int,
        ctx: RequestContext,
    ) -> None:
        renames.rename(self.tree, parent_old, name_old, parent_new, name_new, flags, _caller(ctx))

    # --- attributes --------------------------------------------------------------------------

    @_answering
    async def getattr(self, inode: int, ctx: RequestContext) -> EntryAttributes:
        stat = attributes.getattr_(self.tree, inode)
        return self._attributes(self.tree.inodes[inode], stat, 0)

    @_answering
    async def setattr(
        self,
        inode: int,
        attr: EntryAttributes,
        fields: pyfuse3.SetattrFields,
        fh: int | None,
        ctx: RequestContext,
    ) -> EntryAttributes:
        changes = Changes(
            mode=attr.st_mode if fields.update_mode else None,
            uid=attr.st_uid if fields.update_uid else None,
            gid=attr.st_gid if fields.update_gid else None,
            size=attr.st_size if fields.update_size else None,
            atime_ns=attr.st_atime_ns if fields.update_atime else None,
            mtime_ns=attr.st_mtime_ns if fields.update_mtime else None,
        )
        handle = None if fh is None else self._handles.get(fh)
        fd = handle.descriptor.fd if handle is not None and handle.writable else None
        stat = attributes.setattr_(self.tree, inode, changes, fd)
        return self._attributes(self.tree.inodes[inode], stat, 0)

    @_answering
    async def getxattr(self, inode: int, name: bytes, ctx: RequestContext) -> bytes:
        if status.is_meant(inode, name):
            return status.told(
                self.tree,
                _caller(ctx),
                "pyfuse3",
                self.counts,
                len(self._handles),
                len(self._listings),
            )
        return attributes.getxattr(self.tree, inode, name)

    @_answering
    async def setxattr(self, inode: int, name: bytes, value: bytes, ctx: RequestContext) -> None:
        status.check_not_meant(inode, name)
        attributes.setxattr(self.tree, inode, name, value)

    @_answering
    async def listxattr(self, inode: int, ctx: RequestContext) -> list[bytes]:
        return attributes.listxattr(self.tree, inode, _caller(ctx))

    @_answering
    async def removexattr(self, inode: int, name: bytes, ctx: RequestContext) -> None:
        status.check_not_meant(inode, name)
        attributes.removexattr(self.tree, inode, name)

    @_answering
    async def statfs(self, ctx: RequestContext) -> StatvfsData:
        below = attributes.statfs(self.tree)
        answer: Any = StatvfsData()
        for name in (
            "f_bsize", "f_frsize", "f_blocks", "f_bfree", "f_bavail", "f_files", "f_ffree",
            "f_favail",
        ):  # fmt: skip
            setattr(answer, name, getattr(below, name))
        answer.f_namemax = 255
        return answer  # type: ignore[no-any-return]

    # --- files -------------------------------------------------------------------------------

    @_answering
    async def open(self, inode: int, flags: int, ctx: RequestContext) -> FileInfo:
        return self._keep(files.open_file(self.tree, inode, flags))

    @_answering
    async def create(
        self, parent: int, name: bytes, mode: int, flags: int, ctx: RequestContext
    ) -> tuple[FileInfo, EntryAttributes]:
        handle, entry = mutations.create(self.tree, parent, name, mode, flags, _caller(ctx))
        return self._keep(handle), self._entry(entry)

    @_answering
    async def read(self, fh: int, off: int, size: int) -> bytes:
        return files.read(self._handles[fh], off, size)

    @_answering
    async def write(self, fh: int, off: int, buf: bytes) -> int:
        return files.write(self._handles[fh], off, buf)

    @_answering
    async def flush(self, fh: int) -> None:
        if not self._late_errors:
            # The kernel asks no more; local volumes report their errors at write.
            raise FUSEError(errno.ENOSYS)
        files.flush(self._handles[fh])

    @_answering
    async def release(self, fh: int) -> None:
        files.release(self._handles.pop(fh))

    @_answering
    async def fsync(self, fh: int, datasync: bool) -> None:
        failure = await _sync_beside(self._handles[fh], datasync)
        if failure is not None:
            raise failure

    # --- directories -------------------------------------------------------------------------

    @_answering
    async def opendir(self, inode: int, ctx: RequestContext) -> int:
        number = self._next
        self._next += 1
        self._listings[number] = listing.open_listing(self.tree, inode, _caller(ctx))
        return number

    @_answering
    async def readdir(self, fh: int, start_id: int, token: pyfuse3.ReaddirToken) -> None:
        handed_on = False
        try:
            for name, entry, offset in listing.read(self.tree, self._listings[fh], start_id):
                if entry is None:
                    # The binding has no entry without attributes.
                    continue
                counted = name not in (b".", b"..")
                if not pyfuse3.readdir_reply(token, name, self._entry(entry), offset):
                    if counted:
                        self.tree.inodes.forget(entry.inode.id, 1)
                    break
                handed_on = True
        except OSError:
            # What was handed on carries lookups: an error now would lose their count. The kernel
            # comes back for the rest and meets the error first.
            if not handed_on:
                raise

    @_answering
    async def releasedir(self, fh: int) -> None:
        del self._listings[fh]

    @_answering
    async def fsyncdir(self, fh: int, datasync: bool) -> None:
        files.sync_directory(self.tree, self._listings[fh].inode)

    def stacktrace(self) -> None:
        """Not for guests: any program could fill the log with it."""

    def init(self) -> None:
        """The kernel and libfuse have agreed: the mount is really up."""
        # Files get exactly the modes asked for: the guest's kernel has applied its umask.
        os.umask(0)
        self.negotiated = True
        if self._mountpoint is not None:
            self._epoch = Epoch.of_this_process(self._mountpoint)
        self.tree.forgets_at_once = self._epoch is not None
        device = device_of_this_process()
        if device is not None:
            with contextlib.suppress(OSError):  # no descriptor is left for it
                self.notices = Notices(device)
                self._changes = self.tree.coherence.start(self.notices.changed)
        self._started.set()
        self._ready()

    async def watch(self) -> None:
        """Tell the kernel what changes behind the mount, until cancelled."""
        await self._started.wait()
        while self._changes is not None:
            await trio.lowlevel.wait_readable(self._changes)
            more = self.tree.coherence.read()
            if self.notices is not None and self.notices.waiting:
                self.notices.tell()
            if not more:
                await trio.sleep(COLLECT_SECONDS)

    async def rest(self) -> None:
        """Let the processors sleep again when requests have become few."""
        while self.awake.held:
            await trio.sleep(REST_SECONDS)
            self.awake.look()

    def close(self) -> None:
        """Tell the kernel nothing any more."""
        self.awake.close()
        if self.notices is not None:
            self.notices.close()
