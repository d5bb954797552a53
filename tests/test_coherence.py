"""Changes behind the mount are seen through it, though the kernel remembers nearly for ever."""

from __future__ import annotations

import contextlib
import mmap
import os
import resource
import shutil
import stat
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

import attrs
import pytest

from sidecar import fsnotify
from tests import caches
from tests.children import code_of
from tests.counting import requests
from tests.mounts import Mount, Mounter
from tests.waiting import wait_until

# The mounts of this module remember for a day what they watch: who sees a change has been told.
PATIENCE: Final = 10.0
REMEMBERED: Final = 1.2
"""Seconds after which what is remembered for a second is asked for again."""
_FEW: Final = 8
"""Descriptors that every server has open, and no fewer than it may wait for at once."""


@pytest.fixture(autouse=True)
def undisturbed() -> Iterator[None]:
    """What the kernel remembers is counted on."""
    with caches.kept():
        yield


@attrs.frozen
class Seen:
    """A directory through the mount, and where it lies in its layer."""

    mount: Mount
    path: Path
    lower: Path


PLACES: Final = ("sysroot", "host", "twin")


@pytest.fixture(params=PLACES)
def seen(request: pytest.FixtureRequest, mounted: Mounter) -> Seen:
    """A directory of the sysroot, of the host, or of the host below one of the sysroot's.

    Both shared, as only that sees everything.
    """
    return _place(mounted("coherence=shared"), request.param)


@pytest.fixture(params=PLACES)
def watched(request: pytest.FixtureRequest, mounted: Mounter) -> Seen:
    """The same, remembered for long."""
    return _place(mounted("host_coherence=watched"), request.param)


def _place(mount: Mount, place: str, name: str = "dir") -> Seen:
    layer = mount.sysroot if place == "sysroot" else mount.host
    lower = layer / "place" / name
    lower.mkdir(parents=True)
    if place == "twin":
        (mount.sysroot / "place" / name).mkdir(parents=True)
    (lower / "file").write_text("before")
    (lower / "other").write_text("other")
    (lower / "link").symlink_to("file")
    (lower / "sub").mkdir()
    (lower / "sub/below").write_text("below")
    return Seen(mount, mount.point / "place" / name, lower)


def _read(path: Path) -> bytes:
    """As `open` in C: Python's asks with an ioctl whether it is a terminal."""
    fd = os.open(path, os.O_RDONLY)
    try:
        return os.read(fd, 100)
    finally:
        os.close(fd)


def _absent(path: Path) -> bool:
    return not os.path.lexists(path)


def known(*places: Seen) -> None:
    """Have the kernel remember all there is, and that some names are absent; twice, as at first
    the answers of a directory that is not yet watched last a second."""
    for _ in range(2):
        for seen in places:
            for name in ("file", "other", "link", "sub", "sub/below"):
                os.lstat(seen.path / name)
            for name in ("new", "sub/new"):
                assert _absent(seen.path / name)
            os.listdir(seen.path)
            os.readlink(seen.path / "link")
            _read(seen.path / "file")
        time.sleep(REMEMBERED)


def _listed(seen: Seen, name: str) -> bool:
    """Whether a listing has *name*, as far as it tells of the layer at all."""
    of_sysroot = (seen.mount.sysroot / "place").exists()
    on_host = seen.mount.host in seen.lower.parents
    return name in os.listdir(seen.lower if of_sysroot and on_host else seen.path)


def _rename(seen: Seen) -> None:
    (seen.lower / "file").rename(seen.lower / "new")


def _replace(seen: Seen) -> None:
    (seen.lower / "other").rename(seen.lower / "file")


def _mapped(seen: Seen) -> None:
    with open(seen.lower / "file", "r+b") as file, mmap.mmap(file.fileno(), 6) as memory:
        memory[:6] = b"MAPPED"


def _write_in_place(seen: Seen) -> None:
    with open(seen.lower / "file", "r+b") as file:
        file.write(b"AFTER!")


def _link_and_write(seen: Seen) -> None:
    hard = seen.lower.with_name("hard-to-write")
    os.link(seen.lower / "file", hard)
    hard.write_text("by the other")


