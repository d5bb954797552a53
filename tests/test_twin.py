"""The host's directory beside a sysroot directory: links, confinement, guards and doors."""

from __future__ import annotations

import contextlib
import gc
import os
import struct
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sidecar import linux
from sidecar.descriptor import Descriptor
from sidecar.twin import ROOT, Caller, Guard, Twin, child_twin, root_twin
from tests.children import start_child

_OPEN_DIR: Final = os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC
USER: Final = Caller(1000, 1000)


@pytest.fixture
def host(tmp_path: Path) -> Path:
    """A host root, with a directory `usr/lib` in it and a directory `outside` beside it."""
    (tmp_path / "host/usr/lib").mkdir(parents=True)
    (tmp_path / "outside").mkdir()
    return tmp_path / "host"


def root(host: Path) -> Twin:
    """The twin of the guest's root."""
    return root_twin(Descriptor(os.open(host, _OPEN_DIR)))


def down(host: Path, *names: str) -> Twin | None:
    """The twin at a path of the host, one step after the other."""
    twin: Twin | None = root(host)
    for name in names:
        assert twin is not None
        twin = child_twin(twin, name.encode())
    return twin


def where(twin: Twin | None) -> Path | None:
    """The real path of a twin."""
    if twin is None:
        return None
    return Path(os.fsdecode(os.readlink(linux.fd_path(twin.descriptor.fd))))


# --- links --------------------------------------------------------------------------------------


def test_a_directory_is_its_own_twin(host: Path) -> None:
    """Without links the twin is the literal path."""
    assert where(down(host)) == host
    assert where(down(host, "usr", "lib")) == host / "usr/lib"


@pytest.mark.parametrize("target", ["usr/lib", "/usr/lib", "./usr//lib/.", "usr/../usr/lib/"])
def test_links_are_followed(host: Path, target: str) -> None:
    """Relative and absolute links, dots, double slashes."""
    (host / "lib").symlink_to(target)
    assert where(down(host, "lib")) == host / "usr/lib"


def test_dot_dot_is_answered_by_the_way_that_was_walked(host: Path) -> None:
    """`..` behind a link is the parent of where the link led."""
    (host / "usr/lib/up").symlink_to("../share")
    (host / "lib").symlink_to("/usr/lib")
    (host / "usr/share").mkdir()
    (host / "share").mkdir()
    assert where(down(host, "lib", "up")) == host / "usr/share"


@pytest.mark.parametrize(
    "target", ["..", "/..", "../../..", "/../../usr/../..", "usr/../../../../.."]
)
def test_nothing_leads_above_the_host_root(host: Path, target: str) -> None:
    """`..` of the host root is the host root."""
    (host / "link").symlink_to(target)
    assert where(down(host, "link")) == host


@pytest.mark.parametrize("target", ["../outside", "/../outside", "{}/outside", "/proc/self/root"])
def test_nothing_leads_beside_the_host_root(host: Path, target: str) -> None:
    """What is not below the host root is not there."""
    (host / "link").symlink_to(target.format(host.parent))
    assert down(host, "link") is None


def test_a_directory_moved_away_does_not_lead_out(host: Path) -> None:
    """`..` of a directory that is elsewhere by now is still the one that was walked."""
    (host / "usr/lib/up").symlink_to("../..")
    lib = down(host, "usr", "lib")
    assert lib is not None
    (host / "usr/lib").rename(host.parent / "outside/lib")
    assert where(child_twin(lib, b"up")) == host


def test_forty_links_are_followed_and_no_more(host: Path) -> None:
    """Past 40 links, and in a loop, there is no twin."""
    for number in range(1, 42):
        (host / f"l{number}").symlink_to("usr" if number == 1 else f"l{number - 1}")
    (host / "self").symlink_to("self")
    (host / "ping").symlink_to("/pong")
    (host / "pong").symlink_to("ping")
    assert where(down(host, "l40")) == host / "usr"
    for name in ("l41", "self", "ping"):
        assert down(host, name) is None


