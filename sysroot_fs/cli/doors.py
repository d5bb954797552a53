"""Which door serves a mount, and loading it."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Final, Protocol

import attrs

from sysroot_fs.cli import machine
from sysroot_fs.cli.errors import UsageError
from sysroot_fs.cli.logs import note
from sysroot_fs.cli.options import Settings
from sysroot_fs.fuse.options import FileOptions
from sysroot_fs.text import shown

if TYPE_CHECKING:
    from sysroot_fs.fuse.options import MountOptions
    from sysroot_fs.tree import Tree


class Serve(Protocol):
    """Mounts a tree and serves it until it is unmounted; see `sysroot_fs.fuse.kernel.serve`."""

    def __call__(
        self,
        tree: Tree,
        mountpoint: bytes,
        options: MountOptions | None,
        file_options: FileOptions,
        ready: Callable[[], None],
        debug: bool = False,
    ) -> None: ...


DOORS: Final = ("kernel", "pyfuse3")
VARIABLE: Final = "SYSROOT_FS_DOOR"


def chosen(name: str) -> str:
    """The door that *name* means: `auto` is what the environment says, else the fastest.

    Raises UsageError for one that there is not.
    """
    if name != "auto":
        return name
    wanted = os.environ.get(VARIABLE) or "kernel"
    if wanted not in DOORS:
        raise UsageError(
            f"{VARIABLE}: there is no door {shown(os.fsencode(wanted))}: {' or '.join(DOORS)}"
        )
    return wanted


def load_door(name: str) -> Serve:
    """The door *name*, `auto` included. Raises FuseUnavailable, UsageError."""
    if chosen(name) == "kernel":
        from sysroot_fs.fuse.kernel.serve import serve as by_kernel

        return by_kernel
    machine.load_binding()
    from sysroot_fs.fuse.serve import serve as by_binding

    return by_binding


def file_options(settings: Settings) -> FileOptions:
    """The settings that say how open files are served; a note where the door has no choice.

    Raises UsageError for those that do not go together.
    """
    names = attrs.fields_dict(FileOptions)
    options = FileOptions(**{name: getattr(settings, name) for name in names})
    if options.writes == "back":
        if options.opens == "passthrough":
            raise UsageError("writes=back and opens=passthrough exclude each other: use one")
        sees_host = settings.fallback != "none" or settings.allow
        if settings.coherence != "exclusive" or (
            sees_host and settings.host_coherence != "exclusive"
        ):
            raise UsageError(
                "writes=back is for trees to which nobody else writes: say that with "
                "coherence=exclusive, and host_coherence=exclusive or fallback=none"
            )
    if options.uring == "on" and options.locks:
        # Whoever waits for a lock would keep a place in the ring, of which there are few.
        raise UsageError("uring=on and locks exclude each other: use one")
    if chosen(settings.door) == "pyfuse3":
        wanted = {
            "opens=passthrough": options.opens == "passthrough",
            "writes=back": options.writes == "back",
            "locks": options.locks,
            "uring=on": options.uring == "on",
        }
        for name in filter(wanted.get, wanted):
            note(f"{name} is accepted, but pyfuse3 has no such thing: no effect")
    return options
