"""The walk: every row of the contract's table, on every kind of volume, and whole paths.

Each test has a fresh sysroot directory on the volume and a fresh host directory on the machine's
own disk. On the plain volume the policy is `portable` where a mapping is needed: under `natural`
nothing is ever stored under another name there.
"""

from __future__ import annotations

import contextlib
import errno
import os
from pathlib import Path
from typing import Final

import attrs
import pytest

from sidecar import escape
from sidecar.descriptor import Descriptor
from sidecar.index_file import DamagedIndex
from sidecar.naming import INDEX_FILE, Policy, token
from sidecar.twin import Caller
from sidecar.walk import Absent, Found, Layer, Step, Verdict, Walk
from tests.caseless import EVERY, FOLDING, Volumes
from tests.matrix.volumes import Volume

LONG: Final = b"long-" * 40
"""A name of 200 bytes: its escape fits no volume that counts bytes."""
_OPEN_DIR: Final = os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC


@attrs.define
class Rules:
    """A host policy that shuts the paths below some prefixes."""

    shut: tuple[bytes, ...] = ()
    trivial: bool = attrs.field(init=False)

    def __attrs_post_init__(self) -> None:
        self.trivial = not self.shut

    def allows(self, path: bytes) -> bool:
        """Whether no shut prefix covers *path*."""
        return not path.startswith(self.shut)


@attrs.frozen
class Ground:
    """A sysroot and a host to walk over."""

    sysroot: Path
    host: Path
    kind: str

    def walk(
        self,
        *shut: bytes,
        host: bool = True,
        policy: Policy | None = None,
    ) -> Walk:
        """A walk over them; without *policy*, one under which mappings can be."""
        if policy is None:
            policy = Policy.PORTABLE if self.kind == "plain" else Policy.NATURAL
        below = Descriptor(os.open(self.host, _OPEN_DIR)) if host else None
        return Walk(Descriptor(os.open(self.sysroot, _OPEN_DIR)), below, Rules(shut), policy)

    def guest(self, *names: bytes) -> Path:
        """Where names lie in the sysroot, spelled as they are."""
        return self.sysroot.joinpath(*map(os.fsdecode, names))


def _ground(volume: Volume, tmp_path: Path) -> Ground:
    sysroot, host = volume.path / tmp_path.name.lower(), tmp_path / "host"
    sysroot.mkdir()
    host.mkdir()
    return Ground(sysroot, host, volume.kind)


@pytest.fixture(params=EVERY)
def ground(request: pytest.FixtureRequest, volumes: Volumes, tmp_path: Path) -> Ground:
    """A fresh sysroot on every kind of volume, over a fresh host."""
    return _ground(volumes[request.param], tmp_path)


@pytest.fixture(params=FOLDING)
def folding(request: pytest.FixtureRequest, volumes: Volumes, tmp_path: Path) -> Ground:
    """A fresh sysroot on every volume that folds, over a fresh host."""
    return _ground(volumes[request.param], tmp_path)


@pytest.fixture
def plain(volumes: Volumes, tmp_path: Path) -> Ground:
    """A fresh sysroot on the machine's own disk."""
    return _ground(volumes["plain"], tmp_path)


