"""The system calls for namespaces and mounts that `os` lacks, made to feel like `os`.

As in `sidecar.linux`: one call each, failures as OSError, nothing decided here. Mounts are made
with the calls of Linux 5.2 (fsopen, open_tree, move_mount), which hand out a descriptor of a mount
that is nowhere yet: no mountpoint has to be made, and none is looked up twice.
"""

from __future__ import annotations

import ctypes
import os
import platform
import signal
import struct
from typing import Final

from sidecar.linux import (
    AT_EMPTY_PATH,
    AT_FDCWD,
    call,
    failure,
    umount,
)
from sidecar.processes import signal_at_parents_end

CLONE_NEWNS: Final = 0x00020000
CLONE_NEWUTS: Final = 0x04000000
CLONE_NEWUSER: Final = 0x10000000
CLONE_NEWPID: Final = 0x20000000

MOUNT_ATTR_RDONLY: Final = 0x01
MOUNT_ATTR_NOSUID: Final = 0x02
MOUNT_ATTR_NODEV: Final = 0x04
MOUNT_ATTR_NOEXEC: Final = 0x08
MOUNT_ATTR_NOATIME: Final = 0x10

_libc: Final = ctypes.CDLL(None, use_errno=True)

_OPEN_TREE: Final = 428
_MOVE_MOUNT: Final = 429
_MOUNT_SETATTR: Final = 442
# Older than that, and glibc has no function for it: linux/unistd.h of each architecture.
_PIVOT_ROOT: Final = {
    "x86_64": 155, "aarch64": 41, "riscv64": 41, "loongarch64": 41, "i686": 217, "i386": 217,
    "armv7l": 218, "armv6l": 218, "ppc64le": 203, "ppc64": 203, "s390x": 217,
}  # fmt: skip


def _checked(result: int, name: bytes | None = None) -> int:
    if result < 0:
        raise failure(name)
    return result


# --- namespaces ---------------------------------------------------------------------------------


def unshare(flags: int) -> None:
    """Give the calling process namespaces of its own, CLONE_NEW*."""
    _checked(_libc.unshare(flags))


def setns(fd: int, kind: int) -> None:
    """Enter the namespace behind *fd*; *kind* is the CLONE_NEW* that it must be."""
    _checked(_libc.setns(fd, kind))


_PR_SET_CHILD_SUBREAPER: Final = 36


def die_with_parent() -> None:
    """SIGKILL for this process when the one that forked it ends. A change of user clears it."""
    signal_at_parents_end(signal.SIGKILL)


def wake_with_parent() -> None:
    """SIGCONT for this process when the one that forked it ends: it has to act, stopped or not.

    The setting is the calling thread's, and a change of its user or rights clears it.
    """
    signal_at_parents_end(signal.SIGCONT)


def adopt_orphans() -> None:
    """Become the parent of every descendant whose own parent ends (PR_SET_CHILD_SUBREAPER)."""
    _checked(_libc.prctl(_PR_SET_CHILD_SUBREAPER, ctypes.c_long(1)))


# --- mounts -------------------------------------------------------------------------------------

_MS_REC: Final = 0x4000
_MS_SLAVE: Final = 1 << 19


def keep_mounts_to_ourselves() -> None:
    """From here on no mount of this namespace shows outside; outer ones still come in.

    The mounts above a chroot are among them, or pivot_root(2) refuses: entering the namespace once
    more leads to its own root. The working directory is the caller's root afterwards.
    """
    root = os.open("/", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    namespace = os.open("/proc/self/ns/mnt", os.O_RDONLY | os.O_CLOEXEC)
    try:
        setns(namespace, CLONE_NEWNS)
        _checked(_libc.mount(None, b"/", None, ctypes.c_ulong(_MS_REC | _MS_SLAVE), None), b"/")
        os.fchdir(root)
        os.chroot(".")
    finally:
        os.close(namespace)
        os.close(root)


_OPEN_TREE_CLONE: Final = 1
_AT_RECURSIVE: Final = 0x8000
_MOUNT_ATTR: Final = struct.Struct("=QQQQ")


def clone_mounts(path: bytes) -> int:
    """A copy of the mounts at and below *path*, attached nowhere: what `mount --rbind` binds."""
    flags = _OPEN_TREE_CLONE | _AT_RECURSIVE | os.O_CLOEXEC
    return call(_OPEN_TREE, AT_FDCWD, path, flags, name=path)


def make_read_only(mount: int) -> None:
    """Make every mount of the copy *mount* read-only (Linux 5.12)."""
    wanted = _MOUNT_ATTR.pack(MOUNT_ATTR_RDONLY, 0, 0, 0)
    flags = AT_EMPTY_PATH | _AT_RECURSIVE
    call(_MOUNT_SETATTR, mount, b"", flags, wanted, len(wanted))


_MOVE_FROM_EMPTY: Final = 0x04
_MOVE_TO_EMPTY: Final = 0x40


def attach(mount: int, where: int) -> None:
    """Put a mount that is nowhere onto the file or directory behind the descriptor *where*."""
    flags = _MOVE_FROM_EMPTY | _MOVE_TO_EMPTY
    call(_MOVE_MOUNT, mount, b"", where, b"", flags)


def change_root(root: int) -> None:
    """Make the attached mount *root* the root of this namespace, and let go of the old one.

    The working directory is the new root afterwards. The trick with two dots is pivot_root(2)'s
    own: the old root ends up on top of the new one, from where it is taken away.
    """
    os.fchdir(root)
    machine = platform.machine()
    if machine not in _PIVOT_ROOT:
        raise NotImplementedError(f"pivot_root(2) has no known number on {machine}")
    call(_PIVOT_ROOT[machine], b".", b".")
    umount(b".", lazy=True)
    os.chdir("/")
