"""Making the mount: by mount(2) with the right to, by fusermount3 without.

fusermount3 is given a socket and sends the descriptor of /dev/fuse back over it. With auto_unmount
it stays and unmounts when its socket closes, however the server has died.
"""

from __future__ import annotations

import errno
import logging
import os
import select
from typing import TYPE_CHECKING, Final, Self

from attrs import define, field

from sidecar import linux
from sysroot_fs.fuse.options import MountOptions

if TYPE_CHECKING:
    import socket

log = logging.getLogger(__name__)

_DEVICE: Final = b"/dev/fuse"
_FUSERMOUNT: Final = "fusermount3"
_HIGHEST: Final = 1 << 31


@define(slots=True, eq=False)
class Mounted:
    """A mount of ours and the descriptor through which it is served.

    Without a *mountpoint* somebody else has made it and takes it away.
    """

    device: int
    mountpoint: bytes | None = None
    by_helper: bool = False
    keeper: socket.socket | None = None
    _refusal: Exception | None = field(default=None, init=False)
    """Why it could not be unmounted."""

    @classmethod
    def at(cls, mountpoint: bytes, options: MountOptions) -> Self:
        """Mount at *mountpoint*. Raises OSError, or RuntimeError where fusermount3 has refused."""
        if not options.auto_unmount:
            try:
                return cls(_mount(mountpoint, options), mountpoint)
            except PermissionError:
                pass
        device, keeper = _ask_fusermount(mountpoint, options)
        if not options.auto_unmount:
            keeper.close()
            return cls(device, mountpoint, by_helper=True)
        return cls(device, mountpoint, by_helper=True, keeper=keeper)

    def is_there(self) -> bool:
        """Whether it is still mounted: another mount at that place is not ours to take away."""
        poll = select.poll()
        poll.register(self.device, 0)
        return not poll.poll(0)

    def unmount(self) -> None:
        """Take it out of the tree; its users keep what they have until the device is closed.

        Where fusermount3 cannot be started, for there are too many processes, this can be called
        again when there are fewer.
        """
        if self.mountpoint is None or not self.is_there():
            return
        self._refusal = None
        try:
            if self.by_helper:
                _unmount_by_fusermount(self.mountpoint)
            else:
                linux.umount(self.mountpoint, lazy=True)
        except BlockingIOError as shortage:
            self._refusal = shortage
            return
        except (OSError, RuntimeError) as failure:
            # EINVAL: somebody else was quicker, and the mount has users left.
            gone = isinstance(failure, OSError) and failure.errno == errno.EINVAL
            self._refusal = None if gone else failure
        self.mountpoint = None

    def close(self) -> None:
        """Let go of it: a mount that is still there answers ENOTCONN from now on."""
        if self._refusal is not None and self.is_there():
            log.error("unmounting failed: %s", self._refusal)
        os.close(self.device)
        if self.keeper is not None:
            self.keeper.close()


def _mount(mountpoint: bytes, options: MountOptions) -> int:
    device = os.open(_DEVICE, os.O_RDWR | os.O_CLOEXEC)
    try:
        data = [
            b"fd=%d" % device,
            b"rootmode=40000",
            b"user_id=%d" % os.getuid(),
            b"group_id=%d" % os.getgid(),
            b"default_permissions",
        ]
        if options.allow_other:
            data.append(b"allow_other")
        if options.max_read is not None:
            data.append(b"max_read=%d" % min(options.max_read, _HIGHEST))
        flags = 0
        for wanted, flag in (
            (options.read_only, linux.MS_RDONLY),
            (not options.suid, linux.MS_NOSUID),
            (not options.dev, linux.MS_NODEV),
            (not options.exec, linux.MS_NOEXEC),
            (options.noatime, linux.MS_NOATIME),
        ):
            flags |= flag if wanted else 0
        kind = b"fuse." + options.subtype if options.subtype else b"fuse"
        linux.mount(options.source, mountpoint, kind, flags, b",".join(data))
    except BaseException:
        os.close(device)
        raise
    return device


def _escaped(value: bytes) -> bytes:
    """A value inside of an option of fusermount3: commas and backslashes taken literally."""
    return value.replace(b"\\", b"\\\\").replace(b",", b"\\,")


def _ask_fusermount(mountpoint: bytes, options: MountOptions) -> tuple[int, socket.socket]:
    # Imported here: who may mount by himself does not wait for it.
    import socket
    import subprocess

    words = [
        b"fsname=" + _escaped(options.source),
        b"subtype=" + _escaped(options.subtype),
        b"default_permissions",
        *options.words(),
    ]
    if options.max_read is not None:
        words.append(b"max_read=%d" % options.max_read)
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    with theirs:
        helper = subprocess.Popen(
            [_FUSERMOUNT, b"-o", b",".join(words), b"--", mountpoint],
            env={**os.environ, "_FUSE_COMMFD": str(theirs.fileno())},
            pass_fds=[theirs.fileno()],
            stdin=subprocess.DEVNULL,
        )
    try:
        _, descriptors, _, _ = socket.recv_fds(ours, 1, 1)
    except OSError:
        descriptors = []
    if not descriptors or not options.auto_unmount:
        helper.wait()
    if not descriptors:
        ours.close()
        # It has said why on standard error.
        raise RuntimeError("fusermount3 has not mounted")
    os.set_inheritable(descriptors[0], False)
    return descriptors[0], ours


def _unmount_by_fusermount(mountpoint: bytes) -> None:
    import subprocess

    done = subprocess.run(
        [_FUSERMOUNT, b"-u", b"-z", b"-q", b"--", mountpoint],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        check=False,
    )
    if done.returncode:
        said = " ".join(done.stderr.decode(errors="replace").split())
        raise RuntimeError(said or os.strerror(errno.EPERM))
