"""The index of one directory: its file's rows, what it finds and lists, and two writers at once."""

from __future__ import annotations

import contextlib
import errno
import gc
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sidecar import casefold, escape, linux, volume
from sidecar.index import DirectoryIndex, Indexes, look
from sidecar.index_file import DamagedIndex, format_rows, parse_rows
from sidecar.naming import HELPER_NAMES, INDEX_FILE, INDEX_LOCK, Kind, Policy, token
from sidecar.volume import TRANSPARENT, Traits
from tests.caseless import FOLDING, Volumes
from tests.waiting import wait_until

LONG: Final = b"a name too long for any escape in bytes " * 5
TOKEN: Final = b".ef_0123456789abcdef"
_CREATE: Final = os.O_CREAT | os.O_EXCL | os.O_WRONLY

names = st.binary(min_size=1, max_size=255).filter(
    lambda name: b"/" not in name and b"\0" not in name and name not in (b".", b"..")
)
tokens = st.integers(0, 2**64 - 1).map(lambda number: b".ef_%016x" % number)


# --- rows ---------------------------------------------------------------------------------------


@given(st.dictionaries(names, tokens, max_size=8))
def test_rows_survive_writing_and_reading(rows: dict[bytes, bytes]) -> None:
    """What is written is read again, whatever bytes the names are made of."""
    assert parse_rows(format_rows(rows)) == rows


@given(st.dictionaries(names, tokens, max_size=8))
def test_rows_are_written_in_order_and_in_lower_case(rows: dict[bytes, bytes]) -> None:
    """The same rows give the same bytes, sorted by name."""
    written = format_rows(rows)
    assert written == written.lower()
    read = [bytes.fromhex(line.split(b"\t")[0].decode()) for line in written.splitlines()]
    assert read == sorted(rows)


@given(st.binary(max_size=80))
def test_any_bytes_are_rows_or_damage(data: bytes) -> None:
    """Reading never fails in another way, and what it accepts is legal."""
    with contextlib.suppress(DamagedIndex):
        for name, stored in parse_rows(data).items():
            assert 0 < len(name) <= 255 and b"/" not in name
            assert stored.startswith(b".ef_") and len(stored) == 20


def test_upper_case_digits_are_read() -> None:
    """A row with upper-case hex is read, and written in lower case again."""
    rows = parse_rows(b"4A4b\t" + TOKEN + b"\n")
    assert rows == {b"JK": TOKEN}
    assert format_rows(rows) == b"4a4b\t" + TOKEN + b"\n"


def test_no_bytes_are_no_rows() -> None:
    """An empty file has no rows and no damage."""
    assert parse_rows(b"") == {}


@pytest.mark.parametrize(
    "data",
    [
        b"\n",
        b"61\t" + TOKEN,
        b"61\t" + TOKEN + b"\n62\t.ef_01",
        b"61\t" + TOKEN + b"\n\n",
        b"\t" + TOKEN + b"\n",
        b"61\n",
        b"61 " + TOKEN + b"\n",
        b"6\t" + TOKEN + b"\n",
        b"6g\t" + TOKEN + b"\n",
        b"61 62\t" + TOKEN + b"\n",
        b" 61\t" + TOKEN + b"\n",
        b"\xc3\xa9\t" + TOKEN + b"\n",
        b"61\t" + TOKEN + b"\r\n",
        b"61\t" + TOKEN + b"\t\n",
        b"61\t" + TOKEN.upper() + b"\n",
        b"61\t" + TOKEN + b"0\n",
        b"61\t" + TOKEN[:-1] + b"\n",
        b"61\t.ef=61\n",
        b"61\t\n",
        b"00\t" + TOKEN + b"\n",
        b"2f\t" + TOKEN + b"\n",
        b"612f62\t" + TOKEN + b"\n",
        b"2e\t" + TOKEN + b"\n",
        b"2e2e\t" + TOKEN + b"\n",
        b"61" * 256 + b"\t" + TOKEN + b"\n",
    ],
)
def test_malformed_rows_are_damage(data: bytes) -> None:
    """Every malformed row is EIO and never read as something else."""
    with pytest.raises(DamagedIndex) as caught:
        parse_rows(data)
    assert caught.value.errno == errno.EIO
    assert caught.value.strerror


