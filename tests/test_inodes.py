"""The table of inodes: identity, lookup counts, bounded descriptors, and what one inode costs."""

from __future__ import annotations

import errno
import gc
import os
import stat
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

from sidecar import linux, look
from sidecar.descriptor import Descriptor
from sidecar.walk import Layer
from sysroot_fs.tree.inodes import ROOT_ID, Inode, Inodes

_OPEN_DIR: Final = os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC
LIMIT: Final = 8


class Table:
    """A table over a real directory, and what a kernel would ask of it."""

    def __init__(self, top: Path, limit: int = LIMIT) -> None:
        self.top = top
        seen = top.stat()
        self.root = Inode(
            ROOT_ID, (), Layer.SYSROOT, stat.S_IFDIR, seen.st_dev, seen.st_ino, None, b"", b"",
            True, lookups=1, mapped=False, descriptor=Descriptor(os.open(top, _OPEN_DIR)),
            pinned=True,
        )  # fmt: skip
        self.inodes = Inodes(self.root, limit, self.holder)

    def holder(self, inode: Inode) -> Descriptor:
        """The directory in which an inode's name stands."""
        assert inode.parent is not None
        return self.inodes.descriptor(inode.parent)

    def look(self, path: str, stable: bool = True, layer: Layer = Layer.SYSROOT) -> Inode:
        """The inode at a path, one lookup for each component."""
        inode = self.root
        here = self.top
        for name in path.split("/"):
            here = here / name
            seen = here.lstat()
            inode = self.inodes.adopt(
                layer, inode, name.encode(), name.encode(), seen.st_mode, seen.st_dev,
                seen.st_ino, stable,
            )  # fmt: skip
        return inode

    def number(self, inode: Inode) -> int:
        """The real inode number behind an inode's descriptor."""
        return os.fstat(self.inodes.descriptor(inode).fd).st_ino


@pytest.fixture
def table(tmp_path: Path) -> Table:
    """A table over a fresh directory."""
    return Table(tmp_path)


def is_stale(table: Table, inode: Inode) -> bool:
    """Whether the inode's name means another object by now."""
    try:
        table.inodes.descriptor(inode)
    except OSError as error:
        assert error.errno == errno.ESTALE
        return True
    return False


# --- identity -----------------------------------------------------------------------------------


def test_one_file_is_one_inode_under_all_its_names(table: Table) -> None:
    """Hard links share an inode, and each lookup counts."""
    (table.top / "one").touch()
    (table.top / "d").mkdir()
    os.link(table.top / "one", table.top / "d/two")
    one, two = table.look("one"), table.look("d/two")
    assert one is two and one.lookups == 2
    assert one.path() == b"/d/two", "it is where it was last seen"


def test_different_files_are_different_inodes(table: Table) -> None:
    """Numbers differ, and each is found under its own."""
    for name in ("one", "two"):
        (table.top / name).touch()
    one, two = table.look("one"), table.look("two")
    assert one is not two and one.id != two.id
    assert table.inodes[one.id] is one and table.inodes[two.id] is two


def test_the_volumes_own_number_is_kept(table: Table) -> None:
    """The sysroot's numbers are the guest's, the same after a remount."""
    (table.top / "file").touch()
    wanted = (table.top / "file").stat().st_ino
    assert table.look("file").id == wanted
    assert Table(table.top).look("file").id == wanted


def test_numbers_never_clash(table: Table) -> None:
    """The same number on another layer or device is another inode with another number."""
    taken = {ROOT_ID}
    for layer in (Layer.SYSROOT, Layer.HOST):
        for device in range(5):
            for number in (0, 1, 2, 1 << 48, (1 << 64) - 1):
                inode = table.inodes.adopt(
                    layer, table.root, b"n", b"n", stat.S_IFREG, device, number, True
                )
                assert inode.id not in taken and 0 < inode.id < 1 << 63
                taken.add(inode.id)


