"""Fold keys: two names are spellings of one another exactly if their keys are equal.

Pure. `key` is Unicode's canonical caseless matching (The Unicode Standard, section 3.13,
definition D145): NFD, full case folding, NFD. A name that is not well-formed UTF-8 has no
characters to fold and is its own key. The tables are those of the running Python
(``unicodedata.unidata_version``), so keys are compared, never stored.
"""

from __future__ import annotations

from unicodedata import is_normalized, normalize

__all__ = ["ascii_key", "key"]


def key(name: bytes) -> bytes:
    """Return the canonical caseless key of a name; ill-formed UTF-8 is returned as it is."""
    if name.isascii():
        return name.lower()
    try:
        text = name.decode("utf-8")
    except UnicodeDecodeError:
        return name
    folded = normalize("NFD", text).casefold()
    # Folding decomposed text seldom leaves it out of order, and looking is cheaper than doing.
    if not is_normalized("NFD", folded):
        folded = normalize("NFD", folded)
    return folded.encode("utf-8")


def ascii_key(name: bytes) -> bytes:
    """Return the name with A to Z folded and every other byte left alone."""
    return name.lower()
