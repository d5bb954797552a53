"""The probe on real volumes: the traits table, read-only volumes, and nothing left behind."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal
from unicodedata import normalize

import attrs
import pytest

from sidecar import linux, volume
from sidecar.making import make_directory
from sidecar.volume import CANDIDATES, TRANSPARENT, ProbeError, Traits, probe
from tests.children import in_child
from tests.matrix.volumes import KINDS, Volume, open_volume

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="mounting needs root")

WINDOWS_REFUSES = b':*?"<>|\\' + bytes(range(1, 32))

# What differs from TRANSPARENT, as measured by hand on each kind.
EXPECTED: dict[str, dict[str, Any]] = {
    "plain": {},
    "zfs": {
        "folds": True,
        "xattrs": False,
        "rename_noreplace": False,
        "rename_exchange": False,
        "time_step_ns": 1_000_000_000,
    },
    "zfs-formd": {
        "folds": True,
        "normalises": "loose",
        "ill_formed": False,
        "xattrs": False,
        "rename_noreplace": False,
        "rename_exchange": False,
        "time_step_ns": 1_000_000_000,
    },
    "exfat": {
        "folds": True,
        "ill_formed": False,
        "refused": WINDOWS_REFUSES,
        "name_unit": "utf16",
        "symlinks": False,
        "hard_links": False,
        "modes": False,
        "owners": False,
        "special_files": False,
        "xattrs": False,
        "rename_noreplace": False,
        "rename_exchange": False,
        "time_step_ns": 1_000_000_000,
        "stable_inodes": False,
    },
    "lowntfs": {
        "folds": True,
        "preserves_case": False,
        "ill_formed": False,
        "rename_noreplace": False,
        "rename_exchange": False,
        "time_step_ns": 100,
    },
    "ntfs-win": {
        "ill_formed": False,
        "refused": WINDOWS_REFUSES,
        "trailing_dot_space": False,
        "device_names": False,
        "name_unit": "utf16",
        "rename_noreplace": False,
        "rename_exchange": False,
        "time_step_ns": 100,
    },
}


@pytest.fixture(scope="module", params=KINDS)
def real(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    with open_volume(request.param, tmp_path_factory.mktemp("real")) as opened:
        yield opened


def probe_path(path: Path, flags: int = os.O_PATH) -> Traits:
    fd = os.open(path, flags | os.O_DIRECTORY)
    try:
        return probe(fd)
    finally:
        os.close(fd)


@contextmanager
def read_only(path: Path, mountpoint: Path) -> Iterator[Path]:
    mountpoint.mkdir()
    subprocess.run(["mount", "--bind", path, mountpoint], check=True)
    try:
        subprocess.run(["mount", "-o", "remount,ro,bind", mountpoint], check=True)
        yield mountpoint
    finally:
        linux.umount(os.fsencode(mountpoint))


@contextmanager
def as_user(uid: int) -> Iterator[None]:
    """Make the process another user for the volume, without any right of root."""
    os.setegid(uid)
    os.seteuid(uid)
    try:
        yield
    finally:
        os.seteuid(0)
        os.setegid(0)


# --- measured -------------------------------------------------------------------------


def test_traits_table(real: Volume) -> None:
    """Each kind of volume is found to be what it was measured to be by hand."""
    assert probe_path(real.path) == attrs.evolve(TRANSPARENT, **EXPECTED[real.kind])


def test_derived_traits(real: Volume) -> None:
    """Only the plain volume needs no index; only folding ones leave the spelling open."""
    traits = probe_path(real.path)
    assert traits.transparent == (real.kind == "plain")
    assert traits.needs_spelling == (real.kind not in ("plain", "ntfs-win"))


def test_probing_is_quick_and_repeatable(real: Volume) -> None:
    """A second probe, by an ordinary descriptor, says the same and takes well under a second."""
    first = probe_path(real.path)
    start = time.perf_counter()
    second = probe_path(real.path, os.O_RDONLY)
    took = time.perf_counter() - start
    print(f"{real.kind}: {took * 1e3:.1f} ms")
    assert second == first
    assert took < 0.5


def test_nothing_is_left(real: Volume) -> None:
    """The private directory is gone afterwards, and what was there is untouched."""
    (real.path / "kept").write_text("as it was")
    probe_path(real.path)
    assert os.listdir(real.path) == ["kept"]
    assert (real.path / "kept").read_text() == "as it was"
    (real.path / "kept").unlink()


def test_no_descriptor_is_left(real: Volume) -> None:
    """Probing closes whatever it opened."""
    before = len(os.listdir("/proc/self/fd"))
    probe_path(real.path)
    assert len(os.listdir("/proc/self/fd")) == before


def test_probes_at_once(tmp_path: Path) -> None:
    """Two probes of one directory do not disturb each other."""
    found: list[Traits] = []
    threads = [
        threading.Thread(target=lambda: found.append(probe_path(tmp_path))) for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [TRANSPARENT] * 4
    assert os.listdir(tmp_path) == []


def test_the_private_directory_is_private(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It lies in the directory given, nobody else may enter it, and its name says whose it is."""
    seen: list[tuple[str, int]] = []

    def look(bench: Any) -> int:
        seen.extend((entry.name, entry.stat().st_mode & 0o7777) for entry in os.scandir(tmp_path))
        return 1

    monkeypatch.setattr(volume._Bench, "time_step", look)
    probe_path(tmp_path)
    assert [mode for _, mode in seen] == [0o700]
    assert seen[0][0].encode().startswith(volume.PROBE_PREFIX)