def test_the_older_format_is_read() -> None:
    """A file as elfuse wrote it before its pull request 256, of any size."""
    rows = {b"Name %06d" % number: b".ef_%016x" % number for number in range(6000)}
    data = b"".join(b"%s\t%s\n" % (name.hex().encode(), rows[name]) for name in reversed(rows))
    assert len(data) > 262144
    assert parse_rows(data) == rows


# --- one directory ------------------------------------------------------------------------------


@attrs.frozen
class Room:
    """A fresh directory, its descriptor, and an index of it."""

    path: Path
    fd: int
    index: DirectoryIndex

    def another(self) -> DirectoryIndex:
        """What a second mount knows of the directory."""
        return DirectoryIndex(self.index.traits, self.index.policy)

    def create(self, name: bytes) -> bytes:
        """Make an empty guest file, as a mount does; its stored name."""
        return create(self.index, self.fd, name)

    def find(self, name: bytes) -> tuple[bytes, Kind] | None:
        """The stored name of a guest name and what it is to it."""
        entry, _ = self.index.find(self.fd, name)
        return None if entry is None else (entry.stored, entry.kind)

    def guests(self) -> list[bytes]:
        """The guest's listing."""
        return sorted(name for name, _ in self.index.listing(self.fd))

    def disk(self) -> list[bytes]:
        """What is really there."""
        return sorted(map(os.fsencode, os.listdir(self.path)))


def create(index: DirectoryIndex, fd: int, name: bytes) -> bytes:
    """Make an empty file under a new guest name."""

    def make(stored: bytes) -> None:
        os.close(os.open(stored, _CREATE, 0o600, dir_fd=fd))

    with index.lock(fd):
        if index.find(fd, name)[0] is not None:
            raise FileExistsError
        return index.store(fd, name, make)[0]


@contextlib.contextmanager
def entered(path: Path, traits: Traits | None, policy: Policy) -> Iterator[Room]:
    """A new directory and its index."""
    path.mkdir()
    fd = os.open(path, os.O_PATH | os.O_DIRECTORY)
    try:
        yield Room(path, fd, DirectoryIndex(traits or volume.probe(fd), policy))
    finally:
        os.close(fd)


@pytest.fixture(params=["caseless", "zfs"])
def room(request: pytest.FixtureRequest, volumes: Volumes, tmp_path: Path) -> Iterator[Room]:
    """A fresh directory on each volume that folds."""
    path = volumes[request.param].path / tmp_path.name
    with entered(path, None, Policy.NATURAL) as opened:
        yield opened


@pytest.fixture
def bytes_room(volumes: Volumes, tmp_path: Path) -> Iterator[Room]:
    """A fresh directory on a volume whose limit is 255 bytes: long names get tokens."""
    with entered(volumes["zfs"].path / tmp_path.name, None, Policy.NATURAL) as opened:
        yield opened


def test_spellings_are_different_names(room: Room) -> None:
    """The first spelling is stored as it is, every other one under its escape."""
    assert room.create(b"Foo") == b"Foo"
    assert room.create(b"foo") == escape.encode(b"foo")
    assert room.create(b"FOO") == escape.encode(b"FOO")
    assert room.guests() == [b"FOO", b"Foo", b"foo"]
    assert room.find(b"Foo") == (b"Foo", Kind.LITERAL)
    assert room.find(b"foo") == (escape.encode(b"foo"), Kind.ESCAPE)
    assert room.find(b"fOO") is None


def test_a_held_slot_is_claimed_for_other_spellings_only(room: Room) -> None:
    """`find` says that the slot is held by another spelling, and only then."""
    room.create(b"Foo")
    assert room.index.find(room.fd, b"foo") == (None, True)
    assert room.index.find(room.fd, b"bar") == (None, False)
    assert room.index.find(room.fd, b"Foo")[1] is False


