"""The fold policy through a mount: every spelling means the one entry that is there.

The kernel is told to remember for 1000 seconds, so that whatever it remembers wrongly shows.
"""

from __future__ import annotations

import ctypes
import errno
import functools
import mmap
import os
import stat
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

import attrs
import pytest

from sidecar import linux
from tests import caches
from tests.caseless import open_kind
from tests.children import code_of, in_child, start_child
from tests.matrix import guests
from tests.mounts import Mount, Mounter
from tests.waiting import wait_until

LONG: Final = ("entry_timeout=1000", "negative_timeout=1000")
USER: Final = 1000
COMPOSED, DECOMPOSED = "caf\u00e9", "CAFE\u0301"
_PR_SET_DUMPABLE: Final = 4
_numbers = iter(range(1_000_000))

STAGES: Final = {
    "plain": ("plain", "sysroot_fs"),
    "old-kernel": ("plain", "tests.without_epoch"),
    "caseless": ("caseless", "sysroot_fs"),
    "zfs": ("zfs", "sysroot_fs"),
    "exfat": ("exfat", "sysroot_fs"),
}


@attrs.frozen
class Room:
    """A fresh directory of a folding mount: as the guest sees it, and as it lies on disk."""

    path: Path
    lower: Path
    mount: Mount
    stage: str

    @property
    def has_links(self) -> bool:
        """Whether the volume has hard links, symlinks and special files."""
        return self.stage != "exfat"


@pytest.fixture(scope="module", params=STAGES)
def stage(request: pytest.FixtureRequest, session_workplace: Path) -> Iterator[tuple[Mount, str]]:
    """One folding mount on each kind of volume, without a host."""
    kind, module = STAGES[request.param]
    work = session_workplace / f"fold-{request.param}"
    work.mkdir()
    with open_kind(kind, work) as volume:
        mounter = Mounter(work)
        sysroot = volume.path / "sysroot"
        try:
            options = ("lookup=fold", "fallback=none", *LONG)
            yield mounter(*options, sysroot=sysroot, module=module), request.param
        finally:
            mounter.close()


@pytest.fixture
def room(stage: tuple[Mount, str]) -> Iterator[Room]:
    """A fresh directory in each of them."""
    mount, kind = stage
    name = f"room-{next(_numbers)}"
    lower = mount.sysroot / name
    (mount.point / name).mkdir()
    (mount.point / name).chmod(0o777)
    # Where the volume makes inode numbers up, they last for as long as the kernel remembers them.
    with caches.kept():
        yield Room(mount.point / name, lower, mount, kind)
    mount.check_log()


@pytest.fixture(scope="module")
def busybox(session_workplace: Path) -> list[str]:
    """The words that start busybox."""
    guest = session_workplace / "guest"
    guests.unpack(guest)
    (loader,) = (guest / "lib").glob("ld-musl-*.so.1")
    return [str(loader), str(guest / "bin/busybox")]


def put(path: Path, text: str | None = None) -> Path:
    """Write a file that holds its name; the path."""
    path.write_text(path.name if text is None else text)
    return path


def contents(directory: Path) -> dict[str, str]:
    """Name and content of every file, as listed."""
    return {name: (directory / name).read_text() for name in sorted(os.listdir(directory))}


def rename_flags(old: Path, new: Path, flags: int) -> int:
    return code_of(
        linux.renameat2, linux.AT_FDCWD, os.fsencode(old), linux.AT_FDCWD, os.fsencode(new), flags
    )


def make_exclusively(path: Path) -> None:
    os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY))


def absent(*paths: Path) -> None:
    """Have the kernel know that none of *paths* is there."""
    for path in paths:
        assert code_of(os.stat, path) == errno.ENOENT


# --- one entry under every spelling -------------------------------------------------------------


def test_every_spelling_is_one_inode(room: Room) -> None:
    """Number, times, mode and size are the same, for files and directories."""
    put(room.path / "File.TXT")
    (room.path / "Dir").mkdir()
    for one, other in (("File.TXT", "fILE.txt"), ("Dir", "DIR")):
        first, second = (room.path / one).stat(), (room.path / other).stat()
        for name in ("ino", "dev", "mode", "nlink", "uid", "gid", "size", "mtime_ns", "ctime_ns"):
            assert getattr(first, f"st_{name}") == getattr(second, f"st_{name}"), name


