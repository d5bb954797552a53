"""What this machine and this user can do about FUSE: versions, devices, programs, rights.

Everything is asked of the system itself and nothing is loaded that could fail loudly: pyfuse3's
version comes from its package data, libfuse's from the library that pyfuse3 would load.
"""

import contextlib
import ctypes
import importlib
import io
import os
import platform
import resource
import stat
from collections.abc import Iterator
from types import ModuleType
from typing import Final

from sysroot_fs.cli.errors import FuseUnavailable
from sysroot_fs.text import reason

DEVICE: Final = "/dev/fuse"
_NUMBER: Final = os.makedev(10, 229)
"""The device's number; Documentation/admin-guide/devices.txt."""
URING: Final = "/sys/module/fuse/parameters/enable_uring"
"""Says whether the kernel offers FUSE over io_uring; Linux 6.14 has it."""
FUSE_CONF: Final = "/etc/fuse.conf"
CAP_SYS_ADMIN: Final = 21
"""The number of the capability that mount(2) asks for; linux/capability.h."""


def kernel() -> str:
    """The kernel's release, `6.1.0-18-amd64`."""
    return platform.release()


def pyfuse3_version() -> str | None:
    """The version of the installed pyfuse3, None where there is none."""
    # Imported here: it brings a mail parser with it, and every start of `run` would wait for that.
    import importlib.metadata

    try:
        return importlib.metadata.version("pyfuse3")
    except importlib.metadata.PackageNotFoundError:
        return None


def libfuse_version() -> str | None:
    """The version of the libfuse 3 that would be loaded, None where there is none."""
    # Debian's libfuse 3.17 has the soname libfuse3.so.4.
    for soname in ("libfuse3.so.3", "libfuse3.so.4"):
        try:
            library = ctypes.CDLL(soname)
            # fuse_pkgversion appeared in libfuse 3.2.
            version = library.fuse_pkgversion
        except (OSError, AttributeError):
            continue
        version.restype = ctypes.c_char_p
        text = version()
        return text.decode("ascii", "replace") if isinstance(text, bytes) else None
    return None


def fusermount() -> str | None:
    """Where fusermount3 is, None where it is not on the PATH."""
    import shutil

    return shutil.which("fusermount3")


def may_mount() -> bool:
    """Whether this process may call mount(2) itself, without fusermount3's help."""
    try:
        with open("/proc/self/status", encoding="ascii", errors="replace") as status:
            for line in status:
                if line.startswith("CapEff:"):
                    return bool(int(line.split()[1], 16) >> CAP_SYS_ADMIN & 1)
    except (OSError, ValueError, IndexError):
        pass
    return os.geteuid() == 0


def user_allow_other() -> bool:
    """Whether fuse.conf lets users other than root mount with allow_other."""
    try:
        with open(FUSE_CONF, encoding="utf-8", errors="replace") as conf:
            return any(line.split("#")[0].strip() == "user_allow_other" for line in conf)
    except OSError:
        return False


def proc_problem() -> str | None:
    """Why /proc is of no use, as the end of a sentence; None where it is.

    Descriptors are reopened through /proc/self/fd. The processes that ask and those that a run has
    left are looked at by their numbers: under another namespace's they would be somebody else.
    """
    try:
        number = os.readlink("/proc/self")
    except OSError:
        return "none is mounted here"
    if number != str(os.getpid()):
        return (
            "the one here shows the processes of another namespace: mount this one's own with "
            "`mount -t proc proc /proc`"
        )
    return None


def uring_problem() -> str | None:
    """Why requests cannot be taken over io_uring, as a sentence; None where they can."""
    try:
        with open(URING, encoding="ascii") as parameter:
            if parameter.read().strip() != "Y":
                return f"it is not enabled: `echo Y > {URING}` does that (root)"
    except OSError:
        return "this kernel has no FUSE over io_uring: Linux 6.14 or newer has"
    from sysroot_fs.fuse.kernel.ring import Ring

    try:
        # Nothing is asked of the device before it is registered.
        Ring(-1, 0).close()
    except OSError as error:
        return f"io_uring cannot be used: {reason(error)}"
    return None


def device_problem() -> str | None:
    """Why /dev/fuse cannot be opened, as a sentence; None where it can."""
    remedy = "load the kernel's module with `modprobe fuse`, or give the container the device"
    try:
        device = os.open(DEVICE, os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        return f"{DEVICE} is missing: {remedy}"
    except OSError as error:
        return f"{DEVICE} cannot be opened: {reason(error)}"
    found = os.fstat(device)
    os.close(device)
    if not stat.S_ISCHR(found.st_mode) or found.st_rdev != _NUMBER:
        return f"{DEVICE} is not the kernel's FUSE device, but something else: {remedy}"
    return None


def mount_problem(auto_unmount: bool = False) -> str | None:
    """Why this user cannot mount here at all, as a sentence; None where nothing speaks against."""
    problem = device_problem()
    if problem is not None:
        return problem
    proc = proc_problem()
    if proc is not None:
        return f"files are reopened through /proc, and {proc}"
    if not may_mount() and fusermount() is None:
        return (
            "fusermount3 is missing, and without it only root can mount: install the package fuse3"
        )
    if auto_unmount and fusermount() is None:
        return "auto_unmount needs fusermount3: install the package fuse3"
    return None


@contextlib.contextmanager
def most_descriptors() -> Iterator[None]:
    """The descriptor limit as high as the machine lets it be, for what happens inside.

    Descriptors are what a large tree needs most; the hard limit is the machine's to set.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def load_binding(name: str = "pyfuse3") -> ModuleType:
    """Import the FUSE binding; every way in which that can fail becomes one sentence.

    A binding that does not fit its libfuse may print and call sys.exit() from its import: the
    output is held back and the exit becomes a FuseUnavailable like every other failure.
    """
    said = io.StringIO()
    try:
        with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
            return importlib.import_module(name)
    except (Exception, SystemExit) as error:
        because = " ".join(str(error).split()) or " ".join(said.getvalue().split())
        raise FuseUnavailable(
            f"pyfuse3 cannot be loaded ({because or type(error).__name__}): install libfuse 3 "
            "(Debian: libfuse3-3, fuse3) and pyfuse3 for this Python (`pip install pyfuse3`)"
        ) from error
