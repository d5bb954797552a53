"""What is asked of the kernel at INIT, and what for; it may have less.

| flag | for what |
|---|---|
| ASYNC_READ | reading ahead with several requests at once |
| ASYNC_DIO | the same for O_DIRECT |
| BIG_WRITES, MAX_PAGES | requests of up to 1 MiB instead of 4 KiB and 128 KiB |
| AUTO_INVAL_DATA | cached data goes when the times or the size turn out to be others |
| DO_READDIRPLUS | a listing brings the attributes along (see below) |
| PARALLEL_DIROPS | lookups and listings of one directory at the same time |
| CACHE_SYMLINKS | a symlink's target is asked for once |
| POSIX_ACL, DONT_MASK | ACLs judged by the kernel; the volume below applies umask or default ACL |
| SETXATTR_EXT | with ACLs: whether set-gid has to go |
| HANDLE_KILLPRIV_V2 | no question for security.capability before each write: the server clears |
| ABORT_ERROR | reads of the device say when the mount was aborted |
| INIT_EXT | flags from bit 32 on |

Not READDIRPLUS_AUTO: with it the kernel asks for attributes only while it sees them used, and a
program that reads all names before it looks at the first, as find and ls do, has 10 000 look-ups
instead of 51 listings.

And where an option of the mount wants it:

| flag | option | for what |
|---|---|---|
| PASSTHROUGH | opens=passthrough | files are lent to the kernel: see `passthrough` |
| POSIX_LOCKS, FLOCK_LOCKS | locks | locks are taken below as well: see `locks` |
| WRITEBACK_CACHE | writes=back | what is written waits in the kernel, which knows sizes and times |
| OVER_IO_URING | uring | requests are taken where they are made: see `rings` |
"""

from __future__ import annotations

import re
from typing import Final

from sysroot_fs.fuse.kernel.abi import Init
from sysroot_fs.fuse.options import FileOptions

_ALWAYS: Final = (
    Init.ASYNC_READ
    | Init.ASYNC_DIO
    | Init.BIG_WRITES
    | Init.MAX_PAGES
    | Init.AUTO_INVAL_DATA
    | Init.DO_READDIRPLUS
    | Init.PARALLEL_DIROPS
    | Init.CACHE_SYMLINKS
    | Init.POSIX_ACL
    | Init.DONT_MASK
    | Init.SETXATTR_EXT
    | Init.HANDLE_KILLPRIV_V2
    | Init.ABORT_ERROR
    | Init.INIT_EXT
)
_FEW: Final = 8
"""More rings were never measured, and each has a thread that waits for the others."""
_POSSIBLE: Final = "/sys/devices/system/cpu/possible"


def processors() -> int:
    """How many the kernel counts on, those included that may come later: so many rings it wants.

    Raises OSError where it does not say: with fewer rings it would hold all requests back.
    """
    with open(_POSSIBLE, encoding="ascii") as file:
        return int(re.split("[-,]", file.read().strip())[-1]) + 1


def _are_few() -> bool:
    try:
        return processors() <= _FEW
    except OSError:
        return False


def wanted(options: FileOptions) -> Init:
    """The flags to ask for."""
    flags = _ALWAYS
    if options.opens == "passthrough":
        flags |= Init.PASSTHROUGH
    if options.writes == "back":
        flags |= Init.WRITEBACK_CACHE
    if options.locks:
        flags |= Init.POSIX_LOCKS | Init.FLOCK_LOCKS
    elif options.uring == "on" or (options.uring == "auto" and _are_few()):
        flags |= Init.OVER_IO_URING
    return flags
