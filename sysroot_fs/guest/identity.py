"""Becoming somebody who may mount: a user namespace, and why a machine may forbid it."""

from __future__ import annotations

import errno
import os
from typing import Final

from sysroot_fs.guest import kernel
from sysroot_fs.guest.plan import GuestError
from sysroot_fs.text import reason

_SETTINGS: Final = "/proc/sys"


def _setting(settings: str, name: str) -> str | None:
    try:
        with open(f"{settings}/{name}", encoding="ascii") as file:
            return file.read().strip()
    except OSError:
        return None


def why_forbidden(
    error: OSError, user: int, *, mapping: bool = False, settings: str = _SETTINGS
) -> str:
    """A sentence that names the setting which keeps *user* from a user namespace.

    *mapping* says that the namespace was made, but *user* was not let into it. *settings* is
    where the machine's settings are.
    """
    who = "without root" if user else "for root without CAP_SYS_ADMIN"
    start = f"{who} a user namespace is needed, and this machine forbids it"
    if _setting(settings, "kernel/unprivileged_userns_clone") == "0":
        return f"{start}: the setting kernel.unprivileged_userns_clone is 0 (sysctl sets it to 1)"
    if _setting(settings, "user/max_user_namespaces") == "0":
        return f"{start}: the setting user.max_user_namespaces is 0 (sysctl sets it)"
    if _setting(settings, "kernel/apparmor_restrict_unprivileged_userns") == "1":
        return (
            f"{start}: the setting kernel.apparmor_restrict_unprivileged_userns is 1 (sysctl sets "
            "it to 0, or AppArmor needs a profile that allows it)"
        )
    if error.errno == errno.ENOSPC:
        return (
            f"{start}: there are as many as user.max_user_namespaces allows, or they are nested "
            "too deeply"
        )
    if error.errno in (errno.ENOSYS, errno.EINVAL):
        return f"{start}: this kernel was built without CONFIG_USER_NS"
    if error.errno == errno.EPERM and mapping and not user:
        return f"{start}: root is let into one only with the capability CAP_SETFCAP"
    if error.errno == errno.EPERM and not mapping:
        return (
            f"{start}: unshare(2) is not permitted, as in a chroot or under the system call "
            "filter of a container"
        )
    return f"{start}: {reason(error)}"


def _write(name: str, text: str) -> None:
    fd = os.open(f"/proc/self/{name}", os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(fd, text.encode())
    finally:
        os.close(fd)


def unshare_as_user(flags: int, map_root: bool) -> None:
    """New namespaces, *flags*, in a user namespace of the caller's own; raises GuestError.

    Its only user is the caller, as root with *map_root*, else as itself: one id is all that the
    kernel lets a process map for itself.
    """
    user, group = os.geteuid(), os.getegid()
    try:
        kernel.unshare(flags | kernel.CLONE_NEWUSER)
    except OSError as error:
        raise GuestError(why_forbidden(error, user)) from error
    try:
        # Without this the kernel does not let a group be mapped: dropping a group may open a file.
        _write("setgroups", "deny")
        _write("uid_map", f"{0 if map_root else user} {user} 1")
        _write("gid_map", f"{0 if map_root else group} {group} 1")
    except OSError as error:
        raise GuestError(why_forbidden(error, user, mapping=True)) from error