@pytest.mark.parametrize("asked", [b"foo", b"FOO"])
def test_a_claim_ends_with_the_entry_that_held_the_slot(room: Room, asked: bytes) -> None:
    """When `Foo` is gone, made known or not, the slot is free for another spelling."""
    room.create(b"Foo")
    assert room.index.find(room.fd, asked) == (None, True)
    os.unlink(b"Foo", dir_fd=room.fd)
    room.index.removed(room.fd, b"Foo")
    assert room.index.find(room.fd, asked) == (None, False)
    assert room.create(asked) == asked


def test_a_removal_costs_the_same_in_a_big_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is known of the other names stays known: they are not gone through for each one."""
    asked: list[bytes] = []
    slot = DirectoryIndex._slot

    def counting(index: DirectoryIndex, name: bytes) -> bytes:
        asked.append(name)
        return slot(index, name)

    monkeypatch.setattr(DirectoryIndex, "_slot", counting)
    traits = attrs.evolve(TRANSPARENT, folds=True)
    with entered(tmp_path / "big", traits, Policy.NATURAL) as big:
        names = [b"name%d" % number for number in range(200)]
        for name in names:
            big.create(name)
        asked.clear()
        for name in names[:100]:
            os.unlink(name, dir_fd=big.fd)
            big.index.removed(big.fd, name)
            assert big.index.find(big.fd, name.upper()) == (None, False)
    # Each second all are read anew, so not exactly three for each removal.
    assert len(asked) < 5_000


def test_a_name_exists_once(room: Room) -> None:
    """The exact literal, the escape, the row: whichever holds a name, it cannot be made again."""
    for name in (b"Foo", b"foo", LONG):
        room.create(name)
        with pytest.raises(FileExistsError):
            room.create(name)


def test_reserved_names_are_never_literal(room: Room) -> None:
    """A guest's name that would be read as another one is stored under its escape."""
    for name in (escape.encode(b"x"), TOKEN, INDEX_FILE, INDEX_LOCK):
        assert room.create(name) == escape.encode(name)
        assert room.find(name) == (escape.encode(name), Kind.ESCAPE)
    assert len(room.guests()) == 4


@pytest.mark.parametrize(
    "name",
    [b".EF=41", b".ef=4A", b".Ef=4a", TOKEN.upper(), INDEX_FILE.upper()],
)
def test_a_spelling_of_a_reserved_name_never_takes_its_slot(room: Room, name: bytes) -> None:
    """What the volume folds to an escape, a token or the index file is stored under its escape."""
    assert room.create(name) == escape.encode(name)
    for other in (escape.decode(name.lower()), LONG, LONG.upper()):
        if other is not None:
            room.create(other)
    assert room.find(name) == (escape.encode(name), Kind.ESCAPE)
    assert name in room.guests()


def test_full_case_folding_is_known_to_reserve_names(volumes: Volumes) -> None:
    """A long s folds to s: on such a volume that spelling holds the index file's slot too."""
    name = INDEX_FILE.decode().replace("s", "\u017f").encode()
    with entered(volumes["caseless"].path / "long-s", None, Policy.NATURAL) as room:
        assert room.create(name) == escape.encode(name)


def test_what_only_looks_like_an_escape_means_itself(room: Room) -> None:
    """Names that are not canonical escapes are ordinary ones, on disk and for the guest."""
    for name in (b".ef=", b".ef=6", b".ef=4G"):
        assert room.create(name) == name
    assert room.guests() == [b".ef=", b".ef=4G", b".ef=6"]


def test_store_tries_the_slots_in_turn(room: Room) -> None:
    """Exclusive creation arbitrates: EEXIST leads to the next slot, and at last out."""
    tried: list[bytes] = []

    def refuse(stored: bytes) -> None:
        tried.append(stored)
        raise FileExistsError(errno.EEXIST, "held")

    with pytest.raises(FileExistsError):
        room.index.store(room.fd, b"name", refuse)
    assert tried == [b"name", escape.encode(b"name")]


