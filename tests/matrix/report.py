"""What came of the cells: a line, a text, JSON, and a page that a person can open."""

from __future__ import annotations

import html
import json
from collections.abc import Callable, Sequence
from pathlib import Path

import attrs

from tests.matrix.suite import Cell, Tally


@attrs.frozen
class Result:
    """How one cell went."""

    cell: Cell
    tally: Tally
    seconds: float

    def line(self) -> str:
        """The numbers on one line."""
        return f"{totals([self])} ({self.seconds:.0f} s)"


def totals(results: Sequence[Result]) -> str:
    """`N passed, N failed, N skipped` of all."""
    passed = sum(len(result.tally.passed) for result in results)
    failed = sum(len(result.tally.failures) for result in results)
    skipped = sum(len(result.tally.skipped) for result in results)
    return f"{passed} passed, {failed} failed, {skipped} skipped"


def as_text(results: Sequence[Result]) -> str:
    """Everything that is not a pass, and the totals last."""
    lines = []
    for result in results:
        for name, words in result.tally.failures.items():
            lines.append(f"FAILED {result.cell.name}: {name}")
            lines += [f"    {word}" for word in words]
    reasons: dict[tuple[str, str], int] = {}
    for result in results:
        for reason in result.tally.skipped.values():
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
        columns = list(dict.fromkeys(_column(result.cell) for result in mine))
        parts.append(f"<h2>{html.escape(suite)}</h2><table><tr><th>volume")
        parts += [f"<th>{html.escape(column)}" for column in columns]
        for volume in dict.fromkeys(result.cell.volume for result in mine):
            parts.append(f"<tr><th>{html.escape(volume)}")
            boxes = {_column(r.cell): _box(r) for r in mine if r.cell.volume == volume}
            parts += [boxes.get(column, "<td>") for column in columns]
        parts.append("</table>")
    for result in results:
        parts.append(_details(result, alone))
    return "\n".join(parts) + "\n"


def _column(cell: Cell) -> str:
    return " ".join(part for part in (cell.guest, cell.place, cell.mode) if part != "-")


def _anchor(cell: Cell) -> str:
    return cell.name.replace("/", "-")


def _box(result: Result) -> str:
    kind = "bad" if result.tally.failures else "good"
    return f'<td class={kind}><a href="#{_anchor(result.cell)}">{totals([result])}</a>'


def _details(result: Result, alone: Callable[[Cell], str]) -> str:
    parts = [f'<h3 id="{_anchor(result.cell)}">{html.escape(result.cell.name)}</h3>']
    command = html.escape(alone(result.cell))
    parts.append(f"<p>{result.line()}; alone: <code>{command}</code></p>")
    for name, words in result.tally.failures.items():
        parts.append(
            f"<p>failed: {html.escape(name)}</p><pre>{html.escape(chr(10).join(words))}</pre>"
        )
    for name, reason in result.tally.skipped.items():
        parts.append(f"<p>skipped: {html.escape(name)}: {html.escape(reason)}</p>")
    return "\n".join(parts)


def write(results: Sequence[Result], directory: Path, alone: Callable[[Cell], str]) -> None:
    """report.txt, report.json and report.html in *directory*."""
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "report.txt").write_text(as_text(results) + "\n", "utf-8")
    (directory / "report.json").write_text(as_json(results) + "\n", "utf-8")
    (directory / "report.html").write_text(as_html(results, alone), "utf-8")
