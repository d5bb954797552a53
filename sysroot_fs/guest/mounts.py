"""Making the guest's root: the mount of the tree, what is laid over it, and the change of root.

Runs in a process that has a mount namespace of its own and is about to become the guest. The tree
is mounted over `/`, which hides nothing from those who are already below it, so no directory has to
be made for it; its server, which is in another process, gets the descriptor. Every path of the
guest is resolved inside it (RESOLVE_IN_ROOT): a link that a guest has planted leads nowhere else.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable, Container
from typing import Final

from sidecar import linux
from sidecar.linux import RESOLVE_IN_ROOT, RESOLVE_NO_MAGICLINKS, openat2
from sysroot_fs.guest import kernel
from sysroot_fs.guest.plan import Bind, GuestError, Kernel, Root, Tmpfs
from sysroot_fs.text import reason, shown

_DEVICE: Final = b"/dev/fuse"
_DEVICES: Final = (b"null", b"zero", b"full", b"random", b"urandom", b"tty")
_LINKS: Final = {
    b"ptmx": b"pts/ptmx",
    b"fd": b"/proc/self/fd",
    b"stdin": b"/proc/self/fd/0",
    b"stdout": b"/proc/self/fd/1",
    b"stderr": b"/proc/self/fd/2",
}


def _failed(what: str, error: OSError) -> GuestError:
    return GuestError(f"{what}: {reason(error)}")


def mount_tree(root: Root, hand_over: Callable[[int, int], None]) -> int:
    """Mount the tree over `/`; *hand_over* gets the descriptor to serve it with, and the mount's.

    Returns the descriptor of the mount's root. Raises GuestError.
    """
    try:
        device = os.open(_DEVICE, os.O_RDWR | os.O_CLOEXEC)
    except OSError as error:
        raise _failed(f"{shown(_DEVICE)} cannot be opened", error) from error
    try:
        options = {b"fd": b"%d" % device, b"rootmode": b"40000", **root.options}
        mount = linux.new_mount(b"fuse", options, root.attributes)
        hand_over(device, mount)
        here = os.open(b"/", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        kernel.attach(mount, here)
        os.close(here)
    except OSError as error:
        if error.errno == errno.ENOSYS:
            raise GuestError("run needs Linux 5.12 or newer") from error
        raise _failed("the guest root cannot be mounted", error) from error
    finally:
        os.close(device)
    return mount


def _inside(top: int, path: bytes) -> int:
    """A descriptor of the guest path *path*; its links stay inside."""
    resolve = RESOLVE_IN_ROOT | RESOLVE_NO_MAGICLINKS
    return openat2(top, path, os.O_PATH | os.O_CLOEXEC, resolve=resolve)


def _put(top: int, mount: int, target: bytes) -> None:
    where = _inside(top, target)
    try:
        if stat.S_ISDIR(os.fstat(mount).st_mode) != stat.S_ISDIR(os.fstat(where).st_mode):
            # What mount(2) says; move_mount(2) says EINVAL, which may be anything.
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
        kernel.attach(mount, where)
    finally:
        os.close(where)
        os.close(mount)


def _make_way(top: int, target: bytes, is_directory: bool, own: Container[int]) -> None:
    """Make *target* and the way to it as far as they are missing in a tmpfs of this run, *own*.

    Elsewhere nothing is made: the tree shows what is mounted on it, and a bind is the host's.
    """
    names = target.split(b"/")
    for length in range(2, len(names) + 1):
        try:
            os.close(_inside(top, b"/".join(names[:length])))
            continue
        except FileNotFoundError:
            parent = _inside(top, b"/".join(names[: length - 1]) or b"/")
        try:
            if os.fstat(parent).st_dev not in own:
                return
            name = names[length - 1]
            if length < len(names) or is_directory:
                os.mkdir(name, dir_fd=parent)
                os.chmod(name, 0o755, dir_fd=parent)
            else:
                flags = os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC
                os.close(os.open(name, flags, 0o644, dir_fd=parent))
        finally:
            os.close(parent)


def _bind(top: int, bind: Bind, own: Container[int] = ()) -> None:
    source, target = shown(bind.source), shown(bind.target)
    try:
        copy = kernel.clone_mounts(bind.source)
        if bind.read_only:
            kernel.make_read_only(copy)
    except OSError as error:
        raise _failed(f"{source} cannot be bound", error) from error
    try:
        _make_way(top, bind.target, stat.S_ISDIR(os.fstat(copy).st_mode), own)
        _put(top, copy, bind.target)
    except NotADirectoryError as error:
        raise GuestError(
            f"{source} cannot be bound at {target}: one is a directory and the other is not, or "
            "the way there leads through a file"
        ) from error
    except OSError as error:
        raise _failed(f"{source} cannot be bound at {target}", error) from error


def _tmpfs(top: int, target: bytes, own: set[int], mode: bytes = b"1777") -> None:
    """A new tmpfs at *target*; its device number is added to *own*."""
    try:
        _make_way(top, target, True, own)
        mount = linux.new_mount(b"tmpfs", {b"mode": mode, b"source": b"tmpfs"})
        own.add(os.fstat(mount).st_dev)
        _put(top, mount, target)
    except OSError as error:
        raise _failed(f"no tmpfs can be mounted at {shown(target)}", error) from error


def _fresh_dev(top: int, privileged: bool, own: set[int]) -> None:
    """A /dev with what every program expects, terminals of its own, and nothing of the machine's.

    The devices are the host's own, bound: without root none can be made.
    """
    _tmpfs(top, b"/dev", own, b"755")
    dev = _inside(top, b"/dev")
    try:
        for name in _DEVICES:
            os.close(os.open(name, os.O_CREAT | os.O_WRONLY | os.O_CLOEXEC, 0o666, dir_fd=dev))
            _put(top, kernel.clone_mounts(b"/dev/" + name), b"/dev/" + name)
        for name, mode in ((b"pts", 0o755), (b"shm", 0o1777)):
            os.mkdir(name, mode, dir_fd=dev)
        for name, leads in _LINKS.items():
            os.symlink(leads, name, dir_fd=dev)
    except OSError as error:
        raise _failed("a fresh /dev cannot be made", error) from error
    finally:
        os.close(dev)
    terminals: dict[bytes, bytes | None] = {b"ptmxmode": b"666", b"mode": b"620"}
    if privileged:
        terminals[b"gid"] = b"5"  # tty, in every distribution
    try:
        _put(top, linux.new_mount(b"devpts", terminals), b"/dev/pts")
    except OSError as error:
        raise _failed("a fresh /dev/pts cannot be mounted", error) from error
    _tmpfs(top, b"/dev/shm", own)


def _fresh(top: int, kind: bytes, target: bytes, otherwise: str) -> None:
    try:
        _put(top, linux.new_mount(kind, {b"source": kind}), target)
    except PermissionError as error:
        raise GuestError(
            f"without root a fresh {shown(target)} cannot be mounted here: {otherwise}"
        ) from error
    except OSError as error:
        raise _failed(f"a fresh {shown(target)} cannot be mounted", error) from error


def lay_over(top: int, root: Root) -> None:
    """Mount on the tree *top* what belongs on it; raises GuestError."""
    own: set[int] = set()
    for target, kind in ((b"/proc", root.proc), (b"/dev", root.dev), (b"/sys", root.sys)):
        if kind is Kernel.HOST:
            _bind(top, Bind(target, target))
    if root.dev is Kernel.FRESH:
        _fresh_dev(top, not root.user_namespace, own)
    if root.proc is Kernel.FRESH:
        _fresh(top, b"proc", b"/proc", "add --pid, or use --proc host or none")
    if root.sys is Kernel.FRESH:
        _fresh(top, b"sysfs", b"/sys", "use --sys host or none")
    for mount in root.mounts:
        match mount:
            case Bind():
                _bind(top, mount, own)
            case Tmpfs(target):
                _tmpfs(top, target, own)


def enter(top: int) -> None:
    """Make the tree *top* the root of this process; raises GuestError."""
    try:
        kernel.change_root(top)
    except (OSError, NotImplementedError) as error:
        raise GuestError(f"the root cannot be changed: {error}") from error