def test_store_hands_on_the_volumes_errors(room: Room) -> None:
    """ENOSPC is not an answer about the name: nothing else is tried."""
    tried: list[bytes] = []

    def fail(stored: bytes) -> None:
        tried.append(stored)
        raise OSError(errno.ENOSPC, "full")

    with pytest.raises(OSError) as caught:
        room.index.store(room.fd, b"name", fail)
    assert caught.value.errno == errno.ENOSPC
    assert tried == [b"name"]


def test_store_looks_first_where_the_call_would_replace(room: Room) -> None:
    """A rename into a held slot goes to the escape instead of replacing the other spelling."""
    room.create(b"Foo")
    room.create(b"source")

    def rename(stored: bytes) -> None:
        os.rename(b"source", stored, src_dir_fd=room.fd, dst_dir_fd=room.fd)

    stored, _ = room.index.store(room.fd, b"foo", rename, exclusive=False)
    room.index.removed(room.fd, b"source")
    assert stored == escape.encode(b"foo")
    assert room.guests() == [b"Foo", b"foo"]


def test_a_name_that_the_volume_refuses_is_escaped(volumes: Volumes) -> None:
    """Ill-formed UTF-8, which the volume answers with EILSEQ, is stored under its escape."""
    with entered(volumes["caseless"].path / "ill", None, Policy.NATURAL) as room:
        assert room.create(b"\xff\xfe") == escape.encode(b"\xff\xfe")
        assert room.find(b"\xff\xfe") == (escape.encode(b"\xff\xfe"), Kind.ESCAPE)
        # Even where the traits were measured wrongly.
        believed = DirectoryIndex(attrs.evolve(room.index.traits, ill_formed=True), Policy.NATURAL)
        assert create(believed, room.fd, b"\xfd") == escape.encode(b"\xfd")
        assert look(room.fd, b"\xfd") is None


# --- changes behind the index -------------------------------------------------------------------


def test_outside_changes_are_noticed_within_a_second(room: Room) -> None:
    """An entry made, renamed and removed from outside is found so, whatever was known before."""
    room.create(b"Mine")
    assert room.guests() == [b"Mine"]
    assert room.index.find(room.fd, b"mine") == (None, True)
    (room.path / "theirs").touch()
    (room.path / "Mine").rename(room.path / "other")
    wait_until(lambda: room.guests() == [b"other", b"theirs"], 1.2)
    assert room.find(b"Mine") is None
    (room.path / "new").touch()
    wait_until(lambda: room.find(b"new") is not None, 1.2)
    (room.path / "theirs").unlink()
    assert room.find(b"theirs") is None
    wait_until(lambda: room.guests() == [b"new", b"other"], 1.2)


def test_a_case_only_rename_from_outside_is_noticed_within_a_second(room: Room) -> None:
    """`Foo` that became `foo` outside is `foo` for the guest and not `Foo` any more."""
    room.create(b"Foo")
    assert room.find(b"Foo") is not None
    (room.path / "Foo").rename(room.path / "between")
    (room.path / "between").rename(room.path / "foo")
    wait_until(lambda: room.find(b"foo") == (b"foo", Kind.LITERAL), 1.2)
    wait_until(lambda: room.find(b"Foo") is None, 1.2)


def test_what_another_mount_made_is_found_at_once(room: Room) -> None:
    """Existence is asked of the volume: an escape made elsewhere needs no new scan."""
    other = room.another()
    room.create(b"Foo")
    assert other.find(room.fd, b"foo") == (None, True)
    room.create(b"foo")
    entry, _ = other.find(room.fd, b"foo")
    assert entry is not None and entry.stored == escape.encode(b"foo")


# --- tokens -------------------------------------------------------------------------------------


