"""What a tree takes back, without a mount: by either watcher, and where watching fails."""

from __future__ import annotations

import errno
import logging
import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

import attrs
import pytest

from sidecar import fsnotify, look
from sidecar.twin import ROOT
from sidecar.walk import Layer
from sysroot_fs.tree import Entry, Tree, TreeConfig, listing, lookup, renames, watching
from sysroot_fs.tree import coherence as coherence_module
from sysroot_fs.tree.coherence import LONG, SHORT, Attributes, Notice, Removed
from sysroot_fs.tree.coherence import Entry as EntryNotice
from sysroot_fs.tree.inodes import ROOT_ID
from sysroot_fs.tree.lookup import Miss

KINDS: Final = {"fanotify": fsnotify.Fanotify, "inotify": fsnotify.Inotify}


@attrs.define
class Told:
    """A tree, and what its kernel was told."""

    tree: Tree
    sysroot: Path
    host: Path
    notices: list[Notice] = attrs.field(factory=list)

    def lookup(self, path: str) -> Entry | Miss:
        """A path as the kernel asks for it, name by name."""
        number, found = ROOT_ID, None
        for name in path.encode().split(b"/"):
            found = lookup.lookup(self.tree, number, name, ROOT)
            if isinstance(found, Miss):
                return found
            number = found.inode.id
        assert found is not None
        return found

    def seconds(self, path: str) -> float:
        """For how long the answer for *path* may be remembered."""
        return self.lookup(path).timeout

    def after(self, act: Callable[[], object]) -> list[Notice]:
        """What is told when another process has done *act*."""
        self.read()
        by_another(act)
        return self.read()

    def read(self) -> list[Notice]:
        """What has been told until now."""
        for _ in range(100):
            self.tree.coherence.read()
        told, self.notices[:] = list(self.notices), []
        return told


def by_another(act: Callable[[], object]) -> None:
    """Have another process do *act*."""
    if os.fork() == 0:
        try:
            act()
        finally:
            os._exit(0)
    os.wait()


Maker = Callable[..., Told]


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Maker]:
    """Trees over a small sysroot and host, with options."""
    sysroot, host = tmp_path / "sysroot", tmp_path / "host"
    for base in (sysroot, host):
        (base / "dir/sub").mkdir(parents=True)
    (sysroot / "dir/file").write_text("file")
    (host / "dir/host").write_text("host")
    made: list[Tree] = []

    def _make(**options: Any) -> Told:
        config = TreeConfig(sysroot=os.fsencode(sysroot), host=os.fsencode(host), **options)
        tree = Tree(config)
        made.append(tree)
        told = Told(tree, sysroot, host)
        tree.coherence.start(told.notices.append)
        return told

    yield _make
    for tree in made:
        tree.close()


@pytest.fixture(params=KINDS)
def told(request: pytest.FixtureRequest, make: Maker, monkeypatch: pytest.MonkeyPatch) -> Told:
    """A tree with each watcher; everything below `dir` is known."""
    monkeypatch.setattr(fsnotify, "best", KINDS[request.param])
    told = make(host_coherence="watched")
    for _ in range(2):
        told.lookup("dir/file"), told.lookup("dir/host"), told.lookup("dir/none")
        told.lookup("dir/sub/none")
    return told


def test_answers_are_long_once_watched(told: Told) -> None:
    """What only the sysroot decides at once, what the host takes part in from the second time."""
    for path in ("dir", "dir/file", "dir/host", "dir/none"):
        assert told.seconds(path) == LONG, path


def test_exactly_what_has_changed_is_taken_back(told: Told) -> None:
    """The name that changed, the attributes of what it was, and the directory's."""
    file, directory = told.lookup("dir/file"), told.lookup("dir")
    assert isinstance(file, Entry) and isinstance(directory, Entry)
    assert set(told.after((told.sysroot / "dir/file").unlink)) == {
        Removed(directory.inode.id, file.inode.id, b"file"),
        EntryNotice(directory.inode.id, b"file"),
        Attributes(file.inode.id, data=False),
        Attributes(directory.inode.id, data=True),
    }


