"""Directories that fold together, shown as one (`lookup=fold,merge`), through a real mount."""

from __future__ import annotations

import errno
import os
import time
from pathlib import Path

import pytest

from sysroot_fs.tree import Tree, TreeConfig
from tests.children import code_of, in_child
from tests.matrix.volumes import open_volume
from tests.mounts import Mount, Mounter
from tests.waiting import wait_until


def put(path: Path, content: str) -> None:
    """Write a file, its directories made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content)


@pytest.fixture
def merged(mounted: Mounter) -> Mount:
    """Two directories of one name, with files and directories of one name in them."""
    mount = mounted("lookup=fold", "merge")
    for name, content in {
        "Meshes/A/F": "Meshes/A/F",
        "Meshes/A/g": "Meshes/A/g",
        "Meshes/X": "Meshes/X",
        "Meshes/both": "Meshes/both",
        "meshes/a/f": "meshes/a/f",
        "meshes/a/h": "meshes/a/h",
        "meshes/both": "meshes/both",
        "meshes/x": "meshes/x",
        "meshes/z": "meshes/z",
    }.items():
        put(mount.sysroot / name, content)
    return mount


def test_one_directory_is_listed_with_the_names_of_all(merged: Mount) -> None:
    """The first in byte order gives the name; files that are spelled apart are all there."""
    assert os.listdir(merged.point) == ["Meshes"]
    assert sorted(os.listdir(merged.point / "meshes")) == ["A", "X", "both", "x", "z"]
    assert sorted(os.listdir(merged.point / "MESHES/a")) == ["F", "f", "g", "h"]


def test_every_spelling_is_one_directory(merged: Mount) -> None:
    """Whichever is asked for, number and times are those of the first."""
    seen = {os.stat(merged.point / name).st_ino for name in ("Meshes", "meshes", "MESHES")}
    assert len(seen) == 1
    inner = {os.stat(merged.point / name).st_ino for name in ("Meshes/A", "meshes/a", "MESHES/A")}
    assert len(inner) == 1


@pytest.mark.parametrize(
    ("asked", "content"),
    [
        ("meshes/X", "Meshes/X"),
        ("Meshes/x", "meshes/x"),
        ("meshes/both", "Meshes/both"),
        ("MESHES/Z", "meshes/z"),
        ("meshes/a/F", "Meshes/A/F"),
        ("Meshes/A/f", "meshes/a/f"),
        ("meshes/A/H", "meshes/a/h"),
    ],
)
def test_who_wins_a_name(merged: Mount, asked: str, content: str) -> None:
    """The exact spelling in any of them, else the first directory's."""
    assert (merged.point / asked).read_text() == content


def test_new_names_go_into_the_first(merged: Mount) -> None:
    """Whatever the spelling of the way there."""
    (merged.point / "meshes/new").write_text("new")
    (merged.point / "meshes/a/dir").mkdir()
    assert (merged.sysroot / "Meshes/new").read_text() == "new"
    assert (merged.sysroot / "Meshes/A/dir").is_dir()


def test_changes_go_to_where_the_file_lies(merged: Mount) -> None:
    """Writing, renaming and removing what only the second has."""
    (merged.point / "Meshes/z").write_text("written")
    assert (merged.sysroot / "meshes/z").read_text() == "written"
    os.rename(merged.point / "Meshes/z", merged.point / "Meshes/A/Z2")
    assert (merged.sysroot / "Meshes/A/Z2").read_text() == "written"
    assert not (merged.sysroot / "meshes/z").exists()
    os.unlink(merged.point / "Meshes/a/h")
    assert not (merged.sysroot / "meshes/a/h").exists()


def test_an_open_file_of_the_second_goes_on_working(merged: Mount) -> None:
    """Unlinked while it is open."""
    with open(merged.point / "MESHES/z", "r+b") as file:
        os.unlink(merged.point / "meshes/Z")
        file.write(b"M")
        file.seek(0)
        assert file.read() == b"Meshes/z"
        assert os.fstat(file.fileno()).st_nlink == 0


def test_removing_a_name_shows_the_one_behind_it(merged: Mount) -> None:
    """As with what shadows the host's."""
    os.unlink(merged.point / "meshes/both")
    assert (merged.point / "meshes/both").read_text() == "meshes/both"
    os.unlink(merged.point / "meshes/both")
    assert code_of(os.stat, merged.point / "meshes/both") == errno.ENOENT


