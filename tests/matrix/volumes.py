"""Real volumes for tests: made, mounted, and always taken away again.

`open_volume(kind, base)` makes one below `base` and yields it; when the block ends, however it
ends, the mount, the image, the loop device and the server are gone. What a killed run left is
removed by `sweep(base)`, also as ``python -m tests.matrix.volumes BASE``.

Everything but ``plain`` needs root. zfs-fuse is one daemon for the whole machine: the first zfs
volume starts it, and the process that ends when no pool is left stops it, under a lock that all
processes share; a daemon that somebody else started is used and left alone.
"""

from __future__ import annotations

import atexit
import contextlib
import fcntl
import functools
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Final

import attrs

KINDS: Final = ("plain", "zfs", "zfs-formd", "exfat", "lowntfs", "ntfs-win")

_STATE: Final = Path("/run/sysroot-fs-volumes")
_IMAGE_BYTES: Final = 512 << 20
_PATIENCE: Final = 5.0  # seconds until a server that does not react is treated as hung


class VolumeError(Exception):
    """A volume could not be made; the message is one sentence with the tool's own words."""


class VolumeBusy(VolumeError):
    """A volume cannot be taken away: somebody uses it."""


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
            with _zfs_lock():
                _start_zfs_daemon()
                # Not into the daemon's cache file, or the next daemon would look for it.
                options += ["-o", "cachefile=none", "-m", str(mount)]
                _run("zpool", "create", *options, pool, str(image))
            yield Volume(mount, "zfs-formd" if formd else "zfs")
        finally:
            with _zfs_lock():
                _export_pool(pool)


@contextlib.contextmanager
def exfat(base: Path) -> Iterator[Volume]:
    """Folds case and keeps it; no links, modes, owners or xattrs."""
    with _workplace(base) as work:
        mount, image = _mountpoint(work), _image(work)
        _run("mkfs.exfat", str(image))
        loop = _run("losetup", "-f", "--show", str(image)).strip()
        try:
            _run("mount.exfat-fuse", "-o", "allow_other", loop, str(mount))
            yield Volume(mount, "exfat")
        finally:
            _unmount(mount)
            _try("losetup", "-d", loop)


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
    if shutil.which("zpool") and _zfs_answers():
        with _zfs_lock():
            for pool in _pools_below(base):
                _export_pool(pool)
            _stop_zfs_daemon_if_unused()
    for mount in reversed(mounts_below(base)):
        _unmount(mount)
    for loop in _loops_below(base):
        _try("losetup", "-d", loop)
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
        _run("mkfs.ntfs", "-F", "-Q", "-q", str(image))
        try:
            _run(server, "-o", f"allow_other,permissions,{option}", str(image), str(mount))
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
    deadline = time.monotonic() + _PATIENCE
    while mount in mounts_below(mount):
        if time.monotonic() > deadline:
            _try("umount", "-l", str(mount))
            return
        if not _try("umount", str(mount)):
            time.sleep(0.05)


# --- the one zfs daemon -------------------------------------------------------------------------


@contextlib.contextmanager
def _zfs_lock() -> Iterator[None]:
    try:
        _STATE.mkdir(exist_ok=True)
        lock = open(_STATE / "lock", "w")  # noqa: SIM115
    except OSError as error:
        raise VolumeError(f"a zfs volume needs root: {error}") from error
    with lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _pid_file() -> Path:
    return _STATE / "zfs-fuse.pid"


def _pools_at_start() -> Path:
    return _STATE / "pools-at-start"


def _zfs_answers() -> bool:
    return _try("zpool", "list", "-H")


@functools.cache
def _stop_zfs_daemon_at_exit(process: int) -> None:
    """Once a process, and not in its forks: starting and stopping for each volume takes seconds."""

    def stop() -> None:
        if os.getpid() == process:
            with _zfs_lock():
                _stop_zfs_daemon_if_unused()

    atexit.register(stop)


def _start_zfs_daemon() -> None:
    _stop_zfs_daemon_at_exit(os.getpid())
    if _zfs_answers():
        return
    # Not our TMPDIR: a harness that ends what carries its own would end the others' pools too.
    clean = {key: value for key, value in os.environ.items() if key != "TMPDIR"}
    deadline = time.monotonic() + 2 * _PATIENCE
    while not _zfs_answers():
        # One that starts while its predecessor still goes ends in silence: so once more.
        if time.monotonic() > deadline:
            raise VolumeError("zfs-fuse was started but does not answer: look into the syslog")
        if _our_zfs_daemon() is None:
            _launch_zfs_daemon(clean)
        else:
            time.sleep(0.1)  # busy: it has the pools of others
    # What a daemon imports by itself when it starts was not in use before, and need not be after.
    _pools_at_start().write_text("\n".join(_pools() or ()))