def put(path: Path, content: str = "") -> None:
    """Write a file, its directories made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content)


def go(walk: Walk, path: bytes) -> Found | Absent:
    """What the last component of *path* is; those before it must be there."""
    place = walk.root()
    *way, last = path.strip(b"/").split(b"/")
    for name in way:
        found = walk.step(place, name)
        assert isinstance(found, Found), (path, name, found)
        place = walk.enter(place, name, found)
    return walk.step(place, last)


def verdict(walk: Walk, path: bytes) -> tuple[Layer | None, Verdict]:
    """The layer (None where absent) and the verdict of the last component."""
    found = go(walk, path)
    return (found.layer if isinstance(found, Found) else None), found.verdict


def content(found: Found | Absent) -> str:
    """What is in the file that was found."""
    assert isinstance(found, Found) and found.holder is not None
    fd = os.open(found.stored, os.O_RDONLY | os.O_NOFOLLOW, dir_fd=found.holder.fd)
    with open(fd, encoding="utf-8") as file:
        return file.read()


def failure(walk: Walk, path: bytes) -> int | None:
    """The errno with which the last component of *path* fails."""
    with pytest.raises(OSError) as caught:
        go(walk, path)
    return caught.value.errno


def write_rows(directory: Path) -> None:
    """An index file with a row for `LONG`, and nothing yet under its token."""
    row = b"%s\t%s\n" % (LONG.hex().encode(), token(LONG))
    (directory / os.fsdecode(INDEX_FILE)).write_bytes(row)


# --- the table: the parent is in the sysroot ----------------------------------------------------


def test_an_entry_spelled_exactly_so_is_the_sysroots(ground: Ground) -> None:
    """Where both layers have a path the sysroot's entry is seen, and no mapping was consulted."""
    put(ground.guest(b"etc", b"passwd"), "sysroot")
    put(ground.host / "etc/passwd", "host")
    found = go(ground.walk(), b"/etc/passwd")
    assert isinstance(found, Found) and not found.mapped
    assert (found.layer, found.verdict, found.stored) == (Layer.SYSROOT, Verdict.EXACT, b"passwd")
    assert content(found) == "sysroot"


def test_an_entry_under_its_escape_is_found_by_a_mapping(ground: Ground) -> None:
    """A name stored under its escape is found, and the mapping is noted."""
    stored = escape.encode(b"Makefile")
    put(ground.guest(stored), "sysroot")
    put(ground.host / "Makefile", "host")
    found = go(ground.walk(), b"/Makefile")
    assert isinstance(found, Found) and found.mapped
    assert (found.layer, found.verdict, found.stored) == (Layer.SYSROOT, Verdict.ESCAPE, stored)
    assert content(found) == "sysroot"


def test_an_entry_in_the_index_file_is_found_by_a_mapping(ground: Ground) -> None:
    """A name that a row of the index file maps to a token is found, and the mapping is noted."""
    write_rows(ground.sysroot)
    put(ground.guest(token(LONG)), "sysroot")
    put(ground.host / os.fsdecode(LONG), "host")
    found = go(ground.walk(), LONG)
    assert isinstance(found, Found) and found.mapped
    assert (found.layer, found.verdict) == (Layer.SYSROOT, Verdict.ROW)
    assert content(found) == "sysroot"


def test_the_literal_entry_is_meant_where_its_escape_is_there_too(ground: Ground) -> None:
    """With `makefile` and its escape on disk the literal one answers."""
    put(ground.guest(b"makefile"), "literal")
    put(ground.guest(escape.encode(b"makefile")), "escape")
    assert content(go(ground.walk(), b"makefile")) == "literal"


def test_a_slot_held_by_another_spelling_is_absent_and_claimed(folding: Ground) -> None:
    """`MAKEFILE` where only `makefile` is: not there, and the host's is not seen."""
    put(folding.guest(b"makefile"), "sysroot")
    put(folding.host / "MAKEFILE", "host")
    walk = folding.walk()
    assert verdict(walk, b"MAKEFILE") == (None, Verdict.CLAIMED)
    assert verdict(walk, b"MAKEFILE") == (None, Verdict.CLAIMED), "and so the second time"


def test_a_claimed_slot_in_the_middle_of_a_path_ends_the_walk(folding: Ground) -> None:
    """`USR/bin` where only `usr` is: not there, even where the host has that literal path."""
    put(folding.guest(b"usr", b"bin", b"tool"), "sysroot")
    put(folding.host / "USR/bin/tool", "host")
    put(folding.host / "usr/BIN/tool", "host")
    walk = folding.walk()
    assert verdict(walk, b"USR") == (None, Verdict.CLAIMED)
    assert verdict(walk, b"usr/BIN") == (None, Verdict.CLAIMED)
    assert [step.verdict for step in walk.resolve(b"/USR/bin/tool")] == ["claimed"]


def test_a_claimed_slot_does_not_hide_the_names_own_escape(folding: Ground) -> None:
    """`MAKEFILE` stored under its escape beside `makefile` is its own entry."""
    put(folding.guest(b"makefile"), "small")
    put(folding.guest(escape.encode(b"MAKEFILE")), "big")
    walk = folding.walk()
    assert content(go(walk, b"MAKEFILE")) == "big"
    assert content(go(walk, b"makefile")) == "small"
    assert verdict(walk, b"Makefile") == (None, Verdict.CLAIMED)