def test_a_name_too_long_for_its_escape_gets_a_token_and_a_row(bytes_room: Room) -> None:
    """The second spelling of a long name is kept in the index file; all helpers are hidden."""
    room = bytes_room
    assert room.create(LONG) == LONG
    stored = room.create(LONG.upper())
    assert stored == token(LONG.upper())
    assert room.find(LONG.upper()) == (stored, Kind.TOKEN)
    assert parse_rows((room.path / os.fsdecode(INDEX_FILE)).read_bytes()) == {LONG.upper(): stored}
    assert room.guests() == sorted([LONG, LONG.upper()])
    assert set(room.disk()) - HELPER_NAMES == {LONG, stored}
    assert room.another().find(room.fd, LONG.upper())[0] is not None


@pytest.mark.parametrize("kind", FOLDING)
def test_long_names_of_a_full_volume(kind: str, volumes: Volumes, tmp_path: Path) -> None:
    """Whatever its limit is believed to be where nothing can be tried, what is there is found."""
    with entered(volumes[kind].path / tmp_path.name, None, Policy.NATURAL) as room:
        made = {name: room.create(name) for name in (LONG, LONG.upper())}
        inferred = volume._infer(room.fd, writable=True)
        assert not inferred.measured
        again = DirectoryIndex(inferred, Policy.NATURAL)
        found = {name: again.find(room.fd, name)[0] for name in made}
        assert {name: entry and entry.stored for name, entry in found.items()} == made
        assert again.find(room.fd, LONG.title())[0] is None
        assert sorted(name for name, _ in again.listing(room.fd)) == sorted(made)


def test_the_row_is_written_before_its_object(bytes_room: Room) -> None:
    """When the object is made its row is there: a kill in between leaves no nameless object."""
    room = bytes_room
    room.create(LONG)
    seen: list[dict[bytes, bytes]] = []

    def make(stored: bytes) -> None:
        seen.append(parse_rows((room.path / os.fsdecode(INDEX_FILE)).read_bytes()))
        if stored == LONG.upper():
            raise FileExistsError(errno.EEXIST, "held")

    stored, _ = room.index.store(room.fd, LONG.upper(), lambda name: make_token(room, name, make))
    assert seen[-1] == {LONG.upper(): stored}


def make_token(room: Room, stored: bytes, before: Callable[[bytes], None]) -> None:
    """Create *stored* exclusively; *before* sees what is there when a token is made."""
    if stored.startswith(b".ef_"):
        before(stored)
    os.close(os.open(stored, _CREATE, 0o600, dir_fd=room.fd))


def test_an_index_file_larger_than_the_memory_is_damage(bytes_room: Room) -> None:
    """What another writer left there is read up to its first malformed row only."""
    room = bytes_room
    with open(room.path / os.fsdecode(INDEX_FILE), "wb") as file:
        file.write(format_rows({LONG: token(LONG)}))
        file.truncate(1 << 40)
    with pytest.raises(DamagedIndex, match="row 2 is malformed"):
        room.index.find(room.fd, LONG)


def _plant_fifo(path: Path) -> None:
    os.mkfifo(path)


def _plant_link(path: Path) -> None:
    path.symlink_to("victim")


def _plant_directory(path: Path) -> None:
    path.mkdir()


@pytest.mark.parametrize("plant", [_plant_fifo, _plant_link, _plant_directory])
@pytest.mark.parametrize("helper", sorted(HELPER_NAMES))
def test_a_helper_that_is_no_file_is_not_waited_for(
    bytes_room: Room, helper: bytes, plant: Callable[[Path], None]
) -> None:
    """A fifo in place of a helper would stop the server for ever; a link would lead it away."""
    room = bytes_room
    (room.path / "victim").write_text("victim")
    room.create(LONG)
    plant(room.path / os.fsdecode(helper))
    done = contextlib.nullcontext() if _may_go(helper, plant) else pytest.raises(DamagedIndex)
    with done:
        room.create(LONG.upper())
    assert (room.path / "victim").read_text() == "victim"


