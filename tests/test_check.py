"""What a check finds in a directory or a tar, and what repair does about it."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import os
import subprocess
import tarfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import attrs
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sidecar import casefold, escape, linux, listings, volume
from sidecar.check import Subject, inspect
from sidecar.damage import read_rows
from sidecar.findings import Finding, Mend, Name, Severity, What
from sidecar.index import DirectoryIndex
from sidecar.index_file import DamagedIndex, format_rows, parse_rows
from sidecar.kinds import KINDS, own
from sidecar.leftovers import sweep_probes
from sidecar.listings import OPEN_LEVELS, NotATar, read_directory, read_tar
from sidecar.mending import repair
from sidecar.naming import INDEX_FILE, INDEX_LOCK, INDEX_TEMPORARY, Policy, token
from sidecar.volume import PROBE_PREFIX, TRANSPARENT, Traits
from sysroot_fs.tree import Tree
from sysroot_fs.tree.core import TreeConfig
from tests.children import in_child
from tests.matrix.volumes import open_volume

FOLD = Subject(kinds=(KINDS["fold"],))
ALL = Subject(kinds=tuple(KINDS.values()))
SERVED = attrs.evolve(FOLD, serves=True)
BYTES = attrs.evolve(TRANSPARENT, folds=True, name_max=143)
"""A volume on which index files are at work."""
HOURS = 3 * 3600

LONG = b"long-" + b"n" * 145
TOKEN = token(LONG)


@contextmanager
def opened(path: Path) -> Iterator[int]:
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        yield fd
    finally:
        os.close(fd)


def found(path: Path, subject: Subject = FOLD) -> list[Finding]:
    """Everything that is found in a directory tree."""
    with opened(path) as fd:
        return [one for _, page in inspect(read_directory(fd), subject) for one in page]


def mended(path: Path, subject: Subject = SERVED, traits: Traits = BYTES) -> list[Any]:
    """What repair answers for everything that can be mended in a tree."""
    with opened(path) as fd:
        return [
            answer
            for directory, page in inspect(read_directory(fd), subject)
            if directory.fd is not None
            for _, answer in repair(directory.fd, page, traits, time.time_ns())
        ]


def brief(findings: list[Finding]) -> list[tuple[What, bytes, tuple[bytes, ...]]]:
    """What, where, and the stored names."""
    return [(f.what, f.directory, tuple(n.stored for n in f.names)) for f in findings]


def touch(path: Path, *names: bytes) -> None:
    for name in names:
        Path(os.fsdecode(os.fsencode(path) + b"/" + name)).touch()


def age(path: Path) -> None:
    then = time.time() - HOURS
    os.utime(path, (then, then), follow_symlinks=False)


def archive(*paths: str, members: dict[str, bytes] | None = None) -> io.BytesIO:
    """A tar with empty files (and directories, with a slash at the end) and files with bytes."""
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for path in paths:
            info = tarfile.TarInfo(path.rstrip("/"))
            info.type = tarfile.DIRTYPE if path.endswith("/") else tarfile.REGTYPE
            tar.addfile(info)
        for path, content in (members or {}).items():
            info = tarfile.TarInfo(path)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    data.seek(0)
    return data


def found_in_tar(data: io.BytesIO, subject: Subject = ALL) -> list[Finding]:
    return [one for _, page in inspect(read_tar(data), subject) for one in page]


# --- reading a directory ------------------------------------------------------------------------


def test_deeper_than_a_path_can_be(tmp_path: Path) -> None:
    """A tree far below PATH_MAX is read to its end with few descriptors, and back again."""
    depth, name = 300, b"d" * 40
    (tmp_path / "top").mkdir()
    fd = os.open(tmp_path / "top", os.O_RDONLY)
    for _ in range(depth):
        os.mkdir(name, dir_fd=fd)
        # A brother that is visited on the way back up.
        os.mkdir(b"z", dir_fd=fd)
        below = os.open(name, os.O_RDONLY | os.O_DIRECTORY, dir_fd=fd)
        os.close(fd)
        fd = below
    for both in (b"Deep", b"deep"):
        os.close(os.open(both, os.O_CREAT | os.O_WRONLY, dir_fd=fd))
    os.close(fd)
    before = len(os.listdir("/proc/self/fd"))
    most = directories = 0
    groups: list[Finding] = []
    with opened(tmp_path / "top") as root:
        for _, page in inspect(read_directory(root), FOLD):
            most = max(most, len(os.listdir("/proc/self/fd")))
            directories += 1
            groups += page
    assert directories == 1 + 2 * depth
    assert [len(finding.directory) for finding in groups] == [depth * (len(name) + 1)]
    assert most - before < OPEN_LEVELS + 20
    assert len(os.listdir("/proc/self/fd")) == before
    subprocess.run(["rm", "-rf", tmp_path / "top"], check=True)


def test_symlinks_are_not_followed(tmp_path: Path) -> None:
    """What a symlink leads to is not looked at."""
    (tmp_path / "outside").mkdir()
    touch(tmp_path / "outside", b"A", b"a")
    (tmp_path / "tree").mkdir()
    (tmp_path / "tree/link").symlink_to("../outside")
    assert found(tmp_path / "tree") == []


def test_other_mounts_are_not_entered(tmp_path: Path) -> None:
    """A mount below the tree is a note, and its names are not read."""
    (tmp_path / "mnt").mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "none", tmp_path / "mnt"], check=True)
    try:
        touch(tmp_path / "mnt", b"A", b"a")
        (finding,) = found(tmp_path)
    finally:
        subprocess.run(["umount", tmp_path / "mnt"], check=True)
    assert (finding.what, finding.severity) == (What.OTHER_MOUNT, Severity.NOTE)
    assert finding.directory == b"/mnt"


def test_a_shut_directory_is_a_finding(workplace: Path) -> None:
    """A directory that may not be read is reported with the reason, and the walk goes on."""
    for name in ("a", "m", "z"):
        (workplace / name).mkdir()
    touch(workplace / "z", b"A", b"a")
    (workplace / "m").chmod(0)
    findings = in_child(lambda: found(workplace), uid=1234, gid=1234)
    assert [(f.what, f.directory) for f in findings] == [
        (What.UNREADABLE, b"/m"),
        (What.COLLISION, b"/z"),
    ]
    assert findings[0].severity is Severity.ERROR
    assert "permission denied" in findings[0].means


def test_a_directory_that_goes_away_is_no_finding(tmp_path: Path) -> None:
    """A directory that is removed after its parent was listed is passed over in silence."""
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    seen = []
    with opened(tmp_path) as fd:
        for directory, page in inspect(read_directory(fd), FOLD):
            seen.append(directory.stored_path())
            assert page == []
            if len(seen) == 1:
                (tmp_path / "b").rmdir()
    assert seen == [b"/", b"/a"]


def test_progress_counts_directories_and_names(tmp_path: Path) -> None:
    """The last call has the number of directories and of names in the whole tree."""
    (tmp_path / "d").mkdir()
    touch(tmp_path / "d", b"x", b"y")
    calls: list[tuple[int, int]] = []
    with opened(tmp_path) as fd:
        list(read_directory(fd, lambda *counts: calls.append(counts)))
    assert calls == [(1, 1), (2, 3)]


# --- collisions ---------------------------------------------------------------------------------


def test_files_that_collide(tmp_path: Path) -> None:
    """Names with one key are one finding with all of them, in byte order, and are not mergeable."""
    touch(tmp_path, b"readme", b"README", b"ReadMe", b"other")
    (finding,) = found(tmp_path)
    assert (finding.what, finding.severity) == (What.COLLISION, Severity.WARNING)
    assert finding.names == tuple(Name(n, n) for n in (b"README", b"ReadMe", b"readme"))
    assert (finding.kinds, finding.mergeable) == (("fold",), False)


def test_directories_that_collide_are_mergeable(tmp_path: Path) -> None:
    """A group of directories is what the option merge is for; one with a file in it is not."""
    for name in ("Include", "include", "Lib"):
        (tmp_path / name).mkdir()
    touch(tmp_path, b"lib")
    assert [f.mergeable for f in found(tmp_path)] == [True, False]


def colliding_directories(tree: str) -> list[str]:
    """Two directories that are one to a volume, with what meets in them and what does not."""
    common = [f"{tree}Inc/sys/Types.h", f"{tree}inc/SYS/types.h", f"{tree}Inc/only", f"{tree}inc/x"]
    return [*common, f"{tree}Inc/both", f"{tree}inc/both", f"{tree}inc/locked/", f"{tree}Inc/d/"]


MET = [
    (b"Inc", b"inc"),
    (b"Inc/both", b"inc/both"),
    (b"Inc/sys/Types.h", b"inc/SYS/types.h"),
]


def test_what_meets_in_directories_that_collide(tmp_path: Path) -> None:
    """Files of one path below directories that are one are told, at any depth, and no others."""
    for path in colliding_directories(f"{tmp_path}/"):
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        Path(path).mkdir() if path.endswith("/") else Path(path).touch()
    with opened(tmp_path) as fd:
        descriptors = len(os.listdir("/proc/self/fd"))
        told = [one for _, page in inspect(read_directory(fd), ALL) for one in page]
        assert len(os.listdir("/proc/self/fd")) == descriptors
    assert [tuple(n.stored for n in f.names) for f in told] == MET
    assert {f.kinds for f in told} == {tuple(KINDS)}
    assert [f.mergeable for f in told] == [True, False, False]


def test_what_meets_in_a_tar() -> None:
    """The same for an archive."""
    told = found_in_tar(archive(*colliding_directories("./")))
    assert [tuple(n.stored for n in f.names) for f in told] == MET


def test_each_kind_has_its_own_groups(tmp_path: Path) -> None:
    """A group is told once, with the kinds on which it collides, and those differ."""
    touch(tmp_path, "straße".encode(), b"STRASSE", b"A", b"a", "é".encode(), "e\u0301".encode())
    told = {f.names[0].stored: f.kinds for f in found(tmp_path, ALL)}
    assert told == {
        b"A": ("exfat", "ntfs", "apfs", "zfs", "zfs-formd", "ascii", "fold"),
        b"STRASSE": ("apfs", "fold"),
        "e\u0301".encode(): ("apfs", "zfs-formd", "fold"),
    }


@settings(max_examples=60, deadline=None)
@given(st.sets(st.binary(min_size=1, max_size=3).filter(lambda n: b"/" not in n), max_size=30))
def test_every_group_and_nothing_else(names: set[bytes]) -> None:
    """The groups are exactly the classes of the key with more than one name."""
    data = io.BytesIO()
    clean = {n for n in names if b"\0" not in n and n not in (b".", b"..")}
    with tarfile.open(fileobj=data, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for name in clean:
            tar.addfile(tarfile.TarInfo(name.decode("utf-8", "surrogateescape")))
    data.seek(0)
    classes: dict[bytes, set[bytes]] = {}
    for name in clean:
        classes.setdefault(casefold.key(name), set()).add(name)
    groups = {frozenset(n.stored for n in f.names) for f in found_in_tar(data, FOLD)}
    assert groups == {frozenset(group) for group in classes.values() if len(group) > 1}


def test_what_escapes_keep_apart_is_a_note(tmp_path: Path) -> None:
    """Foo beside an escaped foo is well on a volume, and one name to the fold policy."""
    touch(tmp_path, b"Foo", escape.encode(b"foo"))
    both = (Name(b"Foo", b"Foo"), Name(b"foo", escape.encode(b"foo")))
    told = {f.severity: (f.names, f.kinds) for f in found(tmp_path, ALL)}
    assert told == {
        Severity.WARNING: (both, ("ascii", "fold")),
        Severity.NOTE: (both, ("exfat", "ntfs", "apfs", "zfs", "zfs-formd")),
    }


def test_a_healthy_sysroot_on_a_folding_volume(tmp_path: Path) -> None:
    """Where a real volume folds, what the library stored is nothing that counts."""
    with open_volume("zfs", tmp_path) as folding, opened(folding.path) as fd:
        traits = volume.probe(fd)
        index = DirectoryIndex(traits, Policy.NATURAL)
        for name in (b"Makefile", b"makefile", b"MAKEFILE", LONG, LONG.upper()):
            with index.lock(fd):
                index.store(
                    fd, name, lambda n: os.close(os.open(n, os.O_CREAT | os.O_EXCL, dir_fd=fd))
                )
        findings = found(folding.path, Subject(kinds=(), own=own(traits), serves=True))
    assert {f.severity for f in findings} == {Severity.NOTE}
    assert [len(f.names) for f in findings] == [2, 3]


# --- refusals -----------------------------------------------------------------------------------


def test_names_that_would_be_refused(tmp_path: Path) -> None:
    """Each reason is a finding of its own with the kinds that have it."""
    touch(tmp_path, b"a:b", b"aux.c", b"caf\xe9", b"end.", "é".encode() * 120)
    told = [
        (f.what.value, f.names[0].stored[:5], f.kinds)
        for f in found(tmp_path, ALL)
        if f.severity is Severity.WARNING
    ]
    assert told == [
        ("refused", b"a:b", ("exfat", "ntfs")),
        ("refused", b"aux.c", ("ntfs",)),
        ("ill-formed", b"caf\xe9", ("exfat", "ntfs", "apfs", "zfs-formd")),
        ("refused", b"end.", ("ntfs",)),
        ("too-long", "é".encode() * 2 + b"\xc3", ("zfs-formd",)),
    ]


def test_doubts_are_notes(tmp_path: Path) -> None:
    """What only other systems cannot reach on exFAT does not count."""
    touch(tmp_path, b"aux.c")
    (finding,) = found(tmp_path, Subject(kinds=(KINDS["exfat"],)))
    assert (finding.severity, finding.kinds) == (Severity.NOTE, ("exfat",))


# --- the on-disk format -------------------------------------------------------------------------


@pytest.mark.parametrize(
    "stored",
    [b".ef=4", b".ef=4A", b".ef=2e", b".EF=41", b".ef=2f", b".ef=" + "一乁".encode()],
)
def test_escapes_that_are_none(tmp_path: Path, stored: bytes) -> None:
    """A name with the look of an escape that does not decode means itself, and is told."""
    touch(tmp_path, stored)
    assert brief(found(tmp_path)) == [(What.NOT_CANONICAL, b"/", (stored,))]


@pytest.mark.parametrize("stored", [escape.encode(b"Foo"), b".ef=", b".ef=no hex", b".efg", b"ef="])
def test_escapes_that_are_well(tmp_path: Path, stored: bytes) -> None:
    """Canonical escapes and names without that look are nothing to be told."""
    touch(tmp_path, stored)
    assert found(tmp_path) == []


def test_literal_and_escape(tmp_path: Path) -> None:
    """A name that is stored both ways is told once; the fold policy has no group of it."""
    touch(tmp_path, b"name", escape.encode(b"name"))
    (finding,) = found(tmp_path, ALL)
    assert finding.what is What.STORED_TWICE
    assert finding.names == (Name(b"name", escape.encode(b"name")), Name(b"name", b"name"))
    assert "stored as it is is meant" in finding.means
    assert finding.mend is None


def test_a_guest_name_with_the_shape_of_an_escape(tmp_path: Path) -> None:
    """A name like an escape, which is always stored escaped, is not the other name's literal."""
    stored = escape.encode(b"A")
    touch(tmp_path, stored, escape.encode(stored))
    assert found(tmp_path) == []


