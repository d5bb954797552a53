"""Forked children: whatever comes to one, it never goes on as its parent."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator

import attrs
import pytest

from tests.children import in_child, start_child


@pytest.fixture(params=[signal.SIGINT, signal.SIGTERM], ids=lambda number: number.name)
def handled(request: pytest.FixtureRequest) -> Iterator[signal.Signals]:
    """A signal that this process handles as the table of the matrix does."""
    before = signal.signal(request.param, signal.default_int_handler)
    yield request.param
    signal.signal(request.param, before)


def fate(work: Callable[[], object]) -> str:
    """How a child ends that does *work*, in words; what comes back from the fork is no child."""
    here = os.getpid()
    try:
        child = start_child(work)
    finally:
        if os.getpid() != here:
            os._exit(9)
    try:
        return f"it answered {child.result()!r}"
    except BaseException as error:
        return f"{type(error).__name__}: {error}"


@attrs.frozen
class Interrupted:
    """An answer on whose way to the parent a signal comes."""

    number: int

    def __reduce__(self) -> tuple[type[Interrupted], tuple[int]]:
        os.kill(os.getpid(), self.number)
        return Interrupted, (self.number,)


def test_a_signal_for_a_child_alone_ends_it(handled: signal.Signals) -> None:
    """The parent is told that the child has ended, and not to end itself."""
    told = fate(lambda: os.kill(os.getpid(), handled))
    assert told == f"AssertionError: the child ended without an answer ({handled:#x})"


def test_a_signal_does_not_make_a_child_its_parent(handled: signal.Signals) -> None:
    """Not even where the child has done its work: nothing is raised out of the fork."""
    told = fate(lambda: Interrupted(handled))
    assert told == f"AssertionError: the child ended without an answer ({handled:#x})"


def test_a_signal_that_is_ignored_stays_so(handled: signal.Signals) -> None:
    """As in a program that is executed: who starts us in the background wants it."""
    signal.signal(handled, signal.SIG_IGN)
    assert fate(lambda: os.kill(os.getpid(), handled)) == "it answered None"


def test_no_signal_is_held_afterwards() -> None:
    """Neither in the child nor in its parent."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, ())
    assert in_child(lambda: signal.pthread_sigmask(signal.SIG_BLOCK, ())) == before
    assert signal.pthread_sigmask(signal.SIG_BLOCK, ()) == before