def _may_go(helper: bytes, plant: Callable[[Path], None]) -> bool:
    # Only the temporary file is the server's to replace.
    return helper.endswith(b".tmp") and plant is not _plant_directory


def test_what_lies_in_place_of_the_temporary_file_is_not_written_to(bytes_room: Room) -> None:
    """It may be another name of a file that is not the server's to change."""
    room = bytes_room
    (room.path / "victim").write_text("victim")
    os.link(room.path / "victim", room.path / os.fsdecode(INDEX_FILE + b".tmp"))
    room.create(LONG)
    room.create(LONG.upper())
    assert (room.path / "victim").read_text() == "victim"
    assert (room.path / "victim").stat().st_nlink == 1


def test_a_row_without_its_object_is_harmless(bytes_room: Room) -> None:
    """A name whose token is not there does not exist, is not listed and can be made."""
    room = bytes_room
    rows = {LONG: token(LONG)}
    (room.path / os.fsdecode(INDEX_FILE)).write_bytes(format_rows(rows))
    assert room.find(LONG) is None
    assert room.guests() == []
    assert room.create(LONG) == LONG
    assert room.find(LONG) == (LONG, Kind.LITERAL)


def test_a_token_without_its_row_is_hidden(bytes_room: Room) -> None:
    """An object that lost its name is in no listing and cannot be reached by its token."""
    room = bytes_room
    (room.path / os.fsdecode(TOKEN)).touch()
    assert room.guests() == []
    assert room.find(TOKEN) is None
    assert room.index.only_helpers(room.fd) == []


@pytest.mark.parametrize(
    "also", [[b"Foo"], [escape.encode(b"Foo")], [b"Foo", escape.encode(b"Foo")]]
)
def test_a_name_that_a_row_has_too_is_listed_once(bytes_room: Room, also: list[bytes]) -> None:
    """The literal name is meant, then the escape, then the row; removed, the next one shows."""
    stored = [*also, TOKEN]
    for one in stored:
        os.mknod(one, dir_fd=bytes_room.fd)
    bytes_room.path.joinpath(os.fsdecode(INDEX_FILE)).write_bytes(format_rows({b"Foo": TOKEN}))
    for meant in stored:
        assert bytes_room.index.listing(bytes_room.fd) == [(b"Foo", meant)]
        for key in (None, casefold.key):
            index = DirectoryIndex(bytes_room.index.traits, Policy.NATURAL, key)
            entry, _ = index.find(bytes_room.fd, b"Foo")
            assert entry is not None and entry.stored == meant
        os.unlink(meant, dir_fd=bytes_room.fd)
        bytes_room.index.removed(bytes_room.fd, meant)
    assert bytes_room.index.listing(bytes_room.fd) == []


def test_a_removed_token_takes_its_row_along(bytes_room: Room) -> None:
    """After `removed` the row is gone, the other rows stay, and the name can be made again."""
    room = bytes_room
    other = LONG[:-1] + b"!"
    for name in (LONG, other):
        room.create(name)
    stored = {name: room.create(name) for name in (LONG.upper(), other.upper())}
    os.unlink(stored[LONG.upper()], dir_fd=room.fd)
    room.index.removed(room.fd, stored[LONG.upper()])
    assert parse_rows((room.path / os.fsdecode(INDEX_FILE)).read_bytes()) == {
        other.upper(): stored[other.upper()]
    }
    assert room.find(LONG.upper()) is None
    assert room.create(LONG.upper()) == stored[LONG.upper()]


def test_what_was_not_made_leaves_no_row(bytes_room: Room) -> None:
    """Where the volume refuses the object, the row that was written for it goes again."""
    room = bytes_room
    room.create(LONG)

    def full(stored: bytes) -> None:
        raise OSError(errno.ENOSPC if stored.startswith(b".ef_") else errno.EEXIST, "full")

    with pytest.raises(OSError) as caught, room.index.lock(room.fd):
        room.index.store(room.fd, LONG.upper(), full)
    assert caught.value.errno == errno.ENOSPC
    assert not (room.path / os.fsdecode(INDEX_FILE)).exists()


