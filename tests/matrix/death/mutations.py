"""The mutations that death is to meet: what has to be there, and the calls, one a step.

A mutation's `act` is a generator that yields after each call, so that whoever runs it knows how
far it has come. The tree is always as it was after one of the steps, or `Mutation.between` says
why not; run again from the start, an act that was cut off comes to the same end.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Final

import attrs

from sidecar import linux

__all__ = ["MUTATIONS", "Mutation", "Tree", "look", "unavailable"]

LONG: Final = "l" * 200
"""Too long for its escape on a volume of 255 bytes: another spelling of it needs the index file."""

_DATE_NS: Final = 1_200_000_000 * 1_000_000_000

Act = Callable[[Path], Iterator[None]]


@attrs.frozen
class Mutation:
    """Calls on names below a directory that `prepare` has filled; `needs` is of `cases.NEEDS`.

    Where `stays`, an error may be told of what is done: the volume was asked for the attributes
    after it had changed them (docs/LIMITS.md).
    """

    name: str
    prepare: Callable[[Path], None]
    act: Act
    needs: frozenset[str] = frozenset()
    stays: bool = False


def _nothing(top: Path) -> None:
    """Nothing has to be there."""


def _files(*names: str) -> Callable[[Path], None]:
    """Files with their own names in them; those that end in a slash are directories."""

    def prepare(top: Path) -> None:
        for name in names:
            path = top / name
            if name.endswith("/"):
                path.mkdir(parents=True)
            else:
                path.write_text(f"content of {name}")

    return prepare


def _one(call: Callable[[Path], object]) -> Act:
    def act(top: Path) -> Iterator[None]:
        call(top)
        yield

    return act


def _make(name: str, flags: int) -> Act:
    def act(top: Path) -> Iterator[None]:
        fd = os.open(top / name, os.O_CREAT | os.O_WRONLY | flags, 0o640)
        os.close(fd)
        yield

    return act


def _moved(old: str, new: str, flags: int = 0) -> Act:
    def call(top: Path) -> None:
        if flags:
            at = linux.AT_FDCWD
            linux.renameat2(at, os.fsencode(top / old), at, os.fsencode(top / new), flags)
        else:
            os.rename(top / old, top / new)

    return _one(call)


def _emptied(*names: str) -> Callable[[Path], None]:
    """Directories in which colliding long names were, so that helper files may be left."""

    def prepare(top: Path) -> None:
        for name in names:
            (top / name).mkdir()
            for long in (LONG, LONG.upper()):
                (top / name / long).touch()
            for long in (LONG, LONG.upper()):
                (top / name / long).unlink()

    return prepare


def _all(*parts: Callable[[Path], None]) -> Callable[[Path], None]:
    def prepare(top: Path) -> None:
        for part in parts:
            part(top)

    return prepare


def _written(top: Path) -> Iterator[None]:
    fd = os.open(top / "Data", os.O_CREAT | os.O_TRUNC | os.O_WRONLY, 0o644)
    try:
        yield
        for part in (b"first" * 100, b"second" * 100):
            os.write(fd, part)
            yield
            os.fsync(fd)
            yield
    finally:
        os.close(fd)


def _saved(top: Path) -> Iterator[None]:
    fd = os.open(top / "Data.new", os.O_CREAT | os.O_TRUNC | os.O_WRONLY, 0o644)
    try:
        yield
        os.write(fd, b"new" * 100)
        yield
        os.fsync(fd)
        yield
    finally:
        os.close(fd)
    os.rename(top / "Data.new", top / "Data")
    yield
    fd = os.open(top, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
    yield


def _set(top: Path) -> Iterator[None]:
    os.chmod(top / "Data", 0o4751)
    yield
    os.utime(top / "Data", ns=(_DATE_NS, _DATE_NS))
    yield


def _given(top: Path) -> Iterator[None]:
    os.chown(top / "Data", 1234, 4321)
    yield


def _xattrs(top: Path) -> Iterator[None]:
    os.setxattr(top / "Data", "user.one", b"1")
    yield
    os.setxattr(top / "Data", "user.two", b"2")
    yield
    os.removexattr(top / "Data", "user.one")
    yield


_CHANGED_ATTRIBUTES: Final = ("truncate", "setattr", "chown")

MUTATIONS: Final = tuple(
    Mutation(name, prepare, act, frozenset(needs), stays=name in _CHANGED_ATTRIBUTES)
    for name, prepare, act, *needs in (
        ("create", _nothing, _make("Makefile", 0)),
        ("create-exclusive", _files("makefile"), _make("Makefile", os.O_EXCL)),
        ("create-long", _files(LONG), _make(LONG.upper(), os.O_EXCL)),
        ("create-row", _files(LONG, LONG.upper()), _make(LONG.title(), os.O_EXCL)),
        ("mkdir", _files("name"), _one(lambda top: os.mkdir(top / "Name", 0o750))),
        ("mkdir-long", _files(LONG), _one(lambda top: os.mkdir(top / LONG.upper(), 0o750))),
        (
            "mknod",
            _files("name"),
            _one(lambda top: os.mknod(top / "Name", stat.S_IFIFO | 0o640)),
            "special-files",
        ),
        (
            "symlink",
            _files("name"),
            _one(lambda top: os.symlink("where to", top / "Name")),
            "symlinks",
        ),
        (
            "link",
            _files("name"),
            _one(lambda top: os.link(top / "name", top / "Name")),
            "hard-links",
        ),
        ("unlink", _files("name", "Name"), _one(lambda top: os.unlink(top / "Name"))),
        ("unlink-literal", _files("name", "Name"), _one(lambda top: os.unlink(top / "name"))),
        (
            "unlink-long",
            _files(LONG, LONG.upper(), LONG.title()),
            _one(lambda top: os.unlink(top / LONG.upper())),
        ),
        (
            "unlink-last-row",
            _files(LONG, LONG.upper()),
            _one(lambda top: os.unlink(top / LONG.upper())),
        ),
        (
            "rmdir",
            _all(_files("name"), _emptied("Name")),
            _one(lambda top: os.rmdir(top / "Name")),
        ),
        ("rename", _files("name"), _moved("name", "Other")),
        ("rename-onto", _files("name", "Name", "onto", "Onto"), _moved("Name", "Onto")),
        ("rename-noreplace", _files("name"), _moved("name", "Other", linux.RENAME_NOREPLACE)),
        (
            "rename-exchange",
            _files("name", "Other/", "Other/inside"),
            _moved("name", "Other", linux.RENAME_EXCHANGE),
        ),
        ("rename-case", _files("name"), _moved("name", "NAME")),
        ("rename-case-of-a-directory", _files("name/", "name/inside"), _moved("name", "NAME")),
        ("rename-long", _files(LONG, LONG.upper()), _moved(LONG.upper(), LONG.title())),
        ("rename-long-case", _files(LONG), _moved(LONG, LONG.upper())),
        ("rename-from-long", _files(LONG, LONG.upper(), "onto"), _moved(LONG.upper(), "onto")),
        ("rename-onto-long", _files(LONG, LONG.upper(), "name"), _moved("name", LONG.upper())),
        (
            "rename-across",
            _files("one/", "One/", "one/name", "One/name", "One/Name"),
            _moved("one/name", "One/Name"),
        ),
        (
            "rename-long-across",
            _files("one/", "One/", f"one/{LONG}", f"one/{LONG.upper()}", f"One/{LONG}"),
            _moved(f"one/{LONG.upper()}", f"One/{LONG.upper()}"),
        ),
        (
            "rename-onto-a-directory",
            _all(_files("name/", "name/inside", "onto/"), _emptied("Onto")),
            _moved("name", "Onto"),
        ),
        ("write", _files("data"), _written),
        ("save", _files("data", "Data"), _saved),
        ("truncate", _files("Data"), _one(lambda top: os.truncate(top / "Data", 5))),
        ("setattr", _files("Data"), _set, "modes"),
        ("chown", _files("Data"), _given, "owners"),
        ("xattr", _files("Data"), _xattrs, "xattrs"),
    )
)

Tree = Mapping[str, tuple[object, ...]]
"""What is below a directory: path -> kind, mode, owner, links, and what else makes it up."""


def look(top: Path, xattrs: bool) -> Tree:
    """Everything below *top* as a guest sees it. AssertionError where a name is listed twice."""
    found: dict[str, tuple[object, ...]] = {}
    _look(top, "", found, xattrs)
    return found


def _look(top: Path, below: str, found: dict[str, tuple[object, ...]], xattrs: bool) -> None:
    names = os.listdir(top)
    assert len(set(names)) == len(names), f"{below or '.'} lists a name twice: {sorted(names)}"
    for name in names:
        path = top / name
        seen = path.lstat()
        what: object = None
        if stat.S_ISDIR(seen.st_mode):
            _look(path, f"{below}{name}/", found, xattrs)
        elif stat.S_ISLNK(seen.st_mode):
            what = os.readlink(path)
        elif stat.S_ISREG(seen.st_mode):
            what = path.read_bytes()
        more: tuple[object, ...] = ()
        if not stat.S_ISDIR(seen.st_mode):
            dated = seen.st_mtime_ns == _DATE_NS
            more = (seen.st_nlink, seen.st_size, "dated" if dated else "")
        if xattrs and stat.S_ISREG(seen.st_mode):
            kept = sorted(one for one in os.listxattr(path) if one.startswith("user."))
            more += tuple((one, os.getxattr(path, one)) for one in kept)
        owner = (seen.st_uid, seen.st_gid)
        found[below + name] = (oct(seen.st_mode), owner, what, *more)


def unavailable(error: OSError) -> bool:
    """Whether a call failed because the volume below has no such thing."""
    return error.errno in (errno.EINVAL, errno.EOPNOTSUPP, errno.ENOSYS, errno.EPERM)
