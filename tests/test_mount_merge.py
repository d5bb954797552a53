"""Directories that fold together, shown as one (`lookup=fold,merge`), through a real mount."""

from __future__ import annotations

import errno
import os
import time
from pathlib import Path

import pytest

from tests.conftest import Mount, Mounter, code_of


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
    deadline = time.monotonic() + 5
    while code_of(os.stat, merged.point / "meshes/late") and time.monotonic() < deadline:
        time.sleep(0.02)
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
