"""The real volumes do what the matrix is there for, and leave nothing behind."""

from __future__ import annotations

import contextlib
import errno
import os
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from tests.matrix import volume_tools, volumes, zfs_daemon
from tests.matrix.volume_tools import VolumeBusy, VolumeError
from tests.matrix.volumes import KINDS, Volume, open_volume, sweep

FOLDING = ("zfs", "zfs-formd", "exfat", "lowntfs")
COMPOSED, DECOMPOSED = "caf\u00e9", "cafe\u0301"


@pytest.fixture(scope="module", params=KINDS)
def volume(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Volume]:
    with open_volume(request.param, tmp_path_factory.mktemp("volumes")) as opened:
        yield opened


def mounts(below: Path) -> list[str]:
    return [line for line in Path("/proc/mounts").read_text().splitlines() if str(below) in line]


def test_is_mounted_and_writable(volume: Volume) -> None:
    """A volume is a mount of its own, except the plain one."""
    (volume.path / "file").write_text("content")
    assert (volume.path / "file").read_text() == "content"
    assert volume.path.is_mount() == (volume.kind != "plain")


def test_folds_case(volume: Volume) -> None:
    """Exclusive creation of another spelling is refused exactly on the volumes that fold."""
    (volume.path / "Makefile").touch()
    if volume.kind in FOLDING:
        with pytest.raises(FileExistsError):
            (volume.path / "makefile").touch(exist_ok=False)
        assert (volume.path / "MAKEFILE").exists()
    else:
        (volume.path / "makefile").touch(exist_ok=False)
        assert not (volume.path / "MAKEFILE").exists()


def test_keeps_case(volume: Volume) -> None:
    """A listing gives the spelling back; lowntfs lists lower case."""
    (volume.path / "KeepMe").touch()
    kept = "keepme" if volume.kind == "lowntfs" else "KeepMe"
    assert kept in os.listdir(volume.path)


def test_folds_normal_forms(volume: Volume) -> None:
    """Only formD takes the composed and the decomposed accent for one name."""
    (volume.path / COMPOSED).touch()
    assert (volume.path / DECOMPOSED).exists() == (volume.kind == "zfs-formd")


def test_refuses_windows_names(volume: Volume) -> None:
    """A colon is refused by windows_names (EINVAL) and by exfat-fuse (ENOENT)."""
    path = volume.path / "a:b"
    refusal = {"exfat": errno.ENOENT, "ntfs-win": errno.EINVAL}.get(volume.kind)
    if refusal is None:
        path.touch()
        return
    with pytest.raises(OSError) as refused:
        path.touch()
    assert refused.value.errno == refusal


def test_symlinks(volume: Volume) -> None:
    """Everything but exfat holds symbolic links."""
    link = volume.path / "link"
    if volume.kind == "exfat":
        with pytest.raises(OSError, match=r"not implemented|not permitted|not supported"):
            link.symlink_to("target")
    else:
        link.symlink_to("target")
        assert os.readlink(link) == "target"


