"""What the kernel reports of a watched directory, by either system."""

from __future__ import annotations

import os
import select
import subprocess
from collections.abc import Callable, Hashable, Iterator
from pathlib import Path
from typing import Final

import attrs
import pytest

from sidecar import fsnotify
from sidecar.fsnotify import Event, Fanotify, Inotify, Watcher
from tests.children import in_child

KINDS: Final[dict[str, Callable[[], Watcher]]] = {"fanotify": Fanotify, "inotify": Inotify}


@attrs.frozen
class Watched:
    """A watcher, the directory that it watches, and what that is called."""

    watcher: Watcher
    path: Path
    key: Hashable

    def events(self) -> list[Event]:
        """What has been reported until now."""
        found: list[Event] = []
        while more := self.watcher.read():
            found += more
        return found

    def of(self, name: bytes) -> int:
        """All that was reported of *name*, in one mask."""
        mask = 0
        for event in self.events():
            if event.key == self.key and event.name == name:
                mask |= event.mask
        return mask


def _add(watcher: Watcher, path: Path) -> Hashable:
    fd = os.open(path, os.O_PATH | os.O_DIRECTORY)
    try:
        return watcher.add(fd)
    finally:
        os.close(fd)


@pytest.fixture(params=KINDS)
def watched(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Watched]:
    """A directory with a file and a directory in it, watched by each system."""
    (tmp_path / "dir/sub").mkdir(parents=True)
    (tmp_path / "dir/file").touch()
    watcher = KINDS[request.param]()
    yield Watched(watcher, tmp_path / "dir", _add(watcher, tmp_path / "dir"))
    watcher.close()


def _by_another(*words: str | Path) -> None:
    subprocess.run(words, check=True)


@pytest.mark.parametrize(
    ("act", "name", "mask"),
    [
        (lambda path: (path / "new").touch(), b"new", fsnotify.CREATE),
        (lambda path: (path / "new").mkdir(), b"new", fsnotify.CREATE),
        (lambda path: (path / "new").symlink_to("x"), b"new", fsnotify.CREATE),
        (lambda path: (path / "file").unlink(), b"file", fsnotify.DELETE),
        (lambda path: (path / "sub").rmdir(), b"sub", fsnotify.DELETE),
        (lambda path: (path / "file").rename(path / "sub/x"), b"file", fsnotify.MOVED_FROM),
        (lambda path: (path / "file").rename(path / "other"), b"other", fsnotify.MOVED_TO),
        (lambda path: os.link(path / "file", path / "hard"), b"hard", fsnotify.CREATE),
        (lambda path: (path / "file").write_text("x"), b"file", fsnotify.MODIFY),
        (lambda path: os.truncate(path / "file", 9), b"file", fsnotify.MODIFY),
        (lambda path: (path / "file").chmod(0o600), b"file", fsnotify.ATTRIB),
        (lambda path: os.utime(path / "file", (1, 1)), b"file", fsnotify.ATTRIB),
        (lambda path: os.setxattr(path / "file", "user.x", b""), b"file", fsnotify.ATTRIB),
        (lambda path: path.chmod(0o700), b"", fsnotify.ATTRIB),
        (lambda path: path.rename(path.parent / "moved"), b"", fsnotify.MOVE_SELF),
    ],
)
def test_changes_are_reported(
    watched: Watched, act: Callable[[Path], object], name: bytes, mask: int
) -> None:
    """Under the name and with the bits of the kernel, b"" for the directory itself."""
    assert watched.events() == []
    act(watched.path)
    assert select.select([watched.watcher], [], [], 0)[0]
    assert watched.of(name) & mask == mask


def test_a_name_of_any_bytes(watched: Watched) -> None:
    """255 bytes that are no text come whole."""
    name = bytes(range(1, 47)) + b"\xff" * 209
    os.close(os.open(os.fsencode(watched.path) + b"/" + name, os.O_CREAT | os.O_WRONLY))
    assert watched.of(name) & fsnotify.CREATE


def test_who_has_done_it(watched: Watched) -> None:
    """fanotify knows what this process does itself; inotify never says so."""
    knows = isinstance(watched.watcher, Fanotify)
    (watched.path / "mine").touch()
    _by_another("touch", watched.path / "others")
    own = {event.name: event.own for event in watched.events()}
    assert own == {b"mine": knows, b"others": False}


def test_nothing_is_reported_any_more(watched: Watched) -> None:
    """Once it is no longer watched; its neighbour still is."""
    other = watched.path.parent / "neighbour"
    other.mkdir()
    key = _add(watched.watcher, other)
    assert key != watched.key
    assert _add(watched.watcher, other) == key
    fd = os.open(watched.path, os.O_PATH)
    watched.watcher.remove(watched.key, fd)
    watched.watcher.remove(watched.key, fd)
    os.close(fd)
    watched.events()
    (watched.path / "unseen").touch()
    (other / "seen").touch()
    assert {event.name for event in watched.events()} == {b"seen"}


def test_too_many_events_are_said_to_be_lost(watched: Watched) -> None:
    """The queue has an end, and its last event says so."""
    limits = Path("/proc/sys/fs/inotify/max_queued_events")
    most = int(limits.read_text())
    code = (
        "import os, sys; os.chdir(sys.argv[1])\n"
        f"for n in range({most + 100}): os.mkdir('d'); os.rmdir('d'); os.mkdir(f'n{{n}}')\n"
    )
    _by_another("python3", "-c", code, watched.path)
    found = watched.events()
    assert any(event.mask & fsnotify.OVERFLOW and event.key is None for event in found)
    assert len(found) <= most + 1


def test_what_cannot_be_watched(tmp_path: Path) -> None:
    """A file is no directory."""
    (tmp_path / "file").touch()
    for kind in KINDS.values():
        watcher = kind()
        with pytest.raises(NotADirectoryError):
            _add(watcher, tmp_path / "file")
        watcher.close()


def test_without_root(tmp_path: Path) -> None:
    """Both work without rights, as far as the kernel goes."""
    tmp_path.chmod(0o777)
    fd = os.open(tmp_path, os.O_PATH | os.O_DIRECTORY)

    def work() -> list[list[bytes]]:
        seen = []
        for kind in (Fanotify, Inotify):
            watcher = kind()
            watcher.add(fd)
            os.mkdir(kind.__name__, dir_fd=fd)
            seen.append([event.name for event in watcher.read()])
        return seen

    try:
        assert in_child(work, uid=1000, gid=1000) == [[b"Fanotify"], [b"Inotify"]]
    finally:
        os.close(fd)


def test_the_next_best(monkeypatch: pytest.MonkeyPatch) -> None:
    """inotify where the kernel refuses the other, nothing where it refuses both."""

    def refuse(*_: object) -> int:
        return -1

    monkeypatch.setattr(fsnotify, "_init", refuse)
    watcher = fsnotify.best()
    assert isinstance(watcher, Inotify)
    watcher.close()
    monkeypatch.setattr(fsnotify._libc, "inotify_init1", refuse)
    assert fsnotify.best() is None
