"""Everything that can be known to be wrong before a mount is tried.

A mount that fails late fails in the background, in libfuse's words or only in the kernel's
errno. So SYSROOT, MOUNTPOINT, the host and the machine are looked at first, and each thing that
is wrong with them has its sentence here. Nothing is changed by looking.
"""

import errno
import os

import attrs

from sysroot_fs.cli import machine
from sysroot_fs.cli.errors import FuseUnavailable, MountpointError, SysrootError
from sysroot_fs.cli.interrupts import interruptible
from sysroot_fs.cli.options import Settings
from sysroot_fs.text import reason, shown


@attrs.frozen
class MountLine:
    """One line of /proc/self/mountinfo: where, which type, from which source.

    *top* is the directory of the filesystem that is mounted there; all but / are binds of a part.
    """

    where: bytes
    fstype: bytes
    source: bytes
    top: bytes = b"/"


def _unescape(field: bytes) -> bytes:
    r"""The kernel writes blank, tab, newline and backslash as \040 \011 \012 \134."""
    parts = field.split(b"\\")
    rest = [bytes([int(part[:3], 8) & 255]) + part[3:] for part in parts[1:]]
    return b"".join([parts[0], *rest])


def topmost_mounts() -> dict[bytes, MountLine]:
    """The mounts that can be reached, by where they are; none where /proc does not say."""
    found = {}
    try:
        with open("/proc/self/mountinfo", "rb") as lines:
            for line in lines:
                head, _, tail = line.rstrip(b"\n").partition(b" - ")
                top, where = map(_unescape, head.split(b" ")[3:5])
                fstype, source = map(_unescape, tail.split(b" ")[:2])
                found[where] = MountLine(where, fstype, source, top)
    except OSError:
        return {}
    return found


def mount_at(path: bytes) -> MountLine | None:
    """The topmost mount on `path` (absolute, without links), None where there is none."""
    return topmost_mounts().get(path)


def _is_dead(error: OSError) -> bool:
    # ECONNABORTED is what the kernel answers when the connection was aborted by force.
    return error.errno in (errno.ENOTCONN, errno.ECONNABORTED)


def _stat_directory(path: bytes, what: str, failure: type[Exception]) -> os.stat_result:
    if not path:
        raise failure(f"{what} is an empty path")
    try:
        with interruptible(path):
            found = os.stat(path)
            if not os.path.isdir(path):
                raise failure(f"{what} {shown(path)} is not a directory")
            with os.scandir(path):
                return found
    except FileNotFoundError as error:
        raise failure(f"{what} {shown(path)} does not exist") from error
    except NotADirectoryError as error:
        raise failure(f"{what} {shown(path)} leads through a file") from error
    except OSError as error:
        if _is_dead(error):
            raise failure(
                f"{what} {shown(path)} lies on a dead mount: its server is gone"
            ) from error
        raise failure(f"{what} {shown(path)} cannot be read: {reason(error)}") from error


def check_sysroot(path: bytes) -> os.stat_result:
    """SYSROOT is a directory that can be read; raises SysrootError."""
    return _stat_directory(path, "sysroot", SysrootError)


def check_host(path: bytes) -> os.stat_result:
    """The tree underneath is a directory that can be read; raises SysrootError."""
    return _stat_directory(path, "host", SysrootError)


def check_mountpoint(path: bytes, subtype: bytes = b"sysroot") -> os.stat_result:
    """MOUNTPOINT is a directory with no mount of ours on it; raises MountpointError.

    Another filesystem mounted there is no obstacle: a mount covers it like any directory.
    """
    name = shown(path)
    if not path:
        raise MountpointError("mountpoint is an empty path")
    try:
        with interruptible(path):
            found = os.stat(path)
            # A server that was just killed is still remembered in the kernel's attribute cache;
            # statfs(2) always asks the server.
            os.statvfs(path)
    except FileNotFoundError as error:
        raise MountpointError(f"mountpoint {name} does not exist: create it first") from error
    except OSError as error:
        if _is_dead(error):
            raise MountpointError(
                f"mountpoint {name} holds a dead mount whose server is gone: "
                f"run `fusermount3 -u {name}` first"
            ) from error
        raise MountpointError(f"mountpoint {name} cannot be reached: {reason(error)}") from error
    if not os.path.isdir(path):
        raise MountpointError(f"mountpoint {name} is not a directory")
    mounted = mount_at(os.path.realpath(path))
    if mounted is not None and mounted.fstype in (b"fuse.sysroot", b"fuse." + subtype):
        raise MountpointError(
            f"mountpoint {name} is busy: {shown(mounted.source)} is mounted there already, "
            f"`fusermount3 -u {name}` unmounts it"
        )
    return found


def is_empty(path: bytes) -> bool:
    """Whether a directory holds nothing; one that cannot be listed counts as empty."""
    try:
        with os.scandir(path) as entries:
            return next(entries, None) is None
    except OSError:
        return True


def _is_inside(path: bytes, top: os.stat_result) -> bool:
    """Whether a directory above `path` is the very directory `top`, under whatever name."""
    here = os.path.realpath(path)
    while here != b"/":
        here = os.path.dirname(here)
        try:
            if os.path.samestat(os.stat(here), top):
                return True
        except OSError:
            return False
    return False


def check_apart(
    sysroot: bytes, sysroot_stat: os.stat_result, mountpoint: bytes, mountpoint_stat: os.stat_result
) -> None:
    """Neither directory is the other or lies in it; raises MountpointError.

    A mount over its own sysroot would hide it, and one inside would show itself to itself.
    """
    where, root = shown(mountpoint), shown(sysroot)
    if os.path.samestat(sysroot_stat, mountpoint_stat):
        raise MountpointError(f"mountpoint {where} is the sysroot itself: mount somewhere else")
    if _is_inside(mountpoint, sysroot_stat):
        raise MountpointError(
            f"mountpoint {where} lies inside the sysroot {root}: mount outside of it"
        )
    if _is_inside(sysroot, mountpoint_stat):
        raise MountpointError(
            f"the sysroot {root} lies inside the mountpoint {where}, which would hide it: "
            "mount somewhere else"
        )


def check_machine(settings: Settings) -> None:
    """This user may mount here with these settings; raises FuseUnavailable."""
    problem = machine.mount_problem(settings.auto_unmount)
    if problem is not None:
        raise FuseUnavailable(problem)
    if os.geteuid() == 0:
        return
    if settings.suid or settings.dev:
        option = "suid" if settings.suid else "dev"
        raise FuseUnavailable(f"only root can mount with {option}: leave it out")
    if settings.allow_other and not machine.user_allow_other():
        raise FuseUnavailable(
            f"allow_other is for root only, unless {machine.FUSE_CONF} has a line "
            "`user_allow_other`"
        )


def check_all(sysroot: bytes, mountpoint: bytes, settings: Settings) -> None:
    """Every check that a mount needs, the cheapest and plainest first."""
    sysroot_stat = check_sysroot(sysroot)
    mountpoint_stat = check_mountpoint(mountpoint, settings.subtype)
    check_apart(sysroot, sysroot_stat, mountpoint, mountpoint_stat)
    check_host(settings.host)
    check_machine(settings)
