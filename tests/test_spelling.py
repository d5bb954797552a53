"""Rules for spellings: which prefix decides, and how a rule is handed down."""

from __future__ import annotations

import pytest

from sidecar import casefold
from sidecar.spelling import EXACT, Key, Spelling, rules


def at(rule: Spelling, path: bytes) -> Spelling:
    """The rule of the directory *path*."""
    for name in filter(None, path.split(b"/")):
        rule = rule.child(name)
    return rule


def folds(rule: Spelling, path: bytes) -> bool:
    """Whether names in the directory *path* are looked up in every spelling."""
    return at(rule, path).key is not None


def test_nothing_folds_without_a_rule() -> None:
    """The exact rule is its own child, whatever the name."""
    assert EXACT.key is None and not EXACT.above
    assert EXACT.child(b"a") is EXACT


def test_everything_folds_everywhere() -> None:
    """One rule serves the root, one all that is below."""
    rule = rules(casefold.key, True)
    assert folds(rule, b"/") and folds(rule, b"/a/b/c")
    assert at(rule, b"/a") is at(rule, b"/b/c/d")


@pytest.mark.parametrize("prefix", [b"/sdk/inc", b"sdk/inc/", b"//sdk//inc"])
def test_a_prefix_folds_at_and_below_it(prefix: bytes) -> None:
    """The names in the directory of the prefix, not the name of the directory itself."""
    rule = rules(casefold.key, False, [prefix])
    assert folds(rule, b"/sdk/inc") and folds(rule, b"/sdk/inc/um/x")
    assert not folds(rule, b"/") and not folds(rule, b"/sdk") and not folds(rule, b"/sdk/lib")


def test_an_exact_prefix_is_meant_as_it_is_written() -> None:
    """Where its parent does not fold, another spelling of a prefix is another directory."""
    rule = rules(casefold.key, False, [b"/sdk"])
    assert not folds(rule, b"/SDK")


def test_the_longest_prefix_decides() -> None:
    """Exact inside fold inside exact inside fold, in whatever order they are given."""
    fold, exact = [b"/a/b/c/d", b"/a/b"], [b"/a/b/c", b"/a"]
    for turn in (1, -1):
        rule = rules(casefold.key, True, fold[::turn], exact[::turn])
        answers = [folds(rule, path) for path in (b"/", b"/a", b"/a/b", b"/a/b/c", b"/a/b/c/d/e")]
        assert answers == [True, False, True, False, True]


def test_of_the_same_path_exact_counts() -> None:
    """A path that is given as both is exact."""
    assert not folds(rules(casefold.key, True, [b"/a"], [b"/a"]), b"/a")
    assert not folds(rules(casefold.key, True, [b"/a"], [b"/A"]), b"/a")


def test_the_root_is_a_prefix() -> None:
    """`/` says what holds where no longer one does."""
    assert folds(rules(casefold.key, False, [b"/"]), b"/x")
    assert not folds(rules(casefold.key, True, (), [b"/"]), b"/x")


def test_a_prefix_below_a_folding_directory_is_met_in_every_spelling() -> None:
    """The rule belongs to the directory, however the path to it is spelled."""
    rule = rules(casefold.key, True, (), [b"/Game/Saves"])
    assert not folds(rule, b"/game/SAVES") and not folds(rule, b"/Game/Saves/x")
    assert folds(rule, b"/game")


def test_prefixes_that_share_a_folding_directory_in_two_spellings_all_count() -> None:
    """`/sdk/Bin` and `/SDK/Lib` stand in one directory."""
    rule = rules(casefold.key, True, [b"/Sdk/bin/new"], [b"/sdk/Bin", b"/SDK/Lib"])
    for spelling in (b"/sdk", b"/SDK", b"/Sdk"):
        assert not folds(rule, spelling + b"/bin") and not folds(rule, spelling + b"/lib")
        assert folds(rule, spelling + b"/bin/new")
        assert folds(rule, spelling + b"/other")


@pytest.mark.parametrize(
    ("key", "same"), [(casefold.key, True), (casefold.ascii_key, False)], ids=["unicode", "ascii"]
)
def test_prefixes_are_compared_by_the_key(key: Key, same: bool) -> None:
    """What another spelling of a prefix is, the key says."""
    rule = rules(key, True, (), ["/straße".encode()])
    assert folds(rule, b"/STRASSE") is not same


def test_above_is_known_below_a_folding_directory_only() -> None:
    """Names in the first folding directory are reached in one spelling, those below in several."""
    rule = rules(casefold.key, False, [b"/a"], [b"/a/b"])
    assert not at(rule, b"/a").above
    assert at(rule, b"/a/x").above and at(rule, b"/a/b").above and at(rule, b"/a/b/c/d").above
    assert not at(rule, b"/z").above


def test_a_rule_does_not_grow_with_the_depth() -> None:
    """Deep trees share their rules."""
    rule = rules(casefold.key, True, [b"/a/b"])
    assert at(rule, b"/a/b/c/d") is at(rule, b"/a/b/c/d/e/f/g")
