"""What to run and how: everything that a run of a guest program is made of, decided beforehand.

The runner takes it apart into processes; nothing here does anything.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from typing import Final

from attrs import field, frozen

from sysroot_fs.text import Sentence

OWN_FAILURE: Final = 125
"""The exit status where the run itself has failed, and not the guest's program: chroot(1)'s."""


class Kernel(enum.Enum):
    """Where the guest's /proc, /dev or /sys come from."""

    HOST = "host"
    FRESH = "fresh"
    NONE = "none"


class GuestError(Sentence):
    """The guest root cannot be entered; the message is one sentence that says why."""


class Refusal(Exception):
    """The command cannot run; `status` is what a shell would exit with, 127 or 126.

    The message is one sentence without a full stop.
    """

    def __init__(self, status: int, message: str) -> None:
        super().__init__(status, message)
        self.status = status
        self.message = message

    def __str__(self) -> str:
        return self.message


@frozen
class Bind:
    """What the host has at *source*, with the mounts below it, at the guest path *target*."""

    source: bytes
    target: bytes
    read_only: bool = False


@frozen
class Tmpfs:
    """An empty directory in memory at the guest path *target*."""

    target: bytes


@frozen
class Root:
    """How the guest's root is made.

    *options* are those of the FUSE mount but for its descriptor (an option without a value is a
    flag), *attributes* its MOUNT_ATTR_*. *user_namespace* says that the caller has no right to
    mount and gets a namespace in which it has; *map_root* that it is root there. *hostname* is
    None for the machine's own.
    """

    options: Mapping[bytes, bytes | None]
    attributes: int
    user_namespace: bool = False
    map_root: bool = True
    proc: Kernel = Kernel.HOST
    dev: Kernel = Kernel.HOST
    sys: Kernel = Kernel.HOST
    mounts: tuple[Bind | Tmpfs, ...] = ()
    hostname: bytes | None = None
    own_processes: bool = False


@frozen
class Command:
    """What is started in it, and as what.

    *directory* is a guest path; without *insist* the root is good enough where the guest has no
    such directory. *user* is None for the caller's own; *group* None for the one that the guest's
    /etc/passwd gives that user. With *home* HOME is what it says there. *closed* are those of the
    descriptors 0, 1, 2 that the caller had closed. *fallback* is the tree's, for messages.
    """

    arguments: tuple[bytes, ...]
    environment: Mapping[bytes, bytes]
    directory: bytes = b"/"
    insist: bool = False
    user: int | None = None
    group: int | None = None
    home: bool = False
    closed: frozenset[int] = field(default=frozenset())
    fallback: str = "all"


@frozen
class Plan:
    """One run. *terminal* asks for a pseudo-terminal; *inherited* are descriptors past 2."""

    root: Root
    command: Command
    terminal: bool = False
    stderr_too: bool = True
    inherited: tuple[int, ...] = ()