@pytest.mark.parametrize(
    ("held", "asked"),
    [("straße", "strasse"), ("STRASSE", "straße"), ("ﬁle", "file"), ("σ", "ς"), ("é", "e\u0301")],
)
def test_what_apfs_folds_beyond_ascii_is_claimed(
    volumes: Volumes, tmp_path: Path, held: str, asked: str
) -> None:
    """Full case folding and canonical equivalence claim a slot as ASCII case does."""
    ground = _ground(volumes["caseless"], tmp_path)
    put(ground.sysroot / held)
    put(ground.host / asked)
    assert verdict(ground.walk(), asked.encode()) == (None, Verdict.CLAIMED)
    assert verdict(ground.walk(), held.encode()) == (Layer.SYSROOT, Verdict.EXACT)


def test_another_spelling_is_another_name_where_nothing_folds(plain: Ground) -> None:
    """On a case-sensitive volume `MAKEFILE` beside `makefile` is simply the host's."""
    put(plain.guest(b"makefile"))
    put(plain.host / "MAKEFILE")
    for policy in Policy:
        assert verdict(plain.walk(policy=policy), b"MAKEFILE") == (Layer.HOST, Verdict.HOST)


def test_below_an_escape_the_sysroot_is_authoritative(ground: Ground) -> None:
    """A missing suffix below a mapped directory is absent although the host has that path."""
    put(ground.guest(escape.encode(b"Data"), b"deep", b"here"), "sysroot")
    put(ground.host / "Data/there")
    put(ground.host / "Data/deep/there")
    walk = ground.walk()
    assert verdict(walk, b"Data/there") == (None, Verdict.BELOW_MAPPING)
    assert verdict(walk, b"Data/deep/there") == (None, Verdict.BELOW_MAPPING)
    found = go(walk, b"Data/deep/here")
    assert content(found) == "sysroot"
    assert isinstance(found, Found) and found.mapped and found.verdict is Verdict.EXACT


def test_below_a_row_the_sysroot_is_authoritative(ground: Ground) -> None:
    """A missing suffix below a directory with a token is absent although the host has it."""
    write_rows(ground.sysroot)
    put(ground.guest(token(LONG), b"here"))
    put(ground.host / os.fsdecode(LONG) / "there")
    assert verdict(ground.walk(), LONG + b"/there") == (None, Verdict.BELOW_MAPPING)


def test_a_missing_last_component_is_the_hosts(ground: Ground) -> None:
    """`/etc/resolv.conf` where the sysroot has only `/etc` is the host's."""
    ground.guest(b"etc").mkdir()
    put(ground.host / "etc/resolv.conf", "host")
    found = go(ground.walk(), b"/etc/resolv.conf")
    assert isinstance(found, Found) and not found.mapped
    assert (found.layer, found.verdict) == (Layer.HOST, Verdict.HOST)
    assert content(found) == "host"


def test_a_missing_intermediate_is_the_hosts(ground: Ground) -> None:
    """`/var/folders/x` where the sysroot has only `/var` is the host's all the way."""
    ground.guest(b"var").mkdir()
    put(ground.host / "var/folders/x/file", "host")
    walk = ground.walk()
    for path in (b"/var/folders", b"/var/folders/x", b"/var/folders/x/file"):
        assert verdict(walk, path) == (Layer.HOST, Verdict.HOST)
    assert content(go(walk, b"/var/folders/x/file")) == "host"


def test_what_neither_layer_has_is_absent(ground: Ground) -> None:
    """A name in no layer is absent, at the root, below a shared directory and on the host."""
    ground.guest(b"etc").mkdir()
    (ground.host / "etc").mkdir()
    (ground.host / "opt").mkdir()
    walk = ground.walk()
    for path in (b"nothing", b"etc/nothing", b"opt/nothing"):
        assert verdict(walk, path) == (None, Verdict.ABSENT)