def test_escape_and_token(tmp_path: Path) -> None:
    """A name with an escape and a row is stored twice as well, and the escape is meant."""
    touch(tmp_path, escape.encode(b"name"), token(b"name"))
    (tmp_path / os.fsdecode(INDEX_FILE)).write_bytes(format_rows({b"name": token(b"name")}))
    (finding,) = found(tmp_path)
    assert finding.what is What.STORED_TWICE
    assert "by its escape" in finding.means


def test_directories_have_their_guest_paths(tmp_path: Path) -> None:
    """A finding below stored names has both paths: the guest's and that on disk."""
    inner = tmp_path / os.fsdecode(escape.encode(b"Dir")) / os.fsdecode(TOKEN)
    inner.mkdir(parents=True)
    (inner.parent / os.fsdecode(INDEX_FILE)).write_bytes(format_rows({LONG: TOKEN}))
    touch(inner, b"A", b"a")
    (finding,) = found(tmp_path)
    assert finding.directory == b"/Dir/" + LONG
    assert finding.stored_directory == b"/" + escape.encode(b"Dir") + b"/" + TOKEN


def test_rows_and_tokens(tmp_path: Path) -> None:
    """A row without an object and a token without a row are told; a pair of both is well."""
    touch(tmp_path, TOKEN, b".ef_00000000000000aa")
    rows = {LONG: TOKEN, b"gone" * 40: b".ef_00000000000000bb"}
    (tmp_path / os.fsdecode(INDEX_FILE)).write_bytes(format_rows(rows))
    orphan_row, orphan_token = found(tmp_path)
    assert orphan_row.names == (Name(b"gone" * 40, b".ef_00000000000000bb"),)
    assert (orphan_row.what, orphan_row.number) == (What.ROW_WITHOUT_OBJECT, 1)
    assert orphan_row.mend is Mend.DROP_ROW
    assert orphan_token.what is What.TOKEN_WITHOUT_ROW
    assert orphan_token.names[0].stored == b".ef_00000000000000aa"
    assert orphan_token.mend is None


