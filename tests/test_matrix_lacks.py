"""What the matrix excuses for a volume is what that volume, without any mount, cannot do."""

from __future__ import annotations

import os
import stat
import subprocess
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final

import pytest

from tests.caseless import open_kind
from tests.matrix.cases import NEEDS
from tests.matrix.parity.generate import measured_lacks
from tests.matrix.suite import VOLUMES
from tests.matrix.table import LACKS

_ATTRIBUTE: Final = "user.matrix"
_LENGTH: Final = 100_000
_HOLE: Final = 8 << 20


def symlinks(file: Path) -> bool:
    """A link is made and says where it leads."""
    link = file.with_name("link")
    link.symlink_to("target")
    return os.readlink(link) == "target"


def hard_links(file: Path) -> bool:
    """A second name counts."""
    file.with_name("other").hardlink_to(file)
    return file.stat().st_nlink == 2


def modes(file: Path) -> bool:
    """Permissions are what they were set to."""
    file.chmod(0o604)
    return stat.S_IMODE(file.stat().st_mode) == 0o604


def owners(file: Path) -> bool:
    """Owner and group are what they were set to."""
    os.chown(file, 1000, 1001)
    return (file.stat().st_uid, file.stat().st_gid) == (1000, 1001)


def special_files(file: Path) -> bool:
    """A fifo is made."""
    os.mkfifo(file.with_name("fifo"))
    return True


def xattrs(file: Path) -> bool:
    """An attribute is kept."""
    os.setxattr(file, _ATTRIBUTE, b"value")
    return os.getxattr(file, _ATTRIBUTE) == b"value"


def sparse(file: Path) -> bool:
    """A hole takes no space."""
    with open(file, "r+b") as opened:
        opened.truncate(_HOLE)
        os.fsync(opened.fileno())
    return file.stat().st_blocks * 512 < _HOLE


def blocks(file: Path) -> bool:
    """What was written is counted when it has been synced."""
    with open(file, "r+b") as opened:
        opened.write(b"x" * _LENGTH)
        os.fsync(opened.fileno())
    return file.stat().st_blocks * 512 >= _LENGTH


def fine_times(file: Path) -> bool:
    """Nanoseconds are kept, and times before 1970."""
    moments = (1_100_000_000_123_456_789, -86_400_000_000_000)
    for moment in moments:
        os.utime(file, ns=(moment, moment))
        if file.stat().st_mtime_ns != moment:
            return False
    return True


def atimes(file: Path) -> bool:
    """The time of access can be set without the other one."""
    os.utime(file, (1_200_000_000, 1_200_000_000))
    subprocess.run(["touch", "-a", "-d", "@1000000000", file], check=True)
    return (file.stat().st_atime, file.stat().st_mtime) == (1_000_000_000, 1_200_000_000)


def directory_links(file: Path) -> bool:
    """A directory has a link more for each directory in it."""
    (file.with_name("outer") / "inner").mkdir(parents=True)
    return file.with_name("outer").stat().st_nlink == 3


def removed_directories(file: Path) -> bool:
    """One that somebody is in can be looked at and opened after it was removed."""
    gone = file.with_name("gone")
    gone.mkdir()
    fd = os.open(gone, os.O_PATH)
    try:
        gone.rmdir()
        os.close(os.open(".", os.O_RDONLY, dir_fd=fd))
        return os.fstat(fd).st_nlink == 0
    finally:
        os.close(fd)


def setgid_kept(file: Path) -> bool:
    """The bit of what nobody executes outlasts another owner."""
    file.chmod(0o2644)
    os.chown(file, 1000, 1000)
    return stat.S_IMODE(file.stat().st_mode) == 0o2644


def open_renames(file: Path) -> bool:
    """An open file has one name after it was renamed."""
    with open(file) as opened:
        file.rename(file.with_name("renamed"))
        return os.fstat(opened.fileno()).st_nlink == 1


def iota_subscripts(file: Path) -> bool:
    """A rename from one form to the other is not lost, unless they are one name."""
    one, other = "\u1fb3", "\u03b1\u0345"
    beside = file.with_name("beside")
    beside.mkdir()
    (beside / one).touch()
    file.rename(file.with_name(one)).rename(file.with_name(other))
    return other in os.listdir(file.parent) or (beside / other).exists()


PROBES: Final[Mapping[str, Callable[[Path], bool]]] = {
    probe.__name__.replace("_", "-"): probe
    for probe in (
        *(symlinks, hard_links, modes, owners, special_files, xattrs, sparse, blocks, fine_times),
        *(atimes, directory_links, removed_directories, setgid_kept, open_renames),
        iota_subscripts,
    )
}


def can(probe: Callable[[Path], bool], directory: Path) -> bool:
    """Whether a volume can do what *probe* tries with a new file in a new directory."""
    directory.mkdir()
    file = directory / "file"
    file.touch()
    try:
        return probe(file)
    except OSError:
        return False


@pytest.mark.parametrize("kind", VOLUMES)
def test_what_is_excused_is_what_the_volume_lacks(kind: str, workplace: Path) -> None:
    """Neither an excuse that is none, nor a lack that is nowhere said."""
    with open_kind("plain" if kind == "ext4" else kind, workplace) as volume:
        lacks = {need for need, probe in PROBES.items() if not can(probe, volume.path / need)}
        lacks |= measured_lacks(volume.path) & (NEEDS.keys() - PROBES.keys())
    assert lacks == LACKS[kind]


def test_every_need_is_measured() -> None:
    """And is lacking somewhere, or it would be none."""
    assert frozenset[str]().union(*LACKS.values()) == NEEDS.keys()
    assert NEEDS.keys() - PROBES.keys() == {"large-ids", "any-targets"}