def test_what_is_no_directory_has_no_twin(host: Path) -> None:
    """Nothing, a file, a fifo, links to these, and a link through a file."""
    (host / "file").touch()
    os.mkfifo(host / "fifo")
    for name, target in (
        ("to-file", "file"), ("to-fifo", "fifo"), ("to-nowhere", "nowhere"),
        ("through", "file/x"), ("up-from-file", "file/.."),
    ):  # fmt: skip
        (host / name).symlink_to(target)
    for name in (
        "nothing", "file", "fifo", "to-file", "to-fifo", "to-nowhere", "through", "up-from-file",
    ):  # fmt: skip
        assert down(host, name) is None, name


parts = st.sampled_from(["a", "b", "c", "..", ".", ""])
targets = st.tuples(st.booleans(), st.lists(parts, min_size=1, max_size=6)).map(
    lambda drawn: "/" * drawn[0] + "/".join(drawn[1])
)
links = st.dictionaries(
    st.tuples(st.sampled_from(["", "a", "a/b"]), st.sampled_from("xyz")),
    st.one_of(targets, st.sampled_from(["x", "/y", "../z", "a/x", "../../x/../y"])),
    max_size=5,
)


@given(links, st.sampled_from("xyz"))
def test_links_lead_where_the_kernel_would_go(
    tmp_path_factory: pytest.TempPathFactory, made: dict[tuple[str, str], str], name: str
) -> None:
    """On random links the twin is what RESOLVE_IN_ROOT finds."""
    host = tmp_path_factory.mktemp("host")
    (host / "a/b/c").mkdir(parents=True)
    (host / "b").mkdir()
    for (directory, link), target in made.items():
        with contextlib.suppress(FileNotFoundError):
            (host / directory / link).symlink_to(target)
    here = os.open(host, _OPEN_DIR)
    try:
        fd = linux.openat2(here, name.encode(), _OPEN_DIR, resolve=linux.RESOLVE_IN_ROOT)
    except OSError:
        expected = None
    else:
        expected = Path(os.readlink(f"/proc/self/fd/{fd}"))
        os.close(fd)
    finally:
        os.close(here)
    assert where(down(host, name)) == expected


# --- guards -------------------------------------------------------------------------------------


def test_what_everybody_may_search_has_no_guards(host: Path) -> None:
    """A way of directories with mode 0755 is open to all, so the answer is for all."""
    host.chmod(0o755)
    twin = down(host, "usr", "lib")
    assert twin is not None and twin.guards == () and twin.admits(USER)


@pytest.mark.parametrize(
    ("mode", "owner", "group", "other"),
    [
        (0o700, True, False, False),
        (0o710, True, True, False),
        (0o701, True, False, True),
        (0o070, False, True, False),
        (0o677, False, True, True),
        (0o767, True, False, True),
        (0o000, False, False, False),
        (0o666, False, False, False),
    ],
)
def test_guards_ask_as_linux_does(
    host: Path, mode: int, owner: bool, group: bool, other: bool
) -> None:
    """The first class that fits decides, and root passes always."""
    (host / "usr").chmod(mode)
    os.chown(host / "usr", 1000, 2000)
    twin = down(host, "usr", "lib")
    assert twin is not None
    assert twin.admits(ROOT)
    assert twin.admits(Caller(1000, 3000)) is owner
    assert twin.admits(Caller(1000, 2000)) is owner
    assert twin.admits(Caller(3000, 2000)) is group
    assert twin.admits(Caller(3000, 3000)) is other
    (host / "usr").chmod(0o755)


def test_supplementary_groups_count(host: Path) -> None:
    """The groups of the process that asks open what its first group does not."""
    (host / "usr").chmod(0o710)
    os.chown(host / "usr", 0, 2000)
    twin = down(host, "usr", "lib")
    assert twin is not None
    reader, writer = os.pipe()
    child = start_child(lambda: os.read(reader, 1), uid=1000, gid=1000, groups=(2000, 2001))
    try:
        # The child has become somebody else when it reads.
        while b"Groups:\t2000 2001" not in Path(f"/proc/{child.pid}/status").read_bytes():
            pass
        assert twin.admits(Caller(1000, 1000, child.pid))
    finally:
        os.write(writer, b"x")
        child.result()
        os.close(reader)
        os.close(writer)
    assert not twin.admits(Caller(1000, 1000, child.pid)), "a process that is gone has none"
    assert not twin.admits(Caller(1000, 1000))