def test_a_directory_at_two_places_is_two_inodes(table: Table) -> None:
    """The host's links can show one directory twice; the kernel allows it one place only."""
    (table.top / "d").mkdir()
    first = table.look("d")
    seen = (table.top / "d").stat()
    second = table.inodes.adopt(
        Layer.SYSROOT, first, b"again", b"again", seen.st_mode, seen.st_dev, seen.st_ino, True
    )
    assert first is not second and first.id != second.id
    assert (first.ino, first.dev) == (second.ino, second.dev)
    assert table.look("d") is first


def test_where_numbers_are_made_up_the_place_identifies(table: Table) -> None:
    """On such a volume a name stays one inode although its number changes."""
    (table.top / "file").touch()
    first = table.look("file", stable=False)
    (table.top / "other").touch()
    (table.top / "other").rename(table.top / "file")
    assert table.look("file", stable=False) is first
    assert not is_stale(table, first)


def test_a_number_used_again_for_another_kind_is_another_inode(table: Table) -> None:
    """A directory under the number of a file that is gone is not that file."""
    file = table.inodes.adopt(Layer.SYSROOT, table.root, b"n", b"n", stat.S_IFREG, 1, 77, True)
    link = table.inodes.adopt(Layer.SYSROOT, table.root, b"n", b"n", stat.S_IFLNK, 1, 77, True)
    assert file is not link and file.id != link.id
    assert table.inodes[file.id] is file
    table.inodes.forget(file.id, 1)
    again = table.inodes.adopt(Layer.SYSROOT, table.root, b"n", b"n", stat.S_IFLNK, 1, 77, True)
    assert again is link, "forgetting the old one left the new one alone"


def test_a_number_used_again_for_the_same_kind_is_another_inode(table: Table) -> None:
    """Who has a removed file open has not what was made under its number later."""
    place = (Layer.SYSROOT, table.root, b"n", b"n", stat.S_IFREG, 1, 77, True)
    first, other, third = (table.inodes.adopt(*place, birth=birth) for birth in (5, 6, 0))
    assert other is not first and other.id != first.id
    assert third is other, "where nothing is known of it the number decides"


def test_a_name_that_was_made_anew_is_another_inode(table: Table) -> None:
    """Also where the volume gives it the number of the one that was removed."""
    (table.top / "file").touch()
    inode = table.look("file")
    seen = linux.statx(linux.AT_FDCWD, os.fsencode(table.top / "file"))
    inode.birth = look.birth(seen)
    assert not is_stale(table, inode)
    inode.let_go()
    inode.birth = look.birth(seen) ^ 1
    assert is_stale(table, inode) == (look.birth(seen) != 0)


def test_an_unnamed_file_is_not_what_had_its_number(table: Table) -> None:
    """A link to it leads to it, and not to a file that was removed behind the mount."""
    fd = os.open(table.top, os.O_TMPFILE | os.O_RDWR)
    try:
        seen = os.fstat(fd)
        place = (Layer.SYSROOT, table.root, b"n", b"n", seen.st_mode, seen.st_dev, seen.st_ino)
        gone = table.inodes.adopt(*place, True)
        made = table.inodes.adopt_unnamed(table.root, fd)
        assert made is not gone
        assert table.inodes.adopt(*place, True) is made
    finally:
        os.close(fd)


def test_a_birth_stays_for_as_long_as_the_inode_does(tmp_path: Path) -> None:
    """What is written, changed and renamed has not been made anew."""
    path = tmp_path / "file"
    path.touch()
    before = look.birth(linux.statx(linux.AT_FDCWD, os.fsencode(path)))
    path.write_text("more")
    path.chmod(0o4711)
    os.utime(path, (1, 1))
    os.link(path, tmp_path / "link")
    path = path.rename(tmp_path / "moved")
    seen = linux.statx(linux.AT_FDCWD, os.fsencode(path))
    assert look.birth(seen) == before
    assert look.birth(seen._replace(mask=seen.mask & ~linux.STATX_BTIME)) == 0


def test_a_vanished_inode_leaves_its_key(table: Table) -> None:
    """After the last name went away another object with that number is another inode."""
    (table.top / "file").touch()
    inode = table.look("file")
    table.inodes.vanish(inode, table.inodes.root)
    assert table.look("file") is not inode
    assert table.inodes[inode.id] is inode


