"""Byte-exact Linux names on real volumes that take Foo and foo for one name."""

from __future__ import annotations

import contextlib
import errno
import functools
import io
import itertools
import os
import subprocess
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

from sidecar import escape, linux
from sidecar import volume as volume_module
from sidecar.index import DirectoryIndex
from sidecar.naming import Policy
from tests.caseless import Volumes
from tests.children import code_of, in_child, start_child
from tests.conftest import Spot
from tests.matrix.volumes import Volume
from tests.mounts import Mount, Mounter
from tests.waiting import wait_until

LINKED: Final = ("zfs", "zfs-formd", "lowntfs")
"""The folding volumes with hard links and symlinks; exfat has neither."""
COMPOSED, DECOMPOSED = "caf\u00e9", "cafe\u0301"
INDEX_FILE: Final = ".elfuse_case_index"
USER: Final = 1000
FRESH: Final = ("entry_timeout=0", "attr_timeout=0", "negative_timeout=0")


def rename_flags(old: Path, new: Path, flags: int) -> int:
    return code_of(
        linux.renameat2, linux.AT_FDCWD, os.fsencode(old), linux.AT_FDCWD, os.fsencode(new), flags
    )


def contents(directory: Path) -> dict[str, str]:
    """Name and content of every file, as listed."""
    return {name: (directory / name).read_text() for name in os.listdir(directory)}


def lists(directory: Path, names: set[str]) -> bool:
    return set(os.listdir(directory)) == names


def make_exclusively(path: Path) -> None:
    fd = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY)
    os.write(fd, os.fsencode(path.name))
    os.close(fd)


def write_all(directory: Path, *names: str) -> dict[str, str]:
    for name in names:
        (directory / name).write_text(name)
    return {name: name for name in names}


@pytest.fixture
def beside(folded: Spot, folding_stage: Mount) -> Path:
    """The host's directory at the path of `folded`."""
    path = folding_stage.host / folded.lower.name
    path.mkdir()
    return path


# --- names side by side -------------------------------------------------------------------------


def test_makefile_and_Makefile(folded: Spot) -> None:
    """Spellings coexist, each with its content, and one goes without the other."""
    wanted = write_all(folded.path, "Makefile", "makefile", "MAKEFILE")
    assert contents(folded.path) == wanted
    os.unlink(folded.path / "Makefile")
    assert code_of(os.stat, folded.path / "Makefile") == errno.ENOENT
    del wanted["Makefile"]
    assert contents(folded.path) == wanted
    wanted |= write_all(folded.path, "Makefile")
    assert contents(folded.path) == wanted


def test_the_kernels_headers_and_debians_manual_pages(folded: Spot) -> None:
    """Every path of a Linux tree that another one collides with, and PAM.7.gz with its link.

    Unpacked by GNU tar, each with its own content.
    """
    listed = (Path(__file__).parent / "vectors/kernel_collisions.txt").read_text().splitlines()
    paths = [line for line in listed if line and not line.startswith("#")]
    paths += ["usr/share/man/man7/PAM.7.gz", "usr/share/man/man7/pam.7.gz"]
    assert len(paths) == 28
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w") as tar:
        for path in paths:
            member = tarfile.TarInfo(path)
            member.size = len(path)
            tar.addfile(member, io.BytesIO(path.encode()))
    unpack = ["tar", "xf", "-", "--no-same-owner", "--no-same-permissions", "-C", str(folded.path)]
    subprocess.run(unpack, input=archive.getvalue(), check=True)
    for path in paths:
        assert (folded.path / path).read_text() == path
    names = {path.rpartition("/")[2] for path in paths if "netfilter/xt_" in path}
    seen = {name for top in ("include/uapi/linux", "net") for name in _names(folded.path / top)}
    assert names <= seen


def _names(directory: Path) -> list[str]:
    return os.listdir(directory / "netfilter")


def test_one_spelling_is_stored_as_it_is(folded: Spot, volume: Volume) -> None:
    """Where the volume keeps case a name without rivals is what people see from outside."""
    write_all(folded.path, "Makefile", "makefile")
    stored = os.listdir(folded.lower)
    assert len(stored) == 2
    assert ("makefile" if volume.kind == "lowntfs" else "Makefile") in stored
    assert sum(name.startswith(".ef=") for name in stored) == 1


def test_directories_differ_by_case_too(folded: Spot) -> None:
    """Each of two directories has its own entries and its own parent."""
    for name in ("lib", "Lib", "LIB"):
        (folded.path / name / "Sub").mkdir(parents=True)
        (folded.path / name / "Sub" / "f").write_text(name)
    for name in ("lib", "Lib", "LIB"):
        assert (folded.path / name / "Sub" / "f").read_text() == name
        assert os.listdir(folded.path / name) == ["Sub"]
        assert code_of(os.stat, folded.path / name / "sub") == errno.ENOENT
    os.rename(folded.path / "lib" / "Sub", folded.path / "Lib" / "sub")
    assert sorted(os.listdir(folded.path / "Lib")) == ["Sub", "sub"]
    assert (folded.path / "Lib" / "sub" / "f").read_text() == "lib"


