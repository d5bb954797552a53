"""Fold keys: Unicode canonical caseless matching on names that are bytes."""

from __future__ import annotations

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sidecar.casefold import ascii_key, key

SAME = [
    ("ascii", "Makefile", "MAKEFILE"),
    ("final sigma", "σοφος", "ΣΟΦΟς"),
    ("ohm", "\u2126", "\u03c9"),
    ("composed", "caf\u00e9", "CAFE\u0301"),
    ("hangul", "\ud55c", unicodedata.normalize("NFD", "\ud55c")),
    ("eszett", "straße", "STRASSE"),
    ("ligature", "\ufb01", "FI"),
    ("deseret", "\U00010428", "\U00010400"),
    ("kelvin", "\u212a", "k"),
    ("marks in another order", "a\u0323\u0307", "A\u0307\u0323"),
    ("iota below folds to a letter", "\u1fb3", "\u0391\u0399"),
    ("dotted capital i", "\u0130", "i\u0307"),
]
DIFFERENT = [("dotless i", "\u0131", "i"), ("accent", "e\u0301", "e"), ("space", "a ", "a")]


@pytest.mark.parametrize(("left", "right"), [row[1:] for row in SAME], ids=[r[0] for r in SAME])
def test_spellings_of_one_name(left: str, right: str) -> None:
    """Case and canonical composition do not change the key."""
    assert key(left.encode()) == key(right.encode())


@pytest.mark.parametrize(
    ("left", "right"), [row[1:] for row in DIFFERENT], ids=[r[0] for r in DIFFERENT]
)
def test_different_names(left: str, right: str) -> None:
    """Names that differ in more than case and composition keep different keys."""
    assert key(left.encode()) != key(right.encode())


@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_key_is_a_fixed_point_of_canonical_caseless_matching(name: str) -> None:
    """The key is NFD(fold(NFD(name))), and the key of a key is itself."""

    def nfd(text: str) -> str:
        return unicodedata.normalize("NFD", text)

    folded = key(name.encode())
    assert folded == nfd(nfd(name).casefold()).encode()
    assert key(folded) == folded
    for form in ("NFC", "NFD"):
        again = unicodedata.normalize(form, name)  # type: ignore[arg-type, unused-ignore]
        assert key(again.encode()) == folded


@given(st.binary())
def test_ill_formed_names_are_their_own_keys(name: bytes) -> None:
    """Bytes that are not UTF-8 are compared as they are, capitals included."""
    assert key(b"A\xff" + name) == b"A\xff" + name


@given(st.binary())
def test_ascii_key(name: bytes) -> None:
    """The ASCII key changes A to Z only, byte by byte, ill-formed names included."""
    expected = bytes(byte + 32 if 65 <= byte <= 90 else byte for byte in name)
    assert ascii_key(name) == expected