def test_the_umask_does_not_matter(tmp_path: Path) -> None:
    """An odd umask changes no verdict."""
    old = os.umask(0o277)
    try:
        assert probe_path(tmp_path) == TRANSPARENT
    finally:
        os.umask(old)


@pytest.mark.parametrize("code", [errno.EIO, errno.ENOTCONN, errno.ENOMEM])
def test_cleaned_up_after_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    """A failure in the middle is a ProbeError of one sentence, and nothing is left either."""

    def fail(bench: Any) -> None:
        (tmp_path / os.listdir(tmp_path)[0] / "rest").touch()
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(volume._Bench, "renames", fail)
    with pytest.raises(ProbeError, match=os.strerror(code)) as caught:
        probe_path(tmp_path)
    assert "\n" not in str(caught.value)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_cleaned_up_before_a_signal_ends_the_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: signal.Signals
) -> None:
    """One that comes just when the private directory was made ends the process, and it is gone."""
    tried = tmp_path / "tried"
    tree = tmp_path / "tree"
    tree.mkdir()

    def interrupted(*arguments: Any) -> None:
        make_directory(*arguments)
        os.kill(os.getpid(), number)

    monkeypatch.setattr(volume, "make_directory", interrupted)
    monkeypatch.setattr(volume._Bench, "links", lambda _: tried.touch())
    pid = os.fork()
    if not pid:
        signal.signal(number, signal.SIG_DFL)
        try:
            probe_path(tree)
        finally:
            os._exit(0)
    _, status = os.waitpid(pid, 0)
    assert os.waitstatus_to_exitcode(status) == -number
    assert os.listdir(tree) == []
    assert not tried.exists()


def test_a_signal_that_ends_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where its handler lets the process live, the volume is measured all the same."""
    links = volume._Bench.links
    came: list[int] = []

    def interrupted(bench: Any) -> Any:
        if not came:
            os.kill(os.getpid(), signal.SIGTERM)
        return links(bench)

    monkeypatch.setattr(volume._Bench, "links", interrupted)

    def work() -> tuple[Traits, list[int]]:
        signal.signal(signal.SIGTERM, lambda number, _: came.append(number))
        return probe_path(tmp_path), came

    assert in_child(work) == (TRANSPARENT, [signal.SIGTERM])
    assert os.listdir(tmp_path) == []


def test_a_small_name_limit_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A limit under 255, such as that of an encrypting volume, is found to the byte."""
    create = volume._Bench.create

    def short(bench: Any, name: bytes) -> bool:
        return len(name) <= 143 and create(bench, name)

    monkeypatch.setattr(volume._Bench, "create", short)
    assert probe_path(tmp_path) == attrs.evolve(TRANSPARENT, name_max=143)
    assert not attrs.evolve(TRANSPARENT, name_max=143).transparent


@pytest.mark.parametrize("form", ["NFC", "NFD"])
def test_a_volume_that_stores_another_form(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, form: Literal["NFC", "NFD"]
) -> None:
    """One that lists every accent in its own form, as HFS+ does, is known by the listing."""
    names: Callable[[int], list[bytes]] = volume._names

    def listed(fd: int) -> list[bytes]:
        texts = [name.decode("utf-8", "surrogateescape") for name in names(fd)]
        return [normalize(form, text).encode("utf-8", "surrogateescape") for text in texts]

    monkeypatch.setattr(volume, "_names", listed)
    fd = os.open(tmp_path, os.O_RDONLY)
    try:
        traits = volume._Bench(fd, lambda: False).measure()
    finally:
        os.close(fd)
    assert traits == attrs.evolve(TRANSPARENT, normalises="stores", non_ascii=False)
    assert traits.needs_spelling
    assert not traits.transparent


# --- where nothing may be created -----------------------------------------------------


def test_read_only_real_volumes(real: Volume, tmp_path: Path) -> None:
    """Remounted read-only, folding is still seen from one entry, and it says it is inferred."""
    (real.path / "Makefile").touch()
    try:
        with read_only(real.path, tmp_path / "ro") as path:
            traits = probe_path(path)
    finally:
        (real.path / "Makefile").unlink()
    assert not traits.measured
    assert not traits.writable
    assert traits.folds == EXPECTED[real.kind].get("folds", False)
    assert traits.transparent == (real.kind == "plain")


def test_read_only_and_empty(real: Volume, tmp_path: Path) -> None:
    """With nothing to see, the type decides whether an index is left out."""
    with read_only(real.path, tmp_path / "ro") as path:
        traits = probe_path(path)
    assert not traits.folds
    assert not traits.measured
    assert traits.transparent == (real.kind == "plain")
    assert traits.refused == (b"" if real.kind == "plain" else CANDIDATES)