def _relink(seen: Seen) -> None:
    (seen.lower / "link").unlink()
    (seen.lower / "link").symlink_to("other")


def _swapped(seen: Seen) -> None:
    seen.lower.rename(seen.lower.with_name("old"))
    seen.lower.mkdir()
    (seen.lower / "file").write_text("swapped")


CHANGES: Final[dict[str, tuple[Callable[[Seen], object], Callable[[Seen], bool]]]] = {
    "create": (
        lambda seen: (seen.lower / "new").write_text("x"),
        lambda seen: (seen.path / "new").is_file() and _listed(seen, "new"),
    ),
    "create below": (
        lambda seen: (seen.lower / "sub/new").write_text("x"),
        lambda seen: (seen.path / "sub/new").is_file(),
    ),
    "mkdir": (
        lambda seen: (seen.lower / "new").mkdir(),
        lambda seen: (seen.path / "new").is_dir() and os.stat(seen.path).st_nlink > 0,
    ),
    "unlink": (
        lambda seen: (seen.lower / "file").unlink(),
        lambda seen: not (seen.path / "file").exists() and not _listed(seen, "file"),
    ),
    "rmdir": (
        lambda seen: shutil.rmtree(seen.lower / "sub"),
        lambda seen: _absent(seen.path / "sub/below"),
    ),
    "rename": (
        _rename,
        lambda seen: (
            not (seen.path / "file").exists() and (seen.path / "new").read_text() == "before"
        ),
    ),
    "replace": (_replace, lambda seen: (seen.path / "file").read_text() == "other"),
    "write": (
        lambda seen: (seen.lower / "file").write_text("after, and longer"),
        lambda seen: (
            (seen.path / "file").read_text() == "after, and longer"
            and (seen.path / "file").stat().st_size == 17
        ),
    ),
    "write in place": (
        _write_in_place,
        lambda seen: (seen.path / "file").read_text() == "AFTER!",
    ),
    "mapped": (_mapped, lambda seen: (seen.path / "file").read_text() == "MAPPED"),
    "truncate": (
        lambda seen: os.truncate(seen.lower / "file", 1),
        lambda seen: (seen.path / "file").read_text() == "b",
    ),
    "chmod": (
        lambda seen: (seen.lower / "file").chmod(0o640),
        lambda seen: stat.S_IMODE((seen.path / "file").stat().st_mode) == 0o640,
    ),
    "chmod of a directory": (
        lambda seen: (seen.lower / "sub").chmod(0o711),
        lambda seen: stat.S_IMODE((seen.path / "sub").stat().st_mode) == 0o711,
    ),
    "times": (
        lambda seen: os.utime(seen.lower / "file", (1, 1)),
        lambda seen: (seen.path / "file").stat().st_mtime == 1,
    ),
    "hard link": (
        lambda seen: os.link(seen.lower / "file", seen.lower.parent / "hard"),
        lambda seen: (seen.path / "file").stat().st_nlink == 2,
    ),
    "by another name": (
        _link_and_write,
        lambda seen: (seen.path / "file").read_text() == "by the other",
    ),
    "xattr": (
        lambda seen: os.setxattr(seen.lower / "file", "user.x", b"1"),
        lambda seen: "user.x" in os.listxattr(seen.path / "file"),
    ),
    "symlink": (
        _relink,
        lambda seen: os.readlink(seen.path / "link") == "other",
    ),
    "another directory in its place": (
        _swapped,
        lambda seen: (seen.path / "file").read_text() == "swapped",
    ),
}


@pytest.mark.parametrize("place", PLACES)
def test_changes_are_seen(mounted: Mounter, place: str) -> None:
    """Whatever happens to names, attributes and data, in each layer; each to a directory."""
    mount = mounted("coherence=shared")
    places = {change: _place(mount, place, change.replace(" ", "-")) for change in CHANGES}
    known(*places.values())
    for change, (act, is_seen) in CHANGES.items():
        act(places[change])
        try:
            wait_until(lambda: _holds(is_seen, places[change]))  # noqa: B023
        except AssertionError as failure:
            failure.add_note(change)
            raise


