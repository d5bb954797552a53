"""The last steps of the process that becomes the guest's program.

It is in the guest's root already and single-threaded. Whatever Python has changed about a process
(ignored signals, a signal mask) is put back, so that the program starts as it would from a shell.
"""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterable
from typing import NoReturn

from sysroot_fs.guest import kernel, program
from sysroot_fs.guest.plan import Command, GuestError
from sysroot_fs.text import reason, shown

DEFAULT_PATH = b"/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
"""PATH for a program that was given none: where guests have their programs."""


def _fields(path: bytes) -> list[list[bytes]]:
    """The lines of the guest's passwd or group; parsed here, for libc would load modules for it."""
    try:
        with open(path, "rb") as lines:
            return [line.rstrip(b"\n").split(b":") for line in lines]
    except OSError:
        return []


def _is_id(field: bytes) -> bool:
    """Whether the kernel knows such a user or group; -1 means none."""
    return field.isdigit() and len(field) <= 10 and int(field) < (1 << 32) - 1


def _account(uid: int) -> tuple[bytes, int, bytes] | None:
    """Name, group and home of the guest's user *uid*."""
    for fields in _fields(b"/etc/passwd"):
        if len(fields) >= 6 and fields[2] == b"%d" % uid and _is_id(fields[3]):
            return fields[0], int(fields[3]), fields[5]
    return None


def _groups(name: bytes) -> list[int]:
    """The groups that list the guest's user *name*."""
    return [
        int(fields[2])
        for fields in _fields(b"/etc/group")
        if len(fields) >= 4 and _is_id(fields[2]) and name in fields[3].split(b",")
    ]


def _become(uid: int, gid: int | None) -> None:
    account = _account(uid)
    groups = _groups(account[0]) if account and gid is None else []
    if gid is None:
        gid = account[1] if account else uid
    try:
        os.setgroups([gid, *groups])
        os.setresgid(gid, gid, gid)
        os.setresuid(uid, uid, uid)
    except ValueError as error:
        # More than NGROUPS_MAX.
        raise GuestError(f"the command cannot run as {uid}:{gid}: {error}") from error
    except OSError as error:
        raise GuestError(f"the command cannot run as {uid}:{gid}: {reason(error)}") from error


def _go_to(command: Command, environment: dict[bytes, bytes]) -> None:
    try:
        os.chdir(command.directory)
    except OSError as error:
        if command.insist:
            where = shown(command.directory)
            raise GuestError(f"the guest has no directory {where}: {reason(error)}") from error
        # The guest's root is the working directory still.
        directory = b"/"
    else:
        directory = command.directory
    if command.insist or b"PWD" in environment:
        environment[b"PWD"] = directory


def start(command: Command, mask: Iterable[int]) -> NoReturn:
    """Become the program; raises Refusal or GuestError where that cannot be."""
    environment = dict(command.environment)
    if command.user is not None:
        _become(command.user, command.group)
    parent = os.getppid()
    kernel.die_with_parent()
    if parent != os.getppid():
        os._exit(137)
    _go_to(command, environment)
    environment.setdefault(b"PATH", DEFAULT_PATH)
    if command.home:
        account = _account(os.getuid())
        environment.setdefault(b"HOME", account[2] if account else b"/")
    path = program.find(command.arguments[0], environment)
    program.check(path, environment)
    for number in (signal.SIGPIPE, signal.SIGXFSZ):
        signal.signal(number, signal.SIG_DFL)
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        # One that waits ends this process, as it would end the program.
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    for fd in command.closed:
        with contextlib.suppress(OSError):
            os.close(fd)
    signal.pthread_sigmask(signal.SIG_SETMASK, mask)
    try:
        os.execve(path, command.arguments, environment)
    except OSError as error:
        if program.is_plain_script(path):
            # What execvp(3) and every shell do with a text that names no interpreter.
            with contextlib.suppress(OSError):
                arguments = (b"sh", path, *command.arguments[1:])
                os.execve(b"/bin/sh", arguments, environment)
        raise program.explain(
            path, command.arguments, error, environment, fallback=command.fallback
        ) from error


__all__ = ["DEFAULT_PATH", "start"]