def test_accents_composed_and_decomposed(folded: Spot) -> None:
    """Both forms of one accent are two names, and so are their upper cases."""
    names = (COMPOSED, DECOMPOSED, COMPOSED.upper(), DECOMPOSED.upper())
    wanted = write_all(folded.path, *names)
    assert contents(folded.path) == wanted
    assert code_of(os.stat, folded.path / COMPOSED.title()) == errno.ENOENT


def test_letters_that_fold_strangely(folded: Spot) -> None:
    """Sigma, sharp s, ligatures, the Kelvin sign, dotless i and Deseret stay what they are."""
    names = [
        "\u03c3", "\u03c2", "\u03a3", "stra\u00dfe", "strasse", "\ufb01", "fi", "k", "K",
        "\u212a", "i", "I", "\u0131", "\u0130", "\u2126", "\u03a9", "\u03c9", "\U00010400",
        "\U00010428", "\ud55c", "\u1112\u1161\u11ab",
    ]  # fmt: skip
    wanted = write_all(folded.path, *names)
    assert contents(folded.path) == wanted


def test_ill_formed_utf8(folded: Spot, volume: Volume) -> None:
    """Bytes that are no UTF-8 are names: stored where the volume stores them, else escaped."""
    here = os.fsencode(folded.path)
    names = [b"\xff\xfe", b"\xed\xa0\x80", b"a\x80", b"\xc3", b"A\x80"]
    for name in names:
        with open(here + b"/" + name, "xb") as file:
            file.write(name)
    assert sorted(os.listdir(here)) == sorted(names)
    for name in names:
        with open(here + b"/" + name, "rb") as file:
            assert file.read() == name
    raw = b"\xff\xfe" in os.listdir(os.fsencode(folded.lower))
    assert raw == (volume.kind == "zfs")


def test_names_that_the_volume_refuses(folded: Spot) -> None:
    """Windows' forbidden characters and devices, control bytes, final dots and spaces."""
    names = ["a:b", 'a*?"<>|', "a\\b", "end.", "end ", "end", "\x01\n\x7f", "aux", "con.txt", "..."]
    wanted = write_all(folded.path, *names)
    assert contents(folded.path) == wanted


@pytest.mark.parametrize("kind", ["exfat", "caseless"])
@pytest.mark.parametrize("options", [(), ("lookup=fold", "merge"), ("listing=union",)])
def test_a_name_past_linuxs_limit_hides_no_other(
    mounted: Mounter, volumes: Volumes, kind: str, options: tuple[str, ...]
) -> None:
    """Such volumes hold 255 UTF-16 units, which may be 765 bytes: left out, and kept."""
    base = volumes[kind].path / mounted.work.name
    for layer in ("sysroot", "host"):
        for name in ("Dir", layer):
            (base / layer / name).mkdir(parents=True)
            (base / layer / name / "file").touch()
            (base / layer / name / ("\u6f22" * 100 + layer)).touch()
    mount = mounted(*options, sysroot=base / "sysroot", host=base / "host")
    for name in ("Dir", "sysroot", "host"):
        assert os.listdir(mount.point / name) == ["file"]
    os.unlink(mount.point / "Dir" / "file")
    assert code_of(os.rmdir, mount.point / "Dir") == errno.ENOTEMPTY
    assert os.listdir(mount.sysroot / "Dir") == ["\u6f22" * 100 + "sysroot"]


def test_names_that_stored_names_look_like(folded: Spot) -> None:
    """An escape, a token and the index file's own name are ordinary names for the guest."""
    names = [".ef=466f6f", "Foo", "foo", ".ef_0123456789abcdef", INDEX_FILE, f"{INDEX_FILE}.tmp"]
    wanted = write_all(folded.path, *names)
    assert contents(folded.path) == wanted
    for name in names:
        os.unlink(folded.path / name)
    assert os.listdir(folded.path) == []


def test_long_names_that_collide(folded: Spot, volume: Volume) -> None:
    """200 and 255 bytes fold together too: by the index file where no escape can hold them."""
    names = ["n" * 200, "N" * 200, "nN" * 100, "m" * 255, "M" * 255]
    wanted = write_all(folded.path, *names)
    assert contents(folded.path) == wanted
    assert (INDEX_FILE in os.listdir(folded.lower)) == (volume.kind != "exfat")
    os.rename(folded.path / ("N" * 200), folded.path / ("nn" + "N" * 198))
    wanted["nn" + "N" * 198] = wanted.pop("N" * 200)
    os.unlink(folded.path / ("m" * 255))
    del wanted["m" * 255]
    assert contents(folded.path) == wanted
    assert code_of(os.stat, folded.path / ("N" * 256)) == errno.ENAMETOOLONG


def test_names_that_grow_when_decomposed(folded: Spot) -> None:
    """254 bytes of accents are longer than the volume's limit in another form, and still work."""
    names = ["\u00e9" * 127, "\u00c9" * 127, "e\u0301" * 85]
    wanted = write_all(folded.path, *names)
    assert contents(folded.path) == wanted


