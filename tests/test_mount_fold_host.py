"""The fold policy beside everything else: the host, prefixes, other mounts, outside changes."""

from __future__ import annotations

import contextlib
import errno
import functools
import os
import re
import shutil
import signal
import stat
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

import pytest

from sidecar import index, linux
from sidecar.twin import ROOT
from sysroot_fs.tree import Entry, Tree, TreeConfig, lookup
from sysroot_fs.tree.inodes import ROOT_ID
from tests.children import code_of, in_child, start_child
from tests.mounts import Mount, Mounter
from tests.test_mount_fold import absent, contents, make_exclusively, put
from tests.waiting import wait_until

LONG: Final = ("entry_timeout=1000", "negative_timeout=1000")
USER: Final = 1000
_numbers = iter(range(1_000_000))


def fill(top: Path, *paths: str) -> None:
    """Files below *top* that hold the name of *top*: `sysroot-0` or `host-0`."""
    for path in paths:
        (top / path).parent.mkdir(parents=True, exist_ok=True)
        (top / path).write_text(top.name.split("-")[0])


@pytest.fixture(params=["sysroot_fs", "tests.without_epoch"], ids=["new", "old-kernel"])
def fold(request: pytest.FixtureRequest, mounted: Mounter) -> Callable[..., Mount]:
    """Mount with lookups that fold and a kernel that remembers, with and without epochs."""
    return functools.partial(mounted, "lookup=fold", *LONG, module=request.param)


# --- the host -----------------------------------------------------------------------------------


def test_a_folded_match_is_a_mapping(fold: Callable[..., Mount]) -> None:
    """Below it nothing falls back; below the exact spelling of the same directory it does."""
    mount = fold()
    fill(mount.sysroot, "Etc/own")
    fill(mount.host, "Etc/theirs", "Etc/sub/deep")
    assert (mount.point / "Etc/theirs").read_text() == "host"
    absent(mount.point / "etc/theirs", mount.point / "ETC/sub/deep")
    assert (mount.point / "etc/OWN").read_text() == "sysroot"


def test_alternating_between_spellings(fold: Callable[..., Mount]) -> None:
    """The answer belongs to the path asked for, also with names that the kernel knows."""
    mount = fold()
    fill(mount.sysroot, "Etc/sub/own")
    fill(mount.host, "Etc/theirs", "Etc/sub/deep", "Etc/only/here")
    for _ in range(4):
        for theirs in ("theirs", "sub/deep", "only/here", "only"):
            assert (mount.point / "Etc" / theirs).exists()
            absent(mount.point / "etc" / theirs, mount.point / "ETC" / theirs)
        assert (mount.point / "Etc/sub/deep").read_text() == "host"
        absent(mount.point / "Etc/SUB/deep")
        assert (mount.point / "eTC/sUB/OWN").read_text() == "sysroot"


def test_a_descriptor_goes_by_the_spelling_that_it_was_last_found_under(
    fold: Callable[..., Mount],
) -> None:
    """The kernel has one name for a directory: its last one decides, at once."""
    mount = fold()
    fill(mount.sysroot, "Etc/own")
    fill(mount.host, "Etc/theirs")
    held = os.open(mount.point / "Etc", os.O_PATH)
    try:
        for _ in range(3):
            assert (mount.point / "Etc").is_dir()
            assert os.stat("theirs", dir_fd=held).st_size == 4
            assert (mount.point / "ETC").is_dir()
            assert code_of(os.stat, "theirs", dir_fd=held) == errno.ENOENT
            assert os.stat("OWN", dir_fd=held).st_size == 7
    finally:
        os.close(held)


def test_a_literal_host_path_is_never_folded(fold: Callable[..., Mount]) -> None:
    """Neither a host entry beside the sysroot's nor one further down."""
    mount = fold()
    fill(mount.sysroot, "Var/x")
    fill(mount.host, "Home/User/File", "Var/Log/File")
    assert (mount.point / "Home/User/File").read_text() == "host"
    assert (mount.point / "Var/Log/File").read_text() == "host"
    absent(
        mount.point / "home", mount.point / "HOME/User/File", mount.point / "Home/user/File",
        mount.point / "Home/User/FILE", mount.point / "Var/LOG", mount.point / "Var/Log/file",
    )  # fmt: skip
    (mount.point / "Home/User/FILE").write_text("another")
    assert contents(mount.host / "Home/User") == {"FILE": "another", "File": "host"}


