"""The FUSE protocol as linux/fuse.h has it: opcodes, flags and structures under its names.

Numbers are in the machine's own order. A structure's name is the header's without ``fuse_``; the
fields are those of the header in its order, padding included where somebody reads it. What is
newer than the oldest header in use (6.1) comes from the kernel's documentation of protocol 7.45.
"""

from __future__ import annotations

import errno
from enum import IntEnum, IntFlag
from struct import Struct
from typing import Final

KERNEL_VERSION: Final = 7
KERNEL_MINOR_VERSION: Final = 45
"""The newest protocol that this door speaks."""
OLDEST_MINOR: Final = 31
"""The oldest that it can speak: Linux 5.4."""

ROOT_ID: Final = 1
MAX_WRITE: Final = 1 << 20
"""Bytes of a single write; the kernel's own limit (256 pages) is the same."""


class Opcode(IntEnum):
    """enum fuse_opcode."""

    LOOKUP = 1
    FORGET = 2
    GETATTR = 3
    SETATTR = 4
    READLINK = 5
    SYMLINK = 6
    MKNOD = 8
    MKDIR = 9
    UNLINK = 10
    RMDIR = 11
    RENAME = 12
    LINK = 13
    OPEN = 14
    READ = 15
    WRITE = 16
    STATFS = 17
    RELEASE = 18
    FSYNC = 20
    SETXATTR = 21
    GETXATTR = 22
    LISTXATTR = 23
    REMOVEXATTR = 24
    FLUSH = 25
    INIT = 26
    OPENDIR = 27
    READDIR = 28
    RELEASEDIR = 29
    FSYNCDIR = 30
    GETLK = 31
    SETLK = 32
    SETLKW = 33
    ACCESS = 34
    CREATE = 35
    INTERRUPT = 36
    BMAP = 37
    DESTROY = 38
    IOCTL = 39
    POLL = 40
    NOTIFY_REPLY = 41
    BATCH_FORGET = 42
    FALLOCATE = 43
    READDIRPLUS = 44
    RENAME2 = 45
    LSEEK = 46
    COPY_FILE_RANGE = 47
    SETUPMAPPING = 48
    REMOVEMAPPING = 49
    SYNCFS = 50
    TMPFILE = 51
    STATX = 52
    COPY_FILE_RANGE_64 = 53


UNANSWERED: Final = frozenset(
    {Opcode.FORGET, Opcode.BATCH_FORGET, Opcode.NOTIFY_REPLY, Opcode.INTERRUPT}
)
"""Requests that want no reply."""
GONE: Final = frozenset({errno.ENODEV, errno.ECONNABORTED})
"""What the device says when there is nothing to serve any more."""


OPCODES: Final = max(Opcode) + 1
"""How long a table by opcode is."""


def opcode_name(opcode: int) -> str:
    """As people read it: `lookup`."""
    try:
        return Opcode(opcode).name.lower()
    except ValueError:
        return f"opcode {opcode}"


class Init(IntFlag):
    """The flags of INIT; from bit 32 on they stand in ``flags2``."""

    ASYNC_READ = 1 << 0
    POSIX_LOCKS = 1 << 1
    ATOMIC_O_TRUNC = 1 << 3
    EXPORT_SUPPORT = 1 << 4
    BIG_WRITES = 1 << 5
    DONT_MASK = 1 << 6
    FLOCK_LOCKS = 1 << 10
    AUTO_INVAL_DATA = 1 << 12
    DO_READDIRPLUS = 1 << 13
    READDIRPLUS_AUTO = 1 << 14
    ASYNC_DIO = 1 << 15
    WRITEBACK_CACHE = 1 << 16
    NO_OPEN_SUPPORT = 1 << 17
    PARALLEL_DIROPS = 1 << 18
    POSIX_ACL = 1 << 20
    ABORT_ERROR = 1 << 21
    MAX_PAGES = 1 << 22
    CACHE_SYMLINKS = 1 << 23
    NO_OPENDIR_SUPPORT = 1 << 24
    EXPLICIT_INVAL_DATA = 1 << 25
    HANDLE_KILLPRIV_V2 = 1 << 28
    SETXATTR_EXT = 1 << 29
    INIT_EXT = 1 << 30
    HAS_EXPIRE_ONLY = 1 << 35
    PASSTHROUGH = 1 << 37
    OVER_IO_URING = 1 << 41