def test_a_token_where_none_are_at_work(tmp_path: Path) -> None:
    """On a volume that keeps every name it may be a name like others: a note, without an index."""
    touch(tmp_path, b".ef_00000000000000aa")
    plain = attrs.evolve(FOLD, plain=True)
    assert [f.severity for f in found(tmp_path)] == [Severity.WARNING]
    assert [f.severity for f in found(tmp_path, plain)] == [Severity.NOTE]
    touch(tmp_path, INDEX_LOCK)
    assert [f.severity for f in found(tmp_path, plain)] == [Severity.WARNING]


def test_two_rows_with_one_token(tmp_path: Path) -> None:
    """Two names that lead to one object are told, and left alone."""
    touch(tmp_path, TOKEN)
    (tmp_path / os.fsdecode(INDEX_FILE)).write_bytes(format_rows({b"a": TOKEN, b"b": TOKEN}))
    (finding,) = found(tmp_path)
    assert (finding.what, finding.number, finding.mend) == (What.SHARED_TOKEN, 2, None)


def test_malformed_rows_have_their_numbers(tmp_path: Path) -> None:
    """Each bad row is told with its number; the good ones are used, and nothing is mended."""
    good = format_rows({LONG: TOKEN})
    data = good + b"rubbish\n" + b"6161\t.ef_00000000000000bb\n" + b"62"
    (tmp_path / os.fsdecode(INDEX_FILE)).write_bytes(data)
    touch(tmp_path, TOKEN)
    findings = found(tmp_path)
    assert [(f.what, f.number) for f in findings] == [
        (What.DAMAGED_INDEX, 2),
        (What.DAMAGED_INDEX, 4),
        (What.ROW_WITHOUT_OBJECT, 3),
    ]
    assert not any(f.mend for f in findings)