def test_read_only_evidence_below(real: Volume, tmp_path: Path) -> None:
    """Where the top holds no letters, directories below are looked into, symlinks are not."""
    (real.path / "1" / "2").mkdir(parents=True)
    (real.path / "1" / "2" / "Makefile").touch()
    with read_only(real.path, tmp_path / "ro") as path:
        traits = probe_path(path)
    (real.path / "1" / "2" / "Makefile").unlink()
    (real.path / "1" / "2").rmdir()
    (real.path / "1").rmdir()
    assert traits.folds == EXPECTED[real.kind].get("folds", False)


def test_read_only_accents(real: Volume, tmp_path: Path) -> None:
    """An accent that answers in its other form shows that the volume normalises."""
    (real.path / "caf\u00e9").touch()
    with read_only(real.path, tmp_path / "ro") as path:
        traits = probe_path(path)
    (real.path / "caf\u00e9").unlink()
    assert traits.normalises == EXPECTED[real.kind].get("normalises", "no")


def test_two_spellings_side_by_side_do_not_fold(tmp_path: Path) -> None:
    """A swapped spelling that is an entry of its own proves the volume case-sensitive."""
    (tmp_path / "tree").mkdir()
    (tmp_path / "tree" / "readme").touch()
    (tmp_path / "tree" / "README").touch()
    with read_only(tmp_path / "tree", tmp_path / "ro") as path:
        traits = probe_path(path)
    assert not traits.folds
    assert traits.transparent


def test_a_directory_of_somebody_else(tmp_path: Path) -> None:
    """EACCES on creating infers too, and so does a directory that cannot even be listed."""
    tree = tmp_path / "tree"
    tree.mkdir()
    (tree / "Makefile").touch()
    fd = os.open(tree, os.O_PATH)
    try:
        for mode in (0o755, 0o711, 0o700):
            tree.chmod(mode)
            with as_user(4321):
                traits = probe(fd)
            assert (traits.folds, traits.writable, traits.measured) == (False, False, False)
    finally:
        os.close(fd)


def test_a_user_probes_his_own_directory(tmp_path: Path) -> None:
    """Without root everything is measured but owners, which are taken to be as modes."""
    os.chown(tmp_path, 4321, 4321)
    fd = os.open(tmp_path, os.O_PATH)
    try:
        with as_user(4321):
            assert probe(fd) == TRANSPARENT
    finally:
        os.close(fd)
    assert os.listdir(tmp_path) == []


def test_a_full_volume(tmp_path: Path) -> None:
    """Where there is no space, nothing is left and it is inferred, but counts as writable."""
    subprocess.run(["mount", "-t", "tmpfs", "-o", "nr_inodes=20", "full", tmp_path], check=True)
    try:
        for left in (0, 1, 5):
            for name in os.listdir(tmp_path):
                (tmp_path / name).unlink()
            statvfs = os.statvfs(tmp_path)
            for n in range(statvfs.f_ffree - left):
                (tmp_path / str(n)).touch()
            before = sorted(os.listdir(tmp_path))
            traits = probe_path(tmp_path)
            assert (traits.writable, traits.measured) == (True, False)
            assert sorted(os.listdir(tmp_path)) == before
    finally:
        linux.umount(os.fsencode(tmp_path))


def test_a_filesystem_that_makes_nothing() -> None:
    """proc has no mkdir: it is inferred, not dead."""
    traits = probe_path(Path("/proc"))
    assert (traits.folds, traits.measured) == (False, False)


# --- dead -----------------------------------------------------------------------------


def test_a_removed_directory(tmp_path: Path) -> None:
    """A directory that is gone is a ProbeError."""
    (tmp_path / "gone").mkdir()
    fd = os.open(tmp_path / "gone", os.O_PATH)
    (tmp_path / "gone").rmdir()
    try:
        with pytest.raises(ProbeError, match="No such file"):
            probe(fd)
    finally:
        os.close(fd)


def test_a_file(tmp_path: Path) -> None:
    """A descriptor that is no directory is a ProbeError."""
    (tmp_path / "file").touch()
    fd = os.open(tmp_path / "file", os.O_RDONLY)
    try:
        with pytest.raises(ProbeError, match="Not a directory"):
            probe(fd)
    finally:
        os.close(fd)


def test_a_dead_volume(tmp_path: Path) -> None:
    """A FUSE volume whose server is gone is a ProbeError that says to look at the mount."""
    device = os.open("/dev/fuse", os.O_RDWR)
    options = f"fd={device},rootmode=40000,user_id=0,group_id=0"
    libc = linux._libc
    assert libc.mount(b"dead", os.fsencode(tmp_path), b"fuse", 0, options.encode()) == 0
    try:
        fd = os.open(tmp_path, os.O_PATH)
        os.close(device)  # nobody ever answers: ENOTCONN from now on
        with pytest.raises(ProbeError, match="still mounted"):
            probe(fd)
        os.close(fd)
    finally:
        linux.umount(os.fsencode(tmp_path), lazy=True)
