"""Which stored name a new guest name gets, and what a stored name may be taken for.

Two policies (`docs/CONTRACT.md` section 5). `natural` writes the literal name wherever the volume
gives it back byte for byte, and otherwise its escape; `portable` decides by the name alone, so
that several machines agree. Both read in the same way. Where neither the literal name nor the
escape fits the volume, the name gets a token and a row in the directory's index file.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from enum import Enum

from sidecar import casefold, escape
from sidecar.volume import Traits

NAME_MAX = 255
"""Longest guest name in bytes (Linux's NAME_MAX)."""

INDEX_FILE = b".elfuse_case_index"
INDEX_TEMPORARY = INDEX_FILE + b".tmp"
INDEX_LOCK = INDEX_FILE + b".lock"
HELPER_NAMES = frozenset({INDEX_FILE, INDEX_TEMPORARY, INDEX_LOCK})
"""The index file and the two names beside it, hidden where they serve."""

_TOKEN = re.compile(rb"\.ef_[0-9a-f]{16}\Z")


_LEFTOVER = re.compile(rb"\.fuse_hidden[0-9a-f]{16}\Z|\.ghost-ntfs-3g-[0-9]{20}\Z")


class Policy(Enum):
    """How new names are stored."""

    NATURAL = "natural"
    PORTABLE = "portable"


class Kind(Enum):
    """What a stored name is to its guest name."""

    LITERAL = "exact"
    ESCAPE = "escape"
    TOKEN = "row"
    FOLDED = "folded"
    """Another spelling that the fold policy takes for the same name."""


def needs_index(traits: Traits, policy: Policy) -> bool:
    """Whether stored names can differ from guest names there: no index is built otherwise."""
    return policy is Policy.PORTABLE or not traits.transparent


def is_token(stored: bytes) -> bool:
    """Whether *stored* has the shape of a token of the index file."""
    return _TOKEN.match(stored) is not None


def is_leftover(stored: bytes) -> bool:
    """Whether *stored* is how a FUSE volume keeps a file that was removed while it was open."""
    return _LEFTOVER.match(stored) is not None


def token(name: bytes, attempt: int = 0) -> bytes:
    """The token that two writers of *name* agree on; *attempt* > 0 after a collision."""
    # Imported here: it loads all of OpenSSL, and most volumes have no index.
    import hashlib

    salt = attempt.to_bytes(8, "little")
    return b".ef_" + hashlib.blake2b(name, digest_size=8, salt=salt).hexdigest().encode()


def is_reserved(name: bytes) -> bool:
    """Whether *name* taken literally would mean something else on a volume with an index."""
    return (
        name in HELPER_NAMES or is_token(name) or is_leftover(name) or escape.is_escape_shaped(name)
    )


def fits(stored: bytes, traits: Traits) -> bool:
    """Whether *stored* is within the volume's length limit, in the limit's own unit."""
    if traits.name_unit == "bytes":
        return len(stored) <= traits.name_max
    text = stored.decode("utf-8", "replace")
    return len(text.encode("utf-16-le")) // 2 <= traits.name_max


def _comes_back(name: bytes, traits: Traits) -> bool:
    """Whether the volume is known to list *name* as it was written."""
    plain = name.isascii()
    if not plain:
        if not traits.non_ascii or traits.normalises == "stores" or not traits.preserves_case:
            return False
        if not traits.ill_formed:
            try:
                name.decode("utf-8")
            except UnicodeDecodeError:
                return False
    elif not traits.preserves_case and name != name.lower():
        return False
    if any(byte in traits.refused for byte in name):
        return False
    if not traits.trailing_dot_space and name[-1:] in (b".", b" "):
        return False
    return fits(name, traits)


def may_be_literal(name: bytes, traits: Traits, policy: Policy) -> bool:
    """Whether the policy lets *name* be stored as it is on such a volume."""
    if policy is Policy.PORTABLE and (
        not name.isascii() or any(0x41 <= byte <= 0x5A for byte in name)
    ):
        return False
    if policy is Policy.PORTABLE and traits.name_unit == "utf16" and name in HELPER_NAMES:
        # No index file serves there: the name is an ordinary one (frozen vector).
        return _comes_back(name, traits)
    # On a volume that folds, `.EF=41` would hold the slot of `.ef=41`.
    slot = casefold.key(name) if traits.needs_spelling else name
    return not is_reserved(slot) and _comes_back(name, traits)


def escape_fits(name: bytes, traits: Traits) -> bool:
    """Whether the escape of *name* is within the volume's length limit."""
    return escape.encoded_length(len(name), traits.name_unit) <= traits.name_max


def may_be_escaped(name: bytes, traits: Traits) -> bool:
    """Whether an entry can be there under the escape of *name*.

    The limit of a volume that could not be measured, being full or read-only, is a safe belief for
    new names; what is there may be longer.
    """
    return not traits.measured or escape_fits(name, traits)


def candidates(name: bytes, traits: Traits, policy: Policy) -> Iterator[tuple[Kind, bytes]]:
    """The stored names for a new guest *name*, in the order in which they are tried.

    The volume arbitrates by exclusive creation: EEXIST on the literal name means that its slot
    is held, and the next candidate is tried. A transparent volume has one candidate.
    """
    if not needs_index(traits, policy):
        yield Kind.LITERAL, name
        return
    if may_be_literal(name, traits, policy):
        yield Kind.LITERAL, name
    if escape_fits(name, traits):
        yield Kind.ESCAPE, escape.encode(name)
    else:
        for attempt in range(8):
            yield Kind.TOKEN, token(name, attempt)
