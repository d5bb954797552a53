"""A directory's index file: the names that no escape can hold (`docs/CONTRACT.md` section 5).

`.elfuse_case_index` has a row `hex TAB token LF` for each. It is changed whole, under a lock that
all mounts share: what is read is the file before a change or after it. A malformed row makes the
directory answer EIO; it is never read as empty.
"""

from __future__ import annotations

import errno
import io
import logging
import os
import stat as stat_module
from contextlib import suppress
from typing import BinaryIO, Final

from sidecar import linux
from sidecar.look import attributes
from sidecar.naming import INDEX_FILE, INDEX_LOCK, INDEX_TEMPORARY, NAME_MAX, is_token

log = logging.getLogger(__name__)

ROW_BYTES: Final = 2 * NAME_MAX + 1 + 20 + 1
"""The longest row: a name in hex, a tab, a token, a line feed."""
LOCK_TIMEOUT: Final = 5.0
"""Seconds to wait for another mount that is naming something in the same directory."""


class DamagedIndex(OSError):
    """An index file has a malformed row: EIO, with the reason in the message."""

    def __init__(self, why: str) -> None:
        super().__init__(errno.EIO, why)


def parse_rows(data: bytes) -> dict[bytes, bytes]:
    """Guest name -> token, from the bytes of an index file; raises as `read_rows`."""
    return read_rows(io.BytesIO(data))


def read_rows(file: BinaryIO) -> dict[bytes, bytes]:
    """Guest name -> token, from an open index file.

    Raises `DamagedIndex` for anything that is not a row, at the first one: whoever can write to the
    directory can leave a file there that is larger than the memory. A last line without its line
    feed is damage as well: rows are written whole.
    """
    rows: dict[bytes, bytes] = {}
    number = 0
    while line := file.readline(ROW_BYTES + 1):
        number += 1
        if not line.endswith(b"\n") and len(line) <= ROW_BYTES:
            raise DamagedIndex("the last row is cut off")
        digits, tab, stored = line[:-1].partition(b"\t")
        try:
            name = bytes.fromhex(digits.decode("ascii"))
        except ValueError:
            name = b""
        legal = 0 < len(name) <= NAME_MAX and b"/" not in name and b"\0" not in name
        if not (tab and legal and len(digits) == 2 * len(name) and is_token(stored)):
            raise DamagedIndex(f"row {number} is malformed")
        if name in (b".", b".."):
            raise DamagedIndex(f"row {number} names a dot entry")
        rows[name] = stored
    return rows


def format_rows(rows: dict[bytes, bytes]) -> bytes:
    """The bytes of an index file with *rows*, in the order of the names."""
    lines = (b"%s\t%s\n" % (name.hex().encode(), rows[name]) for name in sorted(rows))
    return b"".join(lines)


def rows_in(dirfd: int) -> dict[bytes, bytes]:
    """The rows of the index file in the directory behind *dirfd*; none where it has no such file.

    Raises OSError as the volume does, `DamagedIndex` for what is no index file or holds no rows.
    """
    try:
        with open(_open(dirfd, INDEX_FILE, os.O_RDONLY), "rb") as file:
            return read_rows(file)
    except FileNotFoundError:
        return {}
    except DamagedIndex as damage:
        log.error("damaged index file: %s; its directory answers EIO", damage.strerror)
        raise


def change_rows(
    dirfd: int, add: tuple[bytes, bytes] | None = None, drop: bytes | None = None
) -> dict[bytes, bytes]:
    """Add the row *add* (guest name, token), or drop that of a guest name; the rows after it.

    The file goes with its last row. EBUSY where another mount is at it for `LOCK_TIMEOUT` seconds;
    otherwise raises as `rows_in` does.
    """
    lock_fd = _open(dirfd, INDEX_LOCK, os.O_RDWR | os.O_CREAT)
    try:
        with linux.same_file_lock(lock_fd, LOCK_TIMEOUT):
            rows = rows_in(dirfd)
            if add is not None:
                rows[add[0]] = add[1]
            if drop is not None:
                rows.pop(drop, None)
            if rows:
                _replace(dirfd, format_rows(rows))
            else:
                # Another mount may have dropped the last row already.
                with suppress(FileNotFoundError):
                    os.unlink(INDEX_FILE, dir_fd=dirfd)
    finally:
        os.close(lock_fd)
    return rows


def _replace(dirfd: int, data: bytes) -> None:
    fd = _new_temporary(dirfd)
    try:
        with open(fd, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.rename(INDEX_TEMPORARY, INDEX_FILE, src_dir_fd=dirfd, dst_dir_fd=dirfd)
    except BaseException:
        with suppress(OSError):
            os.unlink(INDEX_TEMPORARY, dir_fd=dirfd)
        raise


def _new_temporary(dirfd: int) -> int:
    """A new file to write the rows to, which is renamed to the index file.

    What lies there is removed and never written to: left by a killed process, or another name of
    a file elsewhere.
    """
    try:
        with suppress(FileNotFoundError):
            os.unlink(INDEX_TEMPORARY, dir_fd=dirfd)
        return _open(dirfd, INDEX_TEMPORARY, os.O_WRONLY | os.O_CREAT | os.O_EXCL)
    except (FileExistsError, IsADirectoryError, PermissionError) as failure:
        raise DamagedIndex(f"its temporary file: {failure.strerror}") from None


def _open(dirfd: int, name: bytes, flags: int) -> int:
    """Open the index file, or one beside it.

    Raises `DamagedIndex` where another writer has put something else in its place: a fifo would
    keep the server waiting, a device would act.
    """
    with suppress(FileNotFoundError):
        if not stat_module.S_ISREG(attributes(dirfd, name)[0].mode):
            raise DamagedIndex("it is no regular file")
    flags |= os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    try:
        fd = os.open(name, flags, 0o600, dir_fd=dirfd)
    except OSError as failure:
        if failure.errno in (errno.ELOOP, errno.ENXIO, errno.EISDIR):
            raise DamagedIndex("it is no regular file") from None
        raise
    try:
        # It may have come in between.
        if not stat_module.S_ISREG(os.fstat(fd).st_mode):
            raise DamagedIndex("it is no regular file")
    except BaseException:
        os.close(fd)
        raise
    return fd