def _holds(is_seen: Callable[[Seen], bool], seen: Seen) -> bool:
    try:
        return is_seen(seen)
    except FileNotFoundError:
        return False


# --- between the layers -----------------------------------------------------------------------


def test_the_hosts_shows_when_the_sysroots_goes(mounted: Mounter) -> None:
    """And it is covered again when the sysroot has one: both behind the mount."""
    mount = mounted()
    for layer in (mount.sysroot, mount.host):
        (layer / "dir").mkdir()
    (mount.host / "dir/name").write_text("host")
    path = mount.point / "dir/name"
    for _ in range(2):
        assert path.read_text() == "host"
        time.sleep(REMEMBERED)
    (mount.sysroot / "dir/name").write_text("sysroot")
    wait_until(lambda: path.read_text() == "sysroot")
    (mount.sysroot / "dir/name").unlink()
    wait_until(lambda: path.exists() and path.read_text() == "host")


def test_a_twin_comes_goes_and_moves(mounted: Mounter) -> None:
    """What the host has below a directory of the sysroot follows from the whole path on the host.

    Somebody stands in the directory meanwhile: nothing leads the kernel past its name again.
    """
    mount = mounted()
    (mount.sysroot / "a/b/c").mkdir(parents=True)
    here = os.open(mount.point / "a/b/c", os.O_PATH | os.O_DIRECTORY)

    def there() -> bool:
        return os.path.lexists(f"/proc/self/fd/{here}/x")

    try:
        for _ in range(2):
            assert not there()
            time.sleep(REMEMBERED)
        (mount.host / "a/b/c").mkdir(parents=True)
        (mount.host / "a/b/c/x").touch()
        wait_until(there)
        (mount.host / "a").rename(mount.host / "away")
        wait_until(lambda: not there())
        (mount.host / "away").rename(mount.host / "a")
        wait_until(there)
        (mount.host / "a/b").rename(mount.host / "b")
        wait_until(lambda: not there())
    finally:
        os.close(here)


def test_a_directory_of_the_host_at_two_paths(mounted: Mounter) -> None:
    """What is done by way of a link of the host is seen by the other path as well."""
    mount = mounted("host_coherence=watched")
    (mount.host / "real").mkdir()
    (mount.host / "via").symlink_to("real")
    (mount.sysroot / "via").mkdir()
    direct, around = mount.point / "real", mount.point / "via"
    (mount.host / "real/file").write_text("content")
    for _ in range(2):
        assert (direct / "file").read_text() == (around / "file").read_text() == "content"
        assert os.listdir(direct) == ["file"]
        time.sleep(REMEMBERED)
    (around / "file").unlink()
    wait_until(lambda: _absent(direct / "file"))
    assert os.listdir(direct) == []
    (direct / "file").write_text("again")
    assert (mount.host / "real/file").read_text() == "again"


def test_a_link_of_the_host_on_the_way(mounted: Mounter) -> None:
    """Behind a link of the host nothing is watched: what changes there is asked for in time."""
    mount = mounted()
    (mount.sysroot / "lib").mkdir()
    (mount.host / "usr/lib").mkdir(parents=True)
    (mount.host / "lib").symlink_to("usr/lib")
    for _ in range(2):
        assert _absent(mount.point / "lib/new")
        time.sleep(REMEMBERED)
    (mount.host / "usr").rename(mount.host / "old")
    (mount.host / "usr/lib").mkdir(parents=True)
    (mount.host / "usr/lib/new").touch()
    wait_until(lambda: (mount.point / "lib/new").exists())


