"""A process that has the kernel let go of a mount whose server was killed and cannot end.

A thread that tells the kernel of a change waits in it, where no signal is heard, for a directory
that somebody holds who waits for the server's reply. The killed server then lives on in that one
thread with the mount's device open, which the kernel takes for a server, and all wait for ever. Who
sees it from outside aborts the mount: every call in it fails then, as after the end of any server.

The first thread of a process ends at the first signal that kills it, and the kernel tells its
children (PR_SET_PDEATHSIG).
"""

from __future__ import annotations

import contextlib
import logging
import os
import select
import signal
from collections.abc import Iterator
from typing import Final, NoReturn

from sidecar import linux, processes
from sysroot_fs.fuse import submounts
from sysroot_fs.null import to_null

log = logging.getLogger(__name__)

_NAME: Final = b"sysroot-guard"
_PATIENCE_SECONDS: Final = 0.5
"""How long all threads of a killed process may take to end."""
_CONNECTIONS: Final = b"/sys/fs/fuse/connections"
_WRITE: Final = os.O_WRONLY | os.O_CLOEXEC


@contextlib.contextmanager
def guarded(mount: bytes | None) -> Iterator[None]:
    """Have this process watched, the server of the mount with the device number *mount* (`0:42`).

    To be entered by the first thread, before there are others. Without a mount nobody watches.
    """
    guardian = None if mount is None else _start(mount)
    try:
        yield
    finally:
        if guardian is not None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(guardian, signal.SIGKILL)
            # Somebody may wait for all children of this process.
            with contextlib.suppress(ChildProcessError):
                os.waitpid(guardian, 0)


@contextlib.contextmanager
def guarded_at(mountpoint: bytes | None) -> Iterator[None]:
    """The same for the server of what is mounted at *mountpoint*, a path without links."""
    mount = None
    try:
        mount = None if mountpoint is None else submounts.device_at(mountpoint)
    except OSError as error:
        # Too many open files.
        log.warning("nobody watches this server: %s", error)
    with guarded(mount):
        yield


def _start(mount: bytes) -> int | None:
    server = os.getpid()
    try:
        pid = os.fork()
    except OSError as error:
        # Too many processes. It is the exception that it would be needed.
        log.warning("nobody watches this server: %s", error)
        return None
    if pid == 0:
        try:
            _watch(server, mount)
        finally:
            os._exit(1)
    return pid


def _watch(server: int, mount: bytes) -> NoReturn:
    """The guardian's whole life."""
    signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    processes.signal_at_parents_end(signal.SIGTERM)
    # Nothing of the server's is kept open here: neither its device nor its descriptors.
    to_null(0, 1, 2)
    os.closerange(3, 1 << 30)
    os.setsid()
    os.chdir("/")
    with contextlib.suppress(OSError):
        processes.name_process(_NAME, b"sysroot-fs: the guardian of %d" % server)
    ended = select.poll()
    try:
        ended.register(os.pidfd_open(server), select.POLLIN)
    except ProcessLookupError:
        os._exit(0)
    while not ended.poll(1000 * _PATIENCE_SECONDS):
        if _is_killed(server):
            abort(mount)
        else:
            signal.sigwait({signal.SIGTERM})
    os._exit(0)


def _is_killed(pid: int) -> bool:
    """Whether the first thread of a process has ended, and others have not."""
    try:
        return processes.process_fields(pid)[0] in (b"Z", b"X")
    except FileNotFoundError:
        return True


def abort(mount: bytes) -> None:
    """Have every call in the FUSE mount with the device number *mount* fail from now on.

    Raises OSError without the right to: it is its owner's, where /sys is mounted in full, and the
    superuser's.
    """
    name = mount.partition(b":")[2] + b"/abort"
    try:
        file = os.open(b"/".join((_CONNECTIONS, name)), _WRITE)
    except FileNotFoundError:
        connections = linux.new_mount(b"fusectl")
        try:
            file = os.open(name, _WRITE, dir_fd=connections)
        finally:
            os.close(connections)
    os.write(file, b"1")
    os.close(file)
