"""A seed's calls: the same on every volume, but for what `left_out` says that one cannot do.

The names of a seed are few, so that calls meet; among them are always such as some volume takes
for one. What docs/LIMITS.md lists for a mount on ext4 is never asked for.
"""

from __future__ import annotations

import fcntl
import functools
import os
import random
import stat
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

from sidecar import escape, linux
from sidecar.naming import INDEX_FILE, token
from tests.children import code_of, in_child
from tests.matrix.parity.world import (
    DIRECTORY_TIMES,
    FOREIGN_LINKS,
    LINK_COUNTS,
    RECENT,
    REMOVED_FILES,
    Call,
)

__all__ = ["ANY_TARGETS", "EXCHANGE", "SPECIAL_BITS", "calls_of", "measured_lacks", "need_of"]

EXCHANGE: Final = "exchange"
SPECIAL_BITS: Final = "special-bits"
ANY_TARGETS: Final = "any-targets"
"""Needs that are not in `cases.NEEDS`: they are measured, as are those of `calls`."""

PICTURE_EVERY: Final = 100
"""Calls between two looks at everything that there is."""

_GROUPS: Final[Sequence[Sequence[bytes]]] = [
    [b"Foo", b"foo", b"FOO", b"fOO"],
    [b"Makefile", b"makefile", b"MAKEFILE"],
    ["café".encode(), "cafe\u0301".encode(), "CAFÉ".encode(), "CAFE\u0301".encode()],
    ["straße".encode(), b"strasse", b"STRASSE"],
    ["ſ".encode(), b"s", b"S"],
    ["\u212a".encode(), b"k", b"K"],
    ["σ".encode(), "ς".encode(), "Σ".encode()],
    ["Ω".encode(), "\u2126".encode(), "ω".encode()],
    ["한".encode(), "\u1112\u1161\u11ab".encode()],
    ["ﬁ".encode(), b"fi", b"FI"],
    ["İ".encode(), b"i", "i\u0307".encode(), "ı".encode(), b"I"],
    [b"\xff", b"\xc3", b"a\xc3b", b"A\xc3B"],
    [b"\xed\xa0\x80", b"\xed\xa0\x81"],
    [escape.encode(b"Foo"), b"Foo", b"foo", b".ef=", b".ef=zz", b".EF=466F6F"],
    [INDEX_FILE, INDEX_FILE + b".tmp", INDEX_FILE + b".lock", INDEX_FILE.upper()],
    [token(b"N" * 200), b".ef_", b".EF_0123456789ABCDEF", b"N" * 200, b"n" * 200],
    [b"N" * 255, b"n" * 255, b"x" * 126, b"X" * 126, b"x" * 125, b"X" * 125],
    ["é".encode() * 127, "É".encode() * 127, "e\u0301".encode() * 85],
    [b".fuse_hidden0000000100000001", b".ghost-ntfs-3g-00000000000000000001"],
    [b"a:b", b"a*b", b"A:B", b"con", b"CON", b"aux.txt", b"AUX.TXT"],
    [b"dot.", b"dot", b"Dot.", b"space ", b"space", b"SPACE "],
    [b"a\nb", b"a\\b", b'"', b"\x01", b"\x7f", b"|", b"A\\B"],
    [b"...", b".. ", b" ", b"~", b"-", b"FOO~1", b"foo~1"],
    ["\U00010428".encode(), "\U00010400".encode()],
]
_DIRECTORIES: Final = [b"d", b"D", b"e", b"Sub", b"sub", "é".encode(), "e\u0301".encode()]
_SLOTS: Final = ["one", "two", "three"]
_PLACES: Final = ["here", "there"]
_MODES: Final = [0o644, 0o600, 0o755, 0o700, 0o666, 0o400, 0o444, 0o000, 0o4755, 0o2755, 0o1777]
_OWNERS: Final = [0, 1000, 1000, 1001, -1]
_LARGE_ID: Final = (1 << 31) + 5
_SECONDS: Final = [1_000_000_000, 1_234_567_890, 1_400_000_000]
_NOW, _OMIT = (1 << 30) - 1, (1 << 30) - 2
_ODD_TIMES: Final = [(1_100_000_000, 123_456_700), (1_100_000_001, 0), (-86_400, 0), (0, 100)]

