"""Which stored names a new guest name may get, by policy and by what the volume does."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Final

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sidecar import escape
from sidecar.naming import (
    HELPER_NAMES,
    INDEX_FILE,
    INDEX_TEMPORARY,
    Kind,
    Policy,
    candidates,
    escape_fits,
    fits,
    is_reserved,
    is_token,
    may_be_literal,
    needs_index,
    token,
)
from sidecar.volume import CANDIDATES, TRANSPARENT, Traits

VECTORS: Final[dict[str, Any]] = json.loads(
    (Path(__file__).parent / "vectors" / "escape.json").read_text("utf-8")
)

names = st.binary(min_size=1, max_size=255).filter(
    lambda name: b"/" not in name and b"\0" not in name and name not in (b".", b"..")
)


def traits(**more: Any) -> Traits:
    """A Linux volume, but for what is given."""
    return attrs.evolve(TRANSPARENT, **more)


FOLDS: Final = traits(folds=True)
UTF16: Final = traits(folds=True, normalises="loose", ill_formed=False, name_unit="utf16")


def first(name: bytes, volume: Traits, policy: Policy = Policy.NATURAL) -> tuple[Kind, bytes]:
    """The stored name that is tried first."""
    return next(candidates(name, volume, policy))


def is_literal(name: bytes, volume: Traits) -> bool:
    """Whether `natural` tries the name itself first."""
    kind, stored = first(name, volume)
    assert stored == (name if kind is Kind.LITERAL else escape.encode(name))
    return kind is Kind.LITERAL


# --- transparent volumes ------------------------------------------------------------------------


@given(names)
def test_on_a_transparent_volume_the_name_is_the_stored_name(name: bytes) -> None:
    """Nothing is escaped and nothing reserved where every name comes back."""
    assert list(candidates(name, TRANSPARENT, Policy.NATURAL)) == [(Kind.LITERAL, name)]


def test_an_index_is_needed_where_stored_names_can_differ() -> None:
    """`portable` always needs one; `natural` where the volume is not transparent."""
    assert not needs_index(TRANSPARENT, Policy.NATURAL)
    assert needs_index(TRANSPARENT, Policy.PORTABLE)
    for change in (
        {"folds": True},
        {"normalises": "loose"},
        {"preserves_case": False},
        {"ill_formed": False},
        {"non_ascii": False},
        {"refused": b":"},
        {"trailing_dot_space": False},
        {"device_names": False},
        {"name_max": 143},
    ):
        assert needs_index(traits(**change), Policy.NATURAL), change


# --- natural ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [b"Makefile", b"makefile", "straße".encode(), b"a b", b".ef="])
def test_natural_tries_the_literal_name_and_then_its_escape(name: bytes) -> None:
    """The volume arbitrates: the literal name first, the escape if its slot is held."""
    for volume in (FOLDS, UTF16):
        assert list(candidates(name, volume, Policy.NATURAL)) == [
            (Kind.LITERAL, name),
            (Kind.ESCAPE, escape.encode(name)),
        ]


@pytest.mark.parametrize("byte", list(CANDIDATES))
def test_a_refused_byte_is_escaped(byte: int) -> None:
    """A name with a byte that the volume refuses is not tried literally."""
    volume = traits(refused=bytes([byte]))
    assert not is_literal(b"x%cy" % byte, volume)
    assert is_literal(b"xy", volume)


@pytest.mark.parametrize("name", [b"dot.", b"space ", b"..."])
def test_trailing_dots_and_spaces_are_escaped_where_they_are_cut(name: bytes) -> None:
    """A volume that cuts them would show another name."""
    assert not is_literal(name, traits(trailing_dot_space=False))
    assert is_literal(name, traits(folds=True))
    assert is_literal(b". in the middle", traits(trailing_dot_space=False))


def test_capitals_are_escaped_where_case_is_not_kept() -> None:
    """A volume that lists lower case only keeps names without capitals."""
    volume = traits(folds=True, preserves_case=False)
    assert not is_literal(b"Makefile", volume)
    assert is_literal(b"makefile", volume)
    assert not is_literal("é".encode(), volume), "what is a capital there is not known"


def test_what_is_not_utf8_is_escaped_where_it_is_refused() -> None:
    """Ill-formed UTF-8, surrogates and overlong forms included."""
    volume = traits(ill_formed=False)
    for name in (b"\xff", b"caf\xe9", b"\xed\xa0\x80", b"\xc0\xaf", b"\xf4\x90\x80\x80"):
        assert not is_literal(name, volume)
    assert is_literal("é".encode(), volume)


def test_non_ascii_is_escaped_where_it_does_not_come_back() -> None:
    """A volume that stores another form, or no such letters, gets the escape."""
    for volume in (traits(non_ascii=False), traits(normalises="stores")):
        assert not is_literal("é".encode(), volume)
        assert is_literal(b"e", volume)
    assert is_literal("é".encode(), traits(normalises="loose"))


@pytest.mark.parametrize(
    "name", [INDEX_FILE, INDEX_TEMPORARY, token(b"x"), escape.encode(b"x"), b".EF=41"]
)
def test_reserved_names_are_never_literal(name: bytes) -> None:
    """A name that would be read as another, or holds the slot of such a name, is escaped."""
    assert list(candidates(name, FOLDS, Policy.NATURAL)) == [(Kind.ESCAPE, escape.encode(name))]


def test_only_volumes_that_fold_reserve_other_spellings() -> None:
    """`.EF=41` means itself where its slot is its own."""
    assert is_literal(b".EF=41", traits(refused=b":"))


# --- lengths ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("volume", "length", "held"),
    [(FOLDS, 125, True), (FOLDS, 126, False), (FOLDS, 255, False), (UTF16, 255, True)],
)
def test_where_an_escape_fits(volume: Traits, length: int, held: bool) -> None:
    """A limit of 255 bytes holds escapes of 125 bytes, one of 255 UTF-16 units holds all."""
    name = b"n" * length
    assert escape_fits(name, volume) is held
    assert fits(escape.encode(name), volume) is held


def test_a_name_without_an_escape_gets_tokens() -> None:
    """After the literal name come tokens, all different and the same for every writer."""
    name = b"n" * 200
    tried = list(candidates(name, FOLDS, Policy.NATURAL))
    assert tried[0] == (Kind.LITERAL, name)
    assert {kind for kind, _ in tried[1:]} == {Kind.TOKEN}
    assert len({stored for _, stored in tried[1:]}) == len(tried) - 1 == 8
    assert tried == list(candidates(name, FOLDS, Policy.NATURAL))
    assert all(is_token(stored) for _, stored in tried[1:])


def test_a_name_is_measured_in_the_volumes_own_unit() -> None:
    """255 bytes of two-byte letters are 127 units; letters beyond the BMP count twice."""
    assert fits("é".encode() * 127, UTF16)
    assert not fits(b"n" * 256, UTF16)
    assert fits("\U0001f600".encode() * 127, traits(name_unit="utf16"))
    assert not fits("\U0001f600".encode() * 128, traits(name_unit="utf16"))
    short = traits(name_max=100)
    assert is_literal(b"n" * 100, short)
    kind, _ = first(b"n" * 101, short)
    assert kind is Kind.TOKEN


@given(names, st.integers(0, 7))
def test_tokens_have_their_shape(name: bytes, attempt: int) -> None:
    """A token is `.ef_` and 16 lower-case digits, and no escape."""
    stored = token(name, attempt)
    assert is_token(stored) and is_reserved(stored) and len(stored) == 20
    assert escape.decode(stored) is None


@pytest.mark.parametrize(
    "name",
    [
        b".ef_0123456789abcde",
        b".ef_0123456789abcdef0",
        b".ef_0123456789ABCDEF",
        b".ef_0123456789abcdef\n",
        b".ef_0123456789abcdeg",
        b"x.ef_0123456789abcdef",
    ],
)
def test_what_only_looks_like_a_token(name: bytes) -> None:
    """One digit more or fewer, a capital or a line feed is no token."""
    assert not is_token(name)


# --- portable -----------------------------------------------------------------------------------


@pytest.mark.parametrize("row", VECTORS["rows"], ids=lambda row: row["label"])
def test_the_frozen_names_of_the_portable_policy(row: dict[str, str]) -> None:
    """Each frozen name is stored as frozen, on a volume that counts UTF-16 units."""
    name = bytes.fromhex(row["guest_hex"])
    _, stored = first(name, UTF16, Policy.PORTABLE)
    assert stored == bytes.fromhex(row["portable_stored_hex"])


@given(names)
def test_portable_decides_by_the_name_alone(name: bytes) -> None:
    """Lower-case ASCII is literal, all else is escaped; what the volume folds changes nothing."""
    small = name.isascii() and name == name.lower() and not is_reserved(name)
    kinds = {
        first(name, volume, Policy.PORTABLE)[0] for volume in (UTF16, traits(name_unit="utf16"))
    }
    if name not in HELPER_NAMES:
        assert kinds == {Kind.LITERAL if small else Kind.ESCAPE}


@given(names, st.sampled_from(list(Policy)), st.sampled_from([TRANSPARENT, FOLDS, UTF16]))
def test_every_name_has_stored_names_that_mean_it(
    name: bytes, policy: Policy, volume: Traits
) -> None:
    """There is always a candidate, none comes twice, and each reads back as the name."""
    tried = list(candidates(name, volume, policy))
    assert tried and len(set(tried)) == len(tried)
    for kind, stored in tried:
        if kind is Kind.LITERAL:
            assert stored == name
            assert not needs_index(volume, policy) or may_be_literal(name, volume, policy)
        elif kind is Kind.ESCAPE:
            assert escape.decode(stored) == name
        else:
            assert is_token(stored)