def test_a_directory_in_the_place_of_another_is_watched_on(told: Told) -> None:
    """The kernel lets go of the one that had its name before, of which no descriptor is left."""
    before = told.lookup("dir/sub")
    assert isinstance(before, Entry)
    sub = told.sysroot / "dir/sub"

    def replace() -> None:
        sub.rename(told.sysroot / "elsewhere")
        sub.mkdir()
        (sub / "file").touch()

    told.after(replace)
    told.lookup("dir/sub/file")
    now = told.lookup("dir/sub")
    assert isinstance(now, Entry) and now.inode is not before.inode
    told.tree.inodes.keep_few()
    before.inode.let_go()
    lookup.forget(told.tree, [(before.inode.id, before.inode.lookups)])
    assert EntryNotice(now.inode.id, b"file") in told.after((sub / "file").unlink)


def test_a_new_file_with_the_number_of_one_that_is_gone(told: Told) -> None:
    """It may be made before the removal is reported: the kernel hears of that all the same."""
    file, directory = told.lookup("dir/file"), told.lookup("dir")
    assert isinstance(file, Entry) and isinstance(directory, Entry)
    told.read()
    by_another((told.sysroot / "dir/file").unlink)
    new = told.tree.inodes.adopt(
        Layer.SYSROOT, directory.inode, b"new", b"new", file.stat.mode, file.stat.dev,
        file.stat.ino, stable=True, new=True,
    )  # fmt: skip
    assert new is not file.inode
    assert EntryNotice(directory.inode.id, b"file") in told.read()


def test_names_that_nobody_asked_for_cost_nothing(told: Told) -> None:
    """Of a thousand new names the directory's attributes are told and nothing else."""
    directory = told.lookup("dir")
    assert isinstance(directory, Entry)

    def act() -> None:
        for number in range(1000):
            (told.sysroot / f"dir/new{number}").touch()

    assert set(told.after(act)) == {Attributes(directory.inode.id, data=True)}


def test_absences_are_taken_back_in_both_layers(told: Told) -> None:
    """By a file of the sysroot, and by one of the host."""
    directory = told.lookup("dir")
    assert isinstance(directory, Entry)
    for base in (told.host, told.sysroot):
        assert isinstance(told.lookup("dir/none"), Miss)
        assert EntryNotice(directory.inode.id, b"none") in told.after((base / "dir/none").touch)
        (base / "dir/none").unlink()
        told.read()


def test_data_is_taken_back_when_it_was_written(told: Told) -> None:
    """And attributes alone when only these have changed."""
    file = told.lookup("dir/file")
    assert isinstance(file, Entry)
    told.tree.coherence.attributes(file.inode, file.stat)
    written = told.after(lambda: (told.sysroot / "dir/file").write_text("x"))
    assert Attributes(file.inode.id, data=True) in written
    changed = told.after(lambda: (told.sysroot / "dir/file").chmod(0o600))
    assert set(changed) == {Attributes(file.inode.id, data=False)}


def test_a_twin_that_goes_takes_all_below_along(told: Told) -> None:
    """Names that are absent below it, however deep, may be there the next time."""
    sub = told.lookup("dir/sub")
    assert isinstance(sub, Entry)
    notices = told.after(lambda: (told.host / "dir").rename(told.host / "away"))
    assert EntryNotice(sub.inode.id, b"none") in notices


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.ENODEV])
def test_too_many_directories(
    make: Maker, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, number: int
) -> None:
    """Where no more can be watched answers last a second; it is said once."""

    def add(self: object, directory: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fsnotify.Fanotify, "add", add)
    told = make()
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            for path in ("dir/file", "dir/none", "dir/sub/none", "dir/host"):
                assert told.seconds(path) == SHORT
    said = [record.message for record in caplog.records]
    assert len(said) == (number == errno.ENOSPC), said