def test_stored_names_never_reach_the_guest(folded: Spot) -> None:
    """Not in listings, getcwd, links of descriptors, nor in the messages of failing calls."""
    (folded.path / "dir").mkdir()
    (folded.path / "Dir" / "N").mkdir(parents=True)
    write_all(folded.path / "Dir", "n", "x" * 200, "X" * 200)

    def look() -> list[str]:
        os.chdir(folded.path / "Dir" / "N")
        with open("../n") as file:
            found = [os.getcwd(), os.readlink(f"/proc/self/fd/{file.fileno()}")]
        found += os.listdir("..") + os.listdir("../..")
        with open("/proc/self/maps") as maps:
            found += maps.read().split()
        return found

    seen = in_child(look)
    assert seen[:2] == [str(folded.path / "Dir" / "N"), str(folded.path / "Dir" / "n")]
    assert {"dir", "Dir", "n", "N", "x" * 200, "X" * 200} <= set(seen)
    # Not in what is above the mount: its name is a random one.
    inside = [text.removeprefix(str(folded.path)) for text in seen]
    assert not [text for text in inside if ".ef" in text or "elfuse" in text]


# --- wrong case ---------------------------------------------------------------------------------


def test_a_wrong_case_is_absent(folded: Spot, beside: Path) -> None:
    """`stat MAKEFILE` where only makefile exists: ENOENT, although the host has a MAKEFILE."""
    write_all(folded.path, "makefile")
    write_all(beside, "MAKEFILE", "Makefile", "other")
    for name in ("MAKEFILE", "Makefile"):
        assert code_of(os.stat, folded.path / name) == errno.ENOENT
        assert code_of(os.open, folded.path / name, os.O_RDONLY) == errno.ENOENT
        assert code_of(os.unlink, folded.path / name) == errno.ENOENT
        assert code_of(os.rename, folded.path / name, folded.path / "x") == errno.ENOENT
        assert code_of(os.chmod, folded.path / name, 0o600) == errno.ENOENT
        assert code_of(os.truncate, folded.path / name, 0) == errno.ENOENT
    assert (folded.path / "other").read_text() == "other"
    assert sorted(os.listdir(beside)) == ["MAKEFILE", "Makefile", "other"]


def test_a_wrong_case_in_the_middle_of_a_path(folded: Spot, beside: Path) -> None:
    """DIR/x is ENOENT where the sysroot has dir, for reads and mutations, although the host has."""
    (folded.path / "dir").mkdir()
    (beside / "DIR" / "sub").mkdir(parents=True)
    write_all(beside / "DIR", "x")
    write_all(folded.path / "dir", "y")
    wrong = folded.path / "DIR"
    for call in (os.stat, os.unlink, os.listdir, os.readlink):
        assert code_of(call, wrong / "x") == errno.ENOENT
    assert code_of(os.stat, wrong / "y") == errno.ENOENT
    assert code_of(os.mkdir, wrong / "new") == errno.ENOENT
    assert code_of(os.rmdir, wrong / "sub") == errno.ENOENT
    assert code_of(os.open, wrong / "new", os.O_CREAT | os.O_WRONLY) == errno.ENOENT
    assert code_of(os.rename, wrong / "x", folded.path / "z") == errno.ENOENT
    assert code_of(os.rename, folded.path / "dir" / "y", wrong / "z") == errno.ENOENT
    assert sorted(os.listdir(beside / "DIR")) == ["sub", "x"]


def test_a_missing_suffix_below_a_mapping(folded: Spot, beside: Path) -> None:
    """Below a directory with a stored name of its own the host is never asked."""
    (folded.path / "foo").mkdir()
    (folded.path / "Foo" / "in").mkdir(parents=True)
    for name in ("foo", "Foo", "Foo/in"):
        (beside / name).mkdir()
        write_all(beside / name, "x")
    assert (folded.path / "foo" / "x").read_text() == "x"
    assert code_of(os.stat, folded.path / "Foo" / "x") == errno.ENOENT
    assert code_of(os.stat, folded.path / "Foo" / "in" / "x") == errno.ENOENT
    assert code_of(os.unlink, folded.path / "Foo" / "x") == errno.ENOENT
    write_all(folded.path / "Foo", "x")
    assert os.listdir(folded.path / "Foo" / "in") == []
    assert sorted(os.listdir(folded.lower / "foo")) == []
    assert sorted(os.listdir(beside / "Foo")) == ["in", "x"]


def test_creating_where_another_spelling_was_absent(folded: Spot) -> None:
    """An answer "absent" for one spelling is forgotten when that spelling appears."""
    assert code_of(os.stat, folded.path / "File") == errno.ENOENT
    write_all(folded.path, "file")
    assert code_of(os.stat, folded.path / "File") == errno.ENOENT
    write_all(folded.path, "File")
    os.unlink(folded.path / "file")
    assert code_of(os.stat, folded.path / "file") == errno.ENOENT
    assert contents(folded.path) == {"File": "File"}


def test_what_a_refused_fifo_leaves_can_be_removed(
    folded: Spot, volume: Volume, folding_stage: Mount
) -> None:
    """exfat-fuse answers EIO and leaves a file: it is listed and goes with its directory."""
    folding_stage.expects("mknod: .*Input/output error")
    directory = folded.path / "d"
    directory.mkdir()
    code = code_of(os.mkfifo, directory / "fifo")
    assert (code == 0) == (volume.kind != "exfat")
    assert os.listdir(directory) == os.listdir(folded.lower / "d")
    subprocess.run(["rm", "-r", directory], check=True)
    assert os.listdir(folded.path) == []


