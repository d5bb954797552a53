"""A directory's index file: the names that no escape can hold (`docs/CONTRACT.md` section 5).

`.elfuse_case_index` has a row `hex TAB token LF` for each. It is changed whole, under a lock that
all mounts share: what is read is the file before a change or after it. A malformed row makes the
directory answer EIO; it is never read as empty.
"""

from __future__ import annotations

import errno
import logging
import os
import stat as stat_module
from contextlib import suppress
from typing import Final

from sidecar import linux
from sidecar.look import attributes
from sidecar.naming import INDEX_FILE, INDEX_LOCK, INDEX_TEMPORARY, is_token

log = logging.getLogger(__name__)

LOCK_TIMEOUT: Final = 5.0
"""Seconds to wait for another mount that is naming something in the same directory."""


class DamagedIndex(OSError):
    """An index file has a malformed row: EIO, with the reason in the message."""

    def __init__(self, why: str) -> None:
        super().__init__(errno.EIO, why)


def parse_rows(data: bytes) -> dict[bytes, bytes]:
    """Guest name -> token, from the bytes of an index file.

    Raises `DamagedIndex` for anything that is not a row. A last line without its line feed is
    damage as well: rows are written whole.
    """
    rows: dict[bytes, bytes] = {}
    if not data:
        return rows
    if not data.endswith(b"\n"):
        raise DamagedIndex("the last row is cut off")
    for number, line in enumerate(data[:-1].split(b"\n"), 1):
        digits, tab, stored = line.partition(b"\t")
        try:
            name = bytes.fromhex(digits.decode("ascii"))
        except ValueError:
            name = b""
        legal = 0 < len(name) <= 255 and b"/" not in name and b"\0" not in name
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
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    try:
        stat, _ = attributes(dirfd, INDEX_FILE)
        if not stat_module.S_ISREG(stat.mode):
            raise DamagedIndex("it is no regular file")
        with open(os.open(INDEX_FILE, flags, dir_fd=dirfd), "rb") as file:
            return parse_rows(file.read())
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
    flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
    lock_fd = os.open(INDEX_LOCK, flags, 0o600, dir_fd=dirfd)
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
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC
    fd = os.open(INDEX_TEMPORARY, flags, 0o600, dir_fd=dirfd)
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