def test_a_new_sysroot_name_takes_the_hosts_spellings(fold: Callable[..., Mount]) -> None:
    """What the host answered for is the sysroot's once that has it in another spelling."""
    mount = fold()
    (mount.sysroot / "sub").mkdir()
    fill(mount.host, "name", "sub/name")
    for directory in (mount.point, mount.point / "sub"):
        assert (directory / "name").read_text() == "host"
        put(directory / "NAME", "new")
        assert (directory / "name").read_text() == "new"
        os.unlink(directory / "Name")
        assert (directory / "name").read_text() == "host"
    assert (mount.host / "name").read_text() == "host"


def test_a_host_directory_stays_open_while_its_parent_is_respelled(mounted: Mounter) -> None:
    """Who stands in it goes on, also when the server must open it again."""
    mount = mounted("lookup=fold", descriptors=256)
    fill(mount.sysroot, "Etc/own", *(f"many/{number}/x" for number in range(150)))
    fill(mount.host, "Etc/dir/theirs")
    held = os.open(mount.point / "Etc/dir", os.O_RDONLY | os.O_DIRECTORY)
    try:
        assert (mount.point / "ETC/own").exists()
        for number in range(150):
            assert (mount.point / f"many/{number}/x").exists()
        assert (mount.point / "ETC/own").exists()
        assert os.stat("theirs", dir_fd=held).st_size == 4
        os.close(os.open("new", os.O_CREAT | os.O_WRONLY, dir_fd=held))
    finally:
        os.close(held)
    assert sorted(os.listdir(mount.host / "Etc/dir")) == ["new", "theirs"]


def test_a_shut_host_path_stays_shut_in_every_spelling(mounted: Mounter) -> None:
    """Respelling a parent does not lead a descriptor past the host policy."""
    mount = mounted("lookup=fold", "deny=/Etc/dir/secret", "negative_timeout=0")
    fill(mount.sysroot, "Etc/own")
    fill(mount.host, "Etc/dir/secret", "Etc/dir/open")
    held = os.open(mount.point / "Etc/dir", os.O_PATH)
    try:
        assert code_of(os.stat, "secret", dir_fd=held) == errno.ENOENT
        assert (mount.point / "ETC/own").exists()
        assert code_of(os.stat, "secret", dir_fd=held) == errno.ENOENT
        assert os.stat("open", dir_fd=held).st_size == 4
    finally:
        os.close(held)


def test_a_union_lists_one_of_each(mounted: Mounter) -> None:
    """A host's name that means a sysroot's entry is not listed beside it."""
    mount = mounted("lookup=fold", "listing=union")
    fill(mount.sysroot, "Etc/Name", "Etc/own")
    fill(mount.host, "Etc/NAME", "Etc/theirs", "Etc/THEIRS")
    assert sorted(os.listdir(mount.point / "Etc")) == ["Name", "THEIRS", "own", "theirs"]
    assert sorted(os.listdir(mount.point / "ETC")) == ["Name", "own"]


def test_virtual_trees_are_there_as_ever(mounted: Mounter) -> None:
    """/proc, /sys and /dev do not fall back and are found under their names."""
    mount = mounted("lookup=fold")
    fill(mount.host, "proc/x", "dev/x")
    (mount.sysroot / "dev").mkdir()
    assert os.listdir(mount.point / "proc") == []
    absent(mount.point / "proc/x", mount.point / "dev/x", mount.point / "DEV/x")
    assert (mount.point / "DEV").is_dir()