_NEEDS: Final = {
    "symlink": "symlinks",
    "link": "hard-links",
    "link_open": "hard-links",
    "mknod": "special-files",
    "chmod": "modes",
    "fchmod": "modes",
    "access": "modes",
    "chown": "owners",
    "fchown": "owners",
    "setxattr": "xattrs",
    "fsetxattr": "xattrs",
    "getxattr": "xattrs",
    "removexattr": "xattrs",
    "listxattr": "xattrs",
}
_WITH_MODE: Final = {"open": 4, "mkdir": 2, "mknod": 2, "chmod": 2, "fchmod": 1}
"""Calls that give permissions, and which argument these are."""

_FAR: Final = 1 << 21


def need_of(call: Call) -> frozenset[str]:
    """What a volume has to be able to do for a call, of `cases.NEEDS` and `EXCHANGE`."""
    needs = {_NEEDS[call.name]} if call.name in _NEEDS else set()
    if call.name == "renameat2" and call.args[-1] == linux.RENAME_EXCHANGE:
        needs.add(EXCHANGE)
    if call.name == "symlink" and not _is_text(call.args[0]):
        needs.add(ANY_TARGETS)
    if call.name in ("chown", "fchown") and max(a for a in call.args if type(a) is int) >= 1 << 31:
        needs.add("large-ids")
    if call.name == "utimens":
        seconds, fraction, seconds_2, fraction_2 = call.args[2]
        if {(seconds, fraction), (seconds_2, fraction_2)} & set(_ODD_TIMES):
            needs.add("fine-times")
        # Without times of access a volume has nothing to set the other one alone with.
        if _OMIT in call.args[2]:
            needs.add("atimes")
    if call.name in _WITH_MODE and call.args[_WITH_MODE[call.name]] & 0o7000:
        needs.add(SPECIAL_BITS)
    far = call.name in ("ftruncate", "truncate", "pwrite") and call.args[-1] >= _FAR
    if far:
        needs.add("sparse")
    return frozenset(needs)


def _is_text(target: bytes) -> bool:
    try:
        target.decode()
    except UnicodeDecodeError:
        return False
    return True


def measured_lacks(directory: Path) -> frozenset[str]:
    """What else the volume of *directory* cannot do; tried there without a mount."""
    # A volume that keeps removed files may not be done with one yet.
    with tempfile.TemporaryDirectory(dir=directory, ignore_cleanup_errors=True) as name:
        one, other, link = (os.fsencode(f"{name}/{last}") for last in ("one", "other", "link"))
        for path in (one, other):
            os.mknod(path, stat.S_IFREG | 0o7755)
        can = {
            SPECIAL_BITS: stat.S_IMODE(os.lstat(one).st_mode) == 0o7755,
            EXCHANGE: _works(
                linux.renameat2, linux.AT_FDCWD, one, linux.AT_FDCWD, other, linux.RENAME_EXCHANGE
            ),
            ANY_TARGETS: _works(os.symlink, b"\xff", link),
            "large-ids": _works(os.chown, one, _LARGE_ID, -1) and os.stat(one).st_uid == _LARGE_ID,
        }
        with open(one, "r+b") as file:
            os.utime(name, (_SECONDS[0], _SECONDS[0]))
            os.rename(one, link)
            can[DIRECTORY_TIMES] = os.stat(name).st_mtime > RECENT
            counts = [os.fstat(file.fileno()).st_nlink]
            os.unlink(link)
            file.truncate(1)
            counts.append(os.fstat(file.fileno()).st_nlink)
            can[LINK_COUNTS] = counts == [1, 0]
        can[REMOVED_FILES] = _gives_up_removed_files(name)
        can[FOREIGN_LINKS] = _links_foreign_files(name)
        return frozenset(need for need, works in can.items() if not works)


