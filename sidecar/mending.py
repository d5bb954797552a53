"""Repair of what is certainly ours and certainly not needed.

Rows without objects are dropped; what a killed write or probe left is removed, and so are empty
index files. Each step looks again, under the directory's lock, before it changes anything: what
was found may be true no longer. Everything is relative to the directory's descriptor and follows
no symlink, and nothing is removed that is not recognised by its name, its age *and* what it holds.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from sidecar import escape, identity, index_file, linux
from sidecar.findings import Finding, Mend
from sidecar.index import DirectoryIndex
from sidecar.leftovers import (
    is_old,
    may_be_rows,
    remove_probe,
)
from sidecar.listings import read_regular
from sidecar.naming import INDEX_FILE, INDEX_LOCK, INDEX_TEMPORARY, Policy
from sidecar.volume import Traits

__all__ = ["Changed", "repair"]


class Changed(Exception):
    """It is not as it was found any more; the message says in what."""


def repair(
    dirfd: int, findings: Sequence[Finding], traits: Traits, now_ns: int
) -> Iterator[tuple[Finding, OSError | Changed | None]]:
    """Mend what is safe of the *findings* in the directory behind *dirfd*.

    Yields every finding that has a `mend`, and None where it is mended now, else what was in the
    way, which ends nothing.
    """
    index = DirectoryIndex(traits, Policy.NATURAL)
    rows = [finding for finding in findings if finding.mend is Mend.DROP_ROW]
    if rows:
        outcome = _tried(lambda: _drop_rows(dirfd, rows, index))
        for finding in rows:
            yield finding, outcome
    for finding in findings:
        if finding.mend is not None and finding.mend is not Mend.DROP_ROW:
            yield finding, _tried(_removal(finding, dirfd, index, now_ns))


def _tried(work: Callable[[], None]) -> OSError | Changed | None:
    try:
        work()
    except (OSError, Changed) as problem:
        return problem.with_traceback(None)
    return None


def _removal(
    finding: Finding, dirfd: int, index: DirectoryIndex, now_ns: int
) -> Callable[[], None]:
    if finding.mend is Mend.REMOVE_PROBE:
        return lambda: _remove_probe(dirfd, finding.names[0].stored, now_ns)
    if finding.mend is Mend.REMOVE_TEMPORARY:
        return lambda: _remove_file(dirfd, INDEX_TEMPORARY, index, now_ns)
    return lambda: _remove_file(dirfd, INDEX_FILE, index, now_ns)


def _drop_rows(dirfd: int, findings: Sequence[Finding], index: DirectoryIndex) -> None:
    # Whoever names something holds this lock from its row to its object.
    with index.lock(dirfd):
        file = read_regular(dirfd, INDEX_FILE)
        if file is None:
            raise Changed("there is no index file any more")
        index.scan(dirfd)
        gone = []
        for finding in findings:
            guest, token = finding.names[0].guest, finding.names[0].stored
            if index.rows.get(guest) != token:
                continue
            if _is_there(dirfd, token, index.names) or escape.encode(token) in index.names:
                raise Changed("a row has its object again")
            gone.append(guest)
        # The file is written anew, and belongs to whom it belonged: root must not shut users out.
        with identity.acting_as(file.stat.st_uid, file.stat.st_gid):
            index.drop_rows(dirfd, gone)


def _is_there(dirfd: int, name: bytes, names: set[bytes]) -> bool:
    # Only ENOENT says that it is not: a volume that answers anything else has not been asked.
    try:
        os.stat(name, dir_fd=dirfd, follow_symlinks=False)
    except FileNotFoundError:
        return name in names
    return True


def _remove_file(dirfd: int, name: bytes, index: DirectoryIndex, now_ns: int) -> None:
    """Remove an index file without rows, or the temporary one that nobody writes any more."""
    with index.lock(dirfd), _writers_locked_out(dirfd):
        file = read_regular(dirfd, name)
        if file is None or file.stat.st_nlink > 1 or not is_old(file.stat, now_ns):
            raise Changed("it is not as it was found any more")
        if file.data if name == INDEX_FILE else not may_be_rows(file.data, True):
            raise Changed("it holds something else now")
        os.unlink(name, dir_fd=dirfd)


@contextmanager
def _writers_locked_out(dirfd: int) -> Iterator[None]:
    """Hold the lock that rows are written under, where it was ever needed."""
    try:
        fd = os.open(INDEX_LOCK, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=dirfd)
    except FileNotFoundError:
        yield
        return
    try:
        with linux.same_file_lock(fd, index_file.LOCK_TIMEOUT):
            yield
    finally:
        os.close(fd)


def _remove_probe(dirfd: int, name: bytes, now_ns: int) -> None:
    if not remove_probe(dirfd, name, now_ns):
        raise Changed("it is not as it was found any more")
