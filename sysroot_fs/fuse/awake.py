"""Keeping idle processors awake while requests come close together.

The guest's process waits for the server, and the server for the next request: on two processors,
where one of them always sleeps, each request pays for two wake-ups. In a virtual machine that halts
its processors at once each is a trip to the hypervisor and back, which costs more than the request.

Who holds /dev/cpu_dma_latency open with a zero in it (the kernel's PM QoS) has idle processors wait
awake instead. The wish is the open file's: it ends with this process, whatever ends that.
"""

from __future__ import annotations

import logging
import os
import struct
import time
from typing import Final, Self

from attrs import define, field

from sysroot_fs.text import reason

log = logging.getLogger(__name__)

REST_SECONDS: Final = 0.003
"""After how long without a request `Awake.look` is to be called while processors are held."""
DEVICE = "/dev/cpu_dma_latency"
_DRIVER: Final = "/sys/devices/system/cpu/cpuidle/current_driver"
_HALTING: Final = "haltpoll"
"""The driver of KVM's guests. Without any (`none`) nobody heeds the wish."""
_COUNTED: Final = 16
_CLOSE_SECONDS: Final = 0.004
"""So many requests within so long are close together."""
_LATENCY: Final = struct.Struct("=i")
_NONE: Final = _LATENCY.pack(0)
_ANY: Final = _LATENCY.pack(-1)


def driver() -> str | None:
    """What puts idle processors to sleep, as the kernel names it; None where nothing does."""
    try:
        with open(_DRIVER, encoding="ascii", errors="replace") as file:
            name = file.read().strip()
    except OSError:
        return None
    return None if name == "none" else name


def problem() -> str | None:
    """Why processors cannot be kept awake, as a sentence; None where they can."""
    if driver() is None:
        return "this kernel does not say what its processors do when they are idle"
    try:
        os.close(_open())
    except OSError as error:
        return f"{DEVICE} cannot be opened: {reason(error)}"
    return None


def pays() -> bool:
    """Whether sleep is so short and so dear here that it pays without being asked for."""
    return driver() == _HALTING


def _open() -> int:
    return os.open(DEVICE, os.O_WRONLY | os.O_CLOEXEC)


@define(slots=True, eq=False)
class Awake:
    """The wish of one server, expressed through *device*; None where there is none to express."""

    device: int | None
    held: bool = field(default=False, init=False)
    """Whether processors are kept awake now."""
    times: int = field(default=0, init=False)
    """How often they were."""
    _count: int = field(default=0, init=False)
    _looked: int = field(default=0, init=False)
    _since: float = field(default=0.0, init=False)

    @classmethod
    def chosen(cls, choice: str) -> Self:
        """By the option *choice*: `auto`, `on` (with a word in the log where it fails), `off`."""
        if choice == "off" or (choice == "auto" and not pays()):
            return cls(None)
        why = problem() if choice == "on" else None
        if why is not None:
            log.warning("awake is off: %s", why)
            return cls(None)
        try:
            return cls(_open())
        except OSError:
            return cls(None)

    def asked(self) -> bool:
        """One more request; whether processors are held from now on."""
        self._count += 1
        if self.held or self._count % _COUNTED:
            return False
        now = time.monotonic()
        close = now - self._since < _CLOSE_SECONDS
        self._since = now
        if close:
            self._wish(_NONE)
        return self.held

    def look(self) -> None:
        """Let them sleep if there was no request since the last look."""
        if self._count == self._looked and self.held:
            self._wish(_ANY)
        self._looked = self._count

    def close(self) -> None:
        """Let them sleep."""
        device, self.device, self.held = self.device, None, False
        if device is not None:
            os.close(device)

    def report(self) -> dict[str, object]:
        """For `sysroot-fs status`."""
        return {"possible": self.device is not None, "now": self.held, "times": self.times}

    def _wish(self, latency: bytes) -> None:
        if self.device is None:
            return
        try:
            os.write(self.device, latency)
        except OSError as error:
            log.warning("awake is off: %s", error)
            self.close()
            return
        self.held = latency is _NONE
        self.times += self.held