@given(st.binary(max_size=60))
def test_rows_are_read_as_the_library_reads_them(data: bytes) -> None:
    """Where the tolerant reading finds nothing bad, it has the rows that the strict one has."""
    for content in (data, format_rows({data[:9].replace(b"/", b"-").strip(b".\0") or b"x": TOKEN})):
        good, bad = read_rows(content)
        try:
            strict: dict[bytes, bytes] | None = parse_rows(content)
        except DamagedIndex:
            strict = None
        assert (strict is None) == bool(bad)
        if strict is not None:
            assert {guest: row for guest, row, _ in good} == strict


@pytest.mark.parametrize(
    "make", [os.mkdir, os.mkfifo, lambda path: os.symlink("/etc/passwd", path)]
)
def test_an_index_file_that_is_none(tmp_path: Path, make: Callable[[Path], None]) -> None:
    """A directory, a FIFO or a link in its place is damage, and is not opened."""
    make(tmp_path / os.fsdecode(INDEX_FILE))
    assert [f.what for f in found(tmp_path)] == [What.DAMAGED_INDEX]


def test_a_guests_own_tokens(tmp_path: Path) -> None:
    """An index file that a guest has copied, with escaped tokens beside it, lacks no objects."""
    (tmp_path / os.fsdecode(INDEX_FILE)).write_bytes(format_rows({LONG: TOKEN}))
    touch(tmp_path, escape.encode(TOKEN))
    assert found(tmp_path) == []