def test_a_place_to_mount_on_stays_while_its_parent_is_respelled(workplace: Path) -> None:
    """What is mounted there would go with it, for everybody."""
    fill(workplace / "sysroot", "Work/own")
    tree = Tree(TreeConfig(sysroot=os.fsencode(workplace / "sysroot"), host=None, lookup="fold"))
    tree.make_room({b"/Work/src": True})
    numbers = set()
    for spelling in (b"Work", b"WORK", b"work"):
        parent = lookup.lookup(tree, ROOT_ID, spelling, ROOT)
        assert isinstance(parent, Entry)
        found = lookup.lookup(tree, parent.inode.id, b"src", ROOT)
        assert isinstance(found, Entry)
        numbers.add(found.inode.id)
    assert len(numbers) == 1
    tree.close()


# --- prefixes -----------------------------------------------------------------------------------


def test_only_below_its_prefix_lookups_fold(mounted: Mounter) -> None:
    """The directory's own name and everything beside it are exact."""
    mount = mounted("fold=/sdk/Include")
    fill(mount.sysroot, "sdk/Include/Sub/Windows.h", "sdk/Lib/x", "etc/x")
    assert (mount.point / "sdk/Include/sub/WINDOWS.H").read_text() == "sysroot"
    absent(mount.point / "sdk/include", mount.point / "SDK", mount.point / "sdk/Lib/X")
    put(mount.point / "etc/X")
    assert sorted(os.listdir(mount.sysroot / "etc")) == ["X", "x"]


def test_an_exact_prefix_inside_is_found_in_every_spelling(mounted: Mounter) -> None:
    """Its own name folds, the names in it do not, further down they do again."""
    mount = mounted("lookup=fold", "exact=/game/saves", "fold=/Game/Saves/old", *LONG)
    fill(mount.sysroot, "Game/Saves/One", "Game/Saves/old/Two", "Game/Data")
    assert (mount.point / "GAME/SAVES/One").read_text() == "sysroot"
    absent(mount.point / "Game/Saves/one", mount.point / "game/saves/OLD")
    put(mount.point / "game/saves/ONE")
    assert (mount.point / "game/SAVES/old/TWO").read_text() == "sysroot"
    assert (mount.point / "game/DATA").read_text() == "sysroot"
    assert sorted(os.listdir(mount.sysroot / "Game/Saves")) == ["ONE", "One", "old"]


def test_prefixes_in_the_environment_of_two_spellings(mounted: Mounter) -> None:
    """Prefixes that write a folding directory differently hold both."""
    mount = mounted("lookup=fold", "exact=/sdk/bin:/SDK/lib")
    fill(mount.sysroot, "Sdk/Bin/Tool", "Sdk/Lib/Kernel32", "Sdk/Inc/X")
    absent(mount.point / "sdk/bin/tool", mount.point / "sdk/lib/kernel32")
    assert (mount.point / "sdk/bin/Tool").exists() and (mount.point / "sdk/inc/x").exists()


def test_a_directory_that_moves_takes_the_rule_of_its_new_place(mounted: Mounter) -> None:
    """From exact to fold and back, open files and all, with absences that the kernel knows."""
    mount = mounted("fold=/fold", *LONG)
    fill(mount.sysroot, "exact/Dir/Sub/Name", "fold/x")
    held = os.open(mount.point / "exact/Dir/Sub", os.O_PATH)
    with open(mount.point / "exact/Dir/Sub/Name", "r+") as file:
        for _ in range(3):
            absent(mount.point / "exact/Dir/Sub/NAME", mount.point / "exact/Dir/SUB")
            os.rename(mount.point / "exact/Dir", mount.point / "fold/Dir")
            assert (mount.point / "fold/dir/sub/NAME").read_text() == "sysroot"
            assert os.stat("NAME", dir_fd=held).st_ino == os.fstat(file.fileno()).st_ino
            absent(mount.point / "fold/dir/sub/new", mount.point / "exact/Dir")
            os.rename(mount.point / "fold/DIR", mount.point / "exact/Dir")
            assert code_of(os.stat, "NAME", dir_fd=held) == errno.ENOENT
            put(mount.point / "exact/Dir/Sub/NEW")
            os.rename(mount.point / "exact/Dir", mount.point / "fold/Dir")
            assert (mount.point / "fold/dir/sub/new").read_text() == "NEW"
            assert os.stat("new", dir_fd=held).st_size == 3
            os.unlink(mount.point / "fold/dir/sub/nEW")
            os.rename(mount.point / "fold/dIR", mount.point / "exact/Dir")
        file.write("another")
    os.close(held)
    assert (mount.point / "exact/Dir/Sub/Name").read_text() == "another"


