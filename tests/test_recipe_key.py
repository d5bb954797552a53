"""The key of what is kept in the cache: it follows the recipe, and nothing else."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.matrix.recipe_key import recipe_key

AMOUNT = 3
UNUSED = 4


class Oven:
    """A class whose method names a constant."""

    def heat(self) -> int:
        return AMOUNT


def _helper() -> int:
    return AMOUNT + 1


def by_helper() -> list[int]:
    """A recipe."""
    return [_helper() for _ in range(2)]


def by_class() -> int:
    """Another one."""
    return Oven().heat()


def plain() -> int:
    """A third, which uses nothing."""
    return 1


def _with_comment() -> Callable[[], int]:
    def plain() -> int:
        # A comment, no docstring and another layout.
        return (
            1
        )  # fmt: skip

    plain.__qualname__ = "plain"
    return plain


@pytest.mark.parametrize("recipe", [by_helper, by_class])
def test_a_constant_that_is_reached_changes_the_key(
    recipe: Callable[[], object], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Through a helper in a comprehension, and through a method."""
    before = recipe_key(recipe)
    assert recipe_key(recipe) == before
    monkeypatch.setitem(globals(), "AMOUNT", 5)
    assert recipe_key(recipe) != before


def test_a_helper_changes_the_key(monkeypatch: pytest.MonkeyPatch) -> None:
    """Another function under the helper's name."""
    before = recipe_key(by_helper)
    monkeypatch.setitem(globals(), "_helper", plain)
    assert recipe_key(by_helper) != before


def test_what_is_not_reached_does_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    """A constant that merely stands in the same module."""
    before = recipe_key(by_helper)
    monkeypatch.setitem(globals(), "UNUSED", 5)
    assert recipe_key(by_helper) == before


def test_comments_and_layout_do_not_matter() -> None:
    """The same statements give the same key."""
    assert recipe_key(_with_comment()) == recipe_key(plain)


def test_what_else_is_given_changes_the_key() -> None:
    """Each piece counts, and where one ends and the next begins."""
    keys = {recipe_key(plain, *also) for also in ([], [b"a", b"b"], [b"ab"], [b"", b"ab"])}
    assert len(keys) == 4


def test_a_module_that_was_run_has_no_key(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its functions have other names than where it is imported, and would be built twice."""
    monkeypatch.setattr(plain, "__module__", "__main__")
    with pytest.raises(ValueError, match="run, not imported"):
        recipe_key(plain)