def test_what_the_volume_keeps_is_a_note(tmp_path: Path) -> None:
    """Removed files that are still open are told only as notes."""
    touch(tmp_path, b".fuse_hidden0123456789abcdef", b".ghost-ntfs-3g-" + b"0" * 20)
    assert {(f.what, f.severity) for f in found(tmp_path)} == {(What.OPEN_FILE, Severity.NOTE)}


# --- repair -------------------------------------------------------------------------------------


def with_orphan(path: Path) -> Path:
    """A directory whose index has a row with an object and one without."""
    touch(path, TOKEN)
    index = path / os.fsdecode(INDEX_FILE)
    index.write_bytes(format_rows({LONG: TOKEN, b"gone": token(b"gone")}))
    return index


def test_rows_without_objects_are_dropped(tmp_path: Path) -> None:
    """Repair leaves the rows that have objects, and a second check finds nothing."""
    index = with_orphan(tmp_path)
    assert mended(tmp_path) == [None]
    assert index.read_bytes() == format_rows({LONG: TOKEN})
    assert found(tmp_path) == []


def test_the_last_row_takes_the_file_with_it(tmp_path: Path) -> None:
    """An index file that has only rows without objects is removed."""
    index = with_orphan(tmp_path)
    (tmp_path / os.fsdecode(TOKEN)).unlink()
    assert mended(tmp_path) == [None, None]
    assert not index.exists()