def test_a_mount_on_the_host_is_seen(mounted: Mounter) -> None:
    """A mount is no event in a directory, and neither is its end."""
    mount = mounted()
    (mount.host / "disk").mkdir()
    (mount.host / "disk/below").touch()
    for _ in range(2):
        assert os.listdir(mount.point / "disk") == ["below"]
        assert _absent(mount.point / "disk/above")
        time.sleep(REMEMBERED)
    subprocess.run(["mount", "-t", "tmpfs", "none", mount.host / "disk"], check=True)
    try:
        (mount.host / "disk/above").touch()
        wait_until(lambda: os.listdir(mount.point / "disk") == ["above"])
    finally:
        subprocess.run(["umount", "-l", mount.host / "disk"], check=True)
    wait_until(lambda: os.listdir(mount.point / "disk") == ["below"])


def test_a_mount_is_seen_by_a_server_without_descriptors(mounted: Mounter) -> None:
    """Whoever mounts something, anywhere, does not end it."""
    mount = mounted()
    (mount.host / "disk").mkdir()
    (mount.host / "disk/below").touch()
    for _ in range(2):
        assert os.listdir(mount.point / "disk") == ["below"]
        time.sleep(REMEMBERED)
    server = mount.process.pid
    _, hard = resource.prlimit(server, resource.RLIMIT_NOFILE)
    before = resource.prlimit(server, resource.RLIMIT_NOFILE, (_FEW, hard))
    subprocess.run(["mount", "-t", "tmpfs", "none", mount.host / "disk"], check=True)
    try:
        (mount.host / "disk/above").touch()
        # So that it has heard of it before it has descriptors again.
        time.sleep(REMEMBERED)
        resource.prlimit(server, resource.RLIMIT_NOFILE, before)
        assert mount.process.poll() is None
        wait_until(lambda: os.listdir(mount.point / "disk") == ["above"])
    finally:
        subprocess.run(["umount", "-l", mount.host / "disk"], check=True)


def test_every_spelling_is_taken_back(mounted: Mounter) -> None:
    """Where lookups fold, a name that appears behind the mount ends the absence of them all."""
    mount = mounted("lookup=fold")
    (mount.sysroot / "dir").mkdir()
    spellings = [mount.point / "dir" / name for name in ("Name", "NAME", "name", "nAmE")]
    for _ in range(2):
        assert all(map(_absent, spellings))
        time.sleep(REMEMBERED)
    (mount.sysroot / "dir/Name").touch()
    wait_until(lambda: not any(map(_absent, spellings)))
    (mount.sysroot / "dir/Name").unlink()
    wait_until(lambda: all(map(_absent, spellings)))


# --- the modes ----------------------------------------------------------------------------------


@pytest.mark.parametrize("layer", ["sysroot", "host"])
def test_exclusive_believes_that_nobody_else_writes(mounted: Mounter, layer: str) -> None:
    """The user's own word: what was once answered stays, in that layer and in no other."""
    option = "coherence" if layer == "sysroot" else "host_coherence"
    mount = mounted(f"{option}=exclusive")
    for base in (mount.sysroot, mount.host):
        (base / base.name).mkdir()
        (base / base.name / "file").write_text("12")
    for _ in range(2):
        for base in (mount.sysroot, mount.host):
            assert (mount.point / base.name / "file").stat().st_size == 2
        time.sleep(REMEMBERED)
    for base in (mount.sysroot, mount.host):
        (base / base.name / "file").write_text("1234")
    mine, other = (mount.sysroot, mount.host)[:: 1 if layer == "sysroot" else -1]
    wait_until(lambda: (mount.point / other.name / "file").stat().st_size == 4)
    time.sleep(REMEMBERED)
    assert (mount.point / mine.name / "file").stat().st_size == 2


@pytest.mark.parametrize("place", PLACES)
def test_an_open_file_is_never_another(mounted: Mounter, place: str) -> None:
    """What is made where a file was removed, and has its number, is not read or written as that."""
    seen = _place(mounted(""), place)
    fd = os.open(seen.path / "file", os.O_RDWR)
    try:
        (seen.lower / "file").unlink()
        made = [seen.lower / "file", *(seen.lower / f"new-{number}" for number in range(20))]
        for path in made:
            path.write_text("secret")
        wait_until(lambda: all(code_of(_read, seen.path / path.name) == 0 for path in made))
        wait_until(lambda: all(_read(seen.path / path.name) == b"secret" for path in made))
        with contextlib.suppress(OSError):
            assert os.pread(fd, 100, 0) == b"before"
        with contextlib.suppress(OSError):
            os.pwrite(fd, b"written", 0)
        assert {path.read_text() for path in made} == {"secret"}
    finally:
        os.close(fd)


