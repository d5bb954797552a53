"""A small filesystem in memory that folds names as APFS does, for tests.

No volume that Linux can mount folds straße and strasse, ﬁ and fi or both final sigmas; this one
does: two names are one entry exactly if `sidecar.casefold.key` says so. It keeps the spelling that
an entry was created with, a rename takes the new one, and replaces what folds to it. As on APFS
ill-formed UTF-8 is EILSEQ and a name has at most 255 UTF-16 units. Symlinks, hard links, modes,
owners and special files work; extended attributes and renameat2's flags do not.

Nothing is remembered by the kernel (timeouts of zero), so that no spelling goes stale. One thing
is Linux's own and cannot be otherwise behind FUSE: rename(2) from one spelling of a name to another
finds the same inode at both ends and returns without asking the server.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import stat as stat_module
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import attrs
import pyfuse3
import trio
from pyfuse3 import EntryAttributes, FileInfo, FUSEError, RequestContext, StatvfsData

from sidecar import casefold
from tests.matrix.volumes import Volume

UNITS_MAX: Final = 255
"""The longest name, in UTF-16 units."""
FILE_MAX: Final = 256 << 20
"""Bytes of a file: all of it is in memory."""

_PATIENCE: Final = 10.0
_CHECKOUT: Final = Path(__file__).parent.parent.parent


@attrs.define(eq=False)
class Node:
    """An object of the filesystem. *entries*: fold key -> (spelling, node, offset)."""

    number: int
    mode: int
    uid: int
    gid: int
    rdev: int = 0
    nlink: int = 0
    data: bytearray = attrs.Factory(bytearray)
    target: bytes = b""
    entries: dict[bytes, tuple[bytes, Node, int]] = attrs.Factory(dict)
    parent: Node | None = None
    lookups: int = 0
    opened: int = 0
    atime: int = attrs.Factory(time.time_ns)
    mtime: int = attrs.Factory(time.time_ns)
    ctime: int = attrs.Factory(time.time_ns)

    @property
    def is_directory(self) -> bool:
        """Whether it is a directory."""
        return stat_module.S_ISDIR(self.mode)


def fold(name: bytes) -> bytes:
    """The key of a name. Raises EILSEQ and ENAMETOOLONG as the volume does."""
    try:
        text = name.decode("utf-8")
    except UnicodeDecodeError:
        raise FUSEError(errno.EILSEQ) from None
    if len(text.encode("utf-16-le")) // 2 > UNITS_MAX:
        raise FUSEError(errno.ENAMETOOLONG)
    return casefold.key(name)


class Caseless(pyfuse3.Operations):
    """The request handlers. One task reads, nothing awaits: each is atomic."""

    supports_dot_lookup = False
    enable_writeback_cache = False

    def __init__(self) -> None:
        super().__init__()
        root = Node(pyfuse3.ROOT_INODE, stat_module.S_IFDIR | 0o755, 0, 0, nlink=2)
        self.nodes: dict[int, Node] = {root.number: root}
        self._next = root.number
        self._offset = 0

    # --- the tree ----------------------------------------------------------------------------

    def _held(self, parent: int, name: bytes) -> tuple[Node, bytes, Node | None]:
        """The directory, the fold key of *name*, and what its slot holds."""
        directory, key = self.nodes[parent], fold(name)
        held = directory.entries.get(key)
        return directory, key, None if held is None else held[1]

    def _put(self, directory: Node, key: bytes, name: bytes, node: Node) -> None:
        self._offset += 1
        directory.entries[key] = (name, node, self._offset)
        node.nlink += 1
        if node.is_directory:
            node.parent = directory
            directory.nlink += 1
        self._touch(directory, node)

    def _take(self, directory: Node, key: bytes) -> None:
        _, node, _ = directory.entries.pop(key)
        node.nlink -= 1
        if node.is_directory:
            directory.nlink -= 1
        self._touch(directory, node)
        self._drop(node)

    def _touch(self, directory: Node, node: Node) -> None:
        directory.mtime = directory.ctime = node.ctime = time.time_ns()

    def _drop(self, node: Node) -> None:
        named = node.nlink > (1 if node.is_directory else 0)
        if not named and not node.lookups and not node.opened:
            self.nodes.pop(node.number, None)

    def _new(
        self, parent: int, name: bytes, mode: int, ctx: RequestContext, **more: Any
    ) -> EntryAttributes:
        directory, key, held = self._held(parent, name)
        if held is not None:
            raise FUSEError(errno.EEXIST)
        if not directory.nlink:
            raise FUSEError(errno.ENOENT)
        gid = ctx.gid
        if directory.mode & stat_module.S_ISGID:
            gid = directory.gid
            if stat_module.S_ISDIR(mode):
                mode |= stat_module.S_ISGID
        self._next += 1
        links = 1 if stat_module.S_ISDIR(mode) else 0
        node = Node(self._next, mode, ctx.uid, gid, nlink=links, **more)
        self.nodes[node.number] = node
        self._put(directory, key, name, node)
        return self._known(node)

    def _known(self, node: Node) -> EntryAttributes:
        node.lookups += 1
        return self._attributes(node)

    def _attributes(self, node: Node) -> EntryAttributes:
        entry: Any = EntryAttributes()
        entry.st_ino = node.number
        entry.generation = 0
        entry.entry_timeout = entry.attr_timeout = 0
        entry.st_mode, entry.st_nlink = node.mode, node.nlink
        entry.st_uid, entry.st_gid, entry.st_rdev = node.uid, node.gid, node.rdev
        entry.st_size = len(node.target) or len(node.data)
        entry.st_blksize, entry.st_blocks = 4096, -(-len(node.data) // 512)
        entry.st_atime_ns, entry.st_mtime_ns = node.atime, node.mtime
        entry.st_ctime_ns = node.ctime
        return entry  # type: ignore[no-any-return]

    # --- names -------------------------------------------------------------------------------

    async def lookup(self, parent: int, name: bytes, ctx: RequestContext) -> EntryAttributes:
        _, _, node = self._held(parent, name)
        if node is None:
            raise FUSEError(errno.ENOENT)
        return self._known(node)

    async def forget(self, inode_list: Sequence[tuple[int, int]]) -> None:
        for number, count in inode_list:
            node = self.nodes.get(number)
            if node is not None:
                node.lookups -= count
                self._drop(node)

    async def mknod(
        self, parent: int, name: bytes, mode: int, rdev: int, ctx: RequestContext
    ) -> EntryAttributes:
        return self._new(parent, name, mode, ctx, rdev=rdev)

    async def mkdir(
        self, parent: int, name: bytes, mode: int, ctx: RequestContext
    ) -> EntryAttributes:
        return self._new(parent, name, stat_module.S_IFDIR | stat_module.S_IMODE(mode), ctx)

    async def symlink(
        self, parent: int, name: bytes, target: bytes, ctx: RequestContext
    ) -> EntryAttributes:
        return self._new(parent, name, stat_module.S_IFLNK | 0o777, ctx, target=target)

    async def readlink(self, inode: int, ctx: RequestContext) -> bytes:
        return self.nodes[inode].target

    async def link(
        self, inode: int, new_parent: int, new_name: bytes, ctx: RequestContext
    ) -> EntryAttributes:
        directory, key, held = self._held(new_parent, new_name)
        if held is not None:
            raise FUSEError(errno.EEXIST)
        node = self.nodes[inode]
        self._put(directory, key, new_name, node)
        return self._known(node)

    async def unlink(self, parent: int, name: bytes, ctx: RequestContext) -> None:
        directory, key, node = self._held(parent, name)
        if node is None:
            raise FUSEError(errno.ENOENT)
        if node.is_directory:
            raise FUSEError(errno.EISDIR)
        self._take(directory, key)

    async def rmdir(self, parent: int, name: bytes, ctx: RequestContext) -> None:
        directory, key, node = self._held(parent, name)
        if node is None:
            raise FUSEError(errno.ENOENT)
        if not node.is_directory:
            raise FUSEError(errno.ENOTDIR)
        if node.entries:
            raise FUSEError(errno.ENOTEMPTY)
        self._take(directory, key)
        node.nlink = 0

    async def rename(
        self,
        parent_old: int,
        name_old: bytes,
        parent_new: int,
        name_new: bytes,
        flags: int,
        ctx: RequestContext,
    ) -> None:
        if flags:
            raise FUSEError(errno.EINVAL)
        source, source_key, node = self._held(parent_old, name_old)
        target, target_key, victim = self._held(parent_new, name_new)
        if node is None:
            raise FUSEError(errno.ENOENT)
        if victim is node and (source, source_key) != (target, target_key):
            return
        if victim is not None and victim is not node:
            if victim.is_directory and not node.is_directory:
                raise FUSEError(errno.EISDIR)
            if node.is_directory and not victim.is_directory:
                raise FUSEError(errno.ENOTDIR)
            if victim.entries:
                raise FUSEError(errno.ENOTEMPTY)
            self._take(target, target_key)
            if victim.is_directory:
                victim.nlink = 0
        node.opened += 1
        self._take(source, source_key)
        self._put(target, target_key, name_new, node)
        node.opened -= 1

    # --- attributes --------------------------------------------------------------------------

    async def getattr(self, inode: int, ctx: RequestContext) -> EntryAttributes:
        return self._attributes(self.nodes[inode])

    async def setattr(
        self,
        inode: int,
        attr: EntryAttributes,
        fields: pyfuse3.SetattrFields,
        fh: int | None,
        ctx: RequestContext,
    ) -> EntryAttributes:
        node = self.nodes[inode]
        if fields.update_size and attr.st_size > FILE_MAX:
            raise FUSEError(errno.EFBIG)
        node.ctime = time.time_ns()
        if fields.update_size:
            del node.data[attr.st_size :]
            node.data.extend(bytes(attr.st_size - len(node.data)))
            node.mtime = node.ctime
        if fields.update_mode:
            node.mode = stat_module.S_IFMT(node.mode) | stat_module.S_IMODE(attr.st_mode)
        if fields.update_uid:
            node.uid = attr.st_uid
        if fields.update_gid:
            node.gid = attr.st_gid
        if fields.update_atime:
            node.atime = attr.st_atime_ns
        if fields.update_mtime:
            node.mtime = attr.st_mtime_ns
        return self._attributes(node)

    async def statfs(self, ctx: RequestContext) -> StatvfsData:
        answer: Any = StatvfsData()
        answer.f_bsize = answer.f_frsize = 4096
        answer.f_blocks = answer.f_bfree = answer.f_bavail = 1 << 20
        answer.f_files = answer.f_ffree = answer.f_favail = 1 << 20
        answer.f_namemax = UNITS_MAX
        return answer  # type: ignore[no-any-return]

    # --- files and directories ---------------------------------------------------------------

    async def open(self, inode: int, flags: int, ctx: RequestContext) -> FileInfo:
        node = self.nodes[inode]
        if flags & os.O_TRUNC:
            node.data.clear()
            node.mtime = node.ctime = time.time_ns()
        node.opened += 1
        return FileInfo(fh=inode)

    async def create(
        self, parent: int, name: bytes, mode: int, flags: int, ctx: RequestContext
    ) -> tuple[FileInfo, EntryAttributes]:
        _, _, held = self._held(parent, name)
        if held is not None and not flags & os.O_EXCL:
            entry = self._known(held)
        else:
            kind = stat_module.S_IFREG | stat_module.S_IMODE(mode)
            entry = self._new(parent, name, kind, ctx)
        return await self.open(entry.st_ino, flags, ctx), entry

    async def read(self, fh: int, off: int, size: int) -> bytes:
        return bytes(self.nodes[fh].data[off : off + size])

    async def write(self, fh: int, off: int, buf: bytes) -> int:
        node = self.nodes[fh]
        if off + len(buf) > FILE_MAX:
            raise FUSEError(errno.EFBIG)
        node.data.extend(bytes(max(0, off - len(node.data))))
        node.data[off : off + len(buf)] = buf
        node.mtime = node.ctime = time.time_ns()
        return len(buf)

    async def flush(self, fh: int) -> None:
        pass

    async def fsync(self, fh: int, datasync: bool) -> None:
        pass

    async def fsyncdir(self, fh: int, datasync: bool) -> None:
        pass

    async def release(self, fh: int) -> None:
        node = self.nodes[fh]
        node.opened -= 1
        self._drop(node)

    async def opendir(self, inode: int, ctx: RequestContext) -> int:
        self.nodes[inode].opened += 1
        return inode

    async def releasedir(self, fh: int) -> None:
        await self.release(fh)

    async def readdir(self, fh: int, start_id: int, token: pyfuse3.ReaddirToken) -> None:
        entries = sorted(self.nodes[fh].entries.values(), key=lambda entry: entry[2])
        for name, node, offset in entries:
            if offset > start_id:
                if not pyfuse3.readdir_reply(token, name, self._attributes(node), offset):
                    break
                node.lookups += 1

    def init(self) -> None:
        """Files get exactly the modes asked for: the kernel has applied the caller's umask."""
        os.umask(0)