# --- paths and mappings -------------------------------------------------------------------------


def test_a_path_is_where_it_was_last_seen(table: Table) -> None:
    """Moving a directory moves what is below it."""
    (table.top / "a/b/c").mkdir(parents=True)
    (table.top / "x").mkdir()
    inner, moved, into = table.look("a/b/c"), table.look("a/b"), table.look("x")
    assert inner.path() == b"/a/b/c"
    (table.top / "a/b").rename(table.top / "x/y")
    table.inodes.move(moved, into, b"y", b"y")
    assert inner.path() == b"/x/y/c"
    assert table.look("x/y") is moved
    assert table.number(inner) == (table.top / "x/y/c").stat().st_ino


def test_a_mapping_on_the_way_is_known_below(table: Table) -> None:
    """`consulted` looks at the whole way, and again after a directory moved."""
    (table.top / "a/b").mkdir(parents=True)
    (table.top / ".ef=4d").mkdir()
    inner, moved = table.look("a/b"), table.look("a")
    assert not inner.consulted()
    seen = (table.top / ".ef=4d").stat()
    mapped = table.inodes.adopt(
        Layer.SYSROOT, table.root, b"M", b".ef=4d", seen.st_mode, seen.st_dev, seen.st_ino, True
    )
    assert mapped.consulted()
    (table.top / "a").rename(table.top / ".ef=4d/a")
    table.inodes.move(moved, mapped, b"a", b"a")
    assert inner.consulted() and inner.path() == b"/M/a/b"


def test_a_way_may_be_deeper_than_the_stack(table: Table) -> None:
    """Paths, mappings and descriptors of 3000 levels."""
    here = os.open(table.top, _OPEN_DIR)
    inode = table.root
    for _ in range(3000):
        os.mkdir(b"d", dir_fd=here)
        below = os.open(b"d", _OPEN_DIR, dir_fd=here)
        os.close(here)
        here = below
        seen = os.fstat(here)
        inode = table.inodes.adopt(
            Layer.SYSROOT, inode, b"d", b"d", seen.st_mode, seen.st_dev, seen.st_ino, True
        )
    os.close(here)
    try:
        assert inode.path() == b"/d" * 3000
        assert not inode.consulted()
        assert table.number(inode) == inode.ino
        assert len(table.inodes._open) <= LIMIT
    finally:
        _fill(table.top)


def _fill(top: Path) -> None:
    """Remove directories named d that are too deep for a path."""
    chain = [os.open(top, _OPEN_DIR)]
    try:
        while True:
            chain.append(os.open(b"d", _OPEN_DIR, dir_fd=chain[-1]))
    except FileNotFoundError:
        os.close(chain.pop())
    while chain:
        os.rmdir(b"d", dir_fd=chain[-1])
        os.close(chain.pop())


# --- descriptors --------------------------------------------------------------------------------


def descriptors() -> int:
    """How many descriptors the process has, earlier tests' garbage left aside."""
    gc.collect()
    return len(os.listdir("/proc/self/fd"))


def test_descriptors_are_bounded_and_opened_again(table: Table) -> None:
    """However many inodes are used, no more than the limit are open, and each still works."""
    inodes = []
    for number in range(100):
        directory = table.top / str(number % 10)
        directory.mkdir(exist_ok=True)
        (directory / f"f{number}").touch()
        inodes.append(table.look(f"{number % 10}/f{number}"))
    before = descriptors()
    for _ in range(2):
        for inode in inodes:
            assert table.number(inode) == inode.ino
    assert descriptors() - before <= LIMIT
    assert len(table.inodes._open) <= LIMIT


def test_the_least_recently_used_is_closed_first(tmp_path: Path) -> None:
    """What is used again stays open."""
    table = Table(tmp_path, limit=3)
    for name in "abcd":
        (tmp_path / name).touch()
    a, b, c, d = (table.look(name) for name in "abcd")
    for inode in (a, b, c, a, d):
        table.inodes.descriptor(inode)
    assert [inode.descriptor is not None for inode in (a, b, c, d)] == [True, False, True, True]