# --- rename -------------------------------------------------------------------------------------


def test_a_rename_that_only_changes_case(folded: Spot, volume: Volume) -> None:
    """The inode stays, the spelling is the new one, an open file goes on, many times over."""
    (folded.path / "abc").write_text("content")
    number = (folded.path / "abc").stat().st_ino
    with open(folded.path / "abc") as file:
        for old, new in (("abc", "Abc"), ("Abc", "aBC"), ("aBC", "abc"), ("abc", "ABC")):
            os.rename(folded.path / old, folded.path / new)
            assert os.listdir(folded.path) == [new]
            assert code_of(os.stat, folded.path / old) == errno.ENOENT
            assert (folded.path / new).read_text() == "content"
            assert (folded.path / new).stat().st_ino == number or volume.kind == "exfat"
        assert file.read() == "content"
    # lowntfs keeps what an open file was renamed from until that is closed.
    wait_until(lambda: len(os.listdir(folded.lower)) == 1)


def test_a_case_rename_of_a_full_directory(folded: Spot) -> None:
    """A directory takes its entries along, and what is open in it."""
    (folded.path / "dir" / "Sub").mkdir(parents=True)
    write_all(folded.path / "dir" / "Sub", "f", "F")
    os.rename(folded.path / "dir", folded.path / "DIR")
    assert os.listdir(folded.path) == ["DIR"]
    assert contents(folded.path / "DIR" / "Sub") == {"f": "f", "F": "F"}
    os.rename(folded.path / "DIR" / "Sub", folded.path / "DIR" / "sUB")
    assert contents(folded.path / "DIR" / "sUB") == {"f": "f", "F": "F"}


def test_renames_onto_mapped_names(folded: Spot) -> None:
    """What is replaced is the very name that was meant; NOREPLACE refuses it."""
    write_all(folded.path, "foo", "Foo", "FOO", "a", "b")
    assert rename_flags(folded.path / "a", folded.path / "Foo", linux.RENAME_NOREPLACE) == (
        errno.EEXIST
    )
    os.rename(folded.path / "a", folded.path / "Foo")
    assert contents(folded.path) == {"foo": "foo", "Foo": "a", "FOO": "FOO", "b": "b"}
    os.rename(folded.path / "Foo", folded.path / "foo")
    assert contents(folded.path) == {"foo": "a", "FOO": "FOO", "b": "b"}
    os.rename(folded.path / "foo", folded.path / "FOO")
    assert contents(folded.path) == {"FOO": "a", "b": "b"}
    assert rename_flags(folded.path / "b", folded.path / "foo", linux.RENAME_NOREPLACE) == 0
    assert contents(folded.path) == {"FOO": "a", "foo": "b"}


def test_exchange_is_refused(folded: Spot) -> None:
    """These volumes cannot exchange in one call, and two could be cut in half: EINVAL."""
    write_all(folded.path, "a", "A")
    assert rename_flags(folded.path / "a", folded.path / "A", linux.RENAME_EXCHANGE) == (
        errno.EINVAL
    )
    assert contents(folded.path) == {"a": "a", "A": "A"}


def test_a_rename_between_directories_that_differ_by_case(folded: Spot) -> None:
    """Files and directories move between d and D under spellings that the other has already."""
    (folded.path / "d").mkdir()
    (folded.path / "D").mkdir()
    write_all(folded.path / "d", "x", "y")
    write_all(folded.path / "D", "X", "Y")
    os.rename(folded.path / "d" / "x", folded.path / "D" / "x")
    os.rename(folded.path / "D" / "Y", folded.path / "d" / "Y")
    assert contents(folded.path / "d") == {"y": "y", "Y": "Y"}
    assert contents(folded.path / "D") == {"x": "x", "X": "X"}


def test_an_index_row_moves_with_its_name(folded: Spot) -> None:
    """Names that only a row can hold are replaced, moved to another directory and made anew."""
    one, two = folded.path / "one", folded.path / "two"
    one.mkdir()
    two.mkdir()
    low, high = "q" * 220, "Q" * 220
    write_all(one, low, high)
    os.rename(one / high, two / high)
    assert (contents(one), contents(two)) == ({low: low}, {high: high})
    os.rename(one / low, two / low)
    assert contents(two) == {low: low, high: high}
    os.rename(two / low, two / high)
    assert contents(two) == {high: low}
    write_all(two, low)
    assert contents(two) == {high: low, low: low}


# --- links, directories, races ------------------------------------------------------------------


def test_hard_links_under_two_spellings(folded: Spot, volume: Volume) -> None:
    """Two spellings can be names of one file, where the volume has links at all."""
    write_all(folded.path, "f")
    code = code_of(os.link, folded.path / "f", folded.path / "F")
    if volume.kind not in LINKED:
        assert code in (errno.EPERM, errno.ENOSYS, errno.EOPNOTSUPP)
        return
    assert code == 0
    one, other = (folded.path / "f").stat(), (folded.path / "F").stat()
    assert (one.st_ino, one.st_nlink) == (other.st_ino, 2)
    os.unlink(folded.path / "f")
    assert contents(folded.path) == {"F": "f"}
    assert (folded.path / "F").stat().st_nlink == 1


