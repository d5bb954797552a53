"""What came of the cells: a line, a text, JSON, and a page that a person can open."""

from __future__ import annotations

import html
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import attrs


@attrs.frozen
class Cell:
    """One suite in one guest on one volume, working in one place."""

    volume: str
    place: str
    suite: str

    @property
    def name(self) -> str:
        """What the progress lines call it."""
        return f"{self.suite} on {self.volume}, in {self.place}"


@attrs.frozen
class Result:
    """How one cell went: the lines that failed with what differed, the skipped with the reason."""

    cell: Cell
    passed: int
    failures: Mapping[str, Sequence[str]]
    skipped: Mapping[str, str]
    seconds: float

    def line(self) -> str:
        """The numbers on one line."""
        counted = totals([self])
        return f"{counted} ({self.seconds:.0f} s)"


def totals(results: Sequence[Result]) -> str:
    """`N passed, N failed, N skipped` of all."""
    passed = sum(result.passed for result in results)
    failed = sum(len(result.failures) for result in results)
    skipped = sum(len(result.skipped) for result in results)
    return f"{passed} passed, {failed} failed, {skipped} skipped"


def as_text(results: Sequence[Result]) -> str:
    """Everything that is not a pass, and the totals last."""
    lines = []
    for result in results:
        for name, words in result.failures.items():
            lines.append(f"FAILED {result.cell.name}: {name}")
            lines += [f"    {word}" for word in words]
    reasons: dict[tuple[str, str], int] = {}
    for result in results:
        for reason in result.skipped.values():
            key = (result.cell.name, reason)
            reasons[key] = reasons.get(key, 0) + 1
    for (cell, reason), count in reasons.items():
        lines.append(f"skipped {cell}: {count} lines, because {reason}")
    lines.append(totals(results))
    return "\n".join(lines)


def as_json(results: Sequence[Result]) -> str:
    """For programs; a list of cells in the order in which they ran."""
    return json.dumps([attrs.asdict(result) for result in results], indent=1)


_STYLE = """
body { font: 15px/1.4 system-ui, sans-serif; margin: 2em; color: #222 }
table { border-collapse: collapse } td, th { border: 1px solid #ccc; padding: .3em .8em }
td.good { background: #e4f5e4 } td.bad { background: #f9dede } pre { background: #f4f4f4;
padding: .6em; overflow-x: auto } code { background: #f4f4f4 }
"""


def as_html(results: Sequence[Result], alone: Callable[[Cell], str]) -> str:
    """One table a suite; a cell leads to its failures and to the command that runs it alone."""
    parts = [f"<!doctype html><meta charset=utf-8><title>sysroot-fs matrix</title><style>{_STYLE}"]
    parts.append(f"</style><h1>sysroot-fs: the matrix</h1><p>{totals(results)}</p>")
    for suite in dict.fromkeys(result.cell.suite for result in results):
        mine = [result for result in results if result.cell.suite == suite]
        places = list(dict.fromkeys(result.cell.place for result in mine))
        parts.append(f"<h2>{html.escape(suite)}</h2><table><tr><th>volume")
        parts += [f"<th>work in the {html.escape(place)}" for place in places]
        for volume in dict.fromkeys(result.cell.volume for result in mine):
            parts.append(f"<tr><th>{html.escape(volume)}")
            for place in places:
                found = [r for r in mine if (r.cell.volume, r.cell.place) == (volume, place)]
                parts.append(_box(found[0]) if found else "<td>")
        parts.append("</table>")
    for result in results:
        parts.append(_details(result, alone))
    return "\n".join(parts) + "\n"


def _anchor(cell: Cell) -> str:
    return f"{cell.suite}-{cell.volume}-{cell.place}"


def _box(result: Result) -> str:
    kind = "bad" if result.failures else "good"
    return f'<td class={kind}><a href="#{_anchor(result.cell)}">{totals([result])}</a>'


def _details(result: Result, alone: Callable[[Cell], str]) -> str:
    parts = [f'<h3 id="{_anchor(result.cell)}">{html.escape(result.cell.name)}</h3>']
    command = html.escape(alone(result.cell))
    parts.append(f"<p>{result.line()}; alone: <code>{command}</code></p>")
    for name, words in result.failures.items():
        parts.append(
            f"<p>failed: {html.escape(name)}</p><pre>{html.escape(chr(10).join(words))}</pre>"
        )
    for name, reason in result.skipped.items():
        parts.append(f"<p>skipped: {html.escape(name)}: {html.escape(reason)}</p>")
    return "\n".join(parts)


def write(results: Sequence[Result], directory: Path, alone: Callable[[Cell], str]) -> None:
    """report.txt, report.json and report.html in *directory*."""
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "report.txt").write_text(as_text(results) + "\n", "utf-8")
    (directory / "report.json").write_text(as_json(results) + "\n", "utf-8")
    (directory / "report.html").write_text(as_html(results, alone), "utf-8")