class Open(IntEnum):
    """FOPEN_: what the kernel may do with an open file or directory.

    No IntFlag, nor is `Attr`: each `&` and `|` of one is a call in Python, for each request.
    """

    DIRECT_IO = 1 << 0
    KEEP_CACHE = 1 << 1
    CACHE_DIR = 1 << 3
    NOFLUSH = 1 << 5
    PASSTHROUGH = 1 << 7


class Attr(IntEnum):
    """FATTR_: which fields of `SETATTR_IN` are meant."""

    MODE = 1 << 0
    UID = 1 << 1
    GID = 1 << 2
    SIZE = 1 << 3
    ATIME = 1 << 4
    MTIME = 1 << 5
    FH = 1 << 6
    ATIME_NOW = 1 << 7
    MTIME_NOW = 1 << 8
    KILL_SUIDGID = 1 << 11


LK_FLOCK: Final = 1 << 0
OPEN_KILL_SUIDGID: Final = 1 << 0
WRITE_KILL_SUIDGID: Final = 1 << 2
SETXATTR_ACL_KILL_SGID: Final = 1 << 0
FSYNC_FDATASYNC: Final = 1 << 0
IOCTL_DIR: Final = 1 << 4

DEV_IOC_BACKING_OPEN: Final = 0x4010E501
DEV_IOC_BACKING_CLOSE: Final = 0x4004E502
BACKING_STACK_DEPTH: Final = 1
"""Lent files lie on volumes that are no stack of others (overlayfs is one)."""

NOTIFY_INVAL_INODE: Final = 2
NOTIFY_INVAL_ENTRY: Final = 3
NOTIFY_DELETE: Final = 6
EXPIRE_ONLY: Final = 1
"""Of an entry: to be looked up again, and kept where it is the same (Linux 6.2)."""

IN_HEADER: Final = Struct("=IIQQIIIHxx")  # len opcode unique nodeid uid gid pid total_extlen
OUT_HEADER: Final = Struct("=IiQ")  # len error unique

INIT_IN: Final = Struct("=IIII")  # major minor max_readahead flags; then flags2, see INIT_IN_EXT
INIT_IN_EXT: Final = Struct("=IIIII")
INIT_OUT: Final = Struct("=IIIIHHIIHHII24x")
# major minor max_readahead flags max_background congestion max_write time_gran max_pages
# map_alignment flags2 max_stack_depth

# struct fuse_attr: ino size blocks atime mtime ctime atimensec mtimensec ctimensec mode nlink uid
# gid rdev blksize flags
_ATTR: Final = "QQQQQQIIIIIIIIII"
ENTRY_OUT: Final = Struct("=QQQQII" + _ATTR)
# nodeid generation entry_valid attr_valid entry_valid_nsec attr_valid_nsec attr
ATTR_OUT: Final = Struct("=QII" + _ATTR)  # attr_valid attr_valid_nsec dummy attr
OPEN_OUT: Final = Struct("=QIi")  # fh open_flags backing_id
UNKNOWN_INO: Final = 0xFFFFFFFF  # of an entry that has no inode number to tell
DIRENT: Final = Struct("=QQII")  # ino off namelen type; the name, to a multiple of 8 bytes