@pytest.mark.parametrize("kind", KINDS)
def test_cleans_up_after_an_exception(kind: str, tmp_path: Path) -> None:
    """Mount, image and directory are gone although the block failed."""
    with pytest.raises(RuntimeError, match="on purpose"), open_volume(kind, tmp_path):
        raise RuntimeError("on purpose")
    assert mounts(tmp_path) == []
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("kind", KINDS)
def test_sweep_after_a_kill(kind: str, tmp_path: Path) -> None:
    """A killed process leaves its volume behind, and sweep takes it away."""
    script = f"""
        import pathlib, time
        from tests.matrix.volumes import open_volume
        with open_volume({kind!r}, pathlib.Path({str(tmp_path)!r})) as volume:
            print(volume.path, flush=True)
            time.sleep(60)
    """
    command = [sys.executable, "-c", textwrap.dedent(script)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        path = Path(process.stdout.readline().strip())
        process.kill()
    assert path.is_dir()
    sweep(tmp_path)
    assert mounts(tmp_path) == []
    assert list(tmp_path.iterdir()) == []


def test_two_zfs_volumes_share_the_daemon(tmp_path: Path) -> None:
    """The end of one zfs volume leaves the other one alive."""
    with open_volume("zfs", tmp_path) as outer:
        with open_volume("zfs", tmp_path) as inner:
            (inner.path / "a").touch()
        (outer.path / "b").touch()
        assert os.listdir(outer.path) == ["b"]


def test_the_zfs_daemon_survives_clients_that_meet(tmp_path: Path) -> None:
    """Requests for one inode take turns in it: left to itself it dies within seconds."""
    with open_volume("zfs", tmp_path) as volume:
        names = [str(volume.path / f"file-{number}") for number in range(4)]
        end = time.monotonic() + 3
        stirring = [
            threading.Thread(target=stir, args=(names[step:] + names[:step], end))
            for step in range(4)
        ]
        for thread in stirring:
            thread.start()
        for thread in stirring:
            thread.join()
        assert os.listdir(volume.path) == []


def stir(paths: Sequence[str], end: float) -> None:
    """Create, link, look at and remove files that others do the same with."""
    while time.monotonic() < end:
        for path in paths:
            with contextlib.suppress(FileExistsError, FileNotFoundError, PermissionError):
                os.close(os.open(path, os.O_CREAT | os.O_RDWR))
                os.link(path, path + ".other")
                os.stat(path)
            for name in (path, path + ".other"):
                with contextlib.suppress(FileNotFoundError):
                    os.stat(name)
                    os.unlink(name)


def test_unmounts_when_a_user_lets_go_late(tmp_path: Path) -> None:
    """A process that still sits in the volume is waited for."""
    with open_volume("lowntfs", tmp_path) as volume:
        sitter = subprocess.Popen(["sleep", "0.3"], cwd=volume.path)
        began = time.monotonic()
    assert sitter.wait() == 0
    assert time.monotonic() - began > 0.2
    assert mounts(tmp_path) == []


def test_unknown_kind(tmp_path: Path) -> None:
    """The message names the kinds there are."""
    with pytest.raises(VolumeError, match="plain, zfs"):
        open_volume("fat12", tmp_path)


def test_missing_tool_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a tool is missing the error says what to do."""
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(VolumeError, match="make setup"), volumes.exfat(tmp_path / "base"):
        pass


@pytest.fixture
def daemon(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """A state in which this package has started a daemon; the signals that it is sent."""
    sent: list[int] = []
    (tmp_path / "zfs-fuse.pid").write_text("4711")
    (tmp_path / "pools-at-start").write_text("")
    monkeypatch.setattr(zfs_daemon, "_STATE", tmp_path)
    monkeypatch.setattr(zfs_daemon, "PATIENCE", 0.2)
    monkeypatch.setattr(zfs_daemon, "_is_daemon", lambda pid: not sent)
    monkeypatch.setattr("os.kill", lambda pid, number: sent.append(pid))
    return sent


def answers(monkeypatch: pytest.MonkeyPatch, status: int, out: str = "") -> list[Sequence[str]]:
    """Every tool ends with *status* and says *out*; what was called."""
    called: list[Sequence[str]] = []

    def call(command: Sequence[str], env: object = None) -> subprocess.CompletedProcess[str]:
        called.append(command)
        return subprocess.CompletedProcess(command, status, out, "no answer")

    monkeypatch.setattr(volume_tools, "call", call)
    monkeypatch.setattr(zfs_daemon, "call", call)
    return called


def test_a_daemon_without_pools_is_stopped(
    daemon: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is nobody's any more; with a pool it is somebody's."""
    answers(monkeypatch, 0, "somebodys\n")
    zfs_daemon.stop_if_unused()
    assert daemon == []
    answers(monkeypatch, 0)
    zfs_daemon.stop_if_unused()
    assert daemon == [4711]


def test_a_daemon_that_does_not_answer_is_left_alone(
    daemon: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may have others' pools: it is not stopped, and no second one is started."""
    called = answers(monkeypatch, 1)
    zfs_daemon.stop_if_unused()
    assert daemon == []
    with pytest.raises(VolumeError, match="does not answer"):
        zfs_daemon.start()
    assert not [command for command in called if command[0] == "zfs-fuse"]


def test_a_pool_that_stays_is_an_error(daemon: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody takes it for exported because the daemon does not answer."""
    answers(monkeypatch, 1)
    with pytest.raises(VolumeBusy, match="cannot be exported"):
        zfs_daemon.export_pool("ours")


def test_a_daemon_that_died_is_told(daemon: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    """There is nothing to wait for, and the cause is named."""
    answers(monkeypatch, 1)
    monkeypatch.setattr(zfs_daemon, "_is_daemon", lambda pid: False)
    with pytest.raises(VolumeError, match="has died") as told:
        zfs_daemon.export_pool("ours")
    assert not isinstance(told.value, VolumeBusy)
