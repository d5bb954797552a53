"""Every directory of a tree with its entries, one after the other, read only.

The tree is a directory or a tar. A directory is walked by descriptor: one component at a time,
through no symlink, into no other mount, as deep as it goes, with one directory's names in memory
and a bounded number of descriptors. A tar is read once from front to back, so it may be a pipe;
its names are in memory until the end.

What cannot be read is yielded like anything else, with its error: one shut directory does not
end the walk. Not safe to be shared between threads.
"""

from __future__ import annotations

import errno
import lzma
import os
import stat
import tarfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from functools import partial
from tarfile import HeaderError
from typing import IO, Final, Self

from attrs import define, field, frozen

from sidecar import linux
from sidecar.naming import INDEX_FILE

__all__ = ["CONTENT_MAX", "Directory", "NotATar", "read_directory", "read_tar"]

CONTENT_MAX: Final = 64 << 20
"""An index file with more bytes than that is not looked into; all of an archive's together."""

OPEN_LEVELS: Final = 32
"""Directories above the present one that are kept open; beyond that the way is walked again."""

_OPEN: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_BATCH: Final = 1000

Tick = Callable[[int, int], None]
"""Called now and then with the directories and the names read so far."""


class NotATar(Exception):
    """What was given is no tar archive of a compression that this Python knows."""


@define(eq=False, slots=True)
class Directory:
    """One directory. `fd` is open until the next one is asked for; None in a tar.

    `entries` maps each stored name to whether it is a directory; `contents` holds the index file
    of a tar's. `error` says why nothing, or not everything, could be read; `mount` that it is
    another mount and was left alone. `peek` gives the entries of a directory below, by the stored
    names that lead to it, and raises OSError. `guests` and `passed_over` are the reader's to fill:
    the guest names of directories that are stored under another, and those not to be entered.
    """

    above: Directory | None
    name: bytes
    entries: dict[bytes, bool] = field(factory=dict)
    fd: int | None = None
    contents: dict[bytes, bytes] = field(factory=dict)
    error: OSError | None = None
    mount: bool = False
    guests: dict[bytes, bytes] = field(factory=dict)
    passed_over: set[bytes] = field(factory=set)
    peek: Callable[[Sequence[bytes]], dict[bytes, bool]] = field(default=lambda path: {})

    def stored_path(self) -> bytes:
        """Where it lies in the tree, by stored names; ``/`` is the root of the tree."""
        parts = []
        here = self
        while here.above is not None:
            parts.append(here.name)
            here = here.above
        return b"/" + b"/".join(reversed(parts))

    def guest_path(self) -> bytes:
        """The path that a guest has for it."""
        parts = []
        here = self
        while here.above is not None:
            parts.append(here.above.guests.get(here.name, here.name))
            here = here.above
        return b"/" + b"/".join(reversed(parts))


# --- a directory --------------------------------------------------------------------------------


@define(slots=True)
class _Level:
    directory: Directory
    fd: int | None
    pending: list[bytes]


def read_directory(root_fd: int, tick: Tick | None = None) -> Iterator[Directory]:
    """The directory behind *root_fd* (borrowed) and all below it, parents first, by name."""
    top = Directory(None, b"")
    levels = [_Level(top, os.open(b".", _OPEN, dir_fd=root_fd), [])]
    counts = _Counts(tick)
    try:
        yield _listed(top, levels[0], counts)
        top.entries = {}
        while levels:
            level = levels[-1]
            if not level.pending:
                _close(levels.pop())
                continue
            child = Directory(level.directory, level.pending.pop())
            if child.name in level.directory.passed_over:
                continue
            try:
                fd = _enter(_reopened(levels), child.name)
            except OSError as error:
                if error.errno == errno.EXDEV:
                    child.mount = True
                elif error.errno in _GONE:
                    continue
                else:
                    child.error = error
                yield child
                continue
            below = _Level(child, fd, [])
            levels.append(below)
            if len(levels) > OPEN_LEVELS:
                _close(levels[-OPEN_LEVELS])
            yield _listed(child, below, counts)
            child.fd = None
            child.entries = {}
    finally:
        for level in levels:
            _close(level)


