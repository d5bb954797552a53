"""Mounting a tree and serving it until it is unmounted."""

from __future__ import annotations

import contextlib
import logging
import os
import stat
from collections.abc import Callable, Iterator

import pyfuse3
import trio

from sysroot_fs.fuse.door import Door
from sysroot_fs.fuse.guardian import guarded_at
from sysroot_fs.fuse.options import FileOptions, MountOptions
from sysroot_fs.fuse.settled import settle
from sysroot_fs.fuse.signals import Signals, held_back
from sysroot_fs.null import open_null
from sysroot_fs.tree import Tree

log = logging.getLogger(__name__)


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
    file_options: FileOptions,
    ready: Callable[[], None],
    debug: bool = False,
) -> None:
    """Mount *tree* at *mountpoint*, call *ready* once it is up, serve until it is unmounted.

    Of *file_options* this door has the choice of `awake` only.

    Without *options* the mountpoint is `/dev/fd/N`, which stands for a mount that is there already
    and is served through the descriptor N. For the signals see `sysroot_fs.fuse.signals`. Raises
    RuntimeError where libfuse cannot mount (it has said why on standard error), or the kernel and
    libfuse do not agree on a protocol.
    """
    words = set() if options is None else set(libfuse_words(options))
    if debug:
        words.add("debug")
    real = None if options is None else os.path.realpath(mountpoint)
    settle()
    with held_back() as signal_fd:
        door = Door(tree, ready, real, file_options.awake)
        with _device_closed_first() if "auto_unmount" in words else contextlib.nullcontext():
            pyfuse3.init(door, os.fsdecode(mountpoint), words)
        with guarded_at(real):
            signals = Signals(signal_fd, pyfuse3.terminate, lambda: door.counts)
            clean = False
            try:
                trio.run(_main, door, signals)
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
        signals.check_served(door.negotiated)


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


async def _main(door: Door, signals: Signals) -> None:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_watch, signals)
        nursery.start_soon(door.watch)
        # Only fsync ever waits, in a thread. More tasks than trio has threads for them: on a volume
        # that hangs the other requests are still answered.
        await pyfuse3.main(min_tasks=1, max_tasks=64)
        nursery.cancel_scope.cancel()


async def _watch(signals: Signals) -> None:
    while True:
        await trio.lowlevel.wait_readable(signals.fd)
        signals.take()