def test_nothing_can_be_watched(
    make: Maker, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """As in a container that forbids it: a second, and one line about it."""
    monkeypatch.setattr(fsnotify, "best", lambda: None)
    told = make()
    assert told.seconds("dir/file") == told.seconds("dir/none") == SHORT
    assert len(caplog.records) == 1


def test_an_old_kernel(make: Maker, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that can forget names only with the mounts below them is told nothing."""
    monkeypatch.setattr(watching, "_EXPIRES", (99, 0))
    assert make().seconds("dir/file") == SHORT


def test_what_others_may_change_unseen(make: Maker, monkeypatch: pytest.MonkeyPatch) -> None:
    """A network's volume is believed for a second, or as the user says."""
    monkeypatch.setattr(look, "is_remote", lambda stat: True)
    assert make().seconds("dir/file") == SHORT
    assert make(coherence="exclusive").seconds("dir/file") == LONG


def test_lost_events_take_everything_back(told: Told, caplog: pytest.LogCaptureFixture) -> None:
    """Every name that was told, and the log says it once."""
    lost = fsnotify.Event(None, b"", fsnotify.OVERFLOW, own=False)
    directory, sub = told.lookup("dir"), told.lookup("dir/sub")
    assert isinstance(directory, Entry) and isinstance(sub, Entry)
    for _ in range(2):
        told.tree.coherence.watching._heed(lost)
    notices = set(told.read())
    assert {
        EntryNotice(ROOT_ID, b"dir"),
        *(EntryNotice(directory.inode.id, name) for name in (b"file", b"host", b"none", b"sub")),
        EntryNotice(sub.inode.id, b"none"),
    } <= notices
    assert len(caplog.records) == 1 and told.tree.coherence.watching.overflows == 2


def test_absences_are_bounded(told: Told, monkeypatch: pytest.MonkeyPatch) -> None:
    """Past so many all are taken back, and the memory with them."""
    monkeypatch.setattr(coherence_module, "ABSENCES", 100)
    for number in range(1000):
        told.lookup(f"dir/absent{number}")
    directory = told.lookup("dir")
    assert isinstance(directory, Entry) and directory.inode.remembered is not None
    assert len(directory.inode.remembered.names) < 150
    assert EntryNotice(directory.inode.id, b"absent5") in told.read()


def test_what_the_kernel_lets_go_of_is_watched_no_longer(told: Told) -> None:
    """Neither the directory nor its names take any memory then."""
    before = told.tree.coherence.watching.watches
    sub = told.lookup("dir/sub")
    assert isinstance(sub, Entry)
    told.tree.inodes.forget(sub.inode.id, sub.inode.lookups)
    assert told.tree.coherence.watching.watches == before - 2
    assert told.after((told.sysroot / "dir/sub/none").touch) == []


def test_a_renamed_directory_has_another_twin(told: Told) -> None:
    """What the guest renames itself: absences below it may be wrong under the new path."""
    directory, sub = told.lookup("dir"), told.lookup("dir/sub")
    assert isinstance(directory, Entry) and isinstance(sub, Entry)
    renames.rename(told.tree, directory.inode.id, b"sub", ROOT_ID, b"sub", 0, ROOT)
    assert EntryNotice(sub.inode.id, b"none") in told.read()


def test_a_listing_is_watched(make: Maker) -> None:
    """Who has only listed a directory is told of what comes."""
    told = make()
    directory = told.lookup("dir")
    assert isinstance(directory, Entry)
    listing.open_listing(told.tree, directory.inode.id, ROOT)
    notices = told.after((told.sysroot / "dir/new").touch)
    assert Attributes(directory.inode.id, data=True) in notices


def test_what_is_left_is_told(told: Told) -> None:
    """So that who reads a piece of many changes comes back at once, before the kernel loses any."""

    def act() -> None:
        for number in range(3000):
            (told.sysroot / f"dir/new-{number}").touch()

    assert not told.tree.coherence.read()
    by_another(act)
    assert told.tree.coherence.read()
    told.read()
    assert not told.tree.coherence.read()
    assert told.tree.coherence.watching.overflows == 0


def test_a_mount_is_seen_by_its_name(told: Told) -> None:
    """On a known name of either layer; elsewhere it is nothing."""
    directory = told.lookup("dir")
    assert isinstance(directory, Entry)
    place = told.sysroot / "dir/sub"
    told.read()
    subprocess.run(["mount", "-t", "tmpfs", "none", place], check=True)
    try:
        for _ in range(1000):
            if EntryNotice(directory.inode.id, b"sub") in told.read():
                break
        else:
            pytest.fail("the mount was not seen")
    finally:
        subprocess.run(["umount", place], check=True)