def test_what_is_done_stays_done_when_the_volume_fails(
    bytes_room: Room, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A directory that cannot be asked afterwards fails no call, and nothing wrong is believed."""
    room = bytes_room
    room.create(LONG)
    stored = room.create(LONG.upper())

    def fail(*args: object) -> None:
        raise OSError(errno.EIO, "gone")

    with monkeypatch.context() as broken:
        broken.setattr(os, "fstat", fail)
        os.unlink(stored, dir_fd=room.fd)
        room.index.removed(room.fd, stored)
        make_token(room, b"new", lambda _: None)
        room.index.added(room.fd, b"new")
    os.unlink(LONG, dir_fd=room.fd)
    assert room.guests() == [b"new"]


def test_a_token_that_is_taken_leads_to_the_next(bytes_room: Room) -> None:
    """Two names whose tokens collide get different ones."""
    room = bytes_room
    room.create(LONG)
    rows = {b"another": token(LONG.upper())}
    (room.path / os.fsdecode(INDEX_FILE)).write_bytes(format_rows(rows))
    (room.path / os.fsdecode(token(LONG.upper()))).touch()
    time.sleep(1.1)
    assert room.create(LONG.upper()) == token(LONG.upper(), 1)
    assert room.guests() == sorted([b"another", LONG, LONG.upper()])


def test_rows_removed_elsewhere_meanwhile(bytes_room: Room) -> None:
    """Dropping a row that another mount has dropped already is no error."""
    room = bytes_room
    room.create(LONG)
    stored = room.create(LONG.upper())
    other = room.another()
    assert other.find(room.fd, LONG.upper())[0] is not None
    os.unlink(stored, dir_fd=room.fd)
    room.index.removed(room.fd, stored)
    other.removed(room.fd, stored)
    assert other.find(room.fd, LONG.upper())[0] is None


_WRITER: Final = """
import os, sys
from pathlib import Path
from sidecar.naming import Policy
from sidecar.index import DirectoryIndex
from sidecar.volume import TRANSPARENT
import attrs
from tests.test_index import create

directory, start, count = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
fd = os.open(directory, os.O_PATH | os.O_DIRECTORY)
index = DirectoryIndex(attrs.evolve(TRANSPARENT, folds=True), Policy.PORTABLE)
for number in range(start, start + count):
    create(index, fd, b"N" * 200 + b"%d" % number)
"""


def test_rows_of_two_processes_at_once_are_all_kept(tmp_path: Path) -> None:
    """Two writers of one index file lose none of one another's rows."""
    writers = [
        subprocess.Popen(
            [sys.executable, "-c", _WRITER, tmp_path, str(start), "40"],
            cwd=Path(__file__).parent.parent,
        )
        for start in (0, 1000)
    ]
    try:
        assert [writer.wait(60) for writer in writers] == [0, 0]
    finally:
        for writer in writers:
            writer.kill()
            writer.wait()
    rows = parse_rows((tmp_path / os.fsdecode(INDEX_FILE)).read_bytes())
    wanted = {b"N" * 200 + b"%d" % (start + n) for start in (0, 1000) for n in range(40)}
    assert set(rows) == wanted
    assert {os.fsencode(name) for name in os.listdir(tmp_path)} >= set(rows.values())


# --- helpers and damage -------------------------------------------------------------------------


def test_a_directory_with_nothing_but_helpers_counts_as_empty(bytes_room: Room) -> None:
    """`only_helpers` names what to remove before rmdir, and says None where there is an entry."""
    room = bytes_room
    room.create(LONG)
    stored = room.create(LONG.upper())
    assert room.index.only_helpers(room.fd) is None
    for name in (LONG, stored):
        os.unlink(name, dir_fd=room.fd)
        room.index.removed(room.fd, name)
    left = room.index.only_helpers(room.fd)
    assert left is not None and set(left) <= HELPER_NAMES
    for helper in left:
        os.unlink(helper, dir_fd=room.fd)
    assert room.disk() == []


@pytest.mark.parametrize("damage", ["row", "directory", "fifo", "link"])
def test_a_damaged_index_file_is_eio_for_everything(
    bytes_room: Room, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Whatever stands there and is no index: EIO, said in the log, for finding and listing."""
    room = bytes_room
    (room.path / "there").touch()
    file = room.path / os.fsdecode(INDEX_FILE)
    if damage == "row":
        file.write_bytes(b"61\tnothing\n")
    elif damage == "directory":
        file.mkdir()
    elif damage == "fifo":
        os.mkfifo(file)
    else:
        file.symlink_to("there")
    for call in (
        lambda: room.index.find(room.fd, b"there"),
        lambda: room.index.listing(room.fd),
        lambda: room.another().find(room.fd, b"absent"),
    ):
        with pytest.raises(OSError) as caught:
            call()
        assert caught.value.errno == errno.EIO
    assert "damaged index file" in caplog.text


def test_damage_that_was_repaired_is_forgotten(bytes_room: Room) -> None:
    """A directory answers again as soon as its index file is whole."""
    room = bytes_room
    file = room.path / os.fsdecode(INDEX_FILE)
    file.write_bytes(b"damage")
    with pytest.raises(DamagedIndex):
        room.guests()
    file.write_bytes(b"")
    assert room.guests() == []


def test_reading_leaves_no_descriptor_behind(bytes_room: Room) -> None:
    """Neither whole nor damaged index files cost descriptors."""
    room = bytes_room
    file = room.path / os.fsdecode(INDEX_FILE)
    gc.collect()
    before = len(os.listdir("/proc/self/fd"))
    file.write_bytes(b"")
    room.guests()
    file.unlink()
    file.mkdir()
    for _ in range(3):
        with pytest.raises(OSError):
            room.another().listing(room.fd)
    assert len(os.listdir("/proc/self/fd")) == before


def test_helper_names_are_ordinary_where_no_index_serves(tmp_path: Path) -> None:
    """Under `portable`, on a volume that holds every escape, a guest's file may have that name."""
    traits = attrs.evolve(TRANSPARENT, name_unit="utf16")
    with entered(tmp_path / "room", traits, Policy.PORTABLE) as room:
        assert room.create(INDEX_FILE) == INDEX_FILE
        assert room.guests() == [INDEX_FILE]
        assert room.find(INDEX_FILE) is not None
        assert room.index.only_helpers(room.fd) is None


def test_the_lock_of_a_directory_keeps_a_second_mount_out(tmp_path: Path) -> None:
    """Who names something in a directory excludes others, and lets go whatever happens."""
    with entered(tmp_path / "room", TRANSPARENT, Policy.PORTABLE) as room:
        with room.index.lock(room.fd):
            fd = os.open(room.path, os.O_RDONLY)
            try:
                with pytest.raises(OSError) as caught, linux.same_file_lock(fd, 0.1):
                    raise AssertionError("both hold it")
                assert caught.value.errno == errno.EBUSY
            finally:
                os.close(fd)
        with pytest.raises(ZeroDivisionError), room.index.lock(room.fd):
            raise ZeroDivisionError
        with room.index.lock(room.fd):
            pass


# --- all of them --------------------------------------------------------------------------------


def test_indexes_are_kept_by_directory_and_bounded(tmp_path: Path) -> None:
    """One directory has one index; the least recently used go when too many names are held."""
    indexes = Indexes(Policy.PORTABLE, limit=200)
    fds = []
    try:
        for number in range(130):
            path = tmp_path / str(number)
            path.mkdir()
            for name in "abcde":
                (path / name).touch()
            fds.append(os.open(path, os.O_PATH | os.O_DIRECTORY))
            index = indexes.of(fds[-1], TRANSPARENT)
            assert indexes.of(fds[-1], TRANSPARENT) is index
            index.refresh(fds[-1])
        assert len(indexes._known) < 130
    finally:
        for fd in fds:
            os.close(fd)
