"""Guest name <-> escape: the spelling of a name that no volume can fold or refuse.

Pure and total: `encode` gives every legal Linux name one stored name made of lower-case
ASCII (and, for long names, of CJK ideographs that have no case and no decomposition), and
`decode` gives back exactly that name, or None for anything that `encode` never writes. The
format is on people's disks and is shared with elfuse; ``tests/vectors/escape.json``
freezes it, and a change there is a format migration.

After the prefix ``.ef=``, for a guest name of n bytes:

- n <= 125: the name in lower-case hex (4 + 2n units, at most 254);
- n >= 126: the symbol U+4E00+n, then the name's bits, most significant first, in groups
  of 12, each group g as U+4E00+g, the last one padded with zeros on the right. That keeps
  255 bytes within 176 UTF-16 units; in UTF-8 each symbol takes three bytes, so
  volumes that count bytes hold escapes of names up to 125 bytes only.
"""

from __future__ import annotations

import re
from typing import Final, Literal

__all__ = ["NAME_MAX", "PREFIX", "decode", "encode", "encoded_length", "is_escape_shaped"]

PREFIX: Final = b".ef="

NAME_MAX: Final = 255
"""The longest guest name, in bytes (Linux's NAME_MAX)."""

_HEX_MAX: Final = 125
_GROUP_BITS: Final = 12
_GROUP_COUNT: Final = 1 << _GROUP_BITS
_FIRST_SYMBOL: Final = 0x4E00

# bytes.fromhex() also takes capitals and white space, which are not canonical.
_is_hex: Final = re.compile(rb"(?:[0-9a-f]{2})+").fullmatch


def encode(name: bytes) -> bytes:
    """Return the escape of a guest name.

    Raises ValueError where Linux has no such name: empty, longer than 255 bytes, ``.``,
    ``..``, or containing ``/`` or NUL.
    """
    if not _is_legal(name):
        raise ValueError(f"not a file name: {name!r}")
    n = len(name)
    if n <= _HEX_MAX:
        return PREFIX + name.hex().encode("ascii")
    groups = _groups(n)
    bits = int.from_bytes(name, "big") << (groups * _GROUP_BITS - n * 8)
    symbols = [_FIRST_SYMBOL + n]
    symbols += [
        _FIRST_SYMBOL + (bits >> shift & (_GROUP_COUNT - 1))
        for shift in range((groups - 1) * _GROUP_BITS, -1, -_GROUP_BITS)
    ]
    return PREFIX + "".join(map(chr, symbols)).encode("utf-8")


def decode(stored: bytes) -> bytes | None:
    """Return the guest name that a stored name escapes, or None where it means itself.

    Only the exact output of `encode` decodes. Were a second spelling accepted, two entries
    of one directory could claim the same guest name.
    """
    if not stored.startswith(PREFIX):
        return None
    payload = stored[len(PREFIX) :]
    if _is_hex(payload):
        if len(payload) > 2 * _HEX_MAX:
            return None
        name = bytes.fromhex(payload.decode("ascii"))
    else:
        long_name = _decode_symbols(payload)
        if long_name is None:
            return None
        name = long_name
    return name if _is_legal(name) else None


def is_escape_shaped(name: bytes) -> bool:
    """Say whether a name, were it stored literally, would be read as another one.

    A guest name of this shape is always stored escaped.
    """
    return decode(name) is not None


def encoded_length(n: int, unit: Literal["bytes", "utf16"]) -> int:
    """Return the length of the escape of an n-byte guest name, in a volume's own unit.

    Raises ValueError for a length that no guest name has (under 1 or over 255).
    """
    if not 1 <= n <= NAME_MAX:
        raise ValueError(f"no file name has {n} bytes")
    if n <= _HEX_MAX:
        return len(PREFIX) + 2 * n
    symbols = 1 + _groups(n)
    return len(PREFIX) + (3 * symbols if unit == "bytes" else symbols)


def _groups(n: int) -> int:
    return -(-8 * n // _GROUP_BITS)


def _is_legal(name: bytes) -> bool:
    return (
        0 < len(name) <= NAME_MAX
        and name != b"."
        and name != b".."
        and b"/" not in name
        and b"\0" not in name
    )


def _decode_symbols(payload: bytes) -> bytes | None:
    try:
        symbols = [ord(char) - _FIRST_SYMBOL for char in payload.decode("utf-8")]
    except UnicodeDecodeError:
        return None
    if not symbols or not all(0 <= symbol < _GROUP_COUNT for symbol in symbols):
        return None
    n = symbols[0]
    if not _HEX_MAX < n <= NAME_MAX or len(symbols) != 1 + _groups(n):
        return None
    bits = 0
    for symbol in symbols[1:]:
        bits = bits << _GROUP_BITS | symbol
    padding = _groups(n) * _GROUP_BITS - n * 8
    if bits & ((1 << padding) - 1):
        return None
    return (bits >> padding).to_bytes(n, "big")