def test_symlinks_give_their_bytes_back(folded: Spot, volume: Volume) -> None:
    """A target is never translated, and its walk is the guest's."""
    write_all(folded.path, "target", "Target")
    code = code_of(os.symlink, "Target", folded.path / "L")
    if volume.kind not in LINKED:
        assert code in (errno.EPERM, errno.ENOSYS, errno.EOPNOTSUPP)
        return
    os.symlink("target", folded.path / "l")
    assert os.readlink(folded.path / "L") == "Target"
    assert (folded.path / "L").read_text() == "Target"
    assert (folded.path / "l").read_text() == "target"


def test_the_mode_decides_for_others(folded: Spot, volume: Volume) -> None:
    """Who is not the owner is judged by the mode also where the volume has no ACLs to ask for."""
    write_all(folded.path, "open", "shut")
    (folded.path / "d").mkdir()
    write_all(folded.path / "d", "below")

    def ask() -> tuple[str, int]:
        return (folded.path / "d/below").read_text(), code_of(
            os.open, folded.path / "shut", os.O_RDONLY
        )

    if volume.kind == "exfat":  # it has no modes to shut anything with
        assert in_child(ask, uid=USER, gid=USER) == ("below", 0)
        return
    (folded.path / "shut").chmod(0o640)
    assert in_child(ask, uid=USER, gid=USER) == ("below", errno.EACCES)
    # Root is not the owner here, and may everything all the same.
    for name in ("open", "d"):
        os.chown(folded.path / name, USER, USER)
    assert (folded.path / "open").read_text() == "open"
    assert os.listdir(folded.path / "d") == ["below"]


def test_rmdir_of_a_directory_that_keeps_its_index(folded: Spot) -> None:
    """What serves the names is no entry: an emptied directory can be removed and made anew."""
    (folded.path / "Dir").mkdir()
    names = ["w" * 200, "W" * 200, "x" * 200, "X" * 200]
    write_all(folded.path / "Dir", *names)
    assert code_of(os.rmdir, folded.path / "Dir") == errno.ENOTEMPTY
    assert sorted(os.listdir(folded.path / "Dir")) == sorted(names)
    for name in names:
        os.unlink(folded.path / "Dir" / name)
    os.rmdir(folded.path / "Dir")
    # What exfat's server keeps of files that are being closed has moved up and goes.
    wait_until(lambda: os.listdir(folded.lower) == [])
    (folded.path / "Dir").mkdir()
    assert contents(folded.path / "Dir") == {}


def test_rename_over_a_directory_that_keeps_its_index(folded: Spot) -> None:
    """A directory that the guest sees as empty can be replaced, a full one cannot."""
    (folded.path / "old").mkdir()
    (folded.path / "new").mkdir()
    names = ["w" * 200, "W" * 200]
    write_all(folded.path / "old", *names)
    assert code_of(os.rename, folded.path / "new", folded.path / "old") == errno.ENOTEMPTY
    assert sorted(os.listdir(folded.path / "old")) == sorted(names)
    for name in names:
        os.unlink(folded.path / "old" / name)
    write_all(folded.path / "new", "f")
    os.rename(folded.path / "new", folded.path / "old")
    assert contents(folded.path / "old") == {"f": "f"}


@pytest.mark.parametrize("removal", ["rmdir", "rename"])
def test_rows_of_another_mount_survive_the_removal_of_their_directory(
    mounted: Mounter, volumes: Volumes, removal: str
) -> None:
    """Between the row and its object a directory looks empty, and yet its index file stays."""
    mount = mounted(sysroot=volumes["zfs"].path / mounted.work.name)
    directory, other = mount.point / "dir", mount.point / "other"
    directory.mkdir()
    other.mkdir()
    # Such a name is never literal, and its escape would be too long.
    name = escape.encode(b"n" * 70)

    def make(stored: bytes) -> None:
        code = (
            code_of(os.rmdir, directory)
            if removal == "rmdir"
            else code_of(os.rename, other, directory)
        )
        assert code == errno.ENOTEMPTY
        os.mknod(stored, dir_fd=fd)

    fd = os.open(mount.sysroot / "dir", os.O_PATH | os.O_DIRECTORY)
    try:
        index = DirectoryIndex(volume_module.probe(fd), Policy.NATURAL)
        with index.lock(fd):
            index.store(fd, name, make)
    finally:
        os.close(fd)
    wait_until(lambda: os.listdir(directory) == [os.fsdecode(name)])