def test_a_mended_index_belongs_to_whom_it_belonged(tmp_path: Path) -> None:
    """The file that root writes anew is its owner's, who could not read it otherwise."""
    index = with_orphan(tmp_path)
    os.chown(index, 1234, 2345)
    assert mended(tmp_path) == [None]
    assert (index.stat().st_uid, index.stat().st_gid) == (1234, 2345)


def test_a_name_that_no_guest_can_see() -> None:
    """Volumes that count in UTF-16 units hold names past Linux's limit; escapes are none."""
    name = "\u6f22" * 86
    hidden = os.fsdecode(escape.encode(b"n" * 200))
    findings = found_in_tar(archive(name, "\u6f22" * 85, hidden), FOLD)
    assert brief(findings) == [(What.TOO_LONG, b"/", (name.encode(),))]
    assert findings[0].severity is Severity.WARNING


def test_an_object_that_came_back_keeps_its_row(tmp_path: Path) -> None:
    """What was made between the finding and the repair is seen under the lock."""
    index = with_orphan(tmp_path)
    with opened(tmp_path) as fd:
        ((_, page),) = inspect(read_directory(fd), SERVED)
        touch(tmp_path, token(b"gone"))
        before = index.read_bytes()
        answers = [str(answer) for _, answer in repair(fd, page, BYTES, time.time_ns())]
    assert answers == ["a row has its object again"]
    assert index.read_bytes() == before


def test_repair_waits_for_the_lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """While another process names something in the directory, nothing is changed."""
    monkeypatch.setattr("sidecar.index_file.LOCK_TIMEOUT", 0.05)
    index = with_orphan(tmp_path)
    before = index.read_bytes()
    with opened(tmp_path) as fd, linux.same_file_lock(fd, 1):
        (answer,) = mended(tmp_path)
    assert isinstance(answer, OSError) and index.read_bytes() == before


def test_a_left_temporary_index(tmp_path: Path) -> None:
    """What a killed write left is removed if it is an hour old, whole or cut off."""
    left = tmp_path / os.fsdecode(INDEX_TEMPORARY)
    left.write_bytes(format_rows({LONG: TOKEN}) + b"6161")
    assert [f.severity for f in found(tmp_path, SERVED)] == [Severity.NOTE]
    assert mended(tmp_path) == [] and left.exists()
    age(left)
    assert mended(tmp_path) == [None] and not left.exists()


def test_a_users_file_of_that_name(tmp_path: Path) -> None:
    """A file with another content is told and never removed, whatever its age."""
    left = tmp_path / os.fsdecode(INDEX_TEMPORARY)
    left.write_bytes(b"my notes\n")
    age(left)
    assert [f.what for f in found(tmp_path, SERVED)] == [What.LEFT_INDEX]
    assert mended(tmp_path) == [] and left.read_bytes() == b"my notes\n"


@pytest.mark.parametrize("name", [INDEX_FILE, INDEX_TEMPORARY])
def test_an_index_file_that_somebody_keeps(tmp_path: Path, name: bytes) -> None:
    """Where no index is at work, a file with rows in it is told and left as it is."""
    kept = tmp_path / os.fsdecode(name)
    kept.write_bytes(format_rows({b"gone": token(b"gone")}))
    age(kept)
    assert len(found(tmp_path, FOLD)) == 1
    assert mended(tmp_path, FOLD, TRANSPARENT) == []
    assert kept.read_bytes() == format_rows({b"gone": token(b"gone")})


def test_an_empty_index_file(tmp_path: Path) -> None:
    """It is removed where index files are at work and a lock file says that it is ours."""
    index = tmp_path / os.fsdecode(INDEX_FILE)
    touch(tmp_path, INDEX_FILE)
    age(index)
    assert mended(tmp_path) == []
    assert [f.severity for f in found(tmp_path)] == [Severity.NOTE]
    touch(tmp_path, INDEX_LOCK)
    assert [f.severity for f in found(tmp_path)] == [Severity.WARNING]
    assert mended(tmp_path, FOLD) == [] and index.exists()
    assert mended(tmp_path) == [None] and not index.exists()