def test_a_change_in_one_spelling_is_seen_in_the_other(room: Room) -> None:
    """Content, size and times, without a delay."""
    put(room.path / "Data", "old")
    assert (room.path / "data").read_text() == "old"
    (room.path / "DATA").write_text("newer")
    os.utime(room.path / "dATA", (1000, 2000))
    assert (room.path / "Data").read_text() == (room.path / "data").read_text() == "newer"
    assert (room.path / "Data").stat().st_mtime == (room.path / "data").stat().st_mtime == 2000


def test_mappings_through_two_spellings_share_their_pages(room: Room) -> None:
    """What is written into one mapping is read from the other."""
    put(room.path / "Map", "x" * 4096)
    with open(room.path / "Map", "r+b") as one, open(room.path / "mAP", "r+b") as other:
        first, second = mmap.mmap(one.fileno(), 4096), mmap.mmap(other.fileno(), 4096)
        with first, second:
            first[100:105] = b"hello"
            assert second[100:105] == b"hello"


def test_listings_show_the_stored_spelling(room: Room) -> None:
    """However it was asked for meanwhile."""
    put(room.path / "MixedCase")
    (room.path / "SubDir").mkdir()
    for spelling in ("mixedcase", "MIXEDCASE", "subdir", "SUBDIR"):
        assert (room.path / spelling).exists()
    assert sorted(os.listdir(room.path)) == ["MixedCase", "SubDir"]


def test_every_component_folds(room: Room) -> None:
    """In the middle of a path as at its end."""
    (room.path / "Include/Sub").mkdir(parents=True)
    put(room.path / "Include/Sub/Windows.h")
    for path in ("include/sub/windows.h", "INCLUDE/Sub/WINDOWS.H", "Include/sUB/Windows.h"):
        assert (room.path / path).read_text() == "Windows.h"


def test_a_working_directory_has_a_name_that_leads_there(room: Room) -> None:
    """getcwd gives a spelling under which it is found."""
    (room.path / "Work/Deep").mkdir(parents=True)

    def visit() -> tuple[str, str]:
        os.chdir(room.path / "WORK/deep")
        first = os.getcwd()
        assert (room.path / "work/DEEP").is_dir()
        return first, os.getcwd()

    for path in in_child(visit):
        assert path.lower() == str(room.path / "work/deep").lower()
        assert os.path.samefile(path, room.path / "Work/Deep")


def test_other_alphabets_fold(room: Room) -> None:
    """Full folding and normal forms: ß and ss, all three sigmas, composed and decomposed."""
    for stored, asked in (
        ("straße", "STRASSE"),
        ("ΟΔΟΣ", "οδος"),
        (COMPOSED, DECOMPOSED),
        ("Ω", "\u2126"),
    ):
        put(room.path / stored)
        assert (room.path / asked).read_text() == stored
        assert code_of(make_exclusively, room.path / asked) == errno.EEXIST
    assert len(os.listdir(room.path)) == 4


def test_dotted_i_is_not_plain_i(room: Room) -> None:
    """İ folds to i with a dot above, not to i: no locale is asked."""
    put(room.path / "İ")
    absent(room.path / "i", room.path / "I", room.path / "ı")
    assert (room.path / "i\u0307").read_text() == "İ"


def test_ill_formed_names_are_compared_by_bytes(room: Room) -> None:
    """What is no UTF-8 has one spelling."""
    put(room.path / "A\udcff", "upper")
    absent(room.path / "a\udcff")
    put(room.path / "a\udcff", "lower")
    assert (room.path / "A\udcff").read_text() == "upper"
    assert len(os.listdir(room.path)) == 2


# --- making what is there in another spelling ---------------------------------------------------


def test_creating_a_fold_equal_name_opens_what_is_there(room: Room) -> None:
    """O_CREAT opens and O_TRUNC empties the existing file, whose spelling stays."""
    put(room.path / "Readme", "long text")
    with open(os.open(room.path / "README", os.O_CREAT | os.O_RDWR), "r+") as file:
        assert file.read() == "long text"
    put(room.path / "readme", "x")
    assert contents(room.path) == {"Readme": "x"}