def test_exclusive_creation_by_four_processes(folded: Spot) -> None:
    """One name has one winner; names that differ by case never contend."""

    def race(own: str) -> list[int]:
        codes = []
        for number in range(15):
            codes.append(code_of(make_exclusively, folded.path / f"Race-{number}"))
            codes.append(code_of(make_exclusively, folded.path / f"{own}-{number}"))
        return codes

    spellings = ("race", "RACE", "rAcE", "raCE")
    children = [start_child(functools.partial(race, spelling)) for spelling in spellings]
    outcomes = [child.result() for child in children]
    for number in range(15):
        shared = sorted(outcome[2 * number] for outcome in outcomes)
        assert shared == [0, errno.EEXIST, errno.EEXIST, errno.EEXIST]
        assert [outcome[2 * number + 1] for outcome in outcomes] == [0, 0, 0, 0]
    wanted = {f"{name}-{number}" for name in (*spellings, "Race") for number in range(15)}
    assert contents(folded.path) == {name: name for name in wanted}


def test_two_mounts_of_one_folding_sysroot(mounted: Mounter, volume: Volume) -> None:
    """Spellings made through two mounts at once are all there, each once, for both."""
    one = mounted(*FRESH, sysroot=volume.path / "two-mounts")
    two = mounted(*FRESH, sysroot=one.sysroot, host=one.host)

    def work(mount: Mount, spelling: str) -> list[int]:
        codes = []
        for number in range(10):
            codes.append(code_of(make_exclusively, mount.point / f"{spelling}-{number}"))
            codes.append(code_of(make_exclusively, mount.point / f"Same-{number}"))
        return codes

    pairs = [(one, "name"), (two, "Name"), (one, "NAME"), (two, "nAME")]
    children = [start_child(functools.partial(work, *pair)) for pair in pairs]
    outcomes = [child.result() for child in children]
    for number in range(10):
        assert [outcome[2 * number] for outcome in outcomes] == [0, 0, 0, 0]
        assert sorted(outcome[2 * number + 1] for outcome in outcomes) == [0] + [errno.EEXIST] * 3
    wanted = {f"{name}-{n}" for name in ("name", "Name", "NAME", "nAME", "Same") for n in range(10)}
    # What the other mount made is listed within a second: volumes count time in such steps.
    for mount in (one, two):
        wait_until(functools.partial(lists, mount.point, wanted))
        assert contents(mount.point) == {name: name for name in wanted}


def test_two_mounts_never_lose_a_file_between_them(mounted: Mounter, volume: Volume) -> None:
    """Of an unlink through one mount and a case-only rename through another, one fails."""
    one = mounted(*FRESH, sysroot=volume.path / "two-mounts-race")
    two = mounted(*FRESH, sysroot=one.sysroot, host=one.host)
    for number in range(25):
        old, new = f"Foo{number}", f"foo{number}"
        (one.point / old).write_text("content")
        removal = start_child(functools.partial(code_of, os.unlink, one.point / old))
        renaming = start_child(
            functools.partial(code_of, os.rename, two.point / old, two.point / new)
        )
        codes = (removal.result(), renaming.result())
        # ESTALE instead of ENOENT: the kernel had found it when the other call came.
        assert codes.count(0) == 1 and set(codes) <= {0, errno.ENOENT, errno.ESTALE}, codes
        assert (two.point / new).exists() == (codes[1] == 0)


def test_changes_from_outside_are_seen(mounted: Mounter, volume: Volume) -> None:
    """Files that come and go on the volume itself appear and vanish under their own names."""
    mount = mounted(*FRESH, sysroot=volume.path / "outside")
    write_all(mount.point, "a")
    assert contents(mount.point) == {"a": "a"}
    write_all(mount.sysroot, "b")
    (mount.sysroot / ".ef=42").write_text("B")
    os.unlink(mount.sysroot / "a")

    def seen() -> bool:
        return sorted(os.listdir(mount.point)) == ["B", "b"]

    # Volumes count time in steps of up to two seconds: an index is believed for one at most.
    wait_until(seen)
    assert contents(mount.point) == {"b": "b", "B": "B"}
    assert code_of(os.stat, mount.point / "a") == errno.ENOENT


# --- users --------------------------------------------------------------------------------------


def test_users_use_what_is_open_to_them(folded: Spot, volume: Volume) -> None:
    """By the mode for others, and by a supplementary group that only the caller's process has.

    Some volumes have no ACLs, and some look themselves whether the group may write. Exfat has
    neither modes nor owners.
    """
    if volume.kind not in LINKED:
        assert code_of(os.chown, folded.path, 1000, 1000)
        return
    open_to_all, of_a_group = folded.path / "Open", folded.path / "Group"
    for directory, gid, mode in ((open_to_all, 0, 0o777), (of_a_group, 2000, 0o770)):
        directory.mkdir()
        os.chown(directory, 0, gid)
        directory.chmod(mode)
        (directory / "file").write_text("content")

    def use() -> list[str]:
        for directory in (open_to_all, of_a_group):
            assert (directory / "file").read_text() == "content"
            for name in ("new", "New"):
                (directory / name).write_text(name)
                (directory / f"{name}-directory").mkdir()
                (directory / f"{name}-link").symlink_to(name)
        return sorted(os.listdir(of_a_group))

    made = ["New", "New-directory", "New-link", "file", "new", "new-directory", "new-link"]
    assert in_child(use, uid=1000, gid=1000, groups=(1000, 2000)) == made
    for name in set(made) - {"file"}:
        assert (of_a_group / name).lstat().st_uid == 1000
    refused = code_of(in_child, lambda: os.listdir(of_a_group), uid=1000, gid=1000)
    assert refused == errno.EACCES


