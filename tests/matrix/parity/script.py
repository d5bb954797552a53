"""A list of calls as a Python script that needs nothing but Python, root, and two directories.

It is made of the suite's own modules `world` and `calls`, without what the calls in question do
not need.
"""

from __future__ import annotations

import ast
import inspect
from collections.abc import Iterator, Sequence
from types import ModuleType

from tests.matrix.parity import calls as interpreter
from tests.matrix.parity import world
from tests.matrix.parity.pair import literal
from tests.matrix.parity.world import Call

__all__ = ["script_of"]

_MAIN = """
if __name__ == "__main__":
    answers = []
    for base in sys.argv[1:3]:
        top = tempfile.mkdtemp(dir=os.fsencode(base))
        if "modes" not in LACKS:
            os.chmod(top, 0o777)
        reader, writer = os.pipe()
        if not os.fork():
            with open(writer, "wb") as pipe:
                pickle.dump(perform(top, CALLS, LACKS), pipe)
            os._exit(0)
        os.close(writer)
        with open(reader, "rb") as pipe:
            answers.append(pickle.load(pipe))
        os.wait()
    for call, here, plain in zip(CALLS, *answers):
        print(call.actor, call.name, *call.args)
        print("    ", here, "" if here == plain else "   <-- DIFFERENT: the second says")
        if here != plain:
            print("    ", plain)
    sys.exit(answers[0] != answers[1])
"""


def script_of(calls: Sequence[Call], lacks: frozenset[str], title: str) -> str:
    """The script: it makes the calls in both directories, and ends with 1 where they differ."""
    statements = [pair for module in (world, interpreter) for pair in _statements(module)]
    used = {"perform", *(f"do_{call.name}" for call in calls)}
    nodes = [node for node, _ in statements]
    while missing := {name for node in nodes if _names(node) & used for name in _uses(node)} - used:
        used |= missing
    imports = dict.fromkeys(text for node, text in statements if _is_import(node))
    parts = []
    for node, text in statements:
        if _names(node) & used:
            gap = "\n\n" if isinstance(node, ast.FunctionDef | ast.ClassDef) else ""
            parts.append(gap + text)
    lines = [
        f'"""{title}',
        "",
        "As root: python3 THIS DIRECTORY-ON-THE-MOUNT DIRECTORY-ON-EXT4",
        '"""',
        "from __future__ import annotations",
        "import sys",
        "import tempfile",
        *imports,
        *parts,
        "\n",
        f"LACKS = frozenset({sorted(lacks)!r})",
        "CALLS = [",
        *(
            f"    Call({call.actor!r}, {call.name!r}, {literal(tuple(call.args))}),"
            for call in calls
        ),
        "]",
        _MAIN,
    ]
    return "\n".join(lines)


def _statements(module: ModuleType) -> Iterator[tuple[ast.stmt, str]]:
    source = inspect.getsource(module)
    for node in ast.parse(source).body:
        yield node, ast.get_source_segment(source, node) or ""


def _is_import(node: ast.stmt) -> bool:
    """Whether a statement imports what the script can have."""
    if isinstance(node, ast.ImportFrom):
        return node.module not in ("__future__", world.__name__)
    return isinstance(node, ast.Import)


def _names(node: ast.stmt) -> set[str]:
    """What a statement of the module defines."""
    if isinstance(node, ast.FunctionDef | ast.ClassDef):
        return {node.name}
    if isinstance(node, ast.Assign):
        return {target.id for target in node.targets if isinstance(target, ast.Name)}
    return set()


def _uses(node: ast.stmt) -> Iterator[str]:
    return (inner.id for inner in ast.walk(node) if isinstance(inner, ast.Name))