def test_a_file_from_an_exact_directory_onto_a_fold_equal_name(
    fold: Callable[..., Mount],
) -> None:
    """Its old name's time to be remembered does not outlast the entry."""
    mount = fold("exact=/exact")
    fill(mount.sysroot, "exact/source", "fold/Target")
    assert (mount.point / "exact/source").exists() and (mount.point / "fold/target").exists()
    os.rename(mount.point / "exact/source", mount.point / "fold/TARGET")
    wait_until(lambda: (mount.point / "fold/Target").exists())
    os.rename(mount.point / "fold/target", mount.point / "fold/other")
    wait_until(lambda: code_of(os.stat, mount.point / "fold/TARGET") == errno.ENOENT, 1)
    absent(*(mount.point / "fold" / name for name in ("Target", "target")))


# --- .ciopfs ------------------------------------------------------------------------------------


def test_ciopfs_is_announced_in_folding_directories_only(mounted: Mounter) -> None:
    """A lookup answers, no listing shows it, and where names are exact it is not there."""
    mount = mounted("fold=/prefix")
    fill(mount.sysroot, "prefix/Drive/x", "other/x")
    for directory in ("prefix", "prefix/drive"):
        seen = (mount.point / directory / ".ciopfs").stat()
        assert stat.S_ISREG(seen.st_mode) and seen.st_size == 0
        assert ".ciopfs" not in os.listdir(mount.point / directory)
        assert ".ciopfs" not in os.listdir(mount.sysroot / directory.replace("drive", "Drive"))
    absent(mount.point / ".ciopfs", mount.point / "other/.ciopfs")


def append(path: Path) -> None:
    """Open a file to write, which may be skipped, and write."""
    fd = os.open(path, os.O_CREAT | os.O_WRONLY | os.O_APPEND)
    try:
        os.write(fd, b"x")
    finally:
        os.close(fd)


def test_ciopfs_cannot_be_made_or_taken_away(mounted: Mounter) -> None:
    """Every call that would change it fails, and nothing appears on disk."""
    mount = mounted("lookup=fold")
    fill(mount.sysroot, "x")
    name = mount.point / ".ciopfs"
    for code in (
        code_of(make_exclusively, name),
        code_of(append, name),
        code_of(os.mkdir, name),
        code_of(os.symlink, "x", name),
        code_of(os.link, mount.point / "x", name),
        code_of(os.rename, mount.point / "x", name),
        code_of(os.rename, name, mount.point / "y"),
        code_of(os.unlink, name),
        code_of(os.rmdir, name),
        code_of(os.chmod, name, 0o777),
        code_of(os.truncate, name, 5),
    ):
        assert code in (errno.EEXIST, errno.EACCES, errno.EBUSY, errno.EROFS, errno.ENOTDIR)
    assert os.listdir(mount.sysroot) == ["x"]


def test_a_directory_with_nothing_but_ciopfs_is_empty(mounted: Mounter) -> None:
    """rmdir does not stumble over it."""
    mount = mounted("lookup=fold")
    (mount.point / "dir").mkdir()
    assert (mount.point / "dir/.ciopfs").exists()
    os.rmdir(mount.point / "DIR")
    assert os.listdir(mount.sysroot) == []


def test_a_real_ciopfs_is_an_ordinary_file(mounted: Mounter) -> None:
    """Where the tree has one it is listed, read and removed, in every spelling."""
    mount = mounted("lookup=fold", *LONG)
    (mount.point / "dir").mkdir()
    assert (mount.point / "dir/.ciopfs").stat().st_size == 0
    put(mount.point / "dir/.CiopFS", "real")
    assert (mount.point / "dir/.ciopfs").read_text() == "real"
    assert os.listdir(mount.point / "dir") == [".CiopFS"]
    os.unlink(mount.point / "dir/.ciopfs")
    assert (mount.point / "dir/.ciopfs").stat().st_size == 0
    assert os.listdir(mount.point / "dir") == []


# --- what was there before, and comes from outside ----------------------------------------------