def test_a_merged_directory_is_removed_as_one(merged: Mount) -> None:
    """Not before all of them are empty, and then all of them."""
    for name in ("F", "g", "f", "h"):
        assert code_of(os.rmdir, merged.point / "meshes/a") == errno.ENOTEMPTY
        os.unlink(merged.point / "meshes/a" / name)
    assert (merged.sysroot / "Meshes/A").is_dir()
    assert (merged.sysroot / "meshes/a").is_dir()
    os.rmdir(merged.point / "meshes/a")
    assert not (merged.sysroot / "Meshes/A").exists()
    assert not (merged.sysroot / "meshes/a").exists()
    assert code_of(os.stat, merged.point / "Meshes/A") == errno.ENOENT


def test_a_merged_directory_is_not_moved(merged: Mount) -> None:
    """Several directories cannot be moved in one step, and a copy would lose files."""
    assert code_of(os.rename, merged.point / "meshes", merged.point / "other") == errno.EBUSY
    os.mkdir(merged.point / "dir")
    target = merged.point / "meshes/a"
    assert code_of(os.rename, merged.point / "dir", target) == errno.ENOTEMPTY


def test_a_directory_that_comes_later_is_merged_too(merged: Mount) -> None:
    """Made behind the mount; seen when the index is read again."""
    put(merged.sysroot / "MESHES/late", "late")
    wait_until(lambda: not code_of(os.stat, merged.point / "meshes/late"), 5)
    assert (merged.point / "meshes/late").read_text() == "late"
    assert (merged.point / "meshes/z").read_text() == "meshes/z"


def test_without_merge_each_is_reached_by_its_own_spelling(mounted: Mounter) -> None:
    """Another spelling reaches the first in byte order."""
    mount = mounted("lookup=fold")
    put(mount.sysroot / "Meshes/x", "upper")
    put(mount.sysroot / "meshes/y", "lower")
    assert sorted(os.listdir(mount.point)) == ["Meshes", "meshes"]
    assert os.listdir(mount.point / "meshes") == ["y"]
    assert os.listdir(mount.point / "MESHES") == ["x"]
    assert code_of(os.stat, mount.point / "meshes/x") == errno.ENOENT


# --- rights -----------------------------------------------------------------------------------


@pytest.fixture
def guarded(mounted: Mounter) -> Mount:
    """A directory that all may change, and one of another spelling that is root's alone."""
    mount = mounted("lookup=fold", "merge")
    for name in ("meshes/secret", "meshes/sub/inner", "Meshes/A/mine", "meshes/A/secret"):
        put(mount.sysroot / name, name)
    for name, mode in (("Meshes", 0o777), ("Meshes/A", 0o777), ("meshes", 0o700)):
        (mount.sysroot / name).chmod(mode)
    return mount


def test_what_a_caller_may_not_search_is_not_there_for_him(guarded: Mount) -> None:
    """The kernel judges by the first directory; the others keep their own rights."""
    point = guarded.point
    assert (point / "Meshes/secret").read_text() == "meshes/secret"

    def look() -> object:
        names = sorted(os.listdir(point / "Meshes")), sorted(os.listdir(point / "Meshes/A"))
        hidden = ("secret", "sub/inner", "A/secret")
        return names, [code_of((point / "Meshes" / name).read_bytes) for name in hidden]

    assert in_child(look, uid=1000, gid=1000) == ((["A"], ["mine"]), [errno.ENOENT] * 3)
    assert sorted(os.listdir(point / "Meshes")) == ["A", "secret", "sub"]
    assert sorted(os.listdir(point / "Meshes/A")) == ["mine", "secret"]


def test_a_name_is_not_taken_out_of_anothers_directory(guarded: Mount) -> None:
    """Not removed, not moved, not replaced, where the first directory is everybody's."""
    point, lower = guarded.point / "Meshes", guarded.sysroot / "meshes"
    lower.chmod(0o755)
    lower.joinpath("empty").mkdir()
    lower.joinpath("A/gone").mkdir()
    time.sleep(0.05)

    def change() -> list[int]:
        point.joinpath("own").write_text("own")
        return [
            code_of(os.unlink, point / "secret"),
            code_of(os.rename, point / "secret", point / "moved"),
            code_of(os.rename, point / "own", point / "secret"),
            code_of(os.rmdir, point / "empty"),
            code_of(os.rmdir, point / "A/gone"),
        ]

    assert in_child(change, uid=1000, gid=1000) == [errno.EACCES] * 5
    assert (lower / "secret").read_text() == "meshes/secret"
    assert (lower / "empty").is_dir()


