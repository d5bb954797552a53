"""The on-disk escape: frozen vectors, and what must hold for every name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from sidecar import escape

VECTORS: dict[str, Any] = json.loads(
    (Path(__file__).parent / "vectors" / "escape.json").read_text("utf-8")
)
ROWS = [
    pytest.param(
        bytes.fromhex(row["guest_hex"]), bytes.fromhex(row["portable_stored_hex"]), id=row["label"]
    )
    for row in VECTORS["rows"]
]
ESCAPED = [row for row in ROWS if row.values[0] != row.values[1]]
LITERAL = [row for row in ROWS if row.values[0] == row.values[1]]
SYMBOLS = "".join(map(chr, range(0x4E00, 0x5E00)))


def legal(name: bytes) -> bool:
    return name not in (b".", b"..") and b"/" not in name and b"\0" not in name


octets = st.sampled_from([byte for byte in range(1, 256) if byte != ord("/")])
names = st.lists(octets, min_size=1, max_size=255).map(bytes).filter(legal)
long_names = st.lists(octets, min_size=126, max_size=255).map(bytes)

# Stored names in the neighbourhood of the format: right prefix, payload nearly or fully right.
nearly_stored = st.one_of(
    st.binary(max_size=40),
    st.text("0123456789abcdefABCDEF ", max_size=260).map(str.encode),
    st.text(SYMBOLS + "\u4dff\u5e00", max_size=180).map(str.encode),
    st.binary(max_size=130).map(lambda raw: raw.hex().encode()),
    st.tuples(st.integers(120, 260), st.text(SYMBOLS, min_size=80, max_size=175)).map(
        lambda pair: (chr(0x4E00 + pair[0]) + pair[1]).encode()
    ),
    long_names.map(lambda name: escape.encode(name)[len(escape.PREFIX) :]),
).map(lambda payload: escape.PREFIX + payload)


@pytest.mark.parametrize(("guest", "stored"), ESCAPED)
def test_vectors_encode(guest: bytes, stored: bytes) -> None:
    """Every frozen row that is escaped is written exactly so."""
    assert escape.encode(guest) == stored


@pytest.mark.parametrize(("guest", "stored"), ESCAPED)
def test_vectors_decode(guest: bytes, stored: bytes) -> None:
    """Every frozen stored name is read as its guest name."""
    assert escape.decode(stored) == guest
    assert escape.is_escape_shaped(stored)


@pytest.mark.parametrize(("guest", "stored"), LITERAL)
def test_vectors_literal(guest: bytes, stored: bytes) -> None:
    """A row stored literally is not read as anything else."""
    assert escape.decode(stored) is None
    assert escape.decode(escape.encode(guest)) == guest


@pytest.mark.parametrize(
    "stored", [bytes.fromhex(stored) for stored in VECTORS["means_itself_hex"]]
)
def test_vectors_that_mean_themselves(stored: bytes) -> None:
    """What merely looks like an escape decodes to nothing."""
    assert escape.decode(stored) is None
    assert not escape.is_escape_shaped(stored)


@given(names)
@example(b"n" * 125)
@example(b"n" * 126)
@example(b"n" * 127)
@example(b"\xff" * 255)
def test_decode_inverts_encode(name: bytes) -> None:
    """Every legal name comes back from its escape."""
    assert escape.decode(escape.encode(name)) == name


@given(nearly_stored)
def test_only_canonical_decodes(stored: bytes) -> None:
    """A stored name that decodes is the very name that encoding gives, legal for a guest."""
    name = escape.decode(stored)
    if name is not None:
        assert 0 < len(name) <= 255
        assert legal(name)
        assert escape.encode(name) == stored


@given(names)
def test_output_is_legal_everywhere(name: bytes) -> None:
    """An escape holds only lower-case hex or caseless ideographs and fits 255 UTF-16 units."""
    text = escape.encode(name).decode("utf-8")
    assert text.startswith(".ef=")
    assert set(text[4:]) <= set("0123456789abcdef") or set(text[4:]) <= set(SYMBOLS)
    assert len(text.encode("utf-16-le")) // 2 <= 255
    assert text.casefold() == text


def test_symbols_survive_every_normalisation() -> None:
    """No volume can fold or decompose a symbol of the long tier."""
    from unicodedata import normalize

    for form in ("NFC", "NFD", "NFKC", "NFKD"):
        assert normalize(form, SYMBOLS) == SYMBOLS  # type: ignore[arg-type, unused-ignore]
    assert SYMBOLS.casefold() == SYMBOLS == SYMBOLS.upper()


@given(names, st.data())
def test_a_flipped_padding_bit_is_refused(name: bytes, data: st.DataObject) -> None:
    """Non-zero padding in the last group is not canonical."""
    length = data.draw(st.integers(126, 255).filter(lambda n: n * 8 % 12))
    text = escape.encode((name * 255)[:length]).decode()
    assert escape.decode((text[:-1] + chr(ord(text[-1]) | 1)).encode()) is None


@pytest.mark.parametrize(
    "name", [b"", b".", b"..", b"a/b", b"/", b"a\0", b"n" * 256], ids=lambda name: repr(name[:4])
)
def test_illegal_guest_names(name: bytes) -> None:
    """A name that Linux does not have is a ValueError and is never decoded to either."""
    with pytest.raises(ValueError, match="not a file name"):
        escape.encode(name)
    assert escape.decode(escape.PREFIX + name.hex().encode()) is None


@given(names)
def test_encoded_length(name: bytes) -> None:
    """The length is known without encoding, in bytes and in UTF-16 units."""
    stored = escape.encode(name)
    assert escape.encoded_length(len(name), "bytes") == len(stored)
    assert escape.encoded_length(len(name), "utf16") == len(stored.decode().encode("utf-16-le")) / 2


@pytest.mark.parametrize("n", [0, -1, 256])
def test_encoded_length_of_no_name(n: int) -> None:
    """A length that no name has is a ValueError."""
    with pytest.raises(ValueError, match="no file name"):
        escape.encoded_length(n, "utf16")