def test_every_directory_on_the_way_is_asked(host: Path) -> None:
    """One shut directory anywhere on the way, links' ways included, keeps the caller out."""
    (host / "usr").chmod(0o700)
    (host / "way").symlink_to("/usr/../open")
    (host / "open").mkdir()
    for twin in (down(host, "usr"), down(host, "usr", "lib"), down(host, "way")):
        assert twin is not None and not twin.admits(USER)
    beside = down(host, "open")
    assert beside is not None and beside.admits(USER)
    host.chmod(0o700)
    top = down(host)
    assert top is not None and not top.admits(USER)
    (host / "usr").chmod(0o755)


def test_an_acl_lets_only_owner_and_root_pass(host: Path) -> None:
    """What an ACL says is not evaluated: in doubt the answer is no."""
    os.chown(host / "usr", 1000, 2000)
    undefined = 0xFFFFFFFF
    entries = ((1, 7, undefined), (2, 7, 3000), (4, 5, undefined), (16, 7, undefined))
    rows = b"".join(struct.pack("<HHI", *entry) for entry in (*entries, (32, 5, undefined)))
    os.setxattr(host / "usr", "system.posix_acl_access", struct.pack("<I", 2) + rows)
    twin = down(host, "usr")
    assert twin is not None and twin.guards[-1].has_acl
    assert twin.admits(ROOT) and twin.admits(Caller(1000, 1))
    for caller in (Caller(3000, 1), Caller(1, 2000), Caller(1, 1)):
        assert not twin.admits(caller)


def test_a_guard_grants_no_more_than_its_class() -> None:
    """Reading and writing are asked of the same class as searching."""
    guard = Guard(1000, 2000, 0o750, False)
    assert guard.grants(Caller(1000, 1), 7)
    assert guard.grants(Caller(1, 2000), 5)
    assert not guard.grants(Caller(1, 2000), 2)
    assert not guard.grants(Caller(1, 1), 4)
    assert guard.grants(ROOT, 7)


# --- doors --------------------------------------------------------------------------------------


@contextlib.contextmanager
def mounted(*command: object, at: Path) -> Iterator[None]:
    """A mount for as long as the block runs."""
    subprocess.run(["mount", *map(str, command), at], check=True)
    try:
        yield
    finally:
        linux.umount(os.fsencode(at), lazy=True)


def test_doors_have_no_twin(host: Path) -> None:
    """proc and sysfs are not entered, wherever they are mounted and whatever link leads there."""
    for name in ("proc", "deep"):
        (host / name).mkdir()
    (host / "link").symlink_to("deep")
    (host / "further").symlink_to("deep/self")
    with mounted("-t", "proc", "proc", at=host / "deep"):
        for name in ("deep", "link", "further"):
            assert down(host, name) is None
    with mounted("-t", "sysfs", "sysfs", at=host / "deep"):
        assert down(host, "deep") is None
    with mounted("--bind", "/proc", at=host / "proc"):
        assert down(host, "proc") is None
    assert where(down(host, "deep")) == host / "deep"


def test_other_mounts_are_entered(host: Path) -> None:
    """A tmpfs on the host is a directory as any other."""
    with mounted("-t", "tmpfs", "tmpfs", at=host / "usr"):
        (host / "usr/inside").mkdir()
        assert where(down(host, "usr", "inside")) == host / "usr/inside"


# --- descriptors --------------------------------------------------------------------------------


def test_descriptors_go_with_the_twin(host: Path) -> None:
    """A twin keeps its parents open, and nothing after it is gone."""
    (host / "lib").symlink_to("usr/lib")
    gc.collect()
    before = len(os.listdir("/proc/self/fd"))
    twin = down(host, "lib")
    assert twin is not None
    assert len(os.listdir("/proc/self/fd")) > before
    assert down(host, "nothing") is None
    del twin
    assert len(os.listdir("/proc/self/fd")) == before
