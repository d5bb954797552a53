"""Becoming somebody else for one command, on a machine where nothing is ready for that.

The interpreter and the checkout may lie where only root can enter, and /dev/fuse may be for root
alone. So the command gets a mount namespace of its own in which closed directories on the way are
covered by a tmpfs with copies of what is needed, and /dev/fuse is another node of the same device.
The machine itself is not changed.

``python -m tests.users [OPTION..] COMMAND [ARGUMENT..]``, as root; `command` builds that line.
"""

from __future__ import annotations

import argparse
import ctypes
import os
import stat
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from sidecar import linux
from sysroot_fs.guest import kernel

CHECKOUT: Final = Path(__file__).resolve().parent.parent
UID: Final = 1000
CAP_SETFCAP: Final = 31
CAP_SYS_ADMIN: Final = 21
_PR_CAPBSET_DROP: Final = 24
_MNT_DETACH: Final = 2
_libc: Final = ctypes.CDLL(None, use_errno=True)


def command(
    *words: str | Path,
    uid: int = UID,
    gid: int = UID,
    groups: Iterable[int] = (),
    fuse: int = 0o666,
    drop: Iterable[int] = (),
    most_namespaces: int | None = None,
    chroot: bool = False,
) -> list[str]:
    """The command line that runs *words* as somebody else; its working directory is the checkout.

    *fuse* is the mode of /dev/fuse, *drop* are capabilities to be without, *most_namespaces* is
    user.max_user_namespaces, *chroot* says that the root is not the mount namespace's.
    """
    line = [sys.executable, "-m", "tests.users", f"--uid={uid}", f"--gid={gid}"]
    line += [f"--group={group}" for group in groups]
    line += [f"--drop={capability}" for capability in drop]
    line += [f"--fuse={fuse:o}"]
    if most_namespaces is not None:
        line.append(f"--most-namespaces={most_namespaces}")
    if chroot:
        line.append("--chroot")
    return [*line, "--", *map(str, words)]


# --- what is needed, made reachable -------------------------------------------------------------


def _closed_on_the_way(path: Path) -> Path | None:
    """The first directory above *path* that others may not search."""
    for above in reversed(path.parents):
        if not above.stat().st_mode & stat.S_IXOTH:
            return above
    return None


def _open_the_way(needed: Iterable[Path]) -> None:
    covers: dict[Path, list[tuple[Path, int]]] = {}
    for path in sorted(needed):
        closed = _closed_on_the_way(path)
        if closed is not None:
            covers.setdefault(closed, []).append((path, kernel.clone_mounts(os.fsencode(path))))
    for closed, inside in covers.items():
        tmpfs = linux.new_mount(b"tmpfs", {b"mode": b"755"})
        kernel.attach(tmpfs, os.open(closed, os.O_PATH))
        for path, mount in inside:
            # One that lies in another has come with that one.
            if not path.exists():
                path.mkdir(parents=True)
                kernel.attach(mount, os.open(path, os.O_PATH))


def _give_device(mode: int) -> None:
    tmpfs = linux.new_mount(b"tmpfs", {b"mode": b"755"})
    # Over the root, which hides nothing: nobody comes back to the root's own mountpoint.
    kernel.attach(tmpfs, os.open("/", os.O_PATH))
    os.mknod("fuse", stat.S_IFCHR | mode, os.makedev(10, 229), dir_fd=tmpfs)
    os.chmod(f"/proc/self/fd/{tmpfs}/fuse", mode)
    node = kernel.clone_mounts(b"/proc/self/fd/%d/fuse" % tmpfs)
    kernel.attach(node, os.open("/dev/fuse", os.O_PATH))
    if _libc.umount2(b"/proc/self/fd/%d" % tmpfs, _MNT_DETACH):
        raise OSError(ctypes.get_errno(), "umount2")


def _prepare(fuse: int) -> None:
    kernel.unshare(kernel.CLONE_NEWNS)
    kernel.keep_mounts_to_ourselves()
    prefixes = {Path(sys.base_prefix), Path(sys.prefix), Path(sys.executable).parent, CHECKOUT}
    _open_the_way({prefix.resolve() for prefix in prefixes})
    _give_device(fuse)


# --- somebody else ------------------------------------------------------------------------------


def _limit_namespaces(most: int, uid: int, gid: int) -> None:
    """Go into a user namespace in which *most* others may be made, with the same users."""
    reader, writer = os.pipe()
    here = os.getpid()
    if os.fork() == 0:
        # Only somebody outside may give the namespace more than one user.
        os.read(reader, 1)
        for kind, one in (("uid", uid), ("gid", gid)):
            users = "0 0 1\n" + (f"{one} {one} 1\n" if one else "")
            Path(f"/proc/{here}/{kind}_map").write_text(users)
        os._exit(0)
    kernel.unshare(kernel.CLONE_NEWUSER)
    os.write(writer, b"x")
    assert os.wait()[1] == 0
    os.close(reader)
    os.close(writer)
    Path("/proc/sys/user/max_user_namespaces").write_text(str(most))


def _change_root() -> None:
    """Into a copy of the root, which is then not the namespace's root."""
    copy = kernel.clone_mounts(b"/")
    kernel.attach(copy, os.open("/mnt", os.O_PATH))
    os.fchdir(copy)
    os.chroot(".")


def main() -> None:
    """Become what the command line says."""
    parser = argparse.ArgumentParser(prog="python -m tests.users")
    parser.add_argument("--uid", type=int, default=UID)
    parser.add_argument("--gid", type=int, default=UID)
    parser.add_argument("--group", type=int, action="append", default=[])
    parser.add_argument("--drop", type=int, action="append", default=[])
    parser.add_argument("--fuse", type=lambda text: int(text, 8), default=0o666)
    parser.add_argument("--most-namespaces", type=int)
    parser.add_argument("--chroot", action="store_true")
    parser.add_argument("command", nargs="+")
    who = parser.parse_args()
    _prepare(who.fuse)
    if who.most_namespaces is not None:
        _limit_namespaces(who.most_namespaces, who.uid, who.gid)
    if who.chroot:
        _change_root()
    os.chdir(CHECKOUT)
    for capability in who.drop:
        if _libc.prctl(_PR_CAPBSET_DROP, ctypes.c_ulong(capability), 0, 0, 0):
            raise OSError(ctypes.get_errno(), "PR_CAPBSET_DROP")
    os.setgroups(who.group)
    os.setresgid(who.gid, who.gid, who.gid)
    os.setresuid(who.uid, who.uid, who.uid)
    os.execvp(who.command[0], who.command)


if __name__ == "__main__":
    main()