def left_probe(path: Path) -> Path:
    """What a probe leaves when it is killed."""
    private = path / os.fsdecode(PROBE_PREFIX + b"0123456789abcdef")
    private.mkdir()
    touch(private, b"caseProbe", b"x:y")
    (private / "rename-two").write_bytes(b"1")
    (private / "symlink").symlink_to("target/of it")
    os.mkfifo(private / "fifo")
    age(private)
    return private


def swept(path: Path) -> None:
    """What a mount does when it starts."""
    with opened(path) as fd:
        sweep_probes(fd, time.time_ns())


def test_a_left_probe(tmp_path: Path) -> None:
    """A probe's private directory goes with what it holds, and its names are no findings."""
    private = left_probe(tmp_path)
    assert brief(found(tmp_path, ALL)) == [(What.LEFT_PROBE, b"/", (os.fsencode(private.name),))]
    assert mended(tmp_path) == [None] and not private.exists()


@pytest.mark.parametrize("read_only", [False, True])
def test_a_left_probe_goes_when_a_tree_is_opened(tmp_path: Path, read_only: bool) -> None:
    """A guest would see it; in a tree that must not be written to it stays."""
    private = left_probe(tmp_path)
    Tree(TreeConfig(sysroot=os.fsencode(tmp_path), host=None, read_only=read_only)).close()
    assert private.exists() is read_only


@pytest.mark.parametrize("spoil", ["content", "directory", "link", "young", "name", "a link"])
def test_a_probe_with_something_else_in_it(tmp_path: Path, spoil: str) -> None:
    """What a probe cannot have made, or has made just now, is never removed."""
    (tmp_path / "tree").mkdir()
    private = left_probe(tmp_path / "tree")
    match spoil:
        case "content":
            (private / "diary").write_bytes(b"dear diary")
        case "directory":
            (private / "deeper").mkdir()
        case "link":
            (private / "link").symlink_to("/etc/passwd")
        case "name":
            private = private.rename(private.with_name(private.name + "x"))
        case "a link":
            moved = private.rename(tmp_path / private.name)
            private.symlink_to(moved)
    if spoil != "young":
        age(private)
    else:
        os.utime(private)
    assert mended(tmp_path / "tree") == []
    swept(tmp_path / "tree")
    assert (private / "caseProbe").exists()


def test_repair_touches_nothing_else(tmp_path: Path) -> None:
    """Pairs, collisions, lost tokens and damage stay exactly as they are."""
    touch(tmp_path, b"A", b"a", b"x", escape.encode(b"x"), b".ef_00000000000000aa", b".ef=4A")
    (tmp_path / os.fsdecode(INDEX_FILE)).write_bytes(b"rubbish\n")
    before = sorted(os.listdir(tmp_path))
    assert len(found(tmp_path, SERVED)) == 5
    assert mended(tmp_path) == []
    assert sorted(os.listdir(tmp_path)) == before


# --- a tar --------------------------------------------------------------------------------------


@pytest.mark.parametrize("squeeze", [bytes, gzip.compress, bz2.compress, lzma.compress])
def test_tars_of_every_compression(squeeze: Callable[[bytes], bytes]) -> None:
    """A tar is read from a stream, whatever it is compressed with."""
    data = squeeze(archive("./usr/", "./usr/PAM.7.gz", "./usr/pam.7.gz").getvalue())
    assert brief(found_in_tar(io.BytesIO(data), FOLD)) == [
        (What.COLLISION, b"/usr", (b"PAM.7.gz", b"pam.7.gz"))
    ]


def test_directories_that_no_member_makes() -> None:
    """Directories that only paths imply are there, and once however often they are named."""
    (finding,) = found_in_tar(archive("Usr/lib/w", "usr/lib/", "/usr/lib/y", "usr/lib/x"), FOLD)
    assert brief([finding]) == [(What.COLLISION, b"/", (b"Usr", b"usr"))]
    assert finding.mergeable