def test_without_a_host_nothing_falls_back(ground: Ground) -> None:
    """A walk that was given no host answers from the sysroot alone."""
    ground.guest(b"etc").mkdir()
    put(ground.host / "etc/hosts")
    assert verdict(ground.walk(host=False), b"etc/hosts") == (None, Verdict.POLICY)


def test_the_host_policy_is_asked_where_the_walk_leaves_and_on_the_host(ground: Ground) -> None:
    """A shut path is absent, whether its parent is in the sysroot or on the host."""
    ground.guest(b"etc").mkdir()
    for path in ("etc/hosts", "etc/shadow", "opt/open", "opt/shut/x"):
        put(ground.host / path)
    walk = ground.walk(b"/etc/shadow", b"/opt/shut")
    assert verdict(walk, b"etc/hosts") == (Layer.HOST, Verdict.HOST)
    assert verdict(walk, b"etc/shadow") == (None, Verdict.POLICY)
    assert verdict(walk, b"opt/open") == (Layer.HOST, Verdict.HOST)
    assert verdict(walk, b"opt/shut") == (None, Verdict.POLICY)


def test_who_may_not_search_the_hosts_directory_gets_nothing_from_it(ground: Ground) -> None:
    """The sysroot's directory is open, the host's of that name is shut: absent, for this caller."""
    put(ground.guest(b"home", b"own"), "sysroot")
    put(ground.host / "home/secret")
    (ground.host / "home").chmod(0o700)
    walk = ground.walk()
    root = walk.root()
    home = walk.step(root, b"home")
    assert isinstance(home, Found)
    place = walk.enter(root, b"home", home)
    user = Caller(1000, 1000)
    missed = walk.step(place, b"secret", user)
    assert isinstance(missed, Absent) and missed.private
    assert content(walk.step(place, b"own", user)) == "sysroot"
    found = walk.step(place, b"secret")
    assert isinstance(found, Found) and found.layer is Layer.HOST and found.private


def test_what_was_made_behind_the_walk_is_found(ground: Ground) -> None:
    """An entry made from outside after a miss is the sysroot's from then on, within a second."""
    put(ground.host / "name", "host")
    walk = ground.walk()
    assert verdict(walk, b"name") == (Layer.HOST, Verdict.HOST)
    put(ground.guest(b"name"), "sysroot")
    assert content(go(walk, b"name")) == "sysroot"
    os.unlink(ground.guest(b"name"))
    assert verdict(walk, b"name") == (Layer.HOST, Verdict.HOST)


# --- the table: the parent is on the host -------------------------------------------------------


def test_on_the_host_names_are_literal(ground: Ground) -> None:
    """No escape and no other spelling is looked for once the walk has left the sysroot."""
    put(ground.host / "opt/Tool")
    put(ground.host / "opt" / os.fsdecode(escape.encode(b"Other")))
    walk = ground.walk()
    assert verdict(walk, b"opt/Tool") == (Layer.HOST, Verdict.HOST)
    assert verdict(walk, b"opt/tool") == (None, Verdict.ABSENT)
    assert verdict(walk, b"opt/Other") == (None, Verdict.ABSENT)
    assert verdict(walk, b"opt/" + escape.encode(b"Other")) == (Layer.HOST, Verdict.HOST)


def test_a_walk_that_left_does_not_come_back(ground: Ground) -> None:
    """Below a host directory the host answers, even when the sysroot gets that path meanwhile."""
    put(ground.host / "opt/lib/file", "host")
    walk = ground.walk()
    root = walk.root()
    opt = walk.step(root, b"opt")
    assert isinstance(opt, Found)
    place = walk.enter(root, b"opt", opt)
    put(ground.guest(b"opt", b"lib", b"file"), "sysroot")
    lib = walk.step(place, b"lib")
    assert isinstance(lib, Found) and lib.layer is Layer.HOST
    assert content(walk.step(walk.enter(place, b"lib", lib), b"file")) == "host"


