"""The index of one directory under a fold key, on every kind of volume."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sidecar import casefold, index, volume
from sidecar.index import DirectoryIndex
from sidecar.naming import Kind, Policy
from sidecar.volume import TRANSPARENT
from tests.caseless import EVERY, Volumes
from tests.test_index import Room, create


@contextlib.contextmanager
def entered(path: Path, policy: Policy = Policy.NATURAL) -> Iterator[Room]:
    """A new directory and its index under the Unicode key."""
    path.mkdir()
    fd = os.open(path, os.O_PATH | os.O_DIRECTORY)
    try:
        yield Room(path, fd, DirectoryIndex(volume.probe(fd), policy, casefold.key))
    finally:
        os.close(fd)


@pytest.fixture(params=EVERY)
def room(request: pytest.FixtureRequest, volumes: Volumes, tmp_path: Path) -> Iterator[Room]:
    """A fresh directory on each kind of volume."""
    with entered(volumes[request.param].path / tmp_path.name.lower()) as opened:
        yield opened


@pytest.fixture
def plain(tmp_path: Path) -> Iterator[Room]:
    """A fresh directory on the machine's own disk."""
    with entered(tmp_path / "plain") as opened:
        yield opened


def spelled(room: Room, name: bytes) -> tuple[bytes, Kind] | None:
    """The guest's own spelling of what *name* means, and how it was found."""
    entry, _ = room.index.find(room.fd, name)
    return None if entry is None else (entry.guest, entry.kind)


@pytest.fixture
def scans(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """A list that grows by one whenever a directory is read."""
    counted: list[int] = []
    read = DirectoryIndex.scan

    def scan(self: DirectoryIndex, dirfd: int) -> None:
        counted.append(dirfd)
        read(self, dirfd)

    monkeypatch.setattr(DirectoryIndex, "scan", scan)
    return counted


# --- finding ------------------------------------------------------------------------------------


def test_another_spelling_means_the_entry(room: Room) -> None:
    """It is found by its own spelling too, and the guest's listing shows that one."""
    room.create(b"Name")
    entry = spelled(room, b"nAME")
    assert entry == (b"Name", Kind.FOLDED)
    found = spelled(room, b"Name")
    assert found is not None and found[0] == b"Name" and found[1] is not Kind.FOLDED
    assert room.guests() == [b"Name"]


def test_a_name_exists_once_in_all_spellings(room: Room) -> None:
    """A second one is refused before the volume is asked."""
    room.create("straße".encode())
    with pytest.raises(FileExistsError):
        room.create(b"STRASSE")


def test_an_escaped_name_is_found_in_other_spellings(room: Room) -> None:
    """Whatever makes the volume store another name: here a name that is escape-shaped."""
    room.create(b".ef=41")
    if room.index.encodes:
        assert room.disk() != [b".ef=41"]
    assert spelled(room, b".EF=41") == (b".ef=41", Kind.FOLDED)


def test_what_is_gone_is_gone_in_all_spellings(room: Room) -> None:
    """A removal that the index is told of."""
    stored = room.create(b"Name")
    assert spelled(room, b"NAME") is not None
    os.unlink(stored, dir_fd=room.fd)
    room.index.removed(room.fd, stored)
    assert spelled(room, b"NAME") is None and spelled(room, b"Name") is None


def test_what_went_away_behind_our_back_is_not_answered(room: Room) -> None:
    """Existence is asked of the volume, also while the index is believed."""
    stored = room.create(b"Name")
    assert spelled(room, b"NAME") is not None
    os.unlink(room.path / os.fsdecode(stored))
    assert spelled(room, b"NAME") is None


def test_two_of_one_key_are_reached_exactly_and_by_the_first(plain: Room) -> None:
    """The first in byte order has the other spellings; the next one when it has gone."""
    for spelling in ("name", "Name", "nAME"):
        (plain.path / spelling).touch()
    for name in (b"name", b"Name", b"nAME"):
        assert spelled(plain, name) == (name, Kind.LITERAL)
    assert spelled(plain, b"NAME") == (b"Name", Kind.FOLDED)
    os.unlink(plain.path / "Name")
    plain.index.removed(plain.fd, b"Name")
    assert spelled(plain, b"NAME") == (b"nAME", Kind.FOLDED)


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("straße", "STRASSE", True),
        ("ς", "Σ", True),
        ("σ", "ς", True),
        ("İ", "i", False),
        ("İ", "i\u0307", True),
        ("ı", "I", False),
        ("é", "E\u0301", True),
        ("ﬁ", "FI", True),
        ("K", "\u212a", True),
    ],
)
def test_what_counts_as_a_spelling(plain: Room, one: str, other: str, same: bool) -> None:
    """Full canonical folding of both, and no locale's."""
    (plain.path / one).touch()
    assert (spelled(plain, other.encode()) is not None) is same


