"""Mounting a tree and serving it over /dev/fuse until it is unmounted."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable
from typing import Final

from sysroot_fs.fuse.guardian import guarded_at
from sysroot_fs.fuse.kernel.door import Door
from sysroot_fs.fuse.kernel.loop import Loop
from sysroot_fs.fuse.kernel.mounting import Mounted
from sysroot_fs.fuse.options import FileOptions, MountOptions
from sysroot_fs.fuse.settled import settle
from sysroot_fs.fuse.signals import Signals, held_back
from sysroot_fs.tree import Tree

_GIVEN: Final = b"/dev/fd/"


def serve(
    tree: Tree,
    mountpoint: bytes,
    options: MountOptions | None,
    file_options: FileOptions,
    ready: Callable[[], None],
    debug: bool = False,
) -> None:
    """Mount *tree* at *mountpoint*, call *ready* once it is up, serve until it is unmounted.

    Without *options* the mountpoint is `/dev/fd/N`, which stands for a mount that is there already
    and is served through the descriptor N. For the signals see `sysroot_fs.fuse.signals`. Raises
    OSError where it cannot be mounted, RuntimeError where fusermount3 refuses (it has said why on
    standard error) or the kernel's protocol is not ours.
    """
    # Not later: nobody would answer.
    real = None if options is None else os.path.realpath(mountpoint)
    settle()
    with held_back() as signal_fd:
        if options is None:
            mounted = Mounted(int(mountpoint.removeprefix(_GIVEN)))
        else:
            mounted = Mounted.at(mountpoint, options)
        with contextlib.ExitStack() as end:
            end.callback(tree.close)
            end.callback(mounted.close)
            # Also what cannot be served after all, and once more with a process less.
            end.callback(mounted.unmount)
            end.enter_context(guarded_at(real))
            door = Door(tree, mounted.device, ready, real, options=file_options)
            loop = Loop(door, debug)
            end.callback(loop.close)
            end.callback(mounted.unmount)
            leaving = threading.Thread(target=_leave, args=(mounted, loop), name="unmount")
            signals = Signals(signal_fd, leaving.start, door.counted)
            loop.beside[signal_fd] = signals.take
            try:
                loop.run()
            finally:
                if leaving.ident is not None:
                    leaving.join()
        signals.check_served(door.negotiated)


def _leave(mounted: Mounted, loop: Loop) -> None:
    """Unmount while requests are answered: the kernel writes back what was changed through maps."""
    try:
        mounted.unmount()
    finally:
        loop.stop()
