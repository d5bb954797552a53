"""State machines: how a mount is compared with a model, call by call, and how they are run."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar, Protocol

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, rule, run_state_machine_as_test

from sidecar import casefold, linux


def outcome(call: Callable[[], object]) -> object:
    """What a call returns, or the number of its failure."""
    try:
        return call()
    except OSError as error:
        return f"errno {error.errno}"


def fold(last: str) -> str:
    """The key under which names are one."""
    return os.fsdecode(casefold.key(os.fsencode(last)))


def fail(number: int) -> OSError:
    """How a model refuses a call."""
    return OSError(number, os.strerror(number))


def rename(old: Path, new: Path, flags: int) -> None:
    """renameat2(2)."""
    linux.renameat2(
        linux.AT_FDCWD, os.fsencode(old), linux.AT_FDCWD, os.fsencode(new), flags
    )  # fmt: skip


class Model(Protocol):
    """What a caseless tree does. Paths are relative; a call that is refused raises OSError."""

    def read(self, where: str) -> str: ...
    def write(self, where: str, text: str) -> None: ...
    def mkdir(self, where: str) -> None: ...
    def unlink(self, where: str) -> None: ...
    def rmdir(self, where: str) -> None: ...
    def link(self, old: str, new: str) -> None: ...
    def rename(self, old: str, new: str, noreplace: bool) -> None: ...
    def listdir(self, where: str) -> list[str]: ...


# Each machine has paths of its own.
path = st.runner().flatmap(lambda machine: machine.paths)
data = st.sampled_from(["", "one", "another"])


class Caseless(RuleBasedStateMachine):
    """Every call is made in the mounted directory *top* and on the model."""

    paths: ClassVar[st.SearchStrategy[str]]

    def __init__(self, top: Path, model: Model) -> None:
        super().__init__()
        self.top, self.model = top, model

    def both(self, mine: Callable[[], object], model: Callable[[], object]) -> None:
        """The two calls return the same, or fail in the same way."""
        assert outcome(mine) == outcome(model)

    def same_listing(self, where: str) -> None:
        """The directory shows the same names on both sides."""
        self.both(lambda: sorted(os.listdir(self.top / where)), lambda: self.model.listdir(where))

    @rule(where=path)
    def read(self, where: str) -> None:
        self.both((self.top / where).read_text, lambda: self.model.read(where))

    @rule(where=path, text=data)
    def write(self, where: str, text: str) -> None:
        def call() -> None:
            (self.top / where).write_text(text)

        self.both(call, lambda: self.model.write(where, text))

    @rule(where=path)
    def mkdir(self, where: str) -> None:
        self.both(lambda: os.mkdir(self.top / where), lambda: self.model.mkdir(where))

    @rule(where=path)
    def unlink(self, where: str) -> None:
        self.both(lambda: os.unlink(self.top / where), lambda: self.model.unlink(where))

    @rule(where=path)
    def rmdir(self, where: str) -> None:
        self.both(lambda: os.rmdir(self.top / where), lambda: self.model.rmdir(where))

    @rule(old=path, new=path)
    def link(self, old: str, new: str) -> None:
        self.both(
            lambda: os.link(self.top / old, self.top / new), lambda: self.model.link(old, new)
        )

    @rule(old=path, new=path, noreplace=st.booleans())
    def rename(self, old: str, new: str, noreplace: bool) -> None:
        flags = linux.RENAME_NOREPLACE if noreplace else 0
        self.both(
            functools.partial(rename, self.top / old, self.top / new, flags),
            lambda: self.model.rename(old, new, noreplace),
        )


def run(machine: type[RuleBasedStateMachine], *, examples: int, steps: int, **more: Any) -> None:
    """Run *machine*, a class that is made without arguments; *more* are further settings."""
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=examples,
            stateful_step_count=steps,
            # A call takes as long as the volume and the machine have it.
            deadline=None,
            database=None,
            suppress_health_check=list(HealthCheck),
            **more,
        ),
    )