def test_the_twin_follows_the_hosts_own_links(ground: Ground) -> None:
    """The literal host path `/lib/x` works where the host's `/lib` is a link."""
    ground.guest(b"lib", b"deep").mkdir(parents=True)
    put(ground.host / "usr/lib/x", "host")
    put(ground.host / "usr/lib/deep/y", "host")
    (ground.host / "lib").symlink_to("usr/lib")
    walk = ground.walk()
    assert content(go(walk, b"lib/x")) == "host"
    assert content(go(walk, b"lib/deep/y")) == "host"
    found = go(walk, b"lib")
    assert isinstance(found, Found) and found.layer is Layer.SYSROOT


def test_the_twin_is_confined_to_the_host_root(ground: Ground, tmp_path: Path) -> None:
    """The host's absolute links and `..` stay within the host root that was given."""
    put(tmp_path / "outside/x", "outside")
    put(ground.host / "inside/x", "inside")
    for name, target in (
        ("absolute", "/inside"),
        ("above", "../../../../../../inside"),
        ("out", f"{tmp_path}/outside"),
        ("climbing", "../outside"),
    ):
        (ground.host / name).symlink_to(target)
        ground.guest(name.encode()).mkdir()
    walk = ground.walk()
    assert content(go(walk, b"absolute/x")) == "inside"
    assert content(go(walk, b"above/x")) == "inside"
    assert verdict(walk, b"out/x") == (None, Verdict.ABSENT)
    assert verdict(walk, b"climbing/x") == (None, Verdict.ABSENT)


def test_virtual_trees_never_fall_back(ground: Ground) -> None:
    """/proc, /sys and /dev are empty directories although the host has them."""
    walk = ground.walk()
    for name in (b"proc", b"sys", b"dev"):
        put(ground.host / os.fsdecode(name) / "x")
        found = go(walk, name)
        assert isinstance(found, Found) and found.layer is Layer.VIRTUAL
        place = walk.enter(walk.root(), name, found)
        assert isinstance(walk.step(place, b"x"), Absent)
        with pytest.raises(OSError) as caught:
            _ = place.fd
        assert caught.value.errno == errno.EROFS


def test_below_virtual_trees_of_the_sysroot_nothing_falls_back(ground: Ground) -> None:
    """A sysroot's own empty /dev has nothing of the host's in it."""
    walk = ground.walk()
    for name in (b"proc", b"sys", b"dev"):
        put(ground.host / os.fsdecode(name) / "deep/x")
        ground.guest(name, b"deep").mkdir(parents=True)
        assert isinstance(go(walk, name + b"/x"), Absent)
        assert isinstance(go(walk, name + b"/deep/x"), Absent)


def test_names_of_virtual_trees_are_ordinary_further_down(ground: Ground) -> None:
    """`/opt/dev` falls back as any other name."""
    ground.guest(b"opt").mkdir()
    put(ground.host / "opt/dev")
    assert verdict(ground.walk(), b"opt/dev") == (Layer.HOST, Verdict.HOST)


# --- the table: any parent ----------------------------------------------------------------------


def test_a_name_of_256_bytes_is_too_long_everywhere(ground: Ground) -> None:
    """ENAMETOOLONG in the sysroot, on the host and in a virtual tree; 255 bytes are absent."""
    ground.guest(b"etc").mkdir()
    (ground.host / "opt").mkdir()
    walk = ground.walk()
    for parent in (b"", b"etc/", b"opt/", b"proc/"):
        assert failure(walk, parent + b"n" * 256) == errno.ENAMETOOLONG
        assert isinstance(go(walk, parent + b"n" * 255), Absent)
        assert isinstance(go(walk, parent + b"\xc3\xa9" * 127), Absent)


def test_a_parent_that_is_no_directory_is_never_the_hosts(ground: Ground) -> None:
    """ENOTDIR below a file of the sysroot, although the host has a directory there."""
    put(ground.guest(b"name"))
    put(ground.host / "name/x")
    put(ground.host / "file")
    walk = ground.walk()
    assert failure(walk, b"name/x") == errno.ENOTDIR
    assert failure(walk, b"file/x") == errno.ENOTDIR


def test_a_damaged_index_is_an_error_and_never_absence(ground: Ground) -> None:
    """EIO for every name of a directory with a malformed row, the host's names included."""
    ground.guest(b"etc").mkdir()
    put(ground.guest(b"etc", b"there"))
    put(ground.host / "etc/hosts")
    (ground.guest(b"etc") / os.fsdecode(INDEX_FILE)).write_bytes(b"no row\n")
    walk = ground.walk()
    for name in (b"etc/there", b"etc/hosts", b"etc/nothing"):
        assert failure(walk, name) == errno.EIO
    with pytest.raises(DamagedIndex):
        go(walk, b"etc/there")