def test_a_borrowed_descriptor_outlives_the_cache(tmp_path: Path) -> None:
    """Who holds a descriptor can go on using it after the cache has dropped it."""
    table = Table(tmp_path, limit=1)
    for name in "ab":
        (tmp_path / name).touch()
    a, b = table.look("a"), table.look("b")
    held = table.inodes.descriptor(a)
    table.inodes.descriptor(b)
    assert a.descriptor is None
    assert os.fstat(held.fd).st_ino == a.ino


def test_an_ancestor_that_was_closed_is_opened_on_the_way(tmp_path: Path) -> None:
    """With room for one descriptor a deep inode is still reached."""
    (tmp_path / "a/b/c/d").mkdir(parents=True)
    table = Table(tmp_path, limit=1)
    inode = table.look("a/b/c/d")
    assert table.number(inode) == inode.ino
    assert len(table.inodes._open) == 1


# --- what changed behind our back ---------------------------------------------------------------


def test_a_name_that_means_another_object_is_stale(table: Table) -> None:
    """ESTALE, so that the kernel walks again, for what was replaced, removed or moved."""
    for name in ("replaced", "removed", "moved", "retyped", "kept"):
        (table.top / name).touch()
    (table.top / "d").mkdir()
    (table.top / "d/inner").touch()
    inodes = {name: table.look(name) for name in ("replaced", "removed", "moved", "retyped")}
    inner, kept = table.look("d/inner"), table.look("kept")
    (table.top / "new").touch()
    (table.top / "new").rename(table.top / "replaced")
    (table.top / "removed").unlink()
    (table.top / "moved").rename(table.top / "elsewhere")
    (table.top / "retyped").unlink()
    (table.top / "retyped").mkdir()
    (table.top / "d").rename(table.top / "e")
    (table.top / "d").touch()
    for name, inode in inodes.items():
        assert is_stale(table, inode), name
    assert is_stale(table, inner)
    assert not is_stale(table, kept)


def test_a_link_in_place_of_a_directory_is_not_followed(table: Table) -> None:
    """A symlink planted where a directory was is ESTALE and leads nowhere."""
    (table.top / "d").mkdir()
    (table.top / "other").mkdir()
    (table.top / "d/file").touch()
    (table.top / "other/file").touch()
    inode = table.look("d/file")
    (table.top / "d").rename(table.top / "away")
    (table.top / "d").symlink_to("other")
    assert is_stale(table, inode)


def test_what_was_seen_elsewhere_is_reached_there(table: Table) -> None:
    """A file renamed behind our back works again once it was looked up under its new name."""
    (table.top / "old").touch()
    inode = table.look("old")
    (table.top / "old").rename(table.top / "new")
    assert is_stale(table, inode)
    assert table.look("new") is inode
    assert not is_stale(table, inode)


def test_an_unlinked_inode_stays_pinned(tmp_path: Path) -> None:
    """After `pin` the object is reached without its name, whatever else is used."""
    table = Table(tmp_path, limit=2)
    (tmp_path / "file").write_text("kept")
    inode = table.look("file")
    table.inodes.pin(inode)
    (tmp_path / "file").unlink()
    table.inodes.vanish(inode, table.inodes.root)
    for number in range(10):
        (tmp_path / str(number)).touch()
        table.inodes.descriptor(table.look(str(number)))
    assert os.fstat(table.inodes.descriptor(inode).fd).st_nlink == 0
    with open(f"/proc/self/fd/{table.inodes.descriptor(inode).fd}", encoding="ascii") as file:
        assert file.read() == "kept"


def test_what_its_volume_has_lost_is_stale_for_good(table: Table) -> None:
    """Also where another of its number has its name: that is another inode."""
    (table.top / "d").mkdir()
    inode = table.look("d")
    table.inodes.pin(inode)
    table.inodes.vanish(inode, table.inodes.root, lost=True)
    assert inode.descriptor is None
    assert is_stale(table, inode)
    again = table.look("d")
    assert again is not inode and not is_stale(table, again)