@pytest.mark.parametrize("place", PLACES)
def test_a_file_that_was_made_stays_what_it_is(mounted: Mounter, place: str) -> None:
    """Replaced behind the mount while it is open, it tells of itself and not of the new one."""
    seen = _place(mounted("opens=ask"), place)
    fd = os.open(seen.path / "sub/made", os.O_CREAT | os.O_EXCL | os.O_RDWR)
    try:
        os.write(fd, b"made")
        (seen.lower / "other").rename(seen.lower / "sub/made")
        wait_until(lambda: code_of(_read, seen.path / "sub/made") == 0)
        wait_until(lambda: _read(seen.path / "sub/made") == b"other")
        assert (os.fstat(fd).st_size, os.fstat(fd).st_nlink) == (4, 0)
        assert os.pread(fd, 100, 0) == b"made"
    finally:
        os.close(fd)


def test_none_asks_each_time(mounted: Mounter) -> None:
    """A change is seen at once, with nobody watching."""
    mount = mounted("coherence=none", "host_coherence=none")
    for base in (mount.sysroot, mount.host):
        file = base / f"{base.name}-file"
        for number in range(20):
            assert _absent(mount.point / file.name)
            file.write_text("x" * number)
            assert (mount.point / file.name).stat().st_size == number
            file.unlink()


@pytest.mark.parametrize("door", ["kernel", "pyfuse3"], indirect=True)
def test_who_waits_for_a_file_to_go_hears_of_it(seen: Seen) -> None:
    """inotify in the guest: of what is removed behind the mount, as the kernel has no more.

    Not of a file that has another name still.
    """
    os.link(seen.lower / "other", seen.lower.parent / "hard")
    known(seen)
    watcher = fsnotify.Inotify()
    numbers = {
        name: fsnotify._add_watch(
            watcher.fileno(), os.fsencode(seen.path / name), fsnotify.DELETE_SELF
        )
        for name in ("file", "other")
    }
    (seen.lower / "other").unlink()
    (seen.lower / "file").unlink()
    heard: set[object] = set()

    def hears() -> bool:
        heard.update(event.key for event in watcher.read())
        return numbers["file"] in heard

    wait_until(hears)
    assert heard == {numbers["file"]}
    watcher.close()


# --- what it costs ------------------------------------------------------------------------------


@pytest.mark.parametrize("door", ["kernel"], indirect=True)
def test_what_is_watched_is_not_asked_for_again(watched: Seen) -> None:
    """Names, absences, attributes, listings and data: no request, seconds later."""
    known(watched)
    # More than once: a name is asked for again where anything on the machine is mounted on such a
    # one, and other tests do that.
    for _ in range(3):
        time.sleep(REMEMBERED)
        known(watched)
        with requests(watched.mount) as made:
            for name in ("file", "other", "link", "sub", "sub/below"):
                os.lstat(watched.path / name)
            assert _absent(watched.path / "new") and _absent(watched.path / "sub/new")
            os.readlink(watched.path / "link")
            _read(watched.path / "file")
        if made == {}:
            break
    assert made == {}


@pytest.mark.parametrize("door", ["kernel"], indirect=True)
def test_the_mounts_own_changes_cost_nothing(watched: Seen) -> None:
    """What the guest does itself comes back from the watcher, and nothing is forgotten for it."""
    (watched.path / "sub").chmod(0o711)
    known(watched)
    (watched.path / "mine").write_text("mine")
    os.rename(watched.path / "mine", watched.path / "moved")
    (watched.path / "moved").chmod(0o600)
    (watched.path / "file").unlink()
    for _ in range(2):
        os.stat(watched.path / "moved")
        os.stat(watched.path / "other")
        assert _absent(watched.path / "file") and _absent(watched.path / "mine")
        time.sleep(REMEMBERED)
    with requests(watched.mount) as made:
        os.stat(watched.path / "moved")
        os.stat(watched.path / "other")
        assert _absent(watched.path / "file") and _absent(watched.path / "mine")
    assert made == {}


