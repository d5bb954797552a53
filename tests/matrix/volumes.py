"""Real volumes for tests: made, mounted, and always taken away again.

`open_volume(kind, base)` makes one below `base` and yields it; when the block ends, however it
ends, the mount, the image, the loop device and the server are gone. What a killed run left is
removed by `sweep(base)`, also as ``python -m tests.matrix.volumes BASE``.

Everything but ``plain`` needs root. The zfs volumes share one daemon (`zfs_daemon`).
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Final

import attrs

from tests.matrix import zfs_daemon
from tests.matrix.volume_tools import PATIENCE, VolumeBusy, VolumeError, run, succeeds

KINDS: Final = ("plain", "zfs", "zfs-formd", "exfat", "lowntfs", "ntfs-win")

_IMAGE_BYTES: Final = 512 << 20


@attrs.frozen
class Volume:
    """A mounted volume: `path` is its root directory, `kind` one of `KINDS`."""

    path: Path
    kind: str


def open_volume(kind: str, base: Path) -> AbstractContextManager[Volume]:
    """A new volume of the given kind in a new directory below `base`."""
    if kind == "plain":
        return plain(base)
    if kind == "zfs":
        return zfs(base)
    if kind == "zfs-formd":
        return zfs(base, formd=True)
    if kind == "exfat":
        return exfat(base)
    if kind == "lowntfs":
        return lowntfs(base)
    if kind == "ntfs-win":
        return ntfs_windows_names(base)
    raise VolumeError(f"no volume of kind {kind!r}: choose one of {', '.join(KINDS)}")


@contextlib.contextmanager
def plain(base: Path) -> Iterator[Volume]:
    """A directory on the machine's own disk: case-sensitive, everything works."""
    with _workplace(base) as work:
        yield Volume(_mountpoint(work), "plain")


@contextlib.contextmanager
def zfs(base: Path, formd: bool = False) -> Iterator[Volume]:
    """Folds case and keeps it, with POSIX modes and links; `formd` also folds accents' forms."""
    with _workplace(base) as work:
        mount = _mountpoint(work)
        options = ["-O", "casesensitivity=insensitive"]
        if formd:
            options += ["-O", "normalization=formD", "-O", "utf8only=on"]
        pool = f"sysrootfs{os.getpid()}{os.urandom(4).hex()}x"
        image = _image(work)
        try:
            with zfs_daemon.lock():
                zfs_daemon.start()
                # Not into the daemon's cache file, or the next daemon would look for it.
                options += ["-o", "cachefile=none", "-m", str(mount)]
                run("zpool", "create", *options, pool, str(image))
            yield Volume(mount, "zfs-formd" if formd else "zfs")
        finally:
            try:
                with zfs_daemon.lock():
                    zfs_daemon.export_pool(pool)
            except VolumeBusy:
                raise
            except VolumeError:
                _unmount(mount)  # a dead one
                raise


@contextlib.contextmanager
def exfat(base: Path) -> Iterator[Volume]:
    """Folds case and keeps it; no links, modes, owners or xattrs."""
    with _workplace(base) as work:
        mount, image = _mountpoint(work), _image(work)
        run("mkfs.exfat", str(image))
        loop = run("losetup", "-f", "--show", str(image)).strip()
        try:
            run("mount.exfat-fuse", "-o", "allow_other", loop, str(mount))
            yield Volume(mount, "exfat")
        finally:
            _unmount(mount)
            succeeds("losetup", "-d", loop)


def lowntfs(base: Path) -> AbstractContextManager[Volume]:
    """Folds case and does not keep it: names are listed in lower case."""
    return _ntfs(base, "lowntfs", "lowntfs-3g", "ignore_case")


def ntfs_windows_names(base: Path) -> AbstractContextManager[Volume]:
    """Case-sensitive, and refuses the names that Windows forbids."""
    return _ntfs(base, "ntfs-win", "ntfs-3g", "windows_names")


def sweep(base: Path) -> None:
    """Take away everything that runs killed in the middle have left below `base`.

    Pools, mounts, loop devices, then the directories; a hung mount is detached lazily. Whatever
    still runs below `base` loses its volumes: call it when nothing does.
    """
    base = base.resolve()
    if shutil.which("zpool") and zfs_daemon.answers():
        with zfs_daemon.lock():
            for pool in zfs_daemon.pools_below(base):
                zfs_daemon.export_pool(pool)
            zfs_daemon.stop_if_unused()
    for mount in reversed(mounts_below(base)):
        _unmount(mount)
    for loop in _loops_below(base):
        succeeds("losetup", "-d", loop)
    for work in base.rglob("volume-*"):
        if (work / "mnt").is_dir() and not mounts_below(work):
            shutil.rmtree(work, ignore_errors=True)


# --- directories, images, mounts --------------------------------------------------------------


@contextlib.contextmanager
def _workplace(base: Path) -> Iterator[Path]:
    base.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(prefix="volume-", dir=base.resolve()))
    work.chmod(0o755)  # guests of other users walk through it
    try:
        yield work
    except VolumeBusy:
        # The daemon hangs when an image goes away under it.
        raise
    except BaseException:
        _remove(work)
        raise
    _remove(work)


def _remove(work: Path) -> None:
    if mounts_below(work):
        # Deleting now would delete inside a volume whose server is still there.
        raise VolumeBusy(f"{work} is still mounted: find what uses it, then call sweep")
    shutil.rmtree(work)


def _mountpoint(work: Path) -> Path:
    mount = work / "mnt"
    mount.mkdir()
    return mount


def _image(work: Path) -> Path:
    image = work / "image"
    with open(image, "xb") as file:
        file.truncate(_IMAGE_BYTES)
    return image


@contextlib.contextmanager
def _ntfs(base: Path, kind: str, server: str, option: str) -> Iterator[Volume]:
    with _workplace(base) as work:
        mount, image = _mountpoint(work), _image(work)
        run("mkfs.ntfs", "-F", "-Q", "-q", str(image))
        try:
            run(server, "-o", f"allow_other,permissions,{option}", str(image), str(mount))
            yield Volume(mount, kind)
        finally:
            _unmount(mount)


def mounts_below(base: Path) -> list[Path]:
    """Mountpoints at or below `base`, in the order in which they were mounted."""
    found = []
    for line in Path("/proc/self/mountinfo").read_bytes().splitlines():
        escaped = line.split(b" ")[4]
        path = Path(os.fsdecode(re.sub(rb"\\([0-7]{3})", lambda m: bytes([int(m[1], 8)]), escaped)))
        if path == base or base in path.parents:
            found.append(path)
    return found


def _loops_below(base: Path) -> list[str]:
    found = []
    for backing in Path("/sys/block").glob("loop*/loop/backing_file"):
        with contextlib.suppress(OSError):
            if backing.read_text().startswith(f"{base}/"):
                found.append(f"/dev/{backing.parent.parent.name}")
    return found


def _unmount(mount: Path) -> None:
    """Unmount if mounted: in order while a user lets go of it, lazily when patience ends."""
    deadline = time.monotonic() + PATIENCE
    while mount in mounts_below(mount):
        if time.monotonic() > deadline:
            succeeds("umount", "-l", str(mount))
            return
        if not succeeds("umount", str(mount)):
            time.sleep(0.05)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python -m tests.matrix.volumes BASE")
    sweep(Path(sys.argv[1]))