def test_a_sticky_directory_keeps_every_part(mounted: Mounter) -> None:
    """Its user removes the first of two directories, not the other that is root's."""
    mount = mounted("lookup=fold", "merge")
    top = mount.sysroot / "tmp"
    for name in ("Foo", "foo"):
        (top / name).mkdir(parents=True)
    top.chmod(0o1777)
    os.chown(top / "Foo", 1000, 1000)

    def remove() -> int:
        return code_of(os.rmdir, mount.point / "tmp/Foo")

    assert in_child(remove, uid=1000, gid=1000) == errno.EPERM
    assert sorted(os.listdir(top)) == ["Foo", "foo"]
    os.rmdir(mount.point / "tmp/foo")
    assert not os.listdir(top)


# --- where a name leads -----------------------------------------------------------------------


@pytest.mark.parametrize("asked", ["Meshes/sub/file", "meshes/sub/file", "MESHES/sub/file"])
def test_the_host_is_not_asked_below_the_second(mounted: Mounter, asked: str) -> None:
    """By whichever spelling: the mount and `resolve` say the same."""
    mount = mounted("lookup=fold", "merge")
    put(mount.sysroot / "Meshes/x", "x")
    put(mount.sysroot / "meshes/sub/y", "y")
    for name in ("Meshes", "meshes", "MESHES"):
        put(mount.host / name / "sub/file", "host")
    assert code_of(os.stat, mount.point / asked) == errno.ENOENT
    config = TreeConfig(
        sysroot=os.fsencode(mount.sysroot), host=os.fsencode(mount.host), lookup="fold", merge=True
    )
    assert Tree(config).walk.resolve(os.fsencode(asked))[-1].error == errno.ENOENT


def test_a_directory_that_replaces_one_of_the_second_stays_itself(merged: Mount) -> None:
    """It lies where the replaced one lay, with the number that it had."""
    (merged.sysroot / "meshes/empty").mkdir()
    put(merged.sysroot / "dir/file", "file")
    time.sleep(0.05)
    number = os.stat(merged.point / "dir").st_ino
    os.rename(merged.point / "dir", merged.point / "Meshes/empty")
    assert os.stat(merged.point / "Meshes/empty").st_ino == number
    assert (merged.sysroot / "meshes/empty/file").read_text() == "file"


def test_exact_names_below_merged_directories(mounted: Mounter) -> None:
    """Where the names are exact, other spellings are others, and nothing is out of reach."""
    mount = mounted("lookup=fold", "merge", "exact=/tools:/meshes/sub")
    names = ("Tools/a", "tools/b", "Meshes/sub/a", "meshes/sub/A", "meshes/Sub/c", "meshes/sub/d/e")
    for name in names:
        put(mount.sysroot / name, name)
    assert sorted(os.listdir(mount.point)) == ["Meshes", "Tools", "tools"]
    for name in names:
        assert (mount.point / name).read_text() == name
    assert sorted(os.listdir(mount.point / "Meshes")) == ["Sub", "sub"]
    assert sorted(os.listdir(mount.point / "Meshes/sub")) == ["A", "a", "d"]
    assert os.listdir(mount.point / "Meshes/Sub") == ["c"]
    assert code_of(os.stat, mount.point / "tools/B") == errno.ENOENT


@pytest.mark.parametrize("kind", ["zfs", "exfat"])
def test_merged_on_a_volume_that_folds(mounted: Mounter, workplace: Path, kind: str) -> None:
    """What is removed while it is open is no entry; what is replaced is the one that was meant."""
    with open_volume(kind, workplace / "volume") as volume:
        sysroot = volume.path / "sysroot"
        try:
            exact = mounted(sysroot=sysroot)
            for name in ("Meshes/A/F", "Meshes/X", "meshes/a/f", "meshes/x"):
                put(exact.point / name, name)
            exact.stop()
            mount = mounted("lookup=fold", "merge", sysroot=sysroot)
            (mount.point / "new").write_text("new")
            os.rename(mount.point / "new", mount.point / "meshes/x")
            assert (mount.point / "Meshes/x").read_text() == "new"
            assert (mount.point / "meshes/X").read_text() == "Meshes/X"
            with open(mount.point / "meshes/a/F") as first, open(mount.point / "meshes/a/f") as two:
                os.unlink(mount.point / "meshes/a/f")
                os.unlink(mount.point / "meshes/a/F")
                os.rmdir(mount.point / "meshes/a")
                assert (first.read(), two.read()) == ("Meshes/A/F", "meshes/a/f")
            assert sorted(os.listdir(mount.point / "meshes")) == ["X", "x"]
        finally:
            mounted.close()
