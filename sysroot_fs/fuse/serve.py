"""Mounting a tree and serving it until it is unmounted."""

from __future__ import annotations

import logging
import os
import signal
from collections.abc import Callable, Iterable

import pyfuse3
import trio

from sysroot_fs.fuse.door import Door
from sysroot_fs.tree import Tree

log = logging.getLogger(__name__)
_ENDING = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


def serve(
    tree: Tree,
    mountpoint: bytes,
    fuse_options: Iterable[str],
    ready: Callable[[], None],
    debug: bool = False,
) -> None:
    """Mount *tree* at *mountpoint*, call *ready* once it is up, serve until it is unmounted.

    *fuse_options* are libfuse's. SIGTERM, SIGINT and SIGHUP unmount. Raises RuntimeError where
    libfuse cannot mount (it has said why on standard error), or the kernel and libfuse do not
    agree on a protocol.
    """
    options = set(fuse_options)
    if debug:
        options.add("debug")
    # A signal between the mount and its handler would kill the server and leave a dead mount.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _ENDING)
    try:
        door = Door(tree, ready)
        pyfuse3.init(door, os.fsdecode(mountpoint), options)
    except BaseException:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        raise
    clean = False
    try:
        trio.run(_main)
        clean = True
    finally:
        try:
            pyfuse3.close(unmount=True)
        except Exception:
            if clean:
                raise
            log.exception("unmounting failed")
        tree.close()
    if not door.negotiated:
        raise RuntimeError("the kernel and libfuse did not agree on a protocol")


async def _main() -> None:
    async with trio.open_nursery() as nursery:
        await nursery.start(_watch_signals)
        # One task reads: the handlers never await, so more would only hop.
        await pyfuse3.main(min_tasks=1, max_tasks=4)
        nursery.cancel_scope.cancel()


async def _watch_signals(
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> None:
    with trio.open_signal_receiver(*_ENDING) as received:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _ENDING)
        task_status.started()
        async for number in received:
            log.info("%s: unmounting", signal.Signals(number).name)
            pyfuse3.terminate()