def test_ill_formed_names_have_one_spelling(plain: Room) -> None:
    """What is no UTF-8 compares by bytes."""
    plain.create(b"A\xff")
    assert spelled(plain, b"a\xff") is None
    plain.create(b"a\xff")
    assert plain.disk() == [b"A\xff", b"a\xff"]


def test_the_ascii_key_folds_a_to_z_only(tmp_path: Path) -> None:
    """Every other byte is itself."""
    with entered(tmp_path / "ascii") as room:
        room.index.key = casefold.ascii_key
        room.create("É".encode())
        room.create("é".encode())
        room.create(b"K")
        assert spelled(room, b"k") == (b"K", Kind.FOLDED)
        assert spelled(room, "\u212a".encode()) is None
        assert len(room.disk()) == 3


# --- what it costs ------------------------------------------------------------------------------


def test_a_cold_directory_is_read_once(plain: Room, scans: list[int]) -> None:
    """However many names are asked for."""
    for number in range(200):
        (plain.path / f"Name{number}").touch()
    os.utime(plain.path, (1000, 1000))
    for number in range(200):
        assert spelled(plain, b"NAME%d" % number) is not None
        assert spelled(plain, b"missing%d" % number) is None
    # Its ctime is young: it may be read once more for each second that this takes.
    assert len(scans) <= 2


def test_a_miss_asks_the_volume_for_nothing(plain: Room, monkeypatch: pytest.MonkeyPatch) -> None:
    """As long as the index is believed."""
    (plain.path / "Name").touch()
    assert spelled(plain, b"missing") is None
    monkeypatch.setattr(index, "BELIEF_NS", 3_600_000_000_000)
    plain.index.doubt()
    assert spelled(plain, b"missing") is None

    # Without the module of system calls every call fails.
    monkeypatch.setattr(index, "os", None)
    monkeypatch.setattr(index, "look", None)
    for number in range(10):
        assert plain.index.find(plain.fd, b"missing%d" % number) == (None, False)


def test_belief_ends_by_itself_and_by_doubt(plain: Room) -> None:
    """A name that came from outside is found within the time, or at once if it matters."""
    assert spelled(plain, b"NAME") is None
    time.sleep(0.02)  # or the volume's clock might not have moved since the scan
    assert spelled(plain, b"NAME") is None
    (plain.path / "Name").touch()
    plain.index.doubt()
    assert spelled(plain, b"NAME") == (b"Name", Kind.FOLDED)
    (plain.path / "Other").touch()
    time.sleep(2 * index.BELIEF_NS / 1e9)
    assert spelled(plain, b"OTHER") == (b"Other", Kind.FOLDED)


@pytest.mark.parametrize("policy", Policy)
def test_new_names_are_noted_without_reading_all(
    tmp_path: Path, policy: Policy, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Names that come and go one by one are not sorted anew each time."""
    with entered(tmp_path / "many", policy) as room:
        room.create(b"First")
        assert spelled(room, b"FIRST") is not None
        before = room.index._folded
        for number in range(20):
            room.create(b"Name%d" % number)
            assert spelled(room, b"NAME%d" % number) is not None
        entry, _ = room.index.find(room.fd, b"Name3")
        assert entry is not None
        os.unlink(entry.stored, dir_fd=room.fd)
        room.index.removed(room.fd, entry.stored)
        assert spelled(room, b"NAME3") is None
        assert room.index._folded is before


# --- what was noted is what a scan would find ---------------------------------------------------

_NAMES = [b"a", b"A", b"b", b"B", "ß".encode(), b"ss", b"SS", b".ef=41", b".EF=41", b".ef=61"]


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from(Policy),
    st.lists(st.tuples(st.booleans(), st.sampled_from(_NAMES)), max_size=25),
)
def test_notes_and_scans_agree(
    tmp_path_factory: pytest.TempPathFactory,
    policy: Policy,
    changes: list[tuple[bool, bytes]],
) -> None:
    """After any creations and removals the index says what one read anew would say."""
    path = tmp_path_factory.mktemp("agree")
    fd = os.open(path, os.O_PATH | os.O_DIRECTORY)
    try:
        noted = DirectoryIndex(TRANSPARENT, policy, casefold.key)
        for comes, name in changes:
            entry, _ = noted.find(fd, name)
            if comes and entry is None:
                create(noted, fd, name)
            elif not comes and entry is not None:
                os.unlink(entry.stored, dir_fd=fd)
                noted.removed(fd, entry.stored)
            fresh = DirectoryIndex(TRANSPARENT, policy, casefold.key)
            for asked in _NAMES:
                assert noted.find(fd, asked) == fresh.find(fd, asked)
            assert sorted(noted.listing(fd)) == sorted(fresh.listing(fd))
    finally:
        os.close(fd)


def test_a_directory_that_cannot_be_read_is_an_error(plain: Room) -> None:
    """Never "absent"."""
    (plain.path / "file").touch()
    fd = os.open(plain.path / "file", os.O_PATH)
    try:
        with pytest.raises(NotADirectoryError):
            plain.index.find(fd, b"x")
    finally:
        os.close(fd)
