"""A key for what a recipe makes: it changes when the recipe changes, and only then.

A recipe is a function. Its key is made of its source and of the source of everything in its package
that it names, functions and constants, as far as that reaches: what merely stands in the same
module does not count, nor do comments, docstrings and layout. What a caller hands in as an argument
is not reached, which is how a recipe is kept free of things that do not matter to its result.
"""

from __future__ import annotations

import ast
import hashlib
import inspect
import textwrap
from collections.abc import Callable, Iterator, Mapping
from types import CodeType, FunctionType, ModuleType
from typing import Any

import attrs


def recipe_key(recipe: Callable[..., object], *also: bytes) -> str:
    """Twelve hexadecimal digits for *recipe* and for *also*, what else the result depends on."""
    package = recipe.__module__.rpartition(".")[0]
    if not package:
        raise ValueError(f"{recipe.__name__} is not in a package: its module was run, not imported")
    collected = _Parts(package)
    collected.add(recipe.__name__, recipe)
    digest = hashlib.sha256()
    texts = [f"{name}\n{text}".encode() for name, text in sorted(collected.found.items())]
    for text in (*texts, *also):
        digest.update(b"%d\n" % len(text) + text)
    return digest.hexdigest()[:12]


@attrs.define
class _Parts:
    """What a recipe consists of, by name."""

    package: str
    found: dict[str, str] = attrs.Factory(dict)

    def add(self, name: str, value: Any) -> None:
        if isinstance(value, ModuleType):
            return
        if not isinstance(value, FunctionType | type):
            self.found[name] = repr(value)
            return
        name = f"{value.__module__}.{value.__qualname__}"
        if name in self.found or not name.startswith(f"{self.package}."):
            return
        self.found[name] = _bare_source(value)
        for function in _functions(value):
            for used, meant in self._named(function.__code__, function.__globals__):
                self.add(used, meant)

    def _named(self, code: CodeType, scope: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
        """What the names in *code* mean, in its own module and in those that it names."""
        spaces = [scope]
        for name in code.co_names:
            module = scope.get(name)
            if isinstance(module, ModuleType) and module.__name__.startswith(f"{self.package}."):
                spaces.append(vars(module))
        for space in spaces:
            for name in code.co_names:
                # Not __file__: the key is the same in every checkout.
                if name in space and not name.startswith("__"):
                    yield f"{space['__name__']}.{name}", space[name]
        for inner in code.co_consts:
            if isinstance(inner, CodeType):
                yield from self._named(inner, scope)


def _functions(thing: FunctionType | type) -> list[FunctionType]:
    """A function, or the methods that are written in a class: attrs makes more, from no file."""
    if isinstance(thing, FunctionType):
        return [thing]
    methods = [value for value in vars(thing).values() if isinstance(value, FunctionType)]
    return [one for one in methods if one.__code__.co_filename == inspect.getfile(thing)]


def _bare_source(thing: FunctionType | type) -> str:
    tree = ast.parse(textwrap.dedent(inspect.getsource(thing)))
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and ast.get_docstring(node) is not None:
            node.body = node.body[1:] or [ast.Pass()]
    return ast.unparse(tree)