@pytest.mark.parametrize("door", ["kernel"], indirect=True)
def test_what_the_guest_has_moved_is_watched_where_it_is(watched: Seen) -> None:
    """A name keeps in the kernel what it may be remembered for, wherever it goes."""
    known(watched)
    os.rename(watched.path / "file", watched.path / "sub/moved")
    assert _read(watched.path / "sub/moved") == b"before"
    time.sleep(REMEMBERED)
    assert (watched.path / "sub/moved").read_text() == "before"
    (watched.lower / "sub/moved").write_text("changed behind")
    wait_until(lambda: (watched.path / "sub/moved").read_text() == "changed behind")
    (watched.lower / "sub/moved").unlink()
    wait_until(lambda: _absent(watched.path / "sub/moved"))


@pytest.mark.patience(120)
def test_ten_thousand_changes_in_a_burst(seen: Seen) -> None:
    """The mount answers all the while, all changes are seen, and memory comes back."""
    for number in range(1000):
        (seen.lower / f"n{number}").write_text("0")
    known(seen)
    for number in range(1000):
        os.stat(seen.path / f"n{number}")
    before = seen.mount.memory_kib()
    code = (
        "import os, sys; os.chdir(sys.argv[1])\n"
        "for r in range(10):\n"
        "    for n in range(1000): open(f'n{n}', 'w').write('x' * r)\n"
    )
    with subprocess.Popen(["python3", "-c", code, seen.lower]) as other:
        while other.poll() is None:
            os.listdir(seen.path)
            assert (seen.path / "other").read_text() == "other"
    assert other.returncode == 0
    wait_until(
        lambda: all(os.stat(seen.path / f"n{number}").st_size == 9 for number in range(1000))
    )
    assert seen.mount.memory_kib() < before + 20_000


# --- listings that nobody opens -------------------------------------------------------------------


@pytest.mark.parametrize("behind", [False, True], ids=["through", "behind"])
def test_a_listing_that_changes_while_it_is_read(seen: Seen, behind: bool) -> None:
    """Every name that is there all the time comes once, whoever else reads from the beginning."""
    there = seen.path / "sub" if not behind else seen.lower / "sub"
    stays = {f"stays-{number:04}-{'x' * 150}" for number in range(1500)}
    for name in stays:
        (seen.lower / "sub" / name).touch()
    for number in range(500):
        (seen.lower / "sub" / f"goes-{number}").touch()
    os.listdir(seen.path / "sub")
    with os.scandir(seen.path / "sub") as reading:
        names = [next(reading).name for _ in range(300)]
        for number in range(500):
            (there / f"goes-{number}").unlink()
            (there / f"comes-{number}").touch()
        wait_until(lambda: "comes-499" in _all(seen) and "goes-499" not in _all(seen))
        names += [entry.name for entry in reading]
    assert sorted(name for name in names if name in stays) == sorted(stays)
    assert len(set(names)) == len(names)


def _all(seen: Seen) -> set[str]:
    return set(os.listdir(seen.path / "sub"))


@pytest.mark.parametrize("door", ["kernel"], indirect=True)
def test_many_listings_at_once(mounted: Mounter) -> None:
    """More directories are read at a time than the server keeps listings of."""
    mount = mounted()
    for number in range(100):
        (mount.sysroot / f"d{number}").mkdir()
        for name in range(250):
            (mount.sysroot / f"d{number}/{name:03}-{'x' * 200}").touch()
    readers = [os.scandir(mount.point / f"d{number}") for number in range(100)]
    counts = [0] * len(readers)
    going = set(range(len(readers)))
    while going:
        for number in list(going):
            for _ in range(100):
                if next(readers[number], None) is None:
                    going.discard(number)
                    break
                counts[number] += 1
    assert counts == [250] * len(readers)
