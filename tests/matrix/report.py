"""What came of the cells: a line, a text, JSON, and a page that a person can open."""

from __future__ import annotations

import html
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

import attrs

from tests.matrix.suite import Cell, Tally

T = TypeVar("T")


@attrs.frozen
class Result:
    """How one cell went, and which items it was given."""

    cell: Cell
    tally: Tally
    seconds: float
    items: Sequence[str] = ()

    def line(self) -> str:
        """The numbers on one line."""
        return f"{totals([self])} ({self.seconds:.0f} s)"


Alone = Callable[[Cell, Sequence[str]], str]
"""What gives the command that runs some items of a cell alone, all of them where none is given."""


def totals(results: Sequence[Result]) -> str:
    """`N passed, N failed, N skipped` of all."""
    passed = sum(len(result.tally.passed) for result in results)
    failed = sum(len(result.tally.failures) for result in results)
    skipped = sum(len(result.tally.skipped) for result in results)
    return f"{passed} passed, {failed} failed, {skipped} skipped"


def as_text(results: Sequence[Result], alone: Alone) -> str:
    """Everything that is not a pass, with what runs the failed items alone; the totals last."""
    lines = []
    for result in results:
        for words, names in _by_words(result.tally.failures).items():
            lines.append(f"FAILED {result.cell.name}: {', '.join(names)}")
            lines += [f"    {word}" for word in words]
            lines.append(f"    alone: {alone(result.cell, _items(result, names))}")
    for result in results:
        for reason, names in _by_reason(result.tally.skipped).items():
            lines.append(f"skipped {result.cell.name}: {len(names)} items, because {reason}")
            lines.append(f"    {', '.join(names)}")
    lines.append(totals(results))
    return _printable("\n".join(lines))


def _by_words(failures: Mapping[str, Sequence[str]]) -> dict[tuple[str, ...], list[str]]:
    """What was said of failures, with the names of those of which the same was."""
    return _by_reason({name: tuple(words) for name, words in failures.items()})


def _by_reason(told: Mapping[str, T]) -> dict[T, list[str]]:
    names: dict[T, list[str]] = {}
    for name, reason in told.items():
        names.setdefault(reason, []).append(name)
    return names


def _items(result: Result, names: Sequence[str]) -> list[str]:
    """Those of *names* that are items: others, such as the server's, cannot be run alone."""
    return [name for name in names if name in result.items]


def _printable(text: str) -> str:
    """*text* with what is no character (a byte of a name that is not UTF-8) as its escape."""
    return text.encode("utf-8", "backslashreplace").decode()


def as_json(results: Sequence[Result]) -> str:
    """For programs; a list of cells in the order in which they ran."""
    return json.dumps([attrs.asdict(result) for result in results], indent=1)


_STYLE = """
body { font: 15px/1.4 system-ui, sans-serif; margin: 2em; color: #222 }
table { border-collapse: collapse } td, th { border: 1px solid #ccc; padding: .3em .8em }
td.good { background: #e4f5e4 } td.bad { background: #f9dede } pre { background: #f4f4f4;
padding: .6em; overflow-x: auto } code { background: #f4f4f4 }
"""


def as_html(results: Sequence[Result], alone: Alone) -> str:
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
    return _printable("\n".join(parts) + "\n")


def _column(cell: Cell) -> str:
    return " ".join(part for part in (cell.guest, cell.place, cell.mode) if part != "-")


def _anchor(cell: Cell) -> str:
    return cell.name.replace("/", "-")


def _box(result: Result) -> str:
    kind = "bad" if result.tally.failures else "good"
    return f'<td class={kind}><a href="#{_anchor(result.cell)}">{totals([result])}</a>'


def _details(result: Result, alone: Alone) -> str:
    def command(items: Sequence[str]) -> str:
        return f"alone: <code>{html.escape(alone(result.cell, items))}</code>"

    parts = [f'<h3 id="{_anchor(result.cell)}">{html.escape(result.cell.name)}</h3>']
    parts.append(f"<p>{result.line()}; {command(())}</p>")
    for words, names in _by_words(result.tally.failures).items():
        parts.append(
            f"<p>failed: {html.escape(', '.join(names))}; {command(_items(result, names))}</p>"
        )
        parts.append(f"<pre>{html.escape(chr(10).join(words))}</pre>")
    for reason, names in _by_reason(result.tally.skipped).items():
        parts.append(f"<p>skipped: {html.escape(', '.join(names))}: {html.escape(reason)}</p>")
    return "\n".join(parts)


def write(results: Sequence[Result], directory: Path, alone: Alone) -> None:
    """report.txt, report.json and report.html in *directory*; never half of one."""
    directory.mkdir(parents=True, exist_ok=True)
    for name, text in (
        ("report.txt", as_text(results, alone) + "\n"),
        ("report.json", as_json(results) + "\n"),
        ("report.html", as_html(results, alone)),
    ):
        fresh = directory / f"{name}.new"
        fresh.write_text(text, "utf-8")
        fresh.rename(directory / name)