def test_two_entries_of_one_key(fold: Callable[..., Mount]) -> None:
    """The exact spelling reaches each, another one the first in byte order."""
    mount = fold("fallback=none")
    for name in ("Name", "nAME", "name"):
        put(mount.sysroot / name)
    for _ in range(2):
        for name in ("Name", "nAME", "name"):
            assert (mount.point / name).read_text() == name
        assert (mount.point / "NAME").read_text() == "Name"
    os.unlink(mount.point / "Name")
    assert (mount.point / "Name").read_text() == (mount.point / "NAME").read_text() == "nAME"
    os.unlink(mount.point / "NAME")
    assert contents(mount.point) == {"name": "name"}
    assert (mount.point / "NAME").read_text() == "name"


def test_a_new_spelling_does_not_replace_another_entry(fold: Callable[..., Mount]) -> None:
    """Where two entries have one key, a third spelling of one is no name of the other."""
    mount = fold("fallback=none")
    for name in ("Name", "name"):
        put(mount.sysroot / name)
    os.rename(mount.point / "name", mount.point / "nAmE")
    assert contents(mount.sysroot) == {"Name": "Name", "nAmE": "name"}
    assert contents(mount.point) == {"Name": "Name", "nAmE": "name"}


def test_exchanging_two_entries_of_one_key(fold: Callable[..., Mount]) -> None:
    """Each has the other's content; an entry with itself is left alone."""
    mount = fold("fallback=none")
    for name in ("Name", "name", "Other"):
        put(mount.sysroot / name)

    def exchange(one: str, other: str) -> None:
        at, paths = linux.AT_FDCWD, [os.fsencode(mount.point / name) for name in (one, other)]
        linux.renameat2(at, paths[0], at, paths[1], linux.RENAME_EXCHANGE)

    exchange("Name", "name")
    assert contents(mount.point) == {"Name": "name", "Other": "Other", "name": "Name"}
    exchange("OTHER", "other")
    exchange("NAME", "OTHER")
    assert contents(mount.point) == {"Name": "Other", "Other": "name", "name": "Name"}
    assert (mount.point / "NAME").read_text() == "Other"


def test_changes_behind_the_mount_are_seen_within_a_second(mounted: Mounter) -> None:
    """Names that come, go and change case, with the default timeouts."""
    mount = mounted("lookup=fold")
    (mount.sysroot / "dir").mkdir()
    absent(mount.point / "dir/NAME", mount.point / "dir/name")
    began = time.monotonic()
    put(mount.sysroot / "dir/Name", "text")
    wait_until(lambda: all((mount.point / "dir" / n).exists() for n in ("NAME", "name")), 5)
    assert time.monotonic() - began < 2
    os.rename(mount.sysroot / "dir/Name", mount.sysroot / "dir/nAmE")
    wait_until(lambda: os.listdir(mount.point / "DIR") == ["nAmE"], 5)
    assert (mount.point / "dir/NAME").read_text() == "text"
    began = time.monotonic()
    os.unlink(mount.sysroot / "dir/nAmE")
    wait_until(lambda: not any((mount.point / "dir" / n).exists() for n in ("NAME", "nAmE")), 5)
    assert time.monotonic() - began < 2


def test_what_changes_under_an_open_directory_is_never_an_error_of_the_volume(
    mounted: Mounter,
) -> None:
    """Entries taken away, replaced and respelled behind the mount: ENOENT or ESTALE at worst."""
    mount = mounted("lookup=fold")
    for number in range(40):
        fill(mount.sysroot, f"dir/Name{number}/file")
    stop = start_child(functools.partial(_churn, mount.sysroot / "dir"))
    seen = set()
    deadline = time.monotonic() + 1.5
    while time.monotonic() < deadline:
        for number in range(40):
            path = mount.point / f"DIR/name{number}/FILE"
            seen.add(code_of(os.stat, path))
            seen.add(code_of(path.read_bytes))
            seen.add(code_of(os.listdir, path.parent))
    stop.result()
    assert 0 in seen and seen <= {0, errno.ENOENT, errno.ESTALE}