# Removed or replaced since its parent was listed.
_GONE: Final = frozenset({errno.ENOENT, errno.ENOTDIR, errno.ELOOP})


def _enter(parent: int, name: bytes) -> int:
    return linux.openat2(
        parent, name, _OPEN, resolve=linux.RESOLVE_NO_XDEV | linux.RESOLVE_NO_SYMLINKS
    )


def _close(level: _Level) -> None:
    if level.fd is not None:
        os.close(level.fd)
        level.fd = None


def _reopened(levels: list[_Level]) -> int:
    """The descriptor of the deepest level, walked to again where it was closed meanwhile.

    ".." would not do: it leads elsewhere in a directory that was moved, and inode numbers, which
    could tell, are made up on some volumes.
    """
    wanted = levels[-1]
    if wanted.fd is not None:
        return wanted.fd
    here = os.dup(levels[0].fd) if levels[0].fd is not None else -1
    for number, level in enumerate(levels[1:], 1):
        try:
            deeper = _enter(here, level.directory.name)
        finally:
            os.close(here)
        here = deeper
        if number >= len(levels) - OPEN_LEVELS // 2 and level is not wanted and level.fd is None:
            level.fd = os.dup(here)
    wanted.fd = here
    return here


def _listed(directory: Directory, level: _Level, counts: _Counts) -> Directory:
    fd = directory.fd = level.fd
    assert fd is not None
    directory.peek = lambda path: _peek(fd, path)
    try:
        _list(fd, directory.entries)
    except OSError as error:
        directory.error = error
    level.pending = sorted((n for n, below in directory.entries.items() if below), reverse=True)
    counts.directory(len(directory.entries))
    return directory


def _list(fd: int, entries: dict[bytes, bool]) -> None:
    # A descriptor of its own: the position in it is shared, and one that lists is used up.
    reading = os.open(b".", _OPEN, dir_fd=fd)
    try:
        with os.scandir(reading) as found:
            for entry in found:
                entries[os.fsencode(entry.name)] = _is_directory(entry)
    finally:
        os.close(reading)


def _peek(fd: int, path: Sequence[bytes]) -> dict[bytes, bool]:
    here = os.dup(fd)
    try:
        for name in path:
            deeper = _enter(here, name)
            os.close(here)
            here = deeper
        entries: dict[bytes, bool] = {}
        _list(here, entries)
        return entries
    finally:
        os.close(here)


