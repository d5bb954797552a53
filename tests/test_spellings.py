"""What is remembered of absences, and when a rename is one to another spelling."""

from __future__ import annotations

import functools
import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

from sidecar import casefold
from sidecar.twin import Caller
from sysroot_fs.tree import spellings
from sysroot_fs.tree.spellings import Spellings, is_respelling
from tests.children import start_child
from tests.mounts import Mounter
from tests.waiting import wait_until


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[float]]:
    """A clock that stands until it is set."""
    now = [1000.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    yield now


# --- absences -----------------------------------------------------------------------------------


def test_every_spelling_of_a_key_is_given_back_once(clock: list[float]) -> None:
    """When the name appears, and not again."""
    kept = Spellings()
    for name in (b"foo", b"FOO", b"foo"):
        assert kept.absent(7, b"foo", name, 5.0) == 5.0
    assert sorted(kept.appeared(7, b"foo")) == [b"FOO", b"foo"]
    assert kept.appeared(7, b"foo") == []


def test_directories_and_keys_are_apart(clock: list[float]) -> None:
    """Only the names of that directory and key are given back."""
    kept = Spellings()
    kept.absent(7, b"foo", b"Foo", 5.0)
    kept.absent(8, b"foo", b"fOO", 5.0)
    kept.absent(7, b"bar", b"Bar", 5.0)
    assert kept.appeared(7, b"foo") == [b"Foo"]
    assert kept.appeared(8, b"foo") == [b"fOO"]


def test_an_answer_is_kept_longer_than_the_kernel_keeps_it(clock: list[float]) -> None:
    """The kernel counts from when it has the answer: a second of grace."""
    kept = Spellings()
    kept.absent(7, b"foo", b"Foo", 5.0)
    clock[0] += 5.9
    kept.absent(7, b"bar", b"Bar", 5.0)
    assert kept.appeared(7, b"foo") == [b"Foo"]


def test_what_has_expired_is_dropped(clock: list[float]) -> None:
    """The memory does not grow with names that nobody asks for any more."""
    kept = Spellings()
    for number in range(100):
        kept.absent(7, b"%d" % number, b"%d" % number, 5.0)
    clock[0] += 6.1
    kept.absent(7, b"foo", b"Foo", 5.0)
    assert len(kept._names) == len(kept._queue) == 1
    assert kept.appeared(7, b"5") == []


def test_an_answer_given_again_is_kept_from_then_on(clock: list[float]) -> None:
    """Its first term does not end the second one."""
    kept = Spellings()
    kept.absent(7, b"foo", b"Foo", 5.0)
    clock[0] += 4.0
    kept.absent(7, b"foo", b"Foo", 5.0)
    clock[0] += 4.0
    kept.absent(7, b"bar", b"Bar", 5.0)
    assert kept.appeared(7, b"foo") == [b"Foo"]


def test_a_name_that_came_and_went_is_kept_again(clock: list[float]) -> None:
    """What is left of the first answer in the queue does not end the second."""
    kept = Spellings()
    kept.absent(7, b"foo", b"Foo", 5.0)
    kept.appeared(7, b"foo")
    clock[0] += 4.0
    kept.absent(7, b"foo", b"Foo", 5.0)
    clock[0] += 3.0
    kept.absent(7, b"bar", b"Bar", 5.0)
    assert kept.appeared(7, b"foo") == [b"Foo"]


def test_past_the_bound_nothing_may_be_remembered(
    clock: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    """No leave rather than a wrong memory; leave again when old answers have expired."""
    monkeypatch.setattr(spellings, "MOST", 3)
    kept = Spellings()
    assert [kept.absent(7, b"%d" % n, b"%d" % n, 5.0) for n in range(4)] == [5.0, 5.0, 5.0, 0.0]
    clock[0] += 6.1
    assert kept.absent(7, b"x", b"x", 5.0) == 5.0


def test_what_may_not_be_remembered_is_not_kept(clock: list[float]) -> None:
    """A timeout of zero leaves no trace."""
    kept = Spellings()
    assert kept.absent(7, b"foo", b"Foo", 0.0) == 0.0
    assert kept.appeared(7, b"foo") == []


# --- renames ------------------------------------------------------------------------------------


RENAMES: Final = {str(number) for number in spellings._RENAMES}


@pytest.fixture(scope="module")
def hanging(session_workplace: Path) -> Iterator[Path]:
    """A directory in a mount whose server is stopped: who renames there waits in the call."""
    work = session_workplace / "hanging"
    work.mkdir()
    mounter = Mounter(work)
    mount = mounter("entry_timeout=0")
    os.kill(mount.process.pid, signal.SIGSTOP)
    try:
        yield mount.point / "top"
    finally:
        os.kill(mount.process.pid, signal.SIGCONT)
        mounter.close()


def judge(pid: int, name: bytes = b"FOO", directory: bytes = b"/") -> bool:
    return is_respelling(Caller(0, 0, pid), name, casefold.key, lambda: directory)


def test_who_is_in_no_rename_is_not_respelling() -> None:
    """A process in another call, one that is gone, and one that nobody knows."""
    child = start_child(lambda: time.sleep(0.2))
    assert not judge(child.pid)
    child.result()
    assert not judge(child.pid)
    assert not judge(0)


@pytest.mark.parametrize(
    ("old", "new", "directory", "answer"),
    [
        ("foo", "FOO", b"/", True),
        ("foo", "bar", b"/", False),
        ("FOO", "FOO", b"/", False),
        ("foo", "fOO", b"/", False),
        ("dir/foo", "dir/FOO", b"/dir", True),
        ("dir/foo", "DIR/FOO", b"/dir", True),
        ("dir/foo", "dir/./FOO/", b"/dir", True),
        ("dir/foo", "FOO", b"/dir", False),
        ("dir/foo", "other/FOO", b"/other", False),
        ("FOO/foo", "FOO/FOO", b"/top", False),
        ("FOO/foo", "FOO/FOO", b"/top/Foo", True),
        ("FOO/FOO/foo", "FOO/FOO/FOO", b"/top/foo", False),
        ("FOO/FOO/foo", "FOO/FOO/FOO", b"/top/foo/foo", True),
        ("FOO/foo", "foo/FOO", b"/top", False),
        ("FOO/foo", "FOO/FOO", b"/", False),
    ],
)
def test_a_rename_is_judged_by_its_two_paths(
    hanging: Path, old: str, new: str, directory: bytes, answer: bool
) -> None:
    """Names of one key in one directory, and not one of the directories on the way."""
    caller = start_child(functools.partial(os.rename, f"{hanging}/{old}", f"{hanging}/{new}"))
    try:
        wait_until(lambda: Path(f"/proc/{caller.pid}/syscall").read_text().split()[0] in RENAMES)
        assert judge(caller.pid, b"FOO", directory) is answer
    finally:
        os.kill(caller.pid, signal.SIGKILL)
        os.waitpid(caller.pid, 0)
        os.close(caller.pipe)


# --- waiting for memory -------------------------------------------------------------------------


def test_memory_that_does_not_come_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """The server goes on: after a moment, and at once while the first one still waits."""
    monkeypatch.setattr(spellings, "PATIENCE", 0.1)
    came = threading.Event()
    with pytest.raises(TimeoutError):
        spellings._patiently(came.wait)
    began = time.monotonic()
    with pytest.raises(TimeoutError):
        spellings._patiently(lambda: 1)
    assert time.monotonic() - began < 0.05
    came.set()
    spellings._waiting[0].join()
    assert spellings._patiently(lambda: 1) == 1
