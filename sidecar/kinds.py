"""What each kind of volume would do to a name: predictions, as data.

Two names collide on a kind if `Kind.key` is equal for both; `Kind.refusals` says why a name cannot
be there at all. `sidecar.volume` measures the volume at hand; this says beforehand what another one
would do. `tests/test_kinds.py` holds every prediction against a real volume.

| kind | sources |
|---|---|
| exfat | Microsoft's exFAT specification: 7.2.5 up-case table, 7.7.3 invalid characters, 255 \
UTF-16 units; a dot at the end: `exfat_striptail_len` in Linux' fs/exfat/namei.c |
| ntfs | Microsoft's "Naming Files, Paths, and Namespaces" (characters, device names, trailing dot \
and space); `$UpCase` of the volume; measured with ntfs-3g's windows_names and ignore_case |
| apfs | Apple's APFS guide (case-insensitive, normalisation-preserving and -insensitive) and \
"Apple File System Reference" (hash of the decomposed, folded name; UTF-8 only); 255 UTF-16 units, \
which the shared escape format relies on; not measured: `tests/caseless` stands in |
| zfs | `casesensitivity=insensitive`: zfsprops(7); measured with zfs-fuse 0.7 |
| zfs-formd | the same with `normalization=formD`, as OpenZFS on macOS makes it; measured |
| fold, ascii | no volumes but this project's lookup policy (docs/CONTRACT.md section 6) |

`apfs` uses the Unicode tables of the running Python; APFS froze its own with Unicode 9.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from enum import Enum
from typing import Final, Literal
from unicodedata import normalize

from attrs import frozen

from sidecar import casefold, upcase
from sidecar.volume import Traits

__all__ = ["KINDS", "Kind", "Refusal", "is_device", "is_harmless", "own"]

CONTROL: Final = bytes(range(1, 32))


class Refusal(Enum):
    """Why a name cannot be on a kind of volume; the value is how people read it."""

    CHARACTER = "holds a character that is refused"
    DEVICE = "is the name of a device"
    TRAILING = "ends in a dot or a blank"
    ILL_FORMED = "is not UTF-8"
    TOO_LONG = "is too long"


def _exact(name: bytes) -> bytes:
    return name


def _ntfs(name: bytes) -> bytes:
    return upcase.upper(name, upcase.NTFS)


def _exfat(name: bytes) -> bytes:
    return upcase.upper(name, upcase.EXFAT)


def _zfs(name: bytes) -> bytes:
    return upcase.upper(name, upcase.ZFS)


def _zfs_formd(name: bytes) -> bytes:
    # In this order: u8_textprep_str() decomposes what it has put into upper case.
    return _decomposed(upcase.upper(name, upcase.ZFS))


def _decomposed(name: bytes) -> bytes:
    if name.isascii():
        return name
    text = name.decode("utf-8", "surrogateescape")
    return normalize("NFD", text).encode("utf-8", "surrogateescape")


# COM and LPT take the superscript digits of ISO 8859-1 as well, and any extension changes nothing.
_DEVICE: Final = re.compile(
    r"(?:con|prn|aux|nul|conin\$|conout\$|(?:com|lpt)[1-9\u00b9\u00b2\u00b3]) *(?:\..*)?\Z",
    re.IGNORECASE | re.DOTALL | re.ASCII,
)


def is_device(name: bytes) -> bool:
    """Whether Windows takes *name* for one of its devices, in any directory."""
    return _DEVICE.match(name.decode("utf-8", "surrogateescape")) is not None


_PLAIN: Final = re.compile(rb"[\w+,~@%#={}()\[\]!$&';^.-]{1,255}\Z").match
_DOUBTFUL: Final = re.compile(rb"(?i:con|prn|aux|nul|com|lpt)|.*\.\Z").match


def is_harmless(name: bytes) -> bool:
    """Whether no kind can have anything against *name*: true of nearly all, and quickly said."""
    return _PLAIN(name) is not None and _DOUBTFUL(name) is None


@frozen(kw_only=True)
class Kind:
    """One kind of volume, or one lookup policy.

    | field | meaning |
    |---|---|
    | label | how a sentence calls it |
    | key | names with equal keys are one entry there |
    | policy | it is no volume: guest names are what it compares, and it refuses nothing |
    | refused | the bytes that no name may hold |
    | windows | Windows' device names and trailing dots: "refused", "elsewhere" (taken, and lost \
or out of reach with other drivers) or "taken" |
    | ill_formed | it takes names that are not UTF-8 |
    | name_max, unit | the longest name; "key" counts the bytes of the name's key as well |
    """

    name: str
    label: str
    key: Callable[[bytes], bytes]
    policy: bool = False
    refused: bytes = b""
    windows: Literal["refused", "elsewhere", "taken"] = "taken"
    ill_formed: bool = True
    name_max: int = 255
    unit: Literal["bytes", "utf16", "key"] = "bytes"

    def length(self, name: bytes) -> int:
        """The length of *name* as the volume counts it."""
        if self.unit == "utf16":
            return len(name.decode("utf-8", "replace").encode("utf-16-le")) // 2
        # A volume that compares prepared names has room for no more than that in its buffer.
        return max(len(name), len(self.key(name))) if self.unit == "key" else len(name)

    def refusals(self, name: bytes) -> frozenset[Refusal]:
        """Why *name* cannot be there; nothing where it can."""
        found = set()
        if any(byte in self.refused for byte in name):
            found.add(Refusal.CHARACTER)
        if self.windows == "refused":
            found |= self._windows(name)
        if not self.ill_formed and not _is_utf8(name):
            found.add(Refusal.ILL_FORMED)
        if self.length(name) > self.name_max:
            found.add(Refusal.TOO_LONG)
        return frozenset(found)

    def doubts(self, name: bytes) -> frozenset[Refusal]:
        """What other drivers of such a volume have against a *name* that it takes."""
        return frozenset(self._windows(name) if self.windows == "elsewhere" else ())

    def _windows(self, name: bytes) -> set[Refusal]:
        found = set()
        if is_device(name):
            found.add(Refusal.DEVICE)
        if name[-1:] in (b".", b" "):
            found.add(Refusal.TRAILING)
        return found


def _is_utf8(name: bytes) -> bool:
    try:
        name.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True


def own(traits: Traits) -> Kind:
    """The volume with these traits, with folding that was not measured in detail taken widely.

    What is there, it has taken: nothing is said of what it refuses.
    """
    key = casefold.key if traits.folds else _decomposed if traits.needs_spelling else _exact
    return Kind(name="own", label="this volume", key=key)


_WINDOWS_CHARACTERS: Final = b':*?"<>|\\' + CONTROL

_ALL: Final = (
    Kind(
        name="exfat",
        label="exFAT",
        key=_exfat,
        refused=_WINDOWS_CHARACTERS,
        windows="elsewhere",
        ill_formed=False,
        unit="utf16",
    ),
    Kind(
        name="ntfs",
        label="NTFS",
        key=_ntfs,
        refused=_WINDOWS_CHARACTERS,
        windows="refused",
        ill_formed=False,
        unit="utf16",
    ),
    Kind(name="apfs", label="APFS", key=casefold.key, ill_formed=False, unit="utf16"),
    Kind(name="zfs", label="ZFS", key=_zfs, unit="key"),
    Kind(
        name="zfs-formd",
        label="ZFS formD",
        key=_zfs_formd,
        ill_formed=False,
        unit="key",
    ),
    Kind(name="ascii", label="ascii", key=casefold.ascii_key, policy=True),
    Kind(name="fold", label="fold", key=casefold.key, policy=True),
)

KINDS: Final = {kind.name: kind for kind in _ALL}
"""Every kind, by the name that the command line takes."""