@pytest.mark.parametrize("kind", ["plain", "caseless", "zfs", "zfs-formd", "lowntfs"])
def test_an_unreadable_directory_is_an_error_and_never_absence(
    kind: str, volumes: Volumes, tmp_path: Path
) -> None:
    """EACCES where the server may not search, although the host has the name."""
    ground = _ground(volumes[kind], tmp_path)
    put(ground.guest(b"shut", b"there"))
    put(ground.host / "shut/x")
    ground.guest(b"shut").chmod(0)
    walk = ground.walk()
    root = walk.root()
    found = walk.step(root, b"shut")
    assert isinstance(found, Found)
    place = walk.enter(root, b"shut", found)
    os.seteuid(12345)
    try:
        for name in (b"there", b"x"):
            with pytest.raises(PermissionError):
                walk.step(place, name)
    finally:
        os.seteuid(0)
        ground.guest(b"shut").chmod(0o755)


def test_a_directory_that_vanished_is_not_the_hosts(ground: Ground) -> None:
    """A place whose directory was removed has no entries."""
    ground.guest(b"gone").mkdir()
    walk = ground.walk()
    root = walk.root()
    found = walk.step(root, b"gone")
    assert isinstance(found, Found)
    place = walk.enter(root, b"gone", found)
    ground.guest(b"gone").rmdir()
    with contextlib.suppress(OSError):
        assert isinstance(walk.step(place, b"x"), Absent)


# --- whole paths --------------------------------------------------------------------------------


def told(steps: list[Step]) -> list[tuple[bytes, str, str]]:
    """Each step's guest path, verdict and layer."""
    return [(step.path, step.verdict, step.layer) for step in steps]


# --- what is there to be mounted on -----------------------------------------------------------


def test_a_mountpoint_is_there_where_neither_layer_has_it(ground: Ground) -> None:
    """It and the way to it are virtual: in the sysroot, on the host, below a mapping."""
    (ground.sysroot / "usr").mkdir()
    (ground.host / "opt").mkdir()
    walk = ground.walk()
    walk.mountpoints = {b"/usr/a": True, b"/usr/a/f": False, b"/opt/x": True, b"/new": True}
    for path in (b"/usr/a/", b"/usr/a/f", b"/opt/x", b"/new"):
        last = walk.resolve(path)[-1]
        assert (last.layer, last.error) == ("virtual", None), path
    assert walk.resolve(b"/usr/a/g")[-1].error == errno.ENOENT
    assert walk.resolve(b"/usr/a/f/")[-1].error == errno.ENOTDIR


def test_a_mountpoint_hides_nothing(ground: Ground) -> None:
    """What a layer has is seen, whatever is to be mounted there."""
    put(ground.sysroot / "etc/f", "sysroot")
    put(ground.host / "etc/g", "host")
    walk = ground.walk()
    walk.mountpoints = {b"/etc": True, b"/etc/f": True, b"/etc/g": True}
    assert [step.layer for step in walk.resolve(b"/etc/f")] == ["sysroot"] * 2
    assert walk.resolve(b"/etc/g")[-1].layer == "host"


def test_a_real_path_has_no_links(linking: Ground) -> None:
    """Links are followed as far as there is something; the rest is kept as it is."""
    (linking.sysroot / "run").mkdir()
    (linking.sysroot / "var").mkdir()
    (linking.sysroot / "var/run").symlink_to("/run")
    (linking.sysroot / "loose").symlink_to("/gone/away")
    put(linking.sysroot / "file")
    (linking.sysroot / "var/name").symlink_to("../file")
    walk = linking.walk()
    assert walk.real_path(b"/var/name") == b"/file"
    assert walk.real_path(b"/var/run/a/b") == b"/run/a/b"
    assert walk.real_path(b"/var/run") == b"/run"
    assert walk.real_path(b"/file") == b"/file"
    assert walk.real_path(b"/loose/x") == b"/gone/away/x"
    assert walk.real_path(b"/") == b"/"


