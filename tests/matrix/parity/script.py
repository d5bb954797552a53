"""A list of calls as a Python script that needs nothing but Python, root, and two directories.

It is made of the suite's own `calls` module, without what the calls in question do not need.
"""

from __future__ import annotations

import ast
import inspect
from collections.abc import Iterator, Sequence

from tests.matrix.parity import calls as interpreter
from tests.matrix.parity.calls import Call
from tests.matrix.parity.pair import literal

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
    source = inspect.getsource(interpreter)
    body = ast.parse(source).body
    used = {"perform", *(f"do_{call.name}" for call in calls)}
    while missing := {name for node in body if _names(node) & used for name in _uses(node)} - used:
        used |= missing
    parts = []
    for node in body:
        needed = isinstance(node, ast.Import | ast.ImportFrom) or _names(node) & used
        text = ast.get_source_segment(source, node)
        if needed and text and "__future__" not in text:
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


def _names(node: ast.stmt) -> set[str]:
    """What a statement of the module defines."""
    if isinstance(node, ast.FunctionDef | ast.ClassDef):
        return {node.name}
    if isinstance(node, ast.Assign):
        return {target.id for target in node.targets if isinstance(target, ast.Name)}
    return set()


def _uses(node: ast.stmt) -> Iterator[str]:
    return (inner.id for inner in ast.walk(node) if isinstance(inner, ast.Name))
