"""Mounting a tree and serving it until it is unmounted."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import stat
from collections.abc import Callable, Iterator

import pyfuse3
import trio

from sysroot_fs.fuse.door import Door
from sysroot_fs.fuse.options import MountOptions
from sysroot_fs.null import open_null
from sysroot_fs.tree import Tree

log = logging.getLogger(__name__)
_ENDING = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


def escaped(value: bytes) -> str:
    """`value` inside a libfuse option: ASCII, with commas and backslashes taken literally.

    libfuse reads `\\ooo` as a byte in octal (its fuse_opt.c), and pyfuse3 hands on ASCII only.
    """
    return "".join(
        chr(byte) if 0x20 < byte < 0x7F and byte not in b",\\" else f"\\{byte:03o}"
        for byte in value
    )


def libfuse_words(options: MountOptions) -> list[str]:
    """The options as libfuse takes them.

    max_read is left out: libfuse wants the same number from the binding's answer to INIT, where
    pyfuse3 (3.5) cannot put it, and ends the session when they differ.
    """
    return [
        f"fsname={escaped(options.source)}",
        f"subtype={escaped(options.subtype)}",
        "default_permissions",
        *map(os.fsdecode, options.words()),
    ]


def serve(
    tree: Tree,
    mountpoint: bytes,
    options: MountOptions | None,
    ready: Callable[[], None],
    debug: bool = False,
) -> None:
    """Mount *tree* at *mountpoint*, call *ready* once it is up, serve until it is unmounted.

    Without *options* the mountpoint is `/dev/fd/N`, which stands for a mount that is there already
    and is served through the descriptor N. SIGTERM, SIGINT and SIGHUP unmount. Raises
    RuntimeError where libfuse cannot mount (it has said why on standard error), or the kernel and
    libfuse do not agree on a protocol.
    """
    words = set() if options is None else set(libfuse_words(options))
    if debug:
        words.add("debug")
    # A signal between the mount and its handler would kill the server and leave a dead mount.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _ENDING)
    try:
        door = Door(tree, ready, None if options is None else os.path.realpath(mountpoint))
        with _device_closed_first() if "auto_unmount" in words else contextlib.nullcontext():
            pyfuse3.init(door, os.fsdecode(mountpoint), words)
    except BaseException:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        raise
    clean = False
    ended_by: list[signal.Signals] = []
    try:
        trio.run(_main, door, ended_by)
        clean = True
    finally:
        try:
            pyfuse3.close(unmount=True)
        except Exception:
            if clean:
                raise
            log.exception("unmounting failed")
        door.close()
        tree.close()
    # A signal may come before the first request: that is no failure.
    if not door.negotiated and not ended_by:
        raise RuntimeError("the kernel and libfuse did not agree on a protocol")


@contextlib.contextmanager
def _device_closed_first() -> Iterator[None]:
    """Have fusermount3, which waits for the end of a server (auto_unmount), find a dead mount.

    It hears of the end by a socket that libfuse has opened, and leaves alone a mount that is still
    alive then. The kernel closes the descriptors of a killed process one after the other, the last
    first: so the socket must have a lower number than the device.
    """
    low, before = open_null(), _sockets()
    try:
        yield
        opened = _sockets() - before
        if opened:
            socket = opened.pop()
            os.dup2(socket, low, inheritable=False)
            low = socket
    finally:
        os.close(low)


def _sockets() -> set[int]:
    found = set()
    for number in map(int, os.listdir("/proc/self/fd")):
        with contextlib.suppress(OSError):  # the listing's own is gone by now
            if stat.S_ISSOCK(os.fstat(number).st_mode):
                found.add(number)
    return found


async def _main(door: Door, ended_by: list[signal.Signals]) -> None:
    async with trio.open_nursery() as nursery:
        await nursery.start(_watch_signals, ended_by)
        nursery.start_soon(door.watch)
        # Only fsync ever waits, in a thread. More tasks than trio has threads for them: on a volume
        # that hangs the other requests are still answered.
        await pyfuse3.main(min_tasks=1, max_tasks=64)
        nursery.cancel_scope.cancel()


async def _watch_signals(
    ended_by: list[signal.Signals],
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> None:
    with trio.open_signal_receiver(*_ENDING) as received:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _ENDING)
        task_status.started()
        async for number in received:
            ended_by.append(signal.Signals(number))
            log.info("%s: unmounting", ended_by[-1].name)
            pyfuse3.terminate()
