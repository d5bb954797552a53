"""What signals do to a server, through either door."""

from __future__ import annotations

import mmap
import os
import re
import signal

from sidecar import processes
from sysroot_fs.fuse.signals import Signals, held_back
from tests.children import in_child
from tests.mounts import PATIENCE, Mounter, mounted_type
from tests.waiting import wait_until


def test_a_signal_for_the_counts_tells_them(mounted: Mounter) -> None:
    """SIGUSR1 logs the requests so far; one that comes as soon as the mount stands kills nobody."""
    mount = mounted()
    mount.process.send_signal(signal.SIGUSR1)
    wait_until(lambda: "requests: " in mount.log.read_text())
    for _ in range(3):
        os.statvfs(mount.point)
    before = mount.log.read_text().count("requests: ")
    mount.process.send_signal(signal.SIGUSR1)
    wait_until(lambda: mount.log.read_text().count("requests: ") > before)
    assert re.search(r"requests: .*\bstatfs 3\b", mount.log.read_text())


def test_what_maps_changed_arrives(mounted: Mounter) -> None:
    """On SIGTERM what was written through a shared memory map is written back first."""
    mount = mounted()
    below = mount.sysroot / "f"
    below.write_bytes(bytes(8192))
    with open(mount.point / "f", "r+b") as file, mmap.mmap(file.fileno(), 8192) as view:
        view[:4] = view[4096:4100] = b"seen"
    mount.process.send_signal(signal.SIGTERM)
    assert mount.process.wait(PATIENCE) == 0
    assert below.read_bytes() == (b"seen" + bytes(4092)) * 2
    assert mounted_type(mount.point) is None


def test_signals_in_a_row_end_it_once(mounted: Mounter) -> None:
    """A second ending signal, while it is unmounted, changes nothing."""
    mount = mounted()
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGTERM):
        mount.process.send_signal(number)
    assert mount.process.wait(PATIENCE) == 0
    assert mount.log.read_text().count(": unmounting") == 1


def test_nothing_held_back_comes_late() -> None:
    """Signals that nobody took are dropped when they are let through again, as they were before."""

    def work() -> tuple[int, bool, bool]:
        ended: list[int] = []
        with held_back() as fd:
            signals = Signals(fd, lambda: ended.append(1), dict)
            for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP):
                os.kill(os.getpid(), number)
            signals.take()
            for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP):
                os.kill(os.getpid(), number)
        blocked = signal.pthread_sigmask(signal.SIG_BLOCK, ())
        return len(ended), signal.SIGTERM in blocked, signal.SIGUSR1 in blocked

    assert in_child(work) == (1, False, False)


def test_a_blocked_signal_stays_blocked() -> None:
    """Who has blocked one of them before finds it blocked afterwards."""

    def work() -> bool:
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGHUP])
        with held_back() as fd:
            assert processes.read_signals(fd) == []
        return signal.SIGHUP in signal.pthread_sigmask(signal.SIG_BLOCK, ())

    assert in_child(work)