BATCH_FORGET_IN: Final = Struct("=II")  # count dummy
FORGET_ONE: Final = Struct("=QQ")  # nodeid nlookup
FORGET_IN: Final = Struct("=Q")
MKNOD_IN: Final = Struct("=IIII")  # mode rdev umask padding
MKDIR_IN: Final = Struct("=II")  # mode umask
RENAME_IN: Final = Struct("=Q")  # newdir
RENAME2_IN: Final = Struct("=QII")  # newdir flags padding
LINK_IN: Final = Struct("=Q")  # oldnodeid
SETATTR_IN: Final = Struct("=IIQQQQQQIIIIIIII")
# valid padding fh size lock_owner atime mtime ctime atimensec mtimensec ctimensec mode unused4
# uid gid unused5
OPEN_IN: Final = Struct("=II")  # flags open_flags
CREATE_IN: Final = Struct("=IIII")  # flags mode umask open_flags
RELEASE_IN: Final = Struct("=QIIQ")  # fh flags release_flags lock_owner
FLUSH_IN: Final = Struct("=QIIQ")  # fh unused padding lock_owner
LK_IN: Final = Struct("=QQQQIIII")  # fh owner start end type pid lk_flags padding
LK_OUT: Final = Struct("=QQII")  # start end type pid
INTERRUPT_IN: Final = Struct("=Q")  # unique
READ_IN: Final = Struct("=QQIIQII")  # fh offset size read_flags lock_owner flags padding
WRITE_IN: Final = Struct("=QQIIQII")  # fh offset size write_flags lock_owner flags padding
WRITE_OUT: Final = Struct("=II")  # size padding
STATFS_OUT: Final = Struct("=QQQQQIIII24x")
# blocks bfree bavail files ffree bsize namelen frsize padding
FSYNC_IN: Final = Struct("=QII")  # fh fsync_flags padding
COMPAT_SETXATTR_IN_SIZE: Final = 8
SETXATTR_IN: Final = Struct("=IIII")  # size flags setxattr_flags padding
GETXATTR_IN: Final = Struct("=II")  # size padding
GETXATTR_OUT: Final = Struct("=II")  # size padding
FALLOCATE_IN: Final = Struct("=QQQII")  # fh offset length mode padding
LSEEK_IN: Final = Struct("=QQII")  # fh offset whence padding
LSEEK_OUT: Final = Struct("=Q")
COPY_FILE_RANGE_IN: Final = Struct("=QQQQQQQ")
# fh_in off_in nodeid_out fh_out off_out len flags
IOCTL_IN: Final = Struct("=QIIQII")  # fh flags cmd arg in_size out_size
IOCTL_OUT: Final = Struct("=iIII")  # result flags in_iovs out_iovs
STATX_IN: Final = Struct("=IIQII")  # getattr_flags reserved fh sx_flags sx_mask
_SX_TIME: Final = "qIi"
STATX_OUT: Final = Struct("=QII16x" + "IIQIIIHHQQQQ" + 4 * _SX_TIME + "IIII112x")
# attr_valid attr_valid_nsec flags; then struct fuse_statx: mask blksize attributes nlink uid gid
# mode spare0 ino size blocks attributes_mask, atime btime ctime mtime (sec nsec reserved each),
# rdev_major rdev_minor dev_major dev_minor

BACKING_MAP: Final = Struct("=iIQ")  # fd flags padding
BACKING_ID: Final = Struct("=I")

NOTIFY_INVAL_INODE_OUT: Final = Struct("=Qqq")  # ino off len
NOTIFY_DELETE_OUT: Final = Struct("=QQI4x")  # parent child namelen; the name and a NUL
NOTIFY_INVAL_ENTRY_OUT: Final = Struct("=QII")  # parent namelen flags; the name and a NUL

IO_URING_REGISTER: Final = 1
IO_URING_COMMIT_AND_FETCH: Final = 2
IO_URING_COMMAND: Final = Struct("=QQH6x")  # flags commit_id qid
IO_URING_HEADERS: Final = 288
"""Bytes of struct fuse_uring_req_header: of headers, opcode's structure, and entry."""
IO_URING_OPERATION: Final = 128
"""Where in it the structure of the opcode stands, and how long it may be."""
IO_URING_ENTRY: Final = 256
"""Where `IO_URING_ENT` stands in it."""
IO_URING_ENT: Final = Struct("=QQI4xQ")  # flags commit_id payload_sz reserved

LONGEST_COPY: Final = 32 << 20
"""Bytes of a single copy: whoever has more asks again, and others get their turn in between."""
