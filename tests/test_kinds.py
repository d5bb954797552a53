"""What kinds of volumes do to names is what real volumes of these kinds do."""

from __future__ import annotations

import os
from contextlib import suppress
from itertools import count
from typing import Final
from unicodedata import normalize

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from sidecar import upcase
from sidecar.kinds import KINDS, Kind, Refusal, is_device, is_harmless, own
from sidecar.volume import TRANSPARENT, Traits, probe
from tests.caseless import Volumes
from tests.pairs import PAIRS

FOLDING: Final = (
    ("zfs", "zfs"),
    ("zfs-formd", "zfs-formd"),
    ("exfat", "exfat"),
    ("lowntfs", "ntfs"),
    ("caseless", "apfs"),
)
"""A real volume that folds, and the kind that says how."""

REFUSING: Final = (
    ("zfs", "zfs"),
    ("zfs-formd", "zfs-formd"),
    ("exfat", "exfat"),
    ("ntfs-win", "ntfs"),
    ("caseless", "apfs"),
)
"""A real volume that refuses, and the kind that says what."""

LENIENT: Final = (b"COM\xc2\xb9", b"lpt\xc2\xb3.x", b"CONIN$", b"conout$", b"nul .txt")
"""Devices to Windows that ntfs-3g's windows_names lets pass."""

_serial = count()


def fresh(volumes: Volumes, which: str) -> bytes:
    """A new directory on a volume."""
    path = os.fsencode(volumes[which].path / f"d{next(_serial)}")
    os.mkdir(path)
    return path


def made(directory: bytes, name: bytes) -> bool:
    """Whether the volume makes a new file of this name."""
    with suppress(OSError):
        flags = os.O_CREAT | os.O_EXCL | os.O_WRONLY
        os.close(os.open(directory + b"/" + name, flags, 0o600))
        return True
    return False


# --- what collides ------------------------------------------------------------------------------


def agrees(directory: bytes, kind: Kind, one: bytes, other: bytes) -> bool:
    """Whether the volume takes two names for one exactly if their keys are equal."""
    assert made(directory, one)
    return made(directory, other) == (kind.key(one) != kind.key(other))


@pytest.mark.parametrize(("which", "name"), FOLDING)
def test_pairs_collide_as_predicted(volumes: Volumes, which: str, name: str) -> None:
    """A second name is refused as existing exactly if the kind has one key for both."""
    wrong = [
        (one, other)
        for one, other in PAIRS
        if not agrees(fresh(volumes, which), KINDS[name], one.encode(), other.encode())
    ]
    assert wrong == []


def cased() -> list[list[str]]:
    """Every character that has case, with its relatives, in one list."""
    relatives: dict[str, list[str]] = {}
    for code in (*range(1, 0xD800), *range(0xE000, 0x11000), *range(0x16E00, 0x1E950)):
        char = chr(code)
        forms = {char.upper(), char.lower(), char.title(), char.casefold()} - {char}
        if forms:
            relatives.setdefault(normalize("NFD", char).casefold(), []).append(char)
    return list(relatives.values())


@pytest.mark.parametrize(("which", "name"), FOLDING)
def test_every_character_with_case(volumes: Volumes, which: str, name: str) -> None:
    """Each character collides with those of its relatives that the kind's table says."""
    kind = KINDS[name]
    families = cased()
    assert len(families) > 1200
    wrong = []
    for first in range(0, len(families), 40):
        directory, keys = fresh(volumes, which), set[bytes]()
        for char in (char for family in families[first : first + 40] for char in family):
            stored = f"x{char}".encode()
            key = kind.key(stored)
            if made(directory, stored) != (key not in keys):
                wrong.append(char)
            keys.add(key)
    assert wrong == []


names = st.text(
    st.sampled_from("aAsSiIkK\u00e9\u00c9e\u0301\u00df\u017f\u0131\u03c3\u03c2\u03a3\u212a\u1e9b")
    | st.characters(min_codepoint=0xC0, max_codepoint=0x2AF, categories=["Ll", "Lu", "Lt"]),
    min_size=1,
    max_size=4,
)


@pytest.mark.parametrize(("which", "name"), FOLDING)
def test_any_two_names(volumes: Volumes, which: str, name: str) -> None:
    """Two names of letters that are near to one another collide exactly if the kind says so."""

    @settings(
        max_examples=40,
        deadline=None,
        database=None,
        suppress_health_check=[HealthCheck.too_slow],
    )
    @given(names, st.sampled_from(("swap", "NFC", "NFD", "upper", "lower")), names)
    @example("\u01c5", "lower", "")
    def check(one: str, how: str, tail: str) -> None:
        changed = {"swap": one.swapcase(), "upper": one.upper(), "lower": one.lower()}.get(how)
        other = (normalize(how, one) if changed is None else changed) + tail[1:]  # type: ignore[arg-type, unused-ignore]
        if one + tail[1:] != other:
            pair = (one + tail[1:]).encode(), other.encode()
            assert agrees(fresh(volumes, which), KINDS[name], *pair), pair

    check()


def test_a_case_sensitive_volume_folds_nothing(volumes: Volumes) -> None:
    """NTFS under Linux without ignore_case is no prediction of `ntfs`: the key is Windows'."""
    directory = fresh(volumes, "ntfs-win")
    assert made(directory, b"a") and made(directory, b"A")
    assert KINDS["ntfs"].key(b"a") == KINDS["ntfs"].key(b"A")


def test_ill_formed_names_fold_in_their_readable_parts_on_zfs(volumes: Volumes) -> None:
    """ZFS without utf8only folds what it can read of a name and compares the rest by bytes."""
    directory, key = fresh(volumes, "zfs"), KINDS["zfs"].key
    assert made(directory, b"A\xff") and not made(directory, b"a\xff") and made(directory, b"a\xfe")
    assert key(b"A\xff") == key(b"a\xff") != key(b"a\xfe")