# --- damage and death ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    "damage", [b"garbage", b"6e\t.ef_0123456789abcdef", b"zz\t.ef_0123456789abcdef\n", b"\n"]
)
def test_a_damaged_index_is_eio(folded: Spot, folding_stage: Mount, damage: bytes) -> None:
    """A malformed row makes its directory EIO, never empty; its neighbours work."""
    folding_stage.expects("damaged index|Input/output error|row .* malformed|cut off")
    (folded.lower / "bad").mkdir()
    (folded.lower / "bad" / INDEX_FILE).write_bytes(damage)
    (folded.lower / "bad" / "file").write_text("x")
    assert code_of(os.listdir, folded.path / "bad") == errno.EIO
    assert code_of(os.stat, folded.path / "bad" / "other") == errno.EIO
    flags = os.O_CREAT | os.O_WRONLY
    assert code_of(os.open, folded.path / "bad" / "new", flags) == errno.EIO
    assert code_of(os.rmdir, folded.path / "bad") in (errno.EIO, errno.ENOTEMPTY)
    assert write_all(folded.path, "fine") == {"fine": "fine"}
    assert sorted(os.listdir(folded.path)) == ["bad", "fine"]
    (folded.lower / "bad" / INDEX_FILE).unlink()
    wait_until(lambda: code_of(os.listdir, folded.path / "bad") == 0)
    assert contents(folded.path / "bad") == {"file": "x"}


@pytest.mark.parametrize("after", [3, 40, 101])
def test_kill_in_the_middle_of_changes(mounted: Mounter, volume: Volume, after: int) -> None:
    """After kill -9 and a new mount every name is there exactly once with its content.

    A client makes Name-N, changes its case, gives it a long name, changes the case of that (an
    index row holds it where no escape can), and says so after each call. What it said is so; the
    one call that was under way is done or not done.
    """
    sysroot = volume.path / f"kill-{after}"
    mount = mounted(sysroot=sysroot)
    reader, writer = os.pipe()

    def client() -> None:
        os.close(reader)
        for number in range(1000):
            tail = f"-{number}"
            steps = [f"Name{tail}", f"NAME{tail}", "l" * 200 + tail, "L" * 200 + tail]
            fd = os.open(mount.point / steps[0], os.O_CREAT | os.O_EXCL | os.O_WRONLY)
            os.write(fd, tail.encode())
            os.close(fd)
            os.write(writer, b".")
            for old, new in itertools.pairwise(steps):
                os.rename(mount.point / old, mount.point / new)
                os.write(writer, b".")

    child = start_child(client)
    os.close(writer)
    done = 0
    while done < after:
        done += len(os.read(reader, after - done))
    mount.kill()
    # ENOENT: the client came when nothing was mounted any more.
    assert code_of(child.result) in (errno.ENOTCONN, errno.ECONNABORTED, errno.EIO, errno.ENOENT)
    with open(reader, "rb") as pipe:
        done += len(pipe.read())

    again = mounted(sysroot=sysroot)
    found = os.listdir(again.point)
    assert len(found) == len(set(found))
    by_number: dict[int, list[str]] = {}
    for name in found:
        by_number.setdefault(int(name.rsplit("-", 1)[1]), []).append(name)
    finished, steps_done = divmod(done, 4)
    for number in range(finished):
        assert by_number.pop(number) == ["L" * 200 + f"-{number}"]
        assert (again.point / ("L" * 200 + f"-{number}")).read_text() == f"-{number}"
    # The one that was under way: as the client said, or one call further.
    steps = ["", f"Name-{finished}", f"NAME-{finished}", "l" * 200 + f"-{finished}",
             "L" * 200 + f"-{finished}"]  # fmt: skip
    rest = by_number.pop(finished, [])
    assert len(rest) <= 1 and not by_number
    assert (rest[0] if rest else "") in steps[steps_done : steps_done + 2]
    if rest and steps_done:
        assert (again.point / rest[0]).read_text() == f"-{finished}"
    # And the tree can be worked with and emptied.
    for name in found:
        os.unlink(again.point / name)
    assert os.listdir(again.point) == []


def test_creation_in_a_second_place_leaves_nothing_open(folded: Spot, folding_stage: Mount) -> None:
    """A file whose literal slot was held is closed below when the guest closes it."""
    for number in range(5):
        write_all(folded.path, f"name-{number}", f"Name-{number}", f"NAME-{number}")
    descriptors = Path(f"/proc/{folding_stage.process.pid}/fd")

    def open_below() -> list[str]:
        found = []
        for entry in descriptors.iterdir():
            # It may be closed between the two looks.
            with contextlib.suppress(FileNotFoundError):
                target = os.readlink(entry)
                flags = (descriptors.parent / "fdinfo" / entry.name).read_text()
                octal = flags.split("flags:")[1].split()[0]
                if target.startswith(str(folded.lower)) and not int(octal, 8) & os.O_PATH:
                    found.append(target)
        return found

    # The kernel tells the server of a close without waiting for it.
    wait_until(lambda: open_below() == [])


