"""zfs-fuse, the one daemon that serves every zfs volume of the machine.

`start` it, hold the `lock` that all processes share while you do and while pools are made or given
back, `export_pool` what you made; the process that ends when no pool is left stops it. A daemon
that somebody else started is used and left alone.

One that we start takes its requests in turns (``volumes_c/one-request.c`` says why).
"""

from __future__ import annotations

import atexit
import contextlib
import fcntl
import functools
import hashlib
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from tests.matrix.guest_cache import cache_dir
from tests.matrix.volume_tools import PATIENCE, VolumeBusy, VolumeError, call, run, succeeds

_STATE: Final = Path("/run/sysroot-fs-volumes")
_ONE_REQUEST: Final = Path(__file__).parent / "volumes_c" / "one-request.c"


@contextlib.contextmanager
def lock() -> Iterator[None]:
    """Nobody else starts or stops the daemon, makes a pool or exports one meanwhile."""
    try:
        _STATE.mkdir(exist_ok=True)
        file = open(_STATE / "lock", "w")  # noqa: SIM115
    except OSError as error:
        raise VolumeError(f"a zfs volume needs root: {error}") from error
    with file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def answers() -> bool:
    """Whether there is a daemon that takes commands."""
    return succeeds("zpool", "list", "-H")


def pools() -> list[str] | None:
    """The pools of the daemon; None where it does not answer."""
    done = call(("zpool", "list", "-H", "-o", "name"))
    return None if done.returncode else done.stdout.split()


def pools_below(base: Path) -> list[str]:
    """The pools whose images lie below *base*."""
    return [
        pool
        for pool in pools() or ()
        if any(
            word.startswith(f"{base}/") for word in call(("zpool", "status", pool)).stdout.split()
        )
    ]


def export_pool(pool: str) -> None:
    """Give a pool back if there is one.

    A process of a mount namespace of its own may still have it: it is waited for. Never by force:
    with a descriptor of somebody's open there the daemon would hang, and all its pools with it.
    Raises `VolumeBusy` where the daemon keeps it or is silent, `VolumeError` where the daemon has
    died and took the pool along.
    """
    began = time.monotonic()
    while (known := pools()) is None or pool in known:
        if succeeds("zpool", "export", pool):
            return
        if known is None and not _running():
            raise VolumeError(f"zfs-fuse has died with the pool {pool}: look for a core dump")
        passed = time.monotonic() - began
        if passed > (6 * PATIENCE if known is None else 24 * PATIENCE):
            why = "zfs-fuse does not answer" if known is None else "find what uses it, call sweep"
            raise VolumeBusy(f"the pool {pool} cannot be exported: {why}")
        time.sleep(0.05)


# --- starting and stopping ------------------------------------------------------------------------


def start() -> None:
    """A daemon answers when this returns, whoever started it; under the `lock`."""
    _stop_at_exit(os.getpid())
    if answers():
        return
    # Not our TMPDIR: a harness that ends what carries its own would end the others' pools too.
    clean = {key: value for key, value in os.environ.items() if key != "TMPDIR"}
    clean["LD_PRELOAD"] = str(_one_request())
    deadline = time.monotonic() + 2 * PATIENCE
    while not answers():
        # One that starts while its predecessor still goes ends in silence: so once more.
        if time.monotonic() > deadline:
            raise VolumeError("zfs-fuse was started but does not answer: look into the syslog")
        if _ours() is None:
            _launch(clean)
        else:
            time.sleep(0.1)  # busy: it has the pools of others
    # What a daemon imports by itself when it starts was not in use before, and need not be after.
    _pools_at_start().write_text("\n".join(pools() or ()))


def stop_if_unused() -> None:
    """Stop the daemon if this package started it and nobody has made a pool that is left."""
    pid = _ours()
    if pid is None or not _pools_at_start().exists():
        return
    known, at_start = pools(), _pools_at_start().read_text().split()
    # One that does not answer is busy with somebody's pools.
    if known is None or set(known) - set(at_start):
        return
    # Asked nicely it takes 3 to 5 seconds; without a pool it has nothing that could be lost.
    os.kill(pid, signal.SIGTERM if at_start else signal.SIGKILL)
    deadline = time.monotonic() + 2 * PATIENCE
    while _is_daemon(pid):
        if time.monotonic() > deadline:
            os.kill(pid, signal.SIGKILL)
        time.sleep(0.02)
    _pid_file().unlink(missing_ok=True)


@functools.cache
def _stop_at_exit(process: int) -> None:
    """Once a process, and not in its forks: starting and stopping for each volume takes seconds."""

    def stop() -> None:
        if os.getpid() == process:
            with lock():
                stop_if_unused()

    atexit.register(stop)


def _launch(env: dict[str, str]) -> None:
    _pid_file().unlink(missing_ok=True)  # a killed one's file would stop it from starting
    run("zfs-fuse", "--no-kstat-mount", "-p", str(_pid_file()), env=env)
    give_up = time.monotonic() + 1
    while time.monotonic() < give_up and not answers():
        time.sleep(0.02)


def _one_request() -> Path:
    """The library that makes the daemon's requests take turns; compiled once, under the `lock`."""
    version = hashlib.sha256(_ONE_REQUEST.read_bytes()).hexdigest()[:12]
    library = cache_dir() / f"zfs-one-request-{version}.so"
    if not library.exists():
        half = library.with_suffix(".half")
        flags = ("-O2", "-Wall", "-Werror", "-shared", "-fPIC", "-pthread")
        run("gcc", *flags, "-o", str(half), str(_ONE_REQUEST), "-ldl")
        half.rename(library)
    return library


# --- which process it is --------------------------------------------------------------------------


def _pid_file() -> Path:
    return _STATE / "zfs-fuse.pid"


def _pools_at_start() -> Path:
    return _STATE / "pools-at-start"


def _ours() -> int | None:
    """The process id of the daemon that this package started, as long as that runs."""
    try:
        pid = int(_pid_file().read_text())
    except (OSError, ValueError):
        return None
    return pid if _is_daemon(pid) else None


def _running() -> bool:
    """Whether there is a daemon at all, whoever started it."""
    return any(_is_daemon(int(name)) for name in os.listdir("/proc") if name.isdigit())


def _is_daemon(pid: int) -> bool:
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
        threads = len(os.listdir(f"/proc/{pid}/task"))
    except OSError:
        return False
    # A zombie has ended when its other threads have: nobody need have reaped it yet.
    return "(zfs-fuse) " in stat and not ("(zfs-fuse) Z" in stat and threads <= 1)
