"""Mounting a tree and serving it over /dev/fuse until it is unmounted."""

from __future__ import annotations

import logging
import os
import signal
from collections.abc import Callable
from typing import Final

import trio

from sysroot_fs.fuse.kernel.door import Door
from sysroot_fs.fuse.kernel.loop import Loop
from sysroot_fs.fuse.kernel.mounting import Mounted
from sysroot_fs.fuse.options import MountOptions
from sysroot_fs.tree import Tree

log = logging.getLogger(__name__)
_ENDING: Final = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
_GIVEN: Final = b"/dev/fd/"


def serve(
    tree: Tree,
    mountpoint: bytes,
    options: MountOptions | None,
    ready: Callable[[], None],
    debug: bool = False,
) -> None:
    """Mount *tree* at *mountpoint*, call *ready* once it is up, serve until it is unmounted.

    Without *options* the mountpoint is `/dev/fd/N`, which stands for a mount that is there already
    and is served through the descriptor N. SIGTERM, SIGINT and SIGHUP unmount,
    SIGUSR1 logs how many requests there were. Raises OSError
    where it cannot be mounted, RuntimeError where fusermount3 refuses (it has said why on standard
    error) or the kernel's protocol is not ours.
    """
    # Not later: nobody would answer.
    real = None if options is None else os.path.realpath(mountpoint)
    # A signal between the mount and its handler would kill the server and leave a dead mount.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _ENDING)
    try:
        if options is None:
            mounted = Mounted(int(mountpoint.removeprefix(_GIVEN)))
        else:
            mounted = Mounted.at(mountpoint, options)
    except BaseException:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        raise
    ended_by: list[signal.Signals] = []
    door = Door(tree, mounted.device, ready, real)
    loop = Loop(door, debug)
    try:
        trio.run(_main, loop, mounted, ended_by)
    finally:
        mounted.unmount()
        loop.close()
        mounted.close()
        tree.close()
    # A signal may come before the first request: that is no failure.
    if not door.negotiated and not ended_by:
        raise RuntimeError("the kernel's FUSE protocol is not ours")


async def _main(loop: Loop, mounted: Mounted, ended_by: list[signal.Signals]) -> None:
    async with trio.open_nursery() as nursery:
        await nursery.start(_watch_signals, loop, mounted, ended_by)
        await trio.to_thread.run_sync(loop.run)
        nursery.cancel_scope.cancel()


async def _watch_signals(
    loop: Loop,
    mounted: Mounted,
    ended_by: list[signal.Signals],
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> None:
    with trio.open_signal_receiver(*_ENDING, signal.SIGUSR1) as received:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _ENDING)
        task_status.started()
        async for number in received:
            if number == signal.SIGUSR1:
                log.info("requests: %s", loop.counted())
                continue
            ended_by.append(signal.Signals(number))
            log.info("%s: unmounting", ended_by[-1].name)
            # While requests are answered: the kernel writes back what was changed through maps.
            with trio.CancelScope(shield=True):
                await trio.to_thread.run_sync(mounted.unmount)
            loop.stop()