def test_exclusive_makers_refuse_a_fold_equal_name(room: Room) -> None:
    """O_EXCL, mkdir, symlink, mknod and link say EEXIST and change nothing."""
    put(room.path / "Name")
    put(room.path / "other")
    upper = room.path / "NAME"
    assert code_of(make_exclusively, upper) == errno.EEXIST
    assert code_of(os.mkdir, upper) == errno.EEXIST
    assert code_of(os.symlink, "x", upper) == errno.EEXIST
    assert code_of(os.mknod, upper, stat.S_IFIFO | 0o600) == errno.EEXIST
    assert code_of(os.link, room.path / "other", upper) == errno.EEXIST
    assert contents(room.path) == {"Name": "Name", "other": "other"}


def test_a_rename_onto_a_fold_equal_name_replaces_its_content(room: Room) -> None:
    """The entry keeps its spelling, as on Windows and macOS, and every spelling reads the new."""
    put(room.path / "Target", "old")
    put(room.path / "source", "new")
    for spelling in ("target", "Target", "TARGET"):
        assert (room.path / spelling).read_text() == "old"
    os.rename(room.path / "source", room.path / "TARGET")
    for spelling in ("target", "Target", "TARGET"):
        assert (room.path / spelling).read_text() == "new"
    assert contents(room.path) == {"Target": "new"}


def test_noreplace_refuses_a_fold_equal_name(room: Room) -> None:
    """RENAME_NOREPLACE means every spelling."""
    put(room.path / "Target")
    put(room.path / "source")
    flags = linux.RENAME_NOREPLACE
    assert rename_flags(room.path / "source", room.path / "TARGET", flags) == errno.EEXIST
    assert contents(room.path) == {"Target": "Target", "source": "source"}


def test_removal_in_any_spelling(room: Room) -> None:
    """unlink and rmdir; afterwards it is gone under all of them, at once."""
    put(room.path / "File")
    (room.path / "Dir").mkdir()
    for spelling in ("File", "file", "FILE", "Dir", "dir"):
        assert (room.path / spelling).exists()
    os.unlink(room.path / "fILE")
    os.rmdir(room.path / "DIR")
    absent(*(room.path / name for name in ("File", "file", "FILE", "fILE", "Dir", "dir", "DIR")))
    assert os.listdir(room.path) == []


def test_removal_in_its_own_spelling(room: Room) -> None:
    """The same where another spelling was looked up before."""
    put(room.path / "File")
    assert (room.path / "FILE").exists() and (room.path / "file").exists()
    os.unlink(room.path / "File")
    absent(*(room.path / name for name in ("File", "file", "FILE")))


def test_an_open_file_goes_on_after_its_removal_in_another_spelling(room: Room) -> None:
    """The handle reads and writes on."""
    with open(put(room.path / "Open", "text"), "r+") as file:
        os.unlink(room.path / "OPEN")
        assert file.read() == "text"
        file.write("more")
        file.flush()
        file.seek(0)
        assert file.read() == "textmore"


def test_hard_links(room: Room) -> None:
    """A file of two names is one inode under every spelling of both."""
    put(room.path / "One")
    code = code_of(os.link, room.path / "ONE", room.path / "Two")
    if not room.has_links:
        assert code in (errno.EPERM, errno.ENOSYS, errno.EOPNOTSUPP)
        return
    assert code == 0
    seen = [(room.path / name).stat() for name in ("One", "oNE", "Two", "TWO")]
    assert len({one.st_ino for one in seen}) == 1 and {one.st_nlink for one in seen} == {2}
    os.unlink(room.path / "one")
    assert (room.path / "two").stat().st_nlink == 1
    assert contents(room.path) == {"Two": "One"}


# --- absences in every spelling -----------------------------------------------------------------

SPELLINGS: Final = ("name", "Name", "NAME", "nAmE")


def _appear_by_create(room: Room, name: str) -> None:
    make_exclusively(room.path / name)


def _appear_by_mkdir(room: Room, name: str) -> None:
    (room.path / name).mkdir()


def _appear_by_rename(room: Room, name: str) -> None:
    os.rename(put(room.path / "source"), room.path / name)


def _appear_by_rename_of_a_directory(room: Room, name: str) -> None:
    (room.path / "source").mkdir()
    os.rename(room.path / "source", room.path / name)


def _appear_by_symlink(room: Room, name: str) -> None:
    if room.has_links:
        os.symlink("/", room.path / name)
    else:
        make_exclusively(room.path / name)