def test_resolve_tells_every_component(ground: Ground) -> None:
    """A path through both layers: each component with its layer, stored name and reason."""
    ground.guest(b"var").mkdir()
    put(ground.host / "var/log/syslog")
    steps = ground.walk().resolve(b"//var/./log/syslog")
    assert told(steps) == [
        (b"/var", "exact", "sysroot"),
        (b"/var/log", "host", "host"),
        (b"/var/log/syslog", "host", "host"),
    ]
    assert [step.stored for step in steps] == [b"var", b"log", b"syslog"]
    assert all(step.why and step.error is None for step in steps)


def test_resolve_says_where_it_ends(ground: Ground) -> None:
    """The first missing component is the last step and carries ENOENT."""
    steps = ground.walk().resolve(b"/missing/below")
    assert told(steps) == [(b"/missing", "absent", "none")]
    assert steps[-1].error == errno.ENOENT


def test_dot_dot_goes_up_the_walk_and_not_above_the_root(ground: Ground) -> None:
    """`..` leads to the parent in the guest, from the host's directories too."""
    put(ground.guest(b"etc", b"file"), "sysroot")
    (ground.host / "opt/deep").mkdir(parents=True)
    walk = ground.walk()
    assert told(walk.resolve(b"/../../opt/deep/../../etc/file"))[-1] == (
        b"/etc/file", "exact", "sysroot",
    )  # fmt: skip
    assert walk.resolve(b"/etc/file/..")[-1].error == errno.ENOTDIR
    assert walk.resolve(b"/etc/nothing/..")[-1].error == errno.ENOENT


LINKING: Final = tuple(kind for kind in EVERY if kind != "exfat")


@pytest.fixture(params=LINKING)
def linking(request: pytest.FixtureRequest, volumes: Volumes, tmp_path: Path) -> Ground:
    """A fresh sysroot on every volume that has symlinks."""
    return _ground(volumes[request.param], tmp_path)


def test_links_in_the_middle_are_followed(linking: Ground) -> None:
    """Relative, absolute and climbing links lead where the guest's kernel would go."""
    put(linking.guest(b"usr", b"lib", b"file"), "sysroot")
    put(linking.host / "usr/lib/other", "host")
    linking.guest(b"lib").symlink_to("usr/lib")
    linking.guest(b"absolute").symlink_to("/usr/lib")
    linking.guest(b"usr", b"up").symlink_to("../../lib/")
    walk = linking.walk()
    for path in (b"/lib/file", b"/absolute/file", b"/usr/up/file", b"/lib/../lib/file"):
        steps = walk.resolve(path)
        assert told(steps)[-1] == (b"/usr/lib/file", "exact", "sysroot")
    assert told(walk.resolve(b"/lib/other"))[-1] == (b"/usr/lib/other", "host", "host")
    assert walk.resolve(b"/lib/file")[0].link == b"usr/lib"


def test_the_hosts_links_lead_through_the_guest(linking: Ground) -> None:
    """An absolute link on the host is followed from the guest's root, as the kernel would."""
    put(linking.guest(b"etc", b"x"), "sysroot")
    put(linking.host / "etc/x", "host")
    (linking.host / "opt").symlink_to("/etc")
    assert told(linking.walk().resolve(b"/opt/x"))[-1] == (b"/etc/x", "exact", "sysroot")


def test_the_last_component_is_not_followed_but_for_a_slash(linking: Ground) -> None:
    """`link` is the link itself, `link/` is where it leads."""
    linking.guest(b"usr").mkdir()
    linking.guest(b"link").symlink_to("usr")
    walk = linking.walk()
    assert told(walk.resolve(b"/link")) == [(b"/link", "exact", "sysroot")]
    assert told(walk.resolve(b"/link/")) == [
        (b"/link", "exact", "sysroot"),
        (b"/usr", "exact", "sysroot"),
    ]