def test_names_in_a_tar_are_bytes() -> None:
    """A name that is not UTF-8 comes out as it was put in."""
    (finding,) = found_in_tar(archive("d/caf\udce9"), Subject(kinds=(KINDS["apfs"],)))
    assert finding.what is What.ILL_FORMED
    assert finding.names[0].stored == b"caf\xe9"


def test_an_index_in_a_tar() -> None:
    """Index files are read from the stream; nothing in an archive can be mended."""
    path = "d/" + INDEX_FILE.decode()
    data = archive(
        "d/" + TOKEN.decode(),
        members={path: format_rows({LONG: TOKEN, b"gone": b".ef_" + b"0" * 16})},
    )
    (finding,) = found_in_tar(data, FOLD)
    assert finding.what is What.ROW_WITHOUT_OBJECT
    assert finding.names[0].guest == b"gone"


def test_a_probe_in_a_tar() -> None:
    """What a killed probe left in an archive is one finding, whatever names it has."""
    private = (PROBE_PREFIX + b"0123456789abcdef").decode()
    findings = found_in_tar(archive(f"{private}/x:y", f"{private}/aux", "z"))
    assert brief(findings) == [(What.LEFT_PROBE, b"/", (private.encode(),))]


def test_paths_that_lead_out() -> None:
    """A path with .. in it is told and not taken for a name."""
    findings = found_in_tar(archive("../A", "a"), FOLD)
    assert [f.what for f in findings] == [What.UNREADABLE]


def test_a_spoilt_header() -> None:
    """Rubbish between two members is an error, and not the end."""
    whole = bytearray(archive("A", "b", "a").getvalue())
    whole[512:600] = b"x" * 88
    assert [f.what for f in found_in_tar(io.BytesIO(whole), FOLD)] == [What.UNREADABLE]


@pytest.mark.parametrize("size", ["many", "1" * 5000])
def test_a_spoilt_extended_header(size: str) -> None:
    """A number that is none ends the archive with an error, and not the command."""
    data = archive("A")
    with tarfile.open(fileobj=data, mode="a", format=tarfile.PAX_FORMAT) as tar:
        info = tarfile.TarInfo("b")
        info.pax_headers = {"GNU.sparse.size": size}
        tar.addfile(info)
    data.seek(0)
    (finding,) = found_in_tar(data, FOLD)
    assert finding.what is What.UNREADABLE
    # As the first thing in it, it is no archive.
    with pytest.raises(NotATar):
        list(read_tar(io.BytesIO(data.getvalue()[512:])))


def test_a_member_without_end() -> None:
    """A header that claims more than there ever was ends the archive, and soon."""
    whole = bytearray(archive("A", "b").getvalue())
    whole[124:136] = b"\x80" + b"\x7f" * 11
    whole[148:156] = b" " * 8
    whole[148:156] = b"%06o\0 " % sum(whole[:512])
    findings = found_in_tar(io.BytesIO(whole), FOLD)
    assert [one.what for one in findings] == [What.UNREADABLE]


def test_many_big_indexes_in_a_tar(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is kept of them is bounded for all together: they compress a thousandfold."""
    monkeypatch.setattr(listings, "CONTENT_MAX", 1000)
    paths = [f"{name}/{INDEX_FILE.decode()}" for name in "abc"]
    findings = found_in_tar(archive(members={path: b"x" * 600 for path in paths}), FOLD)
    assert [(one.what, one.number) for one in findings] == [
        (What.DAMAGED_INDEX, 1),
        (What.DAMAGED_INDEX, None),
        (What.DAMAGED_INDEX, None),
    ]


@pytest.mark.parametrize("keep", [700, 1024, 1800])
def test_a_tar_that_breaks_off(keep: int) -> None:
    """What was read of a cut archive is judged, and that it was cut is an error."""
    whole = archive("A", "a", members={"big": b"x" * 5000}).getvalue()
    findings = found_in_tar(io.BytesIO(whole[:keep]), FOLD)
    assert findings[0].what is What.UNREADABLE
    assert findings[0].severity is Severity.ERROR
    assert len(findings) == (2 if keep >= 1024 else 1)


@pytest.mark.parametrize(
    "data", [b"", b"text\n" * 300, gzip.compress(b"no tar" * 200, mtime=0), b"\x1f\x8b"]
)
def test_what_is_no_tar(data: bytes) -> None:
    """Anything else is refused before anything is said about it."""
    with pytest.raises(NotATar):
        list(read_tar(io.BytesIO(data)))