def _churn(directory: Path) -> None:
    deadline = time.monotonic() + 1.4
    while time.monotonic() < deadline:
        for number in range(40):
            name = directory / f"Name{number}"
            os.rename(name, directory / f"NAME{number}")
            shutil.rmtree(directory / f"NAME{number}")
            name.mkdir()
            put(name / "file")
            time.sleep(0.001)


def test_a_file_that_came_meanwhile_is_opened_by_its_own_rights(mounted: Mounter) -> None:
    """O_CREAT on a name that the kernel takes for absent does not lend the server's rights."""
    mount = mounted("lookup=exact", *LONG)
    (mount.sysroot / "tmp").mkdir()
    (mount.sysroot / "tmp").chmod(0o777)
    absent(mount.point / "tmp/secret")
    put(mount.sysroot / "tmp/secret", "root's")
    (mount.sysroot / "tmp/secret").chmod(0o600)
    opening = functools.partial(
        code_of, os.open, mount.point / "tmp/secret", os.O_CREAT | os.O_RDWR
    )
    assert in_child(opening, uid=USER, gid=USER) == errno.EACCES
    with open(os.open(mount.point / "tmp/secret", os.O_CREAT | os.O_RDWR), "rb") as file:
        assert file.read() == b"root's"


# --- several mounts, other options --------------------------------------------------------------


def test_two_mounts_create_one_name_in_four_spellings(mounted: Mounter) -> None:
    """Exactly one success for each key, whichever mount it is."""
    one = mounted("lookup=fold")
    two = mounted("lookup=fold", sysroot=one.sysroot, host=one.host)

    def race(mount: Mount, spelling: str) -> list[int]:
        return [code_of(make_exclusively, mount.point / f"{spelling}-{n}") for n in range(15)]

    pairs = [(one, "name"), (two, "Name"), (one, "NAME"), (two, "nAmE")]
    children = [start_child(functools.partial(race, *pair)) for pair in pairs]
    outcomes = [child.result() for child in children]
    for number in range(15):
        assert sorted(outcome[number] for outcome in outcomes) == [0] + [errno.EEXIST] * 3
    assert len(os.listdir(one.sysroot)) == 15


def test_read_only(mounted: Mounter) -> None:
    """Every spelling is found and none can be changed."""
    mount = mounted("lookup=fold", "ro")
    fill(mount.sysroot, "Dir/Name")
    assert (mount.point / "dir/NAME").read_text() == "sysroot"
    assert code_of(os.rename, mount.point / "dir/Name", mount.point / "dir/NAME") == errno.EROFS
    assert code_of(make_exclusively, mount.point / "DIR/name") in (errno.EROFS, errno.EEXIST)
    assert code_of(os.unlink, mount.point / "DIR/name") == errno.EROFS


def test_portable_names(mounted: Mounter) -> None:
    """Names stored under their escapes are found in every spelling, and change case."""
    mount = mounted("lookup=fold", "names=portable", *LONG)
    absent(mount.point / "name", mount.point / "straße")
    put(mount.point / "Name", "text")
    put(mount.point / "STRASSE", "road")
    assert all(name.startswith(".ef=") for name in os.listdir(mount.sysroot))
    assert (mount.point / "name").read_text() == (mount.point / "NAME").read_text() == "text"
    assert (mount.point / "straße").read_text() == "road"
    os.rename(mount.point / "name", mount.point / "naME")
    assert contents(mount.point) == {"STRASSE": "road", "naME": "text"}
    os.rename(mount.point / "naME", mount.point / "name")
    assert sorted(os.listdir(mount.point)) == ["STRASSE", "name"]
    assert "name" in os.listdir(mount.sysroot)
    os.unlink(mount.point / "NAME")
    absent(mount.point / "name", mount.point / "naME")


def test_the_ascii_key(mounted: Mounter) -> None:
    """A to Z fold, nothing else does."""
    mount = mounted("lookup=fold", "fold_key=ascii", *LONG)
    put(mount.point / "Émile")
    assert (mount.point / "ÉMILE").read_text() == "Émile"
    absent(mount.point / "émile", mount.point / "E\u0301mile")
    put(mount.point / "émile")
    put(mount.point / "straße")
    put(mount.point / "strasse")
    assert len(os.listdir(mount.sysroot)) == 4