def _is_directory(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir(follow_symlinks=False)
    except OSError:
        # Listed and not to be looked at: entering it will say why.
        return True


@define(slots=True)
class _Counts:
    tick: Tick | None
    directories: int = 0
    names: int = 0

    def directory(self, names: int) -> None:
        self.directories += 1
        self.names += names
        self.tell()

    def tell(self) -> None:
        if self.tick is not None:
            self.tick(self.directories, self.names)


# --- a tar --------------------------------------------------------------------------------------


def read_tar(file: IO[bytes], tick: Tick | None = None) -> Iterator[Directory]:
    """The directories in the tar that *file* gives, compressed or not, parents first, by name.

    Raises `NotATar`. An archive that breaks off is read up to there, and the root has the error.
    """
    top = Directory(None, b"")
    below: dict[int, dict[bytes, Directory]] = {}
    counts = _Counts(tick)
    try:
        tar = tarfile.open(  # noqa: SIM115
            fileobj=_Finite(file),  # type: ignore[call-overload, unused-ignore]
            mode="r|*", encoding="utf-8", errors="surrogateescape", tarinfo=_Member,
        )  # fmt: skip
    except (
        tarfile.TarError, EOFError, zlib.error, lzma.LZMAError, ValueError, OverflowError,
    ) as error:  # fmt: skip
        raise NotATar(str(error)) from error
    room = CONTENT_MAX
    with tar:
        while True:
            try:
                member = tar.next()
                if member is None:
                    if not _Member.ended(tar):
                        raise tarfile.ReadError("it breaks off, or a header is spoilt")
                    break
                room -= _place(tar, member, top, below, room)
            except (
                tarfile.TarError, EOFError, zlib.error, lzma.LZMAError, OSError,
                ValueError, OverflowError,
            ) as error:  # fmt: skip
                # The last two are what tarfile lets through of numbers in extended headers.
                top.error = OSError(errno.EIO, f"the archive is damaged: {error}")
                break
            # A reading tarfile keeps every member that it has met.
            tar.members.clear()  # type: ignore[attr-defined, unused-ignore]
            counts.names += 1
            if not counts.names % _BATCH:
                counts.tell()
    counts.names = 0
    waiting = [top]
    while waiting:
        directory = waiting.pop()
        directory.peek = partial(_peek_in_tar, below, directory)
        yield directory
        children = below.pop(id(directory), {})
        waiting += [
            children[name]
            for name in sorted(children, reverse=True)
            if name not in directory.passed_over
        ]
        counts.directory(len(directory.entries))
        directory.entries = {}


def _peek_in_tar(
    below: dict[int, dict[bytes, Directory]], directory: Directory, path: Sequence[bytes]
) -> dict[bytes, bool]:
    for name in path:
        directory = below[id(directory)][name]
    return directory.entries


_ENDS: Final = 100


@define(slots=True)
class _Finite:
    """A file that says when it is read behind its end again and again: EOFError.

    tarfile skips a member by reading, and goes on for as many bytes as a header claims.
    """

    file: IO[bytes]
    _empty: int = field(default=0, init=False)

    def read(self, size: int) -> bytes:
        data = self.file.read(size)
        self._empty = 0 if data else self._empty + 1
        if self._empty > _ENDS:
            raise EOFError("a member is longer than the archive")
        return data


class _Member(tarfile.TarInfo):
    """Remembers how the reading of headers ended: tarfile takes a spoilt one for the end."""

    @classmethod
    def fromtarfile(cls, tarfile: tarfile.TarFile) -> Self:
        try:
            return super().fromtarfile(tarfile)
        except HeaderError as error:
            tarfile.ended_by = type(error).__name__  # type: ignore[attr-defined]
            raise

    @staticmethod
    def ended(tar: tarfile.TarFile) -> bool:
        """Whether the mark at the end of an archive was met."""
        return getattr(tar, "ended_by", "") == "EOFHeaderError"


def _place(
    tar: tarfile.TarFile,
    member: tarfile.TarInfo,
    top: Directory,
    below: dict[int, dict[bytes, Directory]],
    room: int,
) -> int:
    """Put a member, and the directories that lead to it, into the tree.

    Of index files not more than *room* bytes are kept; how many is what is returned.
    """
    path = member.name.encode("utf-8", "surrogateescape")
    parts = [part for part in path.split(b"/") if part not in (b"", b".")]
    if b".." in parts:
        top.error = top.error or OSError(errno.EINVAL, "the archive has a path with .. in it")
        return 0
    here = top
    kept = 0
    for number, name in enumerate(parts, 1):
        is_directory = number < len(parts) or member.isdir()
        here.entries[name] = is_directory or here.entries.get(name, False)
        if is_directory:
            known = below.setdefault(id(here), {})
            if name not in known:
                known[name] = Directory(here, name)
            here = known[name]
        elif name == INDEX_FILE and member.isreg() and member.size <= room:
            content = tar.extractfile(member)
            here.contents[name] = b"" if content is None else content.read()
            kept = len(here.contents[name])
    return kept


# --- one file -----------------------------------------------------------------------------------


@frozen(slots=True)
class Regular:
    """A regular file that was looked at through no link: what it is, and its bytes."""

    stat: os.stat_result
    data: bytes


def read_regular(dirfd: int, name: bytes) -> Regular | None:
    """The regular file *name*, None where there is none or it is too big. Raises OSError.

    Nothing else is opened: a FIFO would wait, and a device would do whatever devices do.
    """
    with suppress(FileNotFoundError):
        if not stat.S_ISREG(os.stat(name, dir_fd=dirfd, follow_symlinks=False).st_mode):
            return None
        flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        with open(os.open(name, flags, dir_fd=dirfd), "rb") as file:
            found = os.fstat(file.fileno())
            if stat.S_ISREG(found.st_mode) and found.st_size <= CONTENT_MAX:
                return Regular(found, file.read(CONTENT_MAX))
    return None