def test_a_rename_to_a_spelling_lately_absent_replaces_nothing(folded: Spot) -> None:
    """Another spelling's slot is not mistaken for free because it was so a moment ago.

    The kernel remembers of a FUSE volume that `data` is absent, although `Data` holds its slot
    since: a rename that believed it would destroy the file.
    """
    write_all(folded.path, "x", "y")
    for spelling in ("data", "DATA"):
        assert code_of(os.stat, folded.path / spelling) == errno.ENOENT
    write_all(folded.path, "Data")
    os.rename(folded.path / "x", folded.path / "DATA")
    os.rename(folded.path / "y", folded.path / "data")
    assert contents(folded.path) == {"Data": "Data", "DATA": "x", "data": "y"}


def test_a_slot_lately_free_is_claimed(mounted: Mounter, volume: Volume) -> None:
    """The host is not asked for a spelling whose slot was taken a moment ago."""
    mount = mounted(*FRESH, sysroot=volume.path / "lately")
    (mount.host / "made").write_text("host")
    assert (mount.point / "made").read_text() == "host"
    assert not (mount.sysroot / "made").exists()
    os.mkdir(mount.point / "MADE")
    code = code_of(os.stat, mount.point / "made")
    # lowntfs stores no upper case: the directory has an escape and the literal slot stays free.
    assert code == (0 if volume.kind == "lowntfs" else errno.ENOENT)


def test_a_slot_that_is_freed_shows_the_hosts(folded: Spot, beside: Path) -> None:
    """When the entry goes that claimed a spelling, the host's entry of it is seen at once."""
    write_all(beside, "MADE", "GONE")
    write_all(folded.path, "made", "gone")
    for name in ("MADE", "GONE"):
        assert code_of(os.stat, folded.path / name) == errno.ENOENT
    os.unlink(folded.path / "made")
    os.rename(folded.path / "gone", folded.path / "other")
    assert (folded.path / "MADE").read_text() == "MADE"
    assert (folded.path / "GONE").read_text() == "GONE"


def test_numbers_that_are_used_again_behind_the_mount(folded: Spot) -> None:
    """A new file is not taken for one of its number that was removed from outside.

    Such volumes give a number out again although a descriptor is left, which is of no use then.
    """
    for number in range(20):
        name = f"f{number}"
        (folded.path / name).write_text(name)
        assert (folded.path / name).read_text() == name
        os.unlink(folded.lower / name)
        (folded.lower / "d").mkdir()
        (folded.lower / "d").rmdir()


# --- directories of a number that was another's -------------------------------------------------


def takes_entries(directory: Path) -> bool:
    """Whether something can be made in a new *directory*; it goes again."""
    directory.mkdir()
    taken = code_of(os.mkdir, directory / "in") == 0
    if taken:
        (directory / "in").rmdir()
    directory.rmdir()
    return taken


@contextlib.contextmanager
def held(path: Path) -> Iterator[None]:
    """Somebody has *path*, and does not have it open."""
    fd = os.open(path, os.O_PATH | os.O_NOFOLLOW)
    try:
        yield
    finally:
        os.close(fd)


def test_a_removed_directory_that_a_program_has_is_let_go(folded: Spot) -> None:
    """The server's own descriptor would have the kernel take a new directory for the removed one.

    Made behind the mount, so that nothing but that descriptor could make the difference.
    """
    (folded.path / "d").mkdir()
    with held(folded.path / "d"):
        (folded.path / "d").rmdir()
        assert all(takes_entries(folded.lower / f"e{number}") for number in range(8))


def test_what_was_in_a_removed_directory_is_let_go(folded: Spot) -> None:
    """A descriptor of what was in it would keep the directory."""
    (folded.path / "d").mkdir()
    (folded.path / "d/file").touch()
    with held(folded.path / "d/file"):
        (folded.path / "d/file").unlink()
        (folded.path / "d").rmdir()
        assert all(takes_entries(folded.lower / f"e{number}") for number in range(8))


def test_a_new_directory_takes_entries_whoever_has_the_removed_ones(folded: Spot) -> None:
    """Somebody outside, or another server, may hold as many as he likes."""
    gone = [folded.lower / f"gone{number}" for number in range(10)]
    with contextlib.ExitStack() as stack:
        for path in gone:
            path.mkdir()
        for path in gone:
            stack.enter_context(held(path))
        for path in gone:
            path.rmdir()
        assert all(takes_entries(folded.path / f"e{number}") for number in range(8))
    assert os.listdir(folded.lower) == []


def test_a_file_that_was_found_in_a_removed_directory_is_in_nobodys_way(
    folded: Spot, volume: Volume
) -> None:
    """It has another name elsewhere, and is known by the one that has gone."""
    if volume.kind not in LINKED:
        return
    (folded.path / "d").mkdir()
    (folded.path / "d/file").write_text("text")
    os.link(folded.path / "d/file", folded.path / "other")
    with held(folded.path / "d/file"):
        (folded.path / "d/file").unlink()
        (folded.path / "d").rmdir()
        assert all(takes_entries(folded.path / f"e{number}") for number in range(8))
        assert (folded.path / "other").read_text() == "text"