def test_a_pin_ends_when_a_name_is_seen_again(tmp_path: Path) -> None:
    """One of two names went: the inode is an ordinary one again under the other."""
    table = Table(tmp_path, limit=2)
    (tmp_path / "one").touch()
    os.link(tmp_path / "one", tmp_path / "two")
    inode = table.look("one")
    table.inodes.pin(inode)
    (tmp_path / "one").unlink()
    assert table.look("two") is inode and not inode.pinned
    for number in range(4):
        (tmp_path / str(number)).touch()
        table.inodes.descriptor(table.look(str(number)))
    assert inode.descriptor is None
    assert table.number(inode) == inode.ino


# --- forgetting ---------------------------------------------------------------------------------


def test_an_unknown_number_is_stale(table: Table) -> None:
    """Asking for what was forgotten is ESTALE, and forgetting it again is harmless."""
    with pytest.raises(OSError) as caught:
        _ = table.inodes[12345]
    assert caught.value.errno == errno.ESTALE
    table.inodes.forget(12345, 1)


def test_lookups_are_counted(table: Table) -> None:
    """An inode stays until as many lookups are forgotten as there were."""
    (table.top / "file").touch()
    inode = table.look("file")
    for _ in range(4):
        table.look("file")
    table.inodes.forget(inode.id, 3)
    assert table.inodes[inode.id] is inode
    table.inodes.forget(inode.id, 2)
    with pytest.raises(OSError):
        _ = table.inodes[inode.id]


def test_the_root_is_never_forgotten(table: Table) -> None:
    """Whatever the kernel says."""
    table.inodes.forget(ROOT_ID, 1000)
    assert table.inodes[ROOT_ID] is table.root


def test_a_parent_that_was_forgotten_first_still_serves(table: Table) -> None:
    """The kernel may forget a directory before what is in it: the way there must hold."""
    (table.top / "a/b").mkdir(parents=True)
    (table.top / "a/b/file").touch()
    inner = table.look("a/b/file")
    for path in ("a/b", "a"):
        found = table.look(path)
        table.inodes.forget(found.id, found.lookups)
    assert table.number(inner) == inner.ino


@pytest.fixture
def traced() -> Iterator[None]:
    """Allocations are counted while the test runs."""
    gc.collect()
    tracemalloc.start()
    yield
    tracemalloc.stop()


def test_forgetting_everything_empties_the_table(table: Table) -> None:
    """No inode, no key and no descriptor is left but the root's."""
    before = descriptors()
    inodes = []
    for number in range(50):
        (table.top / str(number)).touch()
        inodes.append(table.look(str(number)))
        table.inodes.descriptor(inodes[-1])
    table.inodes.pin(inodes[0])
    for inode in inodes:
        table.inodes.forget(inode.id, 1)
    assert len(table.inodes) == 1
    assert not table.inodes._by_key and not table.inodes._open
    assert descriptors() == before


def test_an_inode_costs_at_most_half_a_kibibyte(table: Table, traced: None) -> None:
    """State for 20 000 inodes in 200 directories, and it falls again when they are forgotten."""
    start, _ = tracemalloc.get_traced_memory()
    count = 0
    numbers = []
    for directory in range(200):
        above = table.inodes.adopt(
            Layer.SYSROOT, table.root, b"directory-%d" % directory, b"directory-%d" % directory,
            stat.S_IFDIR, 1, 10_000_000 + directory, True,
        )  # fmt: skip
        numbers.append(above.id)
        for file in range(99):
            name = b"a-file-name-of-usual-length-%d.txt" % file
            inode = table.inodes.adopt(
                Layer.SYSROOT, above, name, bytes(bytearray(name)), stat.S_IFREG, 1,
                20_000_000 + 1000 * directory + file, True, birth=(1 << 29) + count + file,
            )  # fmt: skip
            inode.consulted()
            numbers.append(inode.id)
        count += 100
    del above, inode, name
    grown, _ = tracemalloc.get_traced_memory()
    assert (grown - start) / count <= 512
    for number in numbers:
        table.inodes.forget(number, 1)
    numbers.clear()
    gc.collect()
    left, _ = tracemalloc.get_traced_memory()
    assert len(table.inodes) == 1
    assert (left - start) / count < 64