def _launch_zfs_daemon(env: dict[str, str]) -> None:
    _pid_file().unlink(missing_ok=True)  # a killed one's file would stop it from starting
    _run("zfs-fuse", "--no-kstat-mount", "-p", str(_pid_file()), env=env)
    give_up = time.monotonic() + 1
    while time.monotonic() < give_up and not _zfs_answers():
        time.sleep(0.02)


def _our_zfs_daemon() -> int | None:
    """The process id of the daemon that this package started, as long as that runs."""
    try:
        pid = int(_pid_file().read_text())
    except (OSError, ValueError):
        return None
    return pid if _is_zfs_daemon(pid) else None


def _stop_zfs_daemon_if_unused() -> None:
    """Stop the daemon if this package started it and nobody has made a pool that is left."""
    pid = _our_zfs_daemon()
    if pid is None or not _pools_at_start().exists():
        return
    pools, at_start = _pools(), _pools_at_start().read_text().split()
    # One that does not answer is busy with somebody's pools.
    if pools is None or set(pools) - set(at_start):
        return
    # Asked nicely it takes 3 to 5 seconds; without a pool it has nothing that could be lost.
    os.kill(pid, signal.SIGTERM if at_start else signal.SIGKILL)
    deadline = time.monotonic() + 2 * _PATIENCE
    while _is_zfs_daemon(pid):
        if time.monotonic() > deadline:
            os.kill(pid, signal.SIGKILL)
        time.sleep(0.02)
    _pid_file().unlink(missing_ok=True)


def _is_zfs_daemon(pid: int) -> bool:
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
        threads = len(os.listdir(f"/proc/{pid}/task"))
    except OSError:
        return False
    # A zombie has ended when its other threads have: nobody need have reaped it yet.
    return "(zfs-fuse) " in stat and not ("(zfs-fuse) Z" in stat and threads <= 1)


def _export_pool(pool: str) -> None:
    """Give a pool back if there is one; VolumeError where the daemon keeps it or is silent.

    A process of a mount namespace of its own may still have it: it is waited for. Never by force:
    with a descriptor of somebody's open there the daemon would hang, and all its pools with it.
    """
    began = time.monotonic()
    while (pools := _pools()) is None or pool in pools:
        if _try("zpool", "export", pool):
            return
        passed = time.monotonic() - began
        if passed > (_PATIENCE if pools is None else 8 * _PATIENCE):
            raise VolumeBusy(f"the pool {pool} cannot be exported: find what uses it, call sweep")
        time.sleep(0.05)


def _pools() -> list[str] | None:
    """The pools of the daemon; None where it does not answer."""
    done = _call(("zpool", "list", "-H", "-o", "name"))
    return None if done.returncode else done.stdout.split()


def _pools_below(base: Path) -> list[str]:
    return [
        pool
        for pool in _pools() or ()
        if any(
            word.startswith(f"{base}/") for word in _call(("zpool", "status", pool)).stdout.split()
        )
    ]


# --- running tools ------------------------------------------------------------------------------


def _run(*command: str, env: dict[str, str] | None = None) -> str:
    done = _call(command, env)
    if done.returncode:
        words = " ".join(done.stderr.split()) or f"exit {done.returncode}"
        raise VolumeError(f"{command[0]} failed: {words}")
    return done.stdout


def _try(*command: str) -> bool:
    return _call(command).returncode == 0


def _call(
    command: Sequence[str], env: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    # Output goes to a file: a daemon that keeps the pipe open would keep us waiting for its end.
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
        try:
            code = subprocess.run(
                command,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
                env=env,
                cwd="/",
                timeout=60,
                check=False,
            ).returncode
        except FileNotFoundError as error:
            raise VolumeError(f"{command[0]} is not installed: run `make setup`") from error
        except subprocess.TimeoutExpired as error:
            raise VolumeError(f"{command[0]} did not end within a minute") from error
        out.seek(0)
        err.seek(0)
        return subprocess.CompletedProcess(command, code, out.read(), err.read())


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python -m tests.matrix.volumes BASE")
    sweep(Path(sys.argv[1]))