def _gives_up_removed_files(directory: str) -> bool:
    """Whether a directory can be removed in which a removed file was that is still open.

    The mount moves away what libfuse keeps of such a file.
    """
    inner = f"{directory}/inner"
    os.mkdir(inner)
    with open(f"{inner}/f", "xb"):
        os.unlink(f"{inner}/f")
        for kept in os.listdir(inner):
            if kept.startswith(".fuse_hidden"):
                os.rename(f"{inner}/{kept}", f"{directory}/{kept}")
        return _works(os.rmdir, inner)


def _links_foreign_files(directory: str) -> bool:
    """Whether a user may give a second name to a file of root's that he may write."""
    inner = f"{directory}/open"
    os.mkdir(inner)
    os.chmod(inner, 0o777)
    os.mknod(f"{inner}/f", stat.S_IFREG)
    os.chmod(f"{inner}/f", 0o666)
    fd = os.open(inner, os.O_PATH)
    try:
        link = functools.partial(os.link, "f", "g", src_dir_fd=fd, dst_dir_fd=fd)
        return in_child(lambda: code_of(link), uid=1000, gid=1000) == 0
    finally:
        os.close(fd)


def _works(function: Callable[..., object], *arguments: object) -> bool:
    try:
        function(*arguments)
    except OSError:
        return False
    return True


def calls_of(seed: int, count: int) -> list[Call]:
    """So many calls, and among them and at the end what there is (`picture`)."""
    return _Generator(seed).calls(count)


