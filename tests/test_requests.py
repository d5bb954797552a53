"""How many requests an operation costs, exactly: nobody else is at the mount: no noise."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests import caches
from tests.counting import cost, requests
from tests.mounts import Mount, Mounter

pytestmark = pytest.mark.parametrize("door", ["kernel"], indirect=True)


@pytest.fixture(autouse=True)
def undisturbed() -> Iterator[None]:
    """What the kernel remembers is counted on."""
    with caches.kept():
        yield


@pytest.fixture
def mount(mounted: Mounter) -> Mount:
    """A mount as it is by default, over a small tree of the sysroot."""
    mount = mounted()
    for number in range(10):
        directory = mount.sysroot / f"top/d{number}"
        directory.mkdir(parents=True)
        for name in range(10):
            (directory / f"f{name}").write_text("content " * 100)
        (directory / "link").symlink_to("f0")
    # The kernel remembers listings of directories that have been at rest for a second.
    time.sleep(1.2)
    return mount


def test_names_and_attributes_are_remembered(mount: Mount) -> None:
    """stat, access, a missing name and readlink cost nothing when they are done again."""
    place = mount.point / "top/d0"
    assert not cost(mount, lambda: os.stat(place / "f0"))
    assert not cost(mount, lambda: os.access(place / "f0", os.R_OK))
    assert not cost(mount, lambda: os.path.exists(place / "missing"))
    assert not cost(mount, lambda: os.readlink(place / "link"))


def test_opens_are_skipped(mount: Mount) -> None:
    """open, read and close of what was read before cost nothing."""
    file = mount.point / "top/d0/f1"

    def read() -> None:
        # Not Python's open, which asks whether it is a terminal.
        fd = os.open(file, os.O_RDONLY)
        assert len(os.read(fd, 1000)) == 800
        os.close(fd)

    assert not cost(mount, read)
    assert not cost(mount, lambda: os.close(os.open(file, os.O_RDWR)))


def test_a_write_is_one_request(mount: Mount) -> None:
    """A write of 4 KiB is a WRITE and nothing before it, but for the first."""
    with open(mount.point / "top/d0/f2", "r+b", buffering=0) as file:
        made = cost(mount, lambda: os.pwrite(file.fileno(), bytes(4096), 0))
    assert made == {"write": 1}


def listed(*words: str) -> Callable[[], None]:
    """Run a program for what it asks of the file system."""

    def run() -> None:
        subprocess.run(words, check=True, capture_output=True)

    return run


def test_a_long_listing_asks_few_xattrs(mount: Mount) -> None:
    """`ls -lR` of a warm tree asks the server for at most two extended attributes in all.

    Below the root: that was there before the kernel knew of ACLs, and it never remembers its own.
    """
    made = cost(mount, listed("ls", "-lR", str(mount.point / "top")))
    assert made["getxattr"] + made["listxattr"] <= 2
    assert set(made) <= {"getxattr", "listxattr"}


def test_a_cold_long_listing(mount: Mount) -> None:
    """Two requests a directory for its entries and one look-up at most, whatever it holds."""
    with requests(mount) as made:
        listed("ls", "-lR", str(mount.point / "top"))()
    assert made["opendir"] <= 1
    assert made["readdirplus"] + made["readdir"] <= 2 * 11
    assert made["lookup"] <= 11 and made["getattr"] <= 11


def test_a_search_through_a_warm_tree(mount: Mount) -> None:
    """`grep -r` reads every directory and file, and asks for none of them."""
    made = cost(mount, listed("grep", "-rlE", "nowhere|content", "--", str(mount.point / "top")))
    assert set(made) <= {"statfs"} and made["statfs"] <= 1


@pytest.mark.parametrize("opens", ["auto", "ask", "passthrough"])
def test_an_archive_unpacked(mounted: Mounter, opens: str, tmp_path: Path) -> None:
    """tar costs at most eight requests a file that it writes at once and gives to nobody else."""
    mount = mounted(f"opens={opens}", "attr_timeout=1000")
    count = 50
    for number in range(count):
        (tmp_path / f"{number}").write_text("x" * 300)
    archive = tmp_path / "archive.tar"
    subprocess.run(["tar", "-C", tmp_path, "-cf", archive, *map(str, range(count))], check=True)
    (mount.point / "new").mkdir()
    with requests(mount) as made:
        where = ["-C", str(mount.point / "new"), "-xf", str(archive)]
        subprocess.run(["tar", "--no-same-owner", *where], check=True)
    assert made.total() <= 8 * count, made


@pytest.mark.parametrize("options", [(), ("coherence=exclusive", "host_coherence=exclusive")])
def test_a_renamed_name_is_remembered(mounted: Mounter, options: tuple[str, ...]) -> None:
    """After a rename the kernel knows the new name for as long as it knew the old one."""
    mount = mounted(*options)
    old, new = mount.point / "old", mount.point / "new"
    old.write_text("content")
    with requests(mount) as made:
        old.rename(new)
        # What is told to the kernel is told within this.
        time.sleep(0.2)
        os.stat(new)
    # Attributes have changed with it, of the directory as well.
    del made["getattr"]
    assert made == {"rename": 1, "lookup": 1}
