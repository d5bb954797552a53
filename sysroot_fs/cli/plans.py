"""From the command line of `run` to a plan: what the words mean, and which of them are wrong."""

from __future__ import annotations

import argparse
import contextlib
import errno
import os
from typing import TYPE_CHECKING

from sysroot_fs.cli.errors import SysrootError, UsageError
from sysroot_fs.cli.options import Settings, split_escaped
from sysroot_fs.guest import kernel
from sysroot_fs.guest.plan import Bind, Command, Kernel, Plan, Root, Tmpfs
from sysroot_fs.null import fill_closed
from sysroot_fs.text import absolute, reason, shown

if TYPE_CHECKING:
    from sysroot_fs.tree import Tree

_SOURCE_MAX = 255
"""Bytes that fsconfig(2) takes for one value; a longer source is shown by its end."""


def _guest_path(option: str, text: str) -> bytes:
    path = os.fsencode(text)
    if not path.startswith(b"/") or b".." in path.split(b"/"):
        raise UsageError(f"{option} takes an absolute path of the guest without .., not {text!r}")
    clean = os.path.normpath(path).replace(b"//", b"/")
    if clean == b"/":
        raise UsageError(f"{option} cannot cover the guest's root")
    return clean


def _bind(text: str) -> Bind:
    parts = split_escaped(text, ":", ":\\")
    read_only = len(parts) == 3 and parts[2] == "ro"
    if len(parts) < 2 or not all(parts) or (len(parts) > 2 and not read_only):
        raise UsageError(f"--bind takes SRC:DST or SRC:DST:ro, not {text!r} (\\: is a colon)")
    source = absolute(os.fsencode(parts[0]))
    try:
        if not source.startswith(b"/"):
            # In a directory that was removed; the root is made in another.
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))
        os.stat(source)
    except OSError as error:
        raise SysrootError(f"{shown(source)} cannot be bound: {reason(error)}") from error
    return Bind(source, _guest_path("--bind", parts[1]), read_only)


def _mounts(arguments: argparse.Namespace) -> tuple[Bind | Tmpfs, ...]:
    found: list[Bind | Tmpfs] = []
    for what, text in arguments.mounts or ():
        found.append(_bind(text) if what == "bind" else Tmpfs(_guest_path("--tmpfs", text)))
    return tuple(found)


def mountpoints(plan: Plan) -> dict[bytes, bool]:
    """The guest paths on which the plan mounts; true for a directory."""
    return {
        mount.target: not isinstance(mount, Bind) or os.path.isdir(mount.source)
        for mount in plan.root.mounts
    }


def make_room(tree: Tree, plan: Plan) -> None:
    """Have the tree show what the plan mounts on, whether the guest has it or not."""
    try:
        tree.make_room(mountpoints(plan))
    except OSError as error:
        raise SysrootError(
            f"the guest has no place to mount on: {shown(os.fsencode(error.filename or ''))}: "
            f"{reason(error)}"
        ) from error


def _number(option: str, text: str) -> int:
    if not (text.isascii() and text.isdigit() and int(text[:20]) < (1 << 32) - 1):
        raise UsageError(f"{option} takes numbers, UID or UID:GID, not {text!r}")
    return int(text)


def _user(arguments: argparse.Namespace, inside: int | None) -> tuple[int | None, int | None]:
    """--user; *inside* is the only user that there is in a user namespace."""
    if arguments.user is None:
        return None, None
    uid, colon, gid = arguments.user.partition(":")
    user = _number("--user", uid)
    group = _number("--user", gid) if colon else None
    if inside is None:
        return user, group
    if user != inside:
        raise UsageError(
            f"--user {user} needs root: without it the guest has one user only, {inside}"
        )
    return None, None


def _callers_environment() -> dict[bytes, bytes]:
    environment = dict(os.environb)
    # Where there is no locale Python sets this one for itself (PEP 538).
    if b"LC_CTYPE" in environment:
        with contextlib.suppress(OSError), open("/proc/self/environ", "rb") as given:
            if not any(entry.startswith(b"LC_CTYPE=") for entry in given.read().split(b"\0")):
                del environment[b"LC_CTYPE"]
    return environment