class _Generator:
    def __init__(self, seed: int) -> None:
        self.random = random.Random(f"parity {seed}")
        one = self.random
        groups = one.sample(_GROUPS, 3)
        self.names = [name for group in groups for name in one.sample(group, min(3, len(group)))]
        self.directories = one.sample(_DIRECTORIES, 3) + one.sample(self.names, 1)
        weighted: list[tuple[int, Callable[[], list[Call]]]] = [
            (10, self._open),
            (5, self._make_file),
            (2, self._close),
            (1, self._dup),
            (3, self._chdir),
            (2, self._where),
            (9, self._read),
            (10, self._write),
            (3, self._resize),
            (1, self._sync),
            (3, self._map),
            (2, self._copy),
            (8, self._mkdir),
            (3, self._rmdir),
            (6, self._unlink),
            (9, self._rename),
            (3, self._renameat2),
            (4, self._link),
            (2, self._symlink),
            (2, self._readlink),
            (2, self._mknod),
            (9, self._stat),
            (4, self._chmod),
            (2, self._chown),
            (3, self._utimens),
            (3, self._access),
            (5, self._xattr),
            (4, self._lock),
            (6, self._list),
            (1, self._rare),
        ]
        self._weights = [weight for weight, _ in weighted]
        self._makers = [maker for _, maker in weighted]

    def calls(self, count: int) -> list[Call]:
        made: list[Call] = []
        while len(made) < count:
            actor = "other" if self.random.random() < 0.15 else "root"
            for call in self.random.choices(self._makers, self._weights)[0]():
                made.append(call._replace(actor=actor))
                if len(made) % PICTURE_EVERY == 0:
                    made.append(self._one("picture"))
        return [*made[: count - 1], self._one("picture")]

    # --- what calls are about ----------------------------------------------------------------

    def _one(self, name: str, *args: object) -> Call:
        return Call("root", name, args)

    def _chance(self, share: float) -> bool:
        return self.random.random() < share

    def _name(self) -> bytes:
        return self.random.choice(self.names)

    def _path(self, last: bytes | None = None) -> bytes:
        """A path, mostly of few components and mostly well-formed."""
        one = self.random
        above = [one.choice(self.directories) for _ in range(one.choice((0, 0, 0, 0, 1, 1, 1, 2)))]
        if last is None:
            last = one.choice(self.directories) if self._chance(0.15) else self._name()
        path = b"/".join([*above, last])
        odd = one.random()
        if odd > 0.12:
            return path
        shapes: list[Callable[[], bytes]] = [
            lambda: path + b"/",
            lambda: path + b"//",
            lambda: path + b"/.",
            lambda: path + b"/..",
            lambda: b"/" + path,
            lambda: b"//" + path,
            lambda: b"./" + path,
            lambda: b"../" + path,
            lambda: one.choice(self.directories) + b"/../" + path,
            lambda: self._name() + b"/../" + path,
            lambda: path + b"/" + self._name(),
            lambda: b"".join(above) + b"q" * 256,
            lambda: b"".join(above) + b"q" * 255,
            lambda: b"d/" * 2050 + last,
            lambda: b"",
            lambda: b".",
            lambda: b"..",
            lambda: b"/",
        ]
        return one.choice(shapes)()

    def _directory(self) -> bytes:
        if self._chance(0.3):
            return b"."
        return self._path(self.random.choice(self.directories))

    def _slot(self) -> str:
        return self.random.choice(_SLOTS if self._chance(0.85) else _PLACES)

    def _at(self) -> str | None:
        if self._chance(0.25):
            return self.random.choice(_PLACES) if self._chance(0.9) else self._slot()
        return None

    def _data(self) -> bytes:
        size = self.random.choice((0, 1, 3, 10, 100, 1000, 4096, 5000, 70_000))
        return bytes([self.random.randrange(97, 123)]) * size

    def _size(self) -> int:
        return self.random.choice((0, 1, 5, 100, 4095, 4096, 4097, 20_000, 70_000, -1, _FAR))

    # --- calls -------------------------------------------------------------------------------

    def _open(self) -> list[Call]:
        one = self.random
        flags = one.choice((os.O_RDONLY, os.O_WRONLY, os.O_RDWR, os.O_RDWR))
        for flag, share in (
            (os.O_CREAT, 0.5),
            (os.O_EXCL, 0.15),
            (os.O_TRUNC, 0.15),
            (os.O_APPEND, 0.15),
            (os.O_DIRECTORY, 0.08),
            (os.O_NOFOLLOW, 0.1),
            (os.O_PATH, 0.08),
            (os.O_NOATIME, 0.03),
            (os.O_SYNC, 0.03),
        ):
            if self._chance(share):
                flags |= flag
        if self._chance(0.2):
            slot = self.random.choice(_PLACES)
            return [self._one("open", slot, self._at(), self._directory(), os.O_DIRECTORY, 0)]
        return [self._one("open", self._slot(), self._at(), self._path(), flags, self._mode())]

    def _make_file(self) -> list[Call]:
        slot, flags = self._slot(), os.O_CREAT | os.O_RDWR
        return [
            self._one("open", slot, None, self._path(), flags, 0o644),
            self._one("write", slot, self._data()),
        ]

    def _mode(self) -> int:
        return self.random.choice(_MODES[:5]) if self._chance(0.7) else self.random.choice(_MODES)

    def _close(self) -> list[Call]:
        return [self._one("close", self._slot())]

    def _dup(self) -> list[Call]:
        return [self._one("dup", self._slot(), self._slot())]

    def _chdir(self) -> list[Call]:
        if self._chance(0.4):
            return [self._one("chdir", b"/")]
        if self._chance(0.3):
            return [self._one("fchdir", self._slot())]
        return [self._one("chdir", self._directory())]

    def _where(self) -> list[Call]:
        if self._chance(0.4):
            return [self._one("getcwd")]
        return [self._one("descriptor_path", self._slot())]

    def _read(self) -> list[Call]:
        slot, size = self._slot(), self.random.choice((0, 1, 10, 5000, 100_000))
        offset = self.random.choice((0, 1, 100, 4096, 70_000, -1))
        return self.random.choice(
            [
                [self._one("read", slot, size)],
                [self._one("pread", slot, size, offset)],
                [self._one("readv", slot, (3, 0, 100, 5000))],
                [self._one("lseek", slot, offset, self.random.choice((0, 1, 2, 9)))],
                [self._one("lseek", slot, 0, 0), self._one("read", slot, size)],
            ]
        )

    def _write(self) -> list[Call]:
        slot = self._slot()
        offset = self.random.choice((0, 1, 100, 4096, 70_000, -1, _FAR))
        return self.random.choice(
            [
                [self._one("write", slot, self._data())],
                [self._one("pwrite", slot, self._data(), offset)],
                [self._one("writev", slot, (self._data(), b"", self._data()))],
                [self._one("write", slot, self._data()), self._one("fstat", slot)],
            ]
        )

    def _resize(self) -> list[Call]:
        if self._chance(0.5):
            return [self._one("ftruncate", self._slot(), self._size())]
        return [self._one("truncate", self._path(), self._size())]

    def _sync(self) -> list[Call]:
        return [self._one(self.random.choice(("fsync", "fdatasync")), self._slot())]

    def _map(self) -> list[Call]:
        return [self._one("map", self._slot(), self.random.randrange(10_000), self._data())]

    def _copy(self) -> list[Call]:
        source, target = self._slot(), self._slot()
        size, start, end = (self.random.choice((0, 1, 10, 4096, 6000)) for _ in range(3))
        if self._chance(0.5):
            return [self._one("sendfile", target, source, start, size)]
        return [self._one("copy_range", source, target, size, start, end)]

    def _mkdir(self) -> list[Call]:
        last = self.random.choice(self.directories) if self._chance(0.8) else self._name()
        mode = 0o755 if self._chance(0.7) else self._mode()
        return [self._one("mkdir", self._at(), self._path(last), mode)]

    def _rmdir(self) -> list[Call]:
        return [self._one("rmdir", self._at(), self._path(self.random.choice(self.directories)))]

    def _unlink(self) -> list[Call]:
        return [self._one("unlink", self._at(), self._path())]

    def _two_paths(self) -> tuple[str | None, bytes, str | None, bytes]:
        if self._chance(0.2):
            # Only the spelling changes.
            group = [n for n in self.names if n.lower() == self.names[0].lower()]
            group = group if len(group) > 1 else self.directories
            above = self._directory() + b"/" if self._chance(0.3) else b""
            return None, above + self.random.choice(group), None, above + self.random.choice(group)
        return self._at(), self._path(), self._at(), self._path()

    def _rename(self) -> list[Call]:
        return [self._one("rename", *self._two_paths())]

    def _renameat2(self) -> list[Call]:
        flags = self.random.choice((linux.RENAME_NOREPLACE, linux.RENAME_EXCHANGE))
        return [self._one("renameat2", *self._two_paths(), flags)]

    def _link(self) -> list[Call]:
        if self._chance(0.3):
            arguments = (self._slot(), self._at(), self._path(), self._chance(0.5))
            return [self._one("link_open", *arguments)]
        return [self._one("link", *self._two_paths(), self._chance(0.3))]

    def _symlink(self) -> list[Call]:
        target = self._path()
        if self._chance(0.1):
            target = self.random.choice((b"", b"\xff\xfe", b"x" * 4095, b"x" * 4096, b"/", b".."))
        if self._chance(0.1):
            name = self._name()
            return [self._one("symlink", name, None, name), self._one("stat", None, name, True)]
        return [self._one("symlink", target, self._at(), self._path())]

    def _readlink(self) -> list[Call]:
        return [self._one("readlink", self._at(), self._path())]

    def _mknod(self) -> list[Call]:
        kind, device = self.random.choice(
            [
                (stat.S_IFIFO, 0),
                (stat.S_IFSOCK, 0),
                (stat.S_IFREG, 0),
                (stat.S_IFCHR, os.makedev(1, 3)),
                (stat.S_IFBLK, os.makedev(240, 77)),
                (stat.S_IFDIR, 0),
            ]
        )
        return [self._one("mknod", self._at(), self._path(), kind | self._mode(), device)]

    def _stat(self) -> list[Call]:
        if self._chance(0.2):
            return [self._one("fstat", self._slot())]
        if self._chance(0.1):
            return [self._one("is_same", self._slot(), self._path())]
        return [self._one("stat", self._at(), self._path(), self._chance(0.5))]

    def _chmod(self) -> list[Call]:
        if self._chance(0.3):
            return [self._one("fchmod", self._slot(), self._mode())]
        if self._chance(0.1):
            return [self._one("umask", self.random.choice((0o022, 0o077, 0, 0o027)))]
        return [self._one("chmod", self._at(), self._path(), self._mode())]

    def _chown(self) -> list[Call]:
        uid, gid = self.random.choice(_OWNERS), self.random.choice(_OWNERS)
        if self._chance(0.1):
            uid = _LARGE_ID
        if self._chance(0.3):
            return [self._one("fchown", self._slot(), uid, gid)]
        return [self._one("chown", self._at(), self._path(), uid, gid, self._chance(0.5))]

    def _time(self) -> tuple[int, int]:
        if self._chance(0.3):
            return self.random.choice(((0, _NOW), (0, _OMIT)))
        if self._chance(0.15):
            return self.random.choice(_ODD_TIMES)
        return self.random.choice(_SECONDS), 0

    def _utimens(self) -> list[Call]:
        times = (*self._time(), *self._time())
        return [self._one("utimens", self._at(), self._path(), times, self._chance(0.6))]

    def _access(self) -> list[Call]:
        arguments = (self._at(), self._path(), self.random.choice((0, 1, 2, 4, 6, 7)))
        return [self._one("access", *arguments, self._chance(0.5))]

    def _xattr(self) -> list[Call]:
        one = self.random
        name = one.choice((b"user.a", b"user.a", b"user.b", b"user." + b"n" * 200, b"foo.bar"))
        value = bytes([one.randrange(65, 91)]) * one.choice((0, 1, 10, 100))
        path, follow = self._path(), self._chance(0.8)
        return one.choice(
            [
                [self._one("setxattr", path, name, value, one.choice((0, 0, 1, 2)), follow)],
                [self._one("setxattr", path, name, value, 0, follow)],
                [self._one("fsetxattr", self._slot(), name, value)],
                [self._one("getxattr", path, name, follow)],
                [
                    self._one("setxattr", path, name, value, 0, follow),
                    self._one("getxattr", path, name, follow),
                ],
                [
                    self._one("setxattr", path, name, value, 0, follow),
                    self._one("removexattr", path, one.choice((name, b"user.b")), follow),
                    self._one("listxattr", path, follow),
                ],
            ]
        )

    def _lock(self) -> list[Call]:
        one, slot = self.random, self._slot()
        operation = one.choice((fcntl.LOCK_SH, fcntl.LOCK_EX, fcntl.LOCK_EX, fcntl.LOCK_UN))
        length, start = one.choice(((0, 0), (10, 0), (10, 5), (1, 100)))
        return one.choice(
            [
                [self._one("flock", slot, operation)],
                [self._one("lockf", slot, operation, length, start)],
                [self._one("getlk", slot, one.choice((fcntl.F_RDLCK, fcntl.F_WRLCK)), start, 10)],
            ]
        )

    def _list(self) -> list[Call]:
        one, place = self.random, self._directory()
        size = one.choice((300, 300, 600, 4096, 32_768))
        changes = tuple(
            (one.choice(("make", "remove", "move")), self._name()) for _ in range(one.randrange(4))
        )
        return one.choice(
            [
                [self._one("list", self._at(), place, size)],
                [self._one("list_open", self._slot(), size)],
                [self._one("list_changing", place, 300, one.randrange(3), changes)],
                [self._one("list_from", place, 300, one.randrange(12))],
            ]
        )

    def _rare(self) -> list[Call]:
        return self.random.choice(
            [
                [self._one("statvfs", self._path())],
                [self._one("make_deep", self.random.choice((b"d", b"L" * 250)), 12)],
                [self._one("make_deep", b"l" * 250, 20), self._one("getcwd")],
                self._crowd(),
                self._crowd(),
            ]
        )

    def _crowd(self) -> list[Call]:
        one, path = self.random, self._path(self.random.choice(self.directories))
        kinds = ("make", "remove", "remove", "move")
        changes = tuple(
            (one.choice(kinds), b"%s-%d" % (one.choice((b"File", b"file")), one.randrange(12)))
            for _ in range(6)
        )
        return [
            self._one("fill", path, 10),
            self._one("list_changing", path, 300, one.randrange(3), changes),
            self._one("list_from", path, 300, one.randrange(20)),
        ]
