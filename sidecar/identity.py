"""As whom files are made: users, groups and capabilities of the calling thread for a moment.

`acting_as` changes the calling thread only, `in_groups` the whole process.
"""

from __future__ import annotations

import ctypes
import os
import struct
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from types import TracebackType
from typing import Final, final

from sidecar.linux import failure

_libc: Final = ctypes.CDLL(None, use_errno=True)

_CAP_SETGID: Final = 1 << 6
_CAP_DAC_OVERRIDE: Final = 1 << 1
_CAP_SETUID: Final = 1 << 7
_CAPABILITIES_V3: Final = struct.pack("=Ii", 0x20080522, 0)
_CAP_SETS: Final = struct.Struct("=IIIIII")  # effective, permitted, inheritable; then the high half

# These never block, so the interpreter lock is kept over them.
_quick: Final = ctypes.PyDLL(None, use_errno=True)
_setfsuid: Final = _quick.setfsuid
_setfsgid: Final = _quick.setfsgid
_capset: Final = _quick.capset


def _capabilities() -> bytes:
    header = ctypes.create_string_buffer(_CAPABILITIES_V3, len(_CAPABILITIES_V3))
    data = ctypes.create_string_buffer(_CAP_SETS.size)
    if _libc.capget(header, data):
        raise failure()
    return data.raw


def _may_act_as_others(capabilities: bytes) -> bool:
    effective: int = _CAP_SETS.unpack(capabilities)[0]
    wanted = _CAP_SETUID | _CAP_SETGID
    return os.geteuid() == 0 and effective & wanted == wanted


def overrides_permissions() -> bool:
    """Whether this thread may read and write any file, whatever its mode (CAP_DAC_OVERRIDE)."""
    effective: int = _CAP_SETS.unpack(_capabilities())[0]
    return bool(effective & _CAP_DAC_OVERRIDE)


_start_capabilities: Final = _capabilities()
_can_act: Final = _may_act_as_others(_start_capabilities)


@final
class acting_as:
    """Let the calling thread create files as (uid, gid), with all of its own rights.

    New files then belong to the caller and the volume itself decides about setgid
    inheritance, quotas and default ACLs, which a chown afterwards gets wrong and leaves a
    moment in which root owns the file. Capabilities stay as they were when this module was
    imported, so that mknod of a device works and permission checks are not made twice (the
    kernel has made them for a mount). Where the process is not root, or the caller is,
    it does nothing (0.4 us).
    Five system calls that each copy credentials, 14 us: for creating, not for reading.

    Do not await or hop threads inside. Side effects of the kernel on any change of the
    filesystem ids: the process's parent-death signal is cleared and it dumps no core.
    """

    __slots__ = ("_active", "_gid", "_old_gid", "_uid")

    def __init__(self, uid: int, gid: int) -> None:
        self._uid = uid
        self._gid = gid
        self._old_gid = 0
        self._active = _can_act and (uid != 0 or gid != 0)

    def __enter__(self) -> None:
        if not self._active:
            return
        self._old_gid = _setfsgid(self._gid)
        old_uid = _setfsuid(self._uid)
        if old_uid:
            # Root was given up after the import, or somebody nests: stay who we are.
            _setfsuid(old_uid)
            _setfsgid(self._old_gid)
            self._active = False
        # Leaving fsuid 0 takes CAP_CHOWN, DAC_*, FOWNER, FSETID, MKNOD ... out of the
        # effective set, see capabilities(7).
        elif self._uid and _capset(_CAPABILITIES_V3, _start_capabilities):
            error = failure()
            self.__exit__(None, None, None)
            raise error

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if not self._active:
            return
        _setfsuid(0)
        _setfsgid(self._old_gid)


@contextmanager
def in_groups(groups: Collection[int]) -> Iterator[None]:
    """Have these supplementary groups besides one's own for the moment, in all threads.

    For a volume that looks them up itself. Where the process may not it changes nothing.
    """
    own = os.getgroups()
    with suppress(PermissionError):
        os.setgroups([*own, *groups])
    try:
        yield
    finally:
        with suppress(PermissionError):
            os.setgroups(own)