def test_forty_links_are_followed_and_no_more(linking: Ground) -> None:
    """The 41st link of a walk is ELOOP, and so is a link to itself."""
    put(linking.guest(b"d0", b"x"))
    for number in range(1, 42):
        linking.guest(b"d%d" % number).symlink_to(f"d{number - 1}")
    linking.guest(b"self").symlink_to("self")
    walk = linking.walk()
    assert told(walk.resolve(b"/d40/x"))[-1] == (b"/d0/x", "exact", "sysroot")
    assert walk.resolve(b"/d41/x")[-1].error == errno.ELOOP
    assert walk.resolve(b"/self/x")[-1].error == errno.ELOOP


def test_resolve_create_says_where_a_new_name_would_go(ground: Ground) -> None:
    """In the sysroot under the policy's name, on the host literally, nowhere in a virtual tree."""
    ground.guest(b"etc").mkdir()
    (ground.host / "opt").mkdir()
    walk = ground.walk()
    step = walk.resolve(b"/etc/new", create=True)[-1]
    assert (step.verdict, step.layer, step.stored) == ("create", "sysroot", b"new")
    step = walk.resolve(b"/opt/New", create=True)[-1]
    assert (step.verdict, step.layer, step.stored) == ("create", "host", b"New")
    assert walk.resolve(b"/proc/new", create=True)[-1].error == errno.EROFS
    assert walk.resolve(b"/missing/new", create=True)[-1].error == errno.ENOENT


def test_resolve_create_escapes_what_the_volume_would_fold(folding: Ground) -> None:
    """A new name whose slot is held by another spelling would be stored under its escape."""
    put(folding.guest(b"makefile"))
    step = folding.walk().resolve(b"/Makefile", create=True)[-1]
    assert (step.layer, step.stored, step.mapped) == ("sysroot", escape.encode(b"Makefile"), True)


def test_resolve_carries_errors_as_its_last_step(ground: Ground) -> None:
    """A damaged index, a name too long and a file in the middle end the steps with their errno."""
    put(ground.guest(b"etc", os.fsencode(INDEX_FILE)), "no row\n")
    put(ground.guest(b"file"))
    put(ground.host / "file/x")
    walk = ground.walk()
    for path, code in (
        (b"/etc/hosts", errno.EIO),
        (b"/" + b"n" * 256, errno.ENAMETOOLONG),
        (b"/" + b"n" * 256 + b"/x", errno.ENAMETOOLONG),
        (b"/file/x", errno.ENOTDIR),
        (b"/file/", errno.ENOTDIR),
    ):
        assert walk.resolve(path)[-1].error == code, path


def _dig(top: Path, depth: int, bottom: str) -> None:
    """Make directories named d, *depth* deep, with the file *bottom* in the last."""
    here = os.open(top, _OPEN_DIR)
    for _ in range(depth):
        os.mkdir(b"d", dir_fd=here)
        below = os.open(b"d", _OPEN_DIR, dir_fd=here)
        os.close(here)
        here = below
    os.close(os.open(bottom, os.O_CREAT | os.O_WRONLY, dir_fd=here))
    os.close(here)


def _fill(top: Path) -> None:
    """Take what `_dig` made away: nothing else can name paths so long."""
    chain = [os.open(top, _OPEN_DIR)]
    with contextlib.suppress(FileNotFoundError):
        while True:
            chain.append(os.open(b"d", _OPEN_DIR, dir_fd=chain[-1]))
    for name in (b"own", b"other"):
        with contextlib.suppress(FileNotFoundError):
            os.unlink(name, dir_fd=chain[-1])
    os.close(chain.pop())
    while chain:
        os.rmdir(b"d", dir_fd=chain[-1])
        os.close(chain.pop())


def test_a_path_of_three_thousand_levels(plain: Ground) -> None:
    """Neither the sysroot's nor the host's side of a very deep path runs out of anything."""
    try:
        _dig(plain.sysroot, 3000, "own")
        _dig(plain.host, 3000, "other")
        deep = b"/d" * 3000
        walk = plain.walk()
        assert walk.resolve(deep + b"/own")[-1].layer == "sysroot"
        assert walk.resolve(deep + b"/other")[-1].layer == "host"
        assert walk.resolve(deep + b"/nothing")[-1].error == errno.ENOENT
    finally:
        _fill(plain.sysroot)
        _fill(plain.host)
