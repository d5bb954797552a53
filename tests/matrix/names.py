"""The scenarios of names: whatever the volume does to them, the guest has plain Linux names.

Each takes many names through their lives: made, refused a second time, listed, looked at, renamed
and removed, and what is spelled otherwise stays absent throughout.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from itertools import pairwise
from typing import Final

from sidecar import escape, linux
from tests.matrix.calls import Scenario, Where, told
from tests.pairs import PAIRS

__all__ = ["SCENARIOS"]

_EXCLUSIVE: Final = os.O_CREAT | os.O_EXCL | os.O_WRONLY


def make(path: bytes) -> int:
    """Make a file that holds its own path; the length of it."""
    fd = os.open(path, _EXCLUSIVE, 0o644)
    try:
        return os.write(fd, path)
    finally:
        os.close(fd)


def read(path: bytes) -> bytes:
    with open(path, "rb") as file:
        return file.read()


def listed(path: bytes = b".") -> list[bytes]:
    return sorted(os.listdir(path))


def rename_noreplace(old: bytes, new: bytes) -> None:
    linux.renameat2(linux.AT_FDCWD, old, linux.AT_FDCWD, new, linux.RENAME_NOREPLACE)


def _files(names: Sequence[bytes], where: Where) -> Iterator[str]:
    """Files of these names side by side, from their making to their removal."""
    for name in names:
        yield told(make, name)
        yield told(make, name)
    yield f"listed: {listed()}"
    os.mkdir(b"aside")
    for name in names:
        yield told(read, name)
        yield told(os.rename, name, b"aside/" + name)
        yield told(read, name)
    yield f"listed: {listed()}, aside: {listed(b'aside')}"
    for name in names:
        yield told(rename_noreplace, b"aside/" + name, name)
    for turn in (0, 1):
        for name in names[turn::2]:
            yield told(os.unlink, name)
        yield f"listed: {listed()}"


def _all(names: Sequence[bytes], where: Where) -> Iterator[str]:
    """Files and directories of these names, one of each name after the other."""
    yield from _files(names, where)
    for name in names:
        yield told(os.mkdir, name)
    for name in names[::2]:
        yield told(make, name + b"/" + name)
        yield told(listed, name)
        yield told(os.rmdir, name)
    for name in names[1::2]:
        yield told(make, name)
        yield told(os.rmdir, name)
        yield told(make, name)
        yield told(read, name)
    yield f"listed: {listed()}"
    for name in names[::2]:
        yield told(os.unlink, name + b"/" + name)
        yield told(os.rmdir, name)
    yield f"listed: {listed()}"


def _absent(pairs: Sequence[tuple[bytes, bytes]], where: Where) -> Iterator[str]:
    """Of two names one is there; whatever is done with the other finds nothing."""
    calls: tuple[Callable[[bytes], object], ...]
    calls = (os.lstat, read, os.unlink, os.rmdir, os.listdir, os.readlink)
    for number, (one, other) in enumerate(pairs):
        top = b"%d" % number
        os.mkdir(top)
        os.chdir(top)
        yield told(os.lstat, other)
        yield told(make, one)
        for call in calls:
            yield told(call, other)
        yield told(os.chmod, other, 0o600)
        yield told(os.truncate, other, 0)
        yield told(os.rename, other, b"x")
        yield told(make, other + b"/x")
        yield f"listed: {listed()}"
        # Renamed to the other, there and back, over it and with it there.
        yield told(os.rename, one, other)
        yield told(read, other)
        yield told(read, one)
        yield f"listed: {listed()}"
        yield told(make, one)
        yield told(rename_noreplace, one, other)
        yield told(os.rename, one, other)
        yield f"listed: {listed()}, {read(other)!r}"
        yield told(rename_noreplace, other, one)
        yield f"listed: {listed()}"
        os.mkdir(other)
        yield told(make, other + b"/" + one)
        yield told(os.rename, one, other)
        yield told(os.rename, other, one)
        yield f"listed: {listed()}, {listed(other)}"
        os.chdir(where.here)


def _links(pairs: Sequence[tuple[bytes, bytes]], where: Where) -> Iterator[str]:
    """Both names of a pair on one file, and as a symlink and its target."""
    for number, (one, other) in enumerate(pairs):
        top = b"%d" % number
        os.mkdir(top)
        os.chdir(top)
        make(one)
        yield told(os.link, one, other)
        yield f"one inode: {os.stat(one).st_ino == os.stat(other).st_ino}"
        yield f"links: {os.stat(one).st_nlink}, listed: {listed()}"
        os.unlink(one)
        yield told(os.symlink, other, one)
        yield told(os.readlink, one)
        yield told(read, one)
        yield f"links: {os.stat(one).st_nlink}, listed: {listed()}"
        os.chdir(where.here)


def _bytes(*names: str) -> list[bytes]:
    return [name.encode("utf-8", "surrogateescape") for name in names]


_SPELLINGS: Final = _bytes("Makefile", "makefile", "MAKEFILE", "mAKEFILE", "MakeFile")
_LETTERS: Final = _bytes(
    "\u03c3", "\u03c2", "\u03a3", "stra\u00dfe", "strasse", "STRASSE", "stra\u1e9ee", "\u00df",
    "\u1e9e", "ss", "SS", "\ufb01", "fi", "FI", "\ufb03", "ffi", "k", "K", "\u212a", "i", "I",
    "\u0131", "\u0130", "i\u0307", "\u2126", "\u03a9", "\u03c9", "\U00010400", "\U00010428",
    "\ud55c", "\u1112\u1161\u11ab", "\u1112\u1161", "\uac00", "caf\u00e9", "cafe\u0301",
    "CAF\u00c9", "CAFE\u0301", "\u00e5", "\u212b", "a\u030a", "\u1e69", "s\u0323\u0307",
    "s\u0307\u0323", "\U0001f600", "\u200b", "a\u200b", "\u202eabc", "\ufeff",
)  # fmt: skip
_ILL_FORMED: Final = [
    b"\xff", b"\xfe\xff", b"\xed\xa0\x80", b"\xed\xb0\x80", b"a\x80", b"A\x80", b"\xc3",
    b"\xc0\xaf", b"\xf4\x90\x80\x80", b"\xe2\x82", b"caf\xe9",
    b"CAF\xe9", b"caf\xc9", b"x\xffy", b"X\xffY",
]  # fmt: skip
_REFUSED: Final = _bytes(
    "a:b", 'a"b', "a*b", "a?b", "a<b", "a>b", "a|b", "a\\b", "A:B", "end.", "end ", "end", "END.",
    "end..", "...", ". ", " ", "  ", " start", "~", "~1", "LONGNA~1.TXT", "CON", "con", "aux",
    "AUX.txt", "nul", "com1", "LPT9.x", "COM\u00b9", "conin$", "desktop.ini", "Thumbs.db",
    ".DS_Store", "._x", "$MFT", "$mft", "System Volume Information", ".Trash", "lost+found",
)  # fmt: skip
_EVERY_BYTE: Final = [bytes([byte]) for byte in range(1, 256) if byte not in b"./"]
_QUOTED: Final = [
    b"new\nline",
    b"NEW\nLINE",
    b"tab\t",
    b"\x7f",
    b"a\x01b",
    b"-rf",
    b"*",
    b"'",
    b"\r",
]
_SHAPED: Final = [
    *(escape.encode(name) for name in (b"Foo", b"foo", b"a" * 60, b"\xff", b".ef=466f6f")),
    b"Foo", b"foo", b"FOO", b".ef=", b".EF=466f6f", b".ef=466F6F", b".ef=46", b".ef=zz", b".ef=2f",
    b".ef=00", b".ef=2e", b".ef=2e2e", b".ef_0123456789abcdef", b".EF_0123456789abcdef",
    b".ef_0123456789abcde", b".elfuse_case_index", b".elfuse_case_index.tmp",
    b".elfuse_case_index.lock", b".ELFUSE_CASE_INDEX", b".fuse_hidden0000000100000001", b".ciopfs",
    b".sysroot-fs-probe-x", b".ghost-ntfs-3g-00000000000000000001",
]  # fmt: skip


def _long(lengths: Iterable[int], letters: Sequence[bytes]) -> list[bytes]:
    """Names of these lengths in bytes, each of one of the *letters*, filled up with dashes."""
    names = [
        letter * (length // len(letter)) + b"-" * (length % len(letter))
        for length in lengths
        for letter in letters
    ]
    return list(dict.fromkeys(names))


_ASCII: Final = (b"a", b"A")
_ACCENTS: Final = ("\u00e9".encode(), "\u00c9".encode())
_EDGES: Final = (60, 61, 62, 63, 64, 84, 85, 124, 125, 126, 127, 128, 252, 253, 254, 255, 256)
_STEPS: Final = (1, 43, 86, 129, 172, 215, 257)

_FOLDED: Final = [(one.encode(), other.encode()) for one, other in PAIRS]
_IOTAS: Final = (("\u1fb3".encode(), "\u03b1\u0345".encode()),)

_LISTS: Final = {
    "spellings": _SPELLINGS,
    "letters": _LETTERS,
    "ill-formed": _ILL_FORMED,
    "refused-by-windows": _REFUSED,
    "quoted": _QUOTED,
    "shaped-like-stored-names": _SHAPED,
    "long-and-colliding": _long(_EDGES, (b"n", b"N", b"nN", *_ACCENTS, b"\xff")),
    "long-and-wide": _long(_EDGES, _bytes("\u65e5", "\ud55c", "\U00010400", "\U00010428")),
}
_LENGTHS: Final = {
    f"{what}-of-{start}-to-{stop - 1}-bytes": _long(range(start, stop), letters)
    for start, stop in pairwise(_STEPS)
    for what, letters in (("ascii", _ASCII), ("accents", _ACCENTS))
}
_PAIRS: Final = {
    "fold": [pair for pair in _FOLDED if pair not in _IOTAS],
    "iotas": list(_IOTAS),
    "case": [
        (b"abc", b"ABC"),
        (b"Foo", b"fOO"),
        (b"a" * 126, b"A" * 126),
        (b"q" * 255, b"Q" * 255),
    ],
    "shapes": [(b"Foo", b".ef=466f6f"), (b".ef=466f6f", b".EF=466f6f"), (b"end", b"end.")],
}

_NEEDS: Final = {"iotas": frozenset({"iota-subscripts"})}

SCENARIOS: Final = (
    *(Scenario(name, partial(_all, names)) for name, names in _LISTS.items()),
    Scenario("every-byte", partial(_files, _EVERY_BYTE)),
    *(Scenario(name, partial(_files, names)) for name, names in _LENGTHS.items()),
    *(
        Scenario(f"pairs-{name}", partial(_absent, pairs), _NEEDS.get(name, frozenset()))
        for name, pairs in _PAIRS.items()
    ),
    *(
        Scenario(f"links-{name}", partial(_links, pairs), frozenset({"symlinks", "hard-links"}))
        for name, pairs in _PAIRS.items()
    ),
)