def _environment(arguments: argparse.Namespace) -> dict[bytes, bytes]:
    environment = _callers_environment()
    if arguments.clean_env:
        environment = {key: environment[key] for key in (b"TERM",) if key in environment}
    for name in arguments.unset:
        if not name or "=" in name:
            raise UsageError(f"--unset takes the name of a variable, not {name!r}")
        environment.pop(os.fsencode(name), None)
    for setting in arguments.env:
        name, equals, value = setting.partition("=")
        if not name or not equals:
            raise UsageError(f"--env takes NAME=VALUE, not {setting!r}")
        environment[os.fsencode(name)] = os.fsencode(value)
    return environment


def _working_directory(arguments: argparse.Namespace) -> tuple[bytes, bool]:
    if arguments.chdir is not None:
        path = os.fsencode(arguments.chdir)
        if not path.startswith(b"/"):
            raise UsageError(f"--chdir takes an absolute path, not {arguments.chdir!r}")
        return path, True
    with contextlib.suppress(OSError):
        return os.getcwdb(), False
    return b"/", False


def _command(arguments: argparse.Namespace) -> tuple[bytes, ...]:
    return tuple(map(os.fsencode, arguments.command or ["/bin/sh"]))


def _inherited() -> tuple[int, ...]:
    """The descriptors past 0, 1 and 2 that the caller hands on."""
    inherited = []
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):  # the listing's own is gone by now
            if int(name) > 2 and os.get_inheritable(int(name)):
                inherited.append(int(name))
    return tuple(inherited)


def _attributes(settings: Settings) -> int:
    return (
        (0 if settings.suid else kernel.MOUNT_ATTR_NOSUID)
        | (0 if settings.dev else kernel.MOUNT_ATTR_NODEV)
        | (0 if settings.exec else kernel.MOUNT_ATTR_NOEXEC)
        | (kernel.MOUNT_ATTR_NOATIME if settings.noatime else 0)
        | (kernel.MOUNT_ATTR_RDONLY if settings.read_only else 0)
    )


def make_plan(
    arguments: argparse.Namespace, settings: Settings, sysroot: bytes, privileged: bool
) -> Plan:
    """The plan for parsed *arguments*; raises UsageError, and SysrootError for a bad bind.

    *privileged* says that no user namespace is needed.
    """
    closed, inherited = fill_closed(), _inherited()
    map_root = not arguments.map_self
    if privileged and (arguments.map_self or arguments.map_root):
        raise UsageError("--map-root and --map-self are for users that are not root")
    uid = 0 if privileged or map_root else os.geteuid()
    gid = 0 if privileged or map_root else os.getegid()
    options = {
        b"source": (settings.fsname or sysroot)[-_SOURCE_MAX:],
        b"subtype": settings.subtype,
        b"user_id": b"%d" % uid,
        b"group_id": b"%d" % gid,
        b"default_permissions": None,
        b"allow_other": None,
    }
    proc = arguments.proc or ("fresh" if arguments.pid else "host")
    root = Root(
        options=options,
        attributes=_attributes(settings),
        user_namespace=not privileged,
        map_root=map_root,
        proc=Kernel(proc),
        dev=Kernel(arguments.dev or "host"),
        sys=Kernel(arguments.sys or "host"),
        mounts=_mounts(arguments),
        hostname=None if arguments.hostname is None else os.fsencode(arguments.hostname),
        own_processes=arguments.pid,
    )
    user, group = _user(arguments, None if privileged else uid)
    directory, insist = _working_directory(arguments)
    command = Command(
        arguments=_command(arguments),
        environment=_environment(arguments),
        directory=directory,
        insist=insist,
        user=user,
        group=group,
        home=arguments.clean_env,
        closed=closed,
        fallback=settings.fallback,
    )
    terminal = arguments.tty
    if terminal is None:
        terminal = os.isatty(0) and os.isatty(1)
    return Plan(root, command, terminal, bool(arguments.tty) or os.isatty(2), inherited)