@given(st.binary(max_size=20))
def test_policies(name: bytes) -> None:
    """The policies refuse nothing but length; `ascii` folds A to Z, `fold` what Unicode folds."""
    ascii_kind, fold = KINDS["ascii"], KINDS["fold"]
    assert ascii_kind.key(name) == name.lower()
    assert not ascii_kind.refusals(name) and not fold.refusals(name)
    assert fold.key(b"STRASSE") == fold.key("straße".encode())
    assert ascii_kind.key("É".encode()) != ascii_kind.key("é".encode())


# --- what is refused ----------------------------------------------------------------------------

REFUSED: Final = (
    *(b"x%cy" % byte for byte in b':*?"<>|\\\x01\x1f\x7f;,=+[]'),
    *(b"aux", b"nul.txt", b"CON", b"com1", b"com0", b"LPT9.x", b"prn ", b"nul.", b"auxiliary"),
    *(b"a.", b"a ", b"b. .", b"...", b" lead", b".dot", b"con.", b"x.con"),
    *(b"\xff", b"\xe9t\xe9", b"ab\xc3"),
    *(text.encode() for text in ("\U0001f600", "\u0378", "\ue000", "\u6f22", "\U0010ffff")),
)


@pytest.mark.parametrize(("which", "name"), REFUSING)
def test_refusals(volumes: Volumes, which: str, name: str) -> None:
    """A name can be made exactly if the kind has nothing against it."""
    kind = KINDS[name]
    wrong = [
        refused
        for refused in REFUSED
        if made(fresh(volumes, which), refused) != (not kind.refusals(refused))
    ]
    assert wrong == []


@pytest.mark.parametrize("name", LENIENT)
def test_windows_is_stricter_than_its_imitation(volumes: Volumes, name: bytes) -> None:
    """Superscript digits, consoles and a blank before the extension are devices to Windows only."""
    assert made(fresh(volumes, "ntfs-win"), name)
    assert KINDS["ntfs"].refusals(name) == {Refusal.DEVICE}


def test_doubts() -> None:
    """exFAT takes a device's name and a trailing dot, and other systems do not."""
    exfat = KINDS["exfat"]
    assert exfat.doubts(b"aux.c") == {Refusal.DEVICE}
    assert exfat.doubts(b"a.") == {Refusal.TRAILING}
    assert exfat.refusals(b"aux.c") == exfat.refusals(b"a.") == exfat.doubts(b"a.c") == frozenset()
    assert KINDS["zfs"].doubts(b"aux.c") == frozenset()


@pytest.mark.parametrize(
    "name", [b"console", b"com", b"com10", b"lpt0", b"nulx", b"a.nul", b"\xff"]
)
def test_no_devices(name: bytes) -> None:
    """Names that only look like devices are none."""
    assert not is_device(name)


@given(st.binary(min_size=1, max_size=255))
@example(b"aux.h")
@example(b"a.")
@example("\u026b".encode() * 100)
def test_what_is_harmless_is_so_for_all(name: bytes) -> None:
    """The quick answer never hides a refusal or a doubt."""
    if is_harmless(name):
        assert not any(kind.refusals(name) or kind.doubts(name) for kind in KINDS.values())


def test_most_names_are_harmless() -> None:
    """The quick answer is given for what programs are usually called."""
    assert all(map(is_harmless, (b"xt_CONNMARK.h", b"lib.so.6", b"[", b".bashrc", b"x" * 255)))


LENGTHS: Final = (
    *(("n", 255), ("n", 256), ("\u00e9", 85), ("\u00e9", 86), ("\u00e9", 127), ("\u00e9", 128)),
    *(("\u6f22", 85), ("\u6f22", 86), ("\u6f22", 255), ("\u0390", 42), ("\u0390", 43)),
    *(("\U0001f600", 63), ("\U0001f600", 64), ("\U0001f600", 127), ("\U0001f600", 128)),
    *(("\u026b", 85), ("\u026b", 86), ("\uac00", 42), ("\uac00", 43)),
)


@pytest.mark.parametrize(("which", "name"), REFUSING)
def test_lengths(volumes: Volumes, which: str, name: str) -> None:
    """A long name can be made exactly if the kind counts no more than its limit."""
    wrong = []
    for char, times in LENGTHS:
        stored = (char * times).encode()
        fits = KINDS[name].refusals(stored) == frozenset()
        if made(fresh(volumes, which), stored) != fits:
            wrong.append((char, times))
    assert wrong == []


# --- tables and traits --------------------------------------------------------------------------


@pytest.mark.parametrize("rows", [upcase.NTFS, upcase.EXFAT, upcase.ZFS])
def test_tables_are_idempotent_but_for_exfat(rows: str) -> None:
    """What was put into upper case stays; exFAT's own table is known to go round once."""
    table = upcase.table(rows)
    again = {code for code in table.values() if code in table}
    assert not again or rows is upcase.EXFAT
    assert all(table[ord(small)] == ord(small) - 32 for small in "abcxyz")


def test_own_follows_the_traits(volumes: Volumes) -> None:
    """The kind made of a volume's measured traits folds what that volume folds."""

    def traits(which: str) -> Traits:
        fd = os.open(volumes[which].path, os.O_RDONLY | os.O_DIRECTORY)
        try:
            return probe(fd)
        finally:
            os.close(fd)

    folding, plain = own(traits("zfs")), own(TRANSPARENT)
    assert folding.key(b"Foo") == folding.key(b"foo")
    assert plain.key(b"Foo") != plain.key(b"foo")
    assert not folding.refusals(b"plain name")
