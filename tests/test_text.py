"""Errors as people read them."""

from __future__ import annotations

import errno

import pytest

from sysroot_fs.text import Sentence, sentence, shortage


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (Sentence("it is so"), "it is so"),
        (OSError(errno.EACCES, "", "/a\nb"), "permission denied: /a\\nb"),
        (KeyError(5), "KeyError: 5"),
        (ValueError(), "ValueError"),
        (ExceptionGroup("trio's words", [Sentence("it is so")]), "it is so"),
    ],
)
def test_sentence(error: Exception, said: str) -> None:
    """A failure of ours is its own sentence, the system's has its file, others have their kind."""
    assert sentence(error) == said


@pytest.mark.parametrize(
    ("error", "what"),
    [
        (OSError(errno.EMFILE, "", "/name"), "too many open files"),
        (RuntimeError("can't start new thread"), "no thread can be started"),
    ],
)
def test_a_limit_is_found_in_groups_too(error: Exception, what: str) -> None:
    """A limit that is reached is said with where to look, beside whatever else has failed."""
    nested = ExceptionGroup("outer", [ValueError(), ExceptionGroup("inner", [error])])
    for one in (error, nested):
        told = sentence(one)
        assert told == shortage(one)
        assert told.startswith(f"{what}: ") and told.endswith("(ulimit -a)")


def test_other_failures_are_no_shortage() -> None:
    """What a limit has not caused is not blamed on one."""
    assert shortage(ExceptionGroup("", [OSError(errno.EACCES, ""), RuntimeError("no")])) is None