def _appear_by_link(room: Room, name: str) -> None:
    if room.has_links:
        os.link(put(room.path / "source"), room.path / name)
    else:
        make_exclusively(room.path / name)


def _appear_by_mknod(room: Room, name: str) -> None:
    if room.has_links:
        os.mkfifo(room.path / name)
    else:
        make_exclusively(room.path / name)


@pytest.mark.parametrize(
    "appear",
    [
        _appear_by_create,
        _appear_by_mkdir,
        _appear_by_rename,
        _appear_by_rename_of_a_directory,
        _appear_by_symlink,
        _appear_by_link,
        _appear_by_mknod,
    ],
)
def test_no_spelling_stays_absent(room: Room, appear: Callable[[Room, str], None]) -> None:
    """Whatever makes the name: at once every spelling that was absent is there."""
    absent(*(room.path / spelling for spelling in SPELLINGS))
    appear(room, "Name")
    numbers = {(room.path / spelling).lstat().st_ino for spelling in SPELLINGS}
    assert len(numbers) == 1


@pytest.mark.parametrize("removed", ["name", "Name"])
def test_no_spelling_stays_after_a_rename_away(room: Room, removed: str) -> None:
    """The old name is gone in every spelling, the new one there in every spelling."""
    put(room.path / "Name")
    for spelling in SPELLINGS:
        assert (room.path / spelling).exists()
    absent(room.path / "other", room.path / "OTHER")
    os.rename(room.path / removed, room.path / "Other")
    absent(*(room.path / spelling for spelling in SPELLINGS))
    for spelling in ("other", "OTHER", "Other"):
        assert (room.path / spelling).read_text() == "Name"


def test_coming_and_going_many_times(room: Room) -> None:
    """Every spelling follows, in whatever spelling the changes are made."""
    for maker, remover in zip(SPELLINGS * 2, reversed(SPELLINGS * 2), strict=True):
        absent(*(room.path / spelling for spelling in SPELLINGS))
        put(room.path / maker, maker)
        for spelling in SPELLINGS:
            assert (room.path / spelling).read_text() == maker
        assert os.listdir(room.path) == [maker]
        os.unlink(room.path / remover)


def test_an_absence_inside_a_directory_that_is_replaced(room: Room) -> None:
    """What was absent in an empty directory is there when a full one takes its place."""
    (room.path / "Full").mkdir()
    put(room.path / "Full/File")
    (room.path / "Empty").mkdir()
    absent(room.path / "Empty/file", room.path / "empty/FILE", room.path / "Empty/File")
    os.rename(room.path / "FULL", room.path / "EMPTY")
    assert (room.path / "Empty/file").read_text() == (room.path / "empty/FILE").read_text()
    absent(room.path / "Full", room.path / "full")


def test_a_file_from_elsewhere_onto_a_fold_equal_name(room: Room) -> None:
    """Across directories, and then away again under a third spelling."""
    (room.path / "a").mkdir()
    (room.path / "b").mkdir()
    put(room.path / "a/source", "new")
    put(room.path / "b/Target", "old")
    assert (room.path / "b/target").read_text() == "old"
    os.rename(room.path / "a/source", room.path / "b/TARGET")
    os.rename(room.path / "b/tARGET", room.path / "a/back")
    absent(*(room.path / "b" / name for name in ("TARGET", "Target", "target", "tARGET")))
    assert contents(room.path / "a") == {"back": "new"}


# --- a rename that changes the spelling only ----------------------------------------------------


def rename_plainly(old: Path, new: Path) -> None:
    os.rename(old, new)


def rename_noreplace(old: Path, new: Path) -> None:
    assert rename_flags(old, new, linux.RENAME_NOREPLACE) == 0


def rename_relatively(old: Path, new: Path) -> None:
    def act() -> None:
        os.chdir(old.parent)
        os.rename(old.name, f"./{new.name}")

    in_child(act)


def rename_from_elsewhere(old: Path, new: Path) -> None:
    def act() -> None:
        os.chdir(old.parent.parent)
        os.rename(f"{old.parent.name}/{old.name}", f"{new.parent.name}//./{new.name}/")

    # The slash at the end is for directories only.
    if old.is_dir():
        in_child(act)
    else:
        os.rename(old, new)


