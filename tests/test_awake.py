"""Idle processors are kept awake while requests come close together, and no longer."""

from __future__ import annotations

import itertools
import json
import logging
import os
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Final

import pytest

from sysroot_fs.fuse import awake, status
from sysroot_fs.fuse.awake import Awake
from tests.mounts import Mount, Mounter
from tests.waiting import wait_until

_NONE: Final = struct.pack("=i", 0)
_ANY: Final = struct.pack("=i", -1)


@pytest.fixture
def wishes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where wishes are noted."""
    path = tmp_path / "wishes"
    path.touch()
    monkeypatch.setenv("NOTED_WISHES", str(path))
    monkeypatch.setattr(awake, "DEVICE", str(path))
    monkeypatch.setattr(awake, "driver", lambda: "haltpoll")
    return path


class Clock:
    """Time that passes only when it is told to."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        """Seconds."""
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """The clock by which requests are close together."""
    made = Clock()
    monkeypatch.setattr(awake, "time", made)
    return made


def ask(server: Awake, clock: Clock, count: int, every: float) -> None:
    """So many requests, *every* so many seconds one."""
    for _ in range(count):
        clock.now += every
        server.asked()


def test_a_burst(wishes: Path, clock: Clock) -> None:
    """A burst holds the processors once, and two looks without a request let them go."""
    server = Awake.chosen("auto")
    ask(server, clock, 100, 0.0001)
    assert server.held
    assert wishes.read_bytes() == _NONE
    server.look()
    ask(server, clock, 1, 0.0001)
    server.look()
    assert server.held
    server.look()
    assert not server.held
    assert wishes.read_bytes() == _NONE + _ANY
    ask(server, clock, 100, 0.0001)
    assert server.report() == {"possible": True, "now": True, "times": 2}
    server.close()
    assert not server.held


def test_requests_far_between(wishes: Path, clock: Clock) -> None:
    """Few requests change nothing, however many they are in the end."""
    server = Awake.chosen("on")
    ask(server, clock, 1000, 0.001)
    ask(server, clock, 15, 0.0)
    assert not server.held
    assert wishes.read_bytes() == b""
    server.close()


@pytest.mark.parametrize(
    ("choice", "driver", "possible"),
    [
        ("auto", "haltpoll", True),
        ("auto", "intel_idle", False),
        ("auto", None, False),
        ("on", "intel_idle", True),
        ("on", None, False),
        ("off", "haltpoll", False),
    ],
)
def test_choices(
    choice: str,
    driver: str | None,
    possible: bool,
    wishes: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """By itself only where a halt is a trip to the hypervisor; who asks in vain is told."""
    monkeypatch.setattr(awake, "driver", lambda: driver)
    server = Awake.chosen(choice)
    assert (server.device is not None) == possible
    assert ("awake is off" in caplog.text) == (choice == "on" and not possible)
    server.close()


def test_no_right(
    wishes: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Where the device may not be opened, or takes no wish, the server goes on without."""
    monkeypatch.setattr(awake, "DEVICE", str(wishes / "not-there"))
    assert Awake.chosen("auto").device is None
    assert caplog.text == ""
    assert Awake.chosen("on").device is None
    assert "awake is off: " in caplog.text
    caplog.clear()
    # Not open to be written.
    server = Awake(os.open(wishes, os.O_RDONLY))
    with caplog.at_level(logging.WARNING):
        for _ in range(100):
            server.asked()
    assert server.device is None
    assert not server.held
    assert caplog.text.count("awake is off") == 1


def names() -> Callable[[], str]:
    """Names that nobody has asked for yet."""
    numbers = itertools.count()
    return lambda: f"missing-{next(numbers)}"


def report(mount: Mount) -> dict[str, object]:
    """What `sysroot-fs status` shows of it."""
    told: dict[str, object] = json.loads(os.getxattr(mount.point, status.NAME))["awake"]
    return told


def burst(mount: Mount, done: Callable[[], bool]) -> None:
    """Ask without a pause until it is *done*."""
    new = names()

    def step() -> bool:
        for _ in range(200):
            assert not os.path.exists(mount.point / new())
        return done()

    wait_until(step)


@pytest.mark.parametrize("options", [(), ("uring=auto",)])
def test_a_mount(mounted: Mounter, wishes: Path, options: tuple[str, ...]) -> None:
    """A mount holds the processors in a burst, lets go after it, and says so."""
    mount = mounted(*options, module="tests.noted_wishes")
    burst(mount, lambda: wishes.read_bytes().startswith(_NONE))
    wait_until(lambda: wishes.read_bytes().endswith(_ANY))
    told = report(mount)
    assert told["possible"] is True
    assert told["times"] != 0


def test_off(mounted: Mounter, wishes: Path) -> None:
    """With awake=off nothing is wished."""
    mount = mounted("awake=off", module="tests.noted_wishes")
    for number in range(400):
        assert not os.path.exists(mount.point / f"missing-{number}")
    assert wishes.read_bytes() == b""
    assert report(mount)["possible"] is False


@pytest.mark.skipif(awake.problem() is not None, reason="this kernel has no PM QoS for processors")
def test_the_kernel_heeds_it(mounted: Mounter) -> None:
    """In a burst the whole machine's wish is zero, by the kernel's word."""
    mount = mounted("awake=on")

    def told() -> int:
        with open(awake.DEVICE, "rb", buffering=0) as device:
            (value,) = struct.unpack("=i", device.read(4))
        return int(value)

    burst(mount, lambda: told() == 0)