def serve(mountpoint: str) -> None:
    """Mount an empty volume at *mountpoint* and serve it until it is unmounted."""
    options = set(pyfuse3.default_options)
    options.discard("nonempty")
    options |= {"fsname=caseless", "subtype=caseless", "allow_other", "dev", "suid"}
    pyfuse3.init(Caseless(), mountpoint, options)
    try:
        trio.run(pyfuse3.main)
    finally:
        pyfuse3.close(unmount=True)


@contextlib.contextmanager
def caseless_volume(base: Path) -> Iterator[Volume]:
    """A new volume below *base*, of kind ``caseless``; its server runs in another process."""
    base.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(prefix="caseless-", dir=base.resolve()))
    work.chmod(0o755)
    mount = work / "mnt"
    mount.mkdir()
    server = None
    try:
        server = subprocess.Popen(
            [sys.executable, "-m", "tests.caseless", mount],
            stdin=subprocess.DEVNULL, cwd=_CHECKOUT,
        )  # fmt: skip
        deadline = time.monotonic() + _PATIENCE
        while not _is_mounted(mount):
            if server.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"the caseless volume did not come up: {server.poll()}")
            time.sleep(0.01)
        yield Volume(mount, "caseless")
    finally:
        while _is_mounted(mount):
            subprocess.run(["umount", "-l", mount], check=True)
        if server is not None:
            server.kill()
            server.wait()
        shutil.rmtree(work)


def _is_mounted(mount: Path) -> bool:
    wanted = os.fsencode(mount)
    table = Path("/proc/self/mountinfo").read_bytes()
    return any(line.split(b" ")[4] == wanted for line in table.splitlines())