def rename_at_descriptors(old: Path, new: Path) -> None:
    one = os.open(old.parent, os.O_PATH)
    other = os.open(new.parent, os.O_RDONLY)
    try:
        os.rename(old.name, new.name, src_dir_fd=one, dst_dir_fd=other)
    finally:
        os.close(one)
        os.close(other)


def rename_half_relatively(old: Path, new: Path) -> None:
    def act() -> None:
        os.chdir(old.parent)
        os.rename(old.name, new)

    in_child(act)


def rename_through_a_folded_parent(old: Path, new: Path) -> None:
    os.rename(old, new.parent.parent / new.parent.name.upper() / new.name)


def rename_as_a_user(old: Path, new: Path) -> None:
    in_child(functools.partial(os.rename, old, new), uid=USER, gid=USER)


def rename_by_gnu_mv(old: Path, new: Path) -> None:
    subprocess.run(["mv", old, new], check=True)


def rename_by_gnu_mv_in_place(old: Path, new: Path) -> None:
    subprocess.run(["mv", old.name, new.name], check=True, cwd=old.parent)


WAYS: Final = [
    rename_plainly,
    rename_noreplace,
    rename_relatively,
    rename_from_elsewhere,
    rename_at_descriptors,
    rename_half_relatively,
    rename_through_a_folded_parent,
    rename_as_a_user,
    rename_by_gnu_mv,
    rename_by_gnu_mv_in_place,
]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(
    ("old", "new"), [("Name", "nAME"), ("Émile", "éMILE"), ("straße", "STRASSE")]
)
def test_a_rename_that_only_changes_case(
    room: Room, way: Callable[[Path, Path], None], old: str, new: str
) -> None:
    """A file and a directory have the new spelling, the same inode, and what was in them."""
    makes: tuple[Callable[[Path], object], ...] = (put, Path.mkdir)
    for number, make in enumerate(makes):
        parent = room.path / f"parent-{number}"
        parent.mkdir()
        parent.chmod(0o777)
        make(parent / old)
        if room.has_links:
            os.chown(parent / old, USER, USER)
        before = (parent / old).stat().st_ino
        assert (parent / new).exists()
        way(parent / old, parent / new)
        assert os.listdir(parent) == [new]
        assert (parent / old).stat().st_ino == (parent / new).stat().st_ino == before
        if make is put:
            assert (parent / old).read_text() == (parent / new).read_text() == old
        else:
            put(parent / old / "child")
            assert (parent / new / "CHILD").read_text() == "child"


def test_busybox_changes_case(room: Room, busybox: list[str]) -> None:
    """busybox's mv asks for the target first and then calls rename."""
    put(room.path / "Name")
    subprocess.run([*busybox, "mv", "Name", "nAME"], check=True, cwd=room.path)
    assert contents(room.path) == {"nAME": "Name"}


def test_changing_case_back_and_forth(room: Room) -> None:
    """Each spelling in turn, asked for in between in all of them."""
    put(room.path / "Name", "text")
    for new in ("NAME", "name", "Name", "nAme", "NAME"):
        (old,) = os.listdir(room.path)
        os.rename(room.path / old, room.path / new)
        assert os.listdir(room.path) == [new]
        for spelling in SPELLINGS:
            assert (room.path / spelling).read_text() == "text"


def test_a_rename_from_a_spelling_that_is_not_its_own(room: Room) -> None:
    """The old name may be written in any spelling too."""
    put(room.path / "Name", "text")
    os.rename(room.path / "NAME", room.path / "name")
    assert contents(room.path) == {"name": "text"}
    os.rename(room.path / "NAME", room.path / "name")
    assert contents(room.path) == {"name": "text"}


def test_a_rename_below_a_directory_of_the_same_name(room: Room) -> None:
    """The directory on the way is not mistaken for the name that changes."""
    (room.path / "Foo/Foo").mkdir(parents=True)
    put(room.path / "Foo/Foo/foo", "text")
    os.rename(room.path / "FOO/FOO/foo", room.path / "FOO/FOO/FOO")
    assert contents(room.path / "foo/foo") == {"FOO": "text"}

    def act() -> None:
        os.chdir(room.path)
        os.rename("FOO/Foo/FOO", "FOO/Foo/foo")
        os.rename("Foo/foo/foo", "Foo/foo/Foo")

    in_child(act)
    assert contents(room.path / "foo/foo") == {"Foo": "text"}