def test_a_large_directory(mounted: Mounter) -> None:
    """Of 100 000 entries each is found in another spelling, and a miss costs no scan."""
    with contextlib.ExitStack() as stack:
        # In memory, since making so many takes ten seconds on a disk.
        sysroot = Path(stack.enter_context(tempfile.TemporaryDirectory(dir="/dev/shm")))
        stack.callback(mounted.close)
        mount = mounted("lookup=fold", "fallback=none", sysroot=sysroot)
        (sysroot / "Large").mkdir()
        held = os.open(sysroot / "Large", os.O_RDONLY)
        for number in range(100_000):
            os.mknod(f"Name{number:06}.H", stat.S_IFREG | 0o600, dir_fd=held)
        os.close(held)
        (mount.point / "large/name000000.h").stat()
        began = time.monotonic()
        for number in range(0, 100_000, 100):
            (mount.point / f"large/name{number:06}.h").stat()
            absent(mount.point / f"large/other{number:06}.h")
        # With a scan each these were 1000 times 30 ms.
        assert time.monotonic() - began < 10


def test_creating_many_names_does_not_take_longer_and_longer(mounted: Mounter) -> None:
    """Each new name is noted, the directory is not gone through again."""
    mount = mounted("lookup=fold", "names=portable", "fallback=none")

    def make(first: int) -> float:
        began = time.monotonic()
        for number in range(first, first + 500):
            make_exclusively(mount.point / f"Name{number}")
        return time.monotonic() - began

    make(0)
    first = make(500)
    for number in range(10_000):
        (mount.sysroot / f"filler{number}").touch()
    assert (mount.point / "FILLER9999").exists()
    assert make(1000) < 5 * first + 1


# --- system calls -------------------------------------------------------------------------------


@pytest.fixture
def traced(mounted: Mounter, workplace: Path) -> Iterator[tuple[Mount, Callable[[], list[str]]]]:
    """A mount, and what its server calls while a function runs."""
    mount = mounted("lookup=fold", "fallback=none", "entry_timeout=1000")
    fill(mount.sysroot, *(f"dir/Name{number}" for number in range(100)))
    # Young times would have the directory read once a second.
    os.utime(mount.sysroot / "dir", (1000, 1000))
    log = workplace / "strace"
    traced_calls = "trace=%file,%desc"
    process = subprocess.Popen(
        ["strace", "-f", "-q", "-o", log, "-e", traced_calls, "-p", str(mount.process.pid)],
        stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip

    def finish() -> list[str]:
        process.send_signal(signal.SIGINT)
        process.wait()
        return log.read_text().splitlines()

    try:
        wait_until(lambda: _is_traced(mount.process.pid))
        yield mount, finish
    finally:
        process.kill()
        process.wait()


def _is_traced(pid: int) -> bool:
    return "TracerPid:\t0\n" not in Path(f"/proc/{pid}/status").read_text()


_OWN: Final = re.compile(r"\b(read|write|writev|readv|poll|epoll_\w+|splice|recvfrom|sendto)\(")


def test_a_miss_in_a_warm_directory_asks_the_volume_for_nothing(
    traced: tuple[Mount, Callable[[], list[str]]],
) -> None:
    """1000 names that are not there: only whether the directory changed is asked, now and then."""
    mount, finish = traced
    held = os.open(mount.point / "dir", os.O_PATH)
    assert os.stat("NAME5", dir_fd=held).st_size == 7
    began = time.monotonic()
    for number in range(1000):
        assert code_of(os.stat, f"missing{number}", dir_fd=held) == errno.ENOENT
    refreshes = (time.monotonic() - began) * 1e9 / index.BELIEF_NS
    os.close(held)
    calls = [line for line in finish() if not _OWN.search(line)]
    assert any("newfstatat(" in line or "fstat(" in line for line in calls), "nothing was traced"
    # Reading a directory takes two calls, and is done once a second while its times are young.
    assert sum("getdents" in line for line in calls) <= 8, calls
    assert len(calls) <= 60 + 2 * refreshes, (refreshes, calls)