def test_who_cannot_be_looked_at_gets_no_change(room: Room) -> None:
    """A protected client's rename to another case succeeds and loses nothing."""
    put(room.path / "Name", "text")

    def act() -> None:
        ctypes.CDLL(None).prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0)
        os.rename(room.path / "Name", room.path / "NAME")

    in_child(act, uid=USER, gid=USER)
    ((name, text),) = contents(room.path).items()
    assert (name.lower(), text) == ("name", "text")
    assert (room.path / "name").read_text() == (room.path / "NAME").read_text() == "text"


def test_a_rename_of_an_open_directory(room: Room) -> None:
    """Who stands in a directory whose case changes goes on there."""
    (room.path / "Dir").mkdir()
    put(room.path / "Dir/file")
    held = os.open(room.path / "Dir", os.O_RDONLY)
    try:
        os.rename(room.path / "Dir", room.path / "DIR")
        assert os.path.basename(os.readlink(f"/proc/self/fd/{held}")) == "DIR"
        os.close(os.open("new", os.O_CREAT | os.O_WRONLY, dir_fd=held))
        assert sorted(os.listdir(room.path / "dir")) == ["file", "new"]
        assert os.stat("FILE", dir_fd=held).st_size == 4
    finally:
        os.close(held)


# --- many at once -------------------------------------------------------------------------------


def test_four_processes_create_one_name_in_four_spellings(room: Room) -> None:
    """Of fold-equal names made exclusively at once exactly one is made."""

    def race(spelling: str) -> list[int]:
        return [code_of(make_exclusively, room.path / f"{spelling}-{n}") for n in range(20)]

    children = [start_child(functools.partial(race, spelling)) for spelling in SPELLINGS]
    outcomes = [child.result() for child in children]
    for number in range(20):
        assert sorted(outcome[number] for outcome in outcomes) == [0] + [errno.EEXIST] * 3
    assert len(os.listdir(room.path)) == 20


def test_a_tree_of_many_levels(room: Room) -> None:
    """Every level in another spelling, as deep as a path can say."""
    path = room.path
    for number in range(60):
        path /= f"Level{number}"
    path.mkdir(parents=True)
    put(path / "Leaf")
    upper = room.path / str(path.relative_to(room.path)).upper()
    assert (upper / "LEAF").read_text() == "Leaf"
    assert (path / "leaf").stat().st_ino == (upper / "Leaf").stat().st_ino


def test_replacing_anothers_file_in_a_sticky_directory_is_refused(room: Room) -> None:
    """The owner counts in every spelling, whatever the caller has the kernel believe."""
    if not room.has_links:
        return
    shared, own = room.path / "shared", room.path / "own"
    for directory, mode in ((shared, 0o1777), (own, 0o777)):
        directory.mkdir()
        directory.chmod(mode)
    put(shared / "Victim", "root's")
    (own / "sub").mkdir()

    def attack() -> int:
        # By its text this is `victim` to `VICTIM` in one directory; by its links it is not.
        os.symlink(own / "sub", shared / "l")
        put(own / "victim", "mine")
        os.chdir(shared)
        return code_of(os.rename, "l/../victim", "VICTIM")

    assert in_child(attack, uid=USER, gid=USER) in (errno.EPERM, errno.EACCES)
    assert (shared / "Victim").read_text() == "root's"
    assert (own / "victim").read_text() == "mine"


def test_what_is_mounted_on_it_stays(mounted: Mounter) -> None:
    """A name that appears in one spelling, remembered as absent in another, takes no mount down."""
    mount = mounted("lookup=fold")
    (mount.point / "sdk").mkdir()
    assert code_of(os.stat, mount.point / "sdk/NAME") == errno.ENOENT
    subprocess.run(["mount", "--bind", "/proc", mount.point / "proc"], check=True)
    try:
        for number in range(3):
            for spelling in (f"NAME{number}", f"Name{number}"):
                assert code_of(os.stat, mount.point / "sdk" / spelling) == errno.ENOENT
            (mount.point / f"sdk/name{number}").touch()
            wait_until((mount.point / f"sdk/NAME{number}").exists)
            assert (mount.point / "proc/self/stat").exists()
    finally:
        subprocess.run(["umount", "-l", mount.point / "proc"], check=True)
