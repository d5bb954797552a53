"""A run as Markdown tables and as a plot."""

from __future__ import annotations

import html
import math
from collections.abc import Iterable, Sequence
from typing import Final

from benchmarks.results import NATIVE, Book, Line, Series, Verdict, ratio
from benchmarks.targets import WHOLE_MEAN, targets

TITLES: Final = {
    "micro-pinned": "Single calls, client and server on one processor",
    "micro-free": "Single calls, processors free",
    "options": "What options cost",
    "work": "Whole work",
    "guest": "Programs in a guest",
    "folding": "On a folding volume",
    "spelling": "Names in another spelling",
    "scale": "Scale",
    "clients": "Clients at once",
    "start": "Starting",
}
_AGAINST: Final = {"native": " native", "peer": " best peer", "nothing": ""}
SHORT: Final = (
    "stat, pinned",
    "missing, again, pinned",
    "open+read, pinned",
    "readdir 1000, pinned",
    "grep -r, warm",
    "ls -lR, warm",
    "untar",
)


def number(value: float) -> str:
    """Three figures, without an exponent."""
    if math.isnan(value):
        return "-"
    if value >= 100:
        return f"{value:.0f}"
    return f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    lines = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    return [*lines, *("| " + " | ".join(row) + " |" for row in rows), ""]


def spread(series: Series) -> str:
    """The median, and in brackets the least and the quartiles."""
    first, third = series.quartiles
    return f"{number(series.median)} ({number(series.least)}; {number(first)}-{number(third)})"


def _reached(verdicts: Sequence[Verdict]) -> str:
    """Who reaches each target of a line, or by how much the nearest one misses it."""
    parts = []
    for target in dict.fromkeys(verdict.target for verdict in verdicts):
        mine = [verdict for verdict in verdicts if verdict.target == target]
        good = [f"{v.contestant} (even)" if v.even else v.contestant for v in mine if v.holds]
        nearest = min(mine, key=lambda v: math.inf if math.isnan(v.times) else v.times)
        what = _AGAINST[target.against]
        missed = f"**missed**: {nearest.contestant} {number(nearest.times)}"
        said = ", ".join(good) or missed
        parts.append(f"<= {target.at_most:g}{what}: {said}")
    return "; ".join(parts)


def ratios(book: Book, group: str) -> list[str]:
    """Times native for each contestant, and the verdict on each line."""
    lines = [line for line in book.lines if line.group == group]
    names = {line.name for line in lines}
    present = {series.contestant for (line, _), series in book.series.items() if line in names}
    columns = [name for name in book.contestants if name in present and name != NATIVE]
    rows = []
    for line in lines:
        native = book.get(line, NATIVE)
        base = "-" if native is None else _base(native)
        row = [line.name, f"{base} {line.unit}"]
        for name in columns:
            row.append(_cell(book, line, name, native))
        peer = book.best_peer(line)
        row.append("-" if peer is None else peer.contestant)
        row.append(_reached(book.verdicts(line, targets(line))))
        rows.append(row)
    return _table(["", NATIVE, *columns, "best peer", "to reach"], rows)


def _base(series: Series) -> str:
    return number(series.least if series.line.by == "best" else series.median)


def _cell(book: Book, line: Line, name: str, native: Series | None) -> str:
    series = book.get(line, name)
    if series is None:
        failed = book.series.get((line.name, name))
        return "fails" if failed is not None and failed.failure else "-"
    if native is None:
        return f"{_base(series)} {line.unit}"
    return number(ratio(series, native))


def costs(book: Book, group: str) -> list[str]:
    """Median with spread, the server's processor time and context switches of an operation."""
    rows = []
    for line in book.lines:
        for series in book.row(line) if line.group == group else ():
            cpu, switches = series.mean("cpu"), series.mean("switches")
            rows.append(
                [
                    line.name,
                    series.contestant,
                    f"{spread(series)} {line.unit}",
                    "-" if cpu is None else number(cpu),
                    "-" if switches is None else number(switches),
                ]
            )
    head = ["", "", "median (least; quartiles)", "server's processor", "switches"]
    return _table(head, rows)


def short(book: Book) -> list[str]:
    """The few lines for a reader in a hurry: times native, ours and the best of the others."""
    owns = [n for n in book.contestants if n in ("kernel", "kernel+", "pyfuse3")]
    rows = []
    for line in book.lines:
        native = book.get(line, NATIVE)
        if line.name not in SHORT or native is None:
            continue
        peer = book.best_peer(line)
        named = "-" if peer is None else f"{number(ratio(peer, native))} ({peer.contestant})"
        rows.append([line.name, *(_cell(book, line, own, native) for own in owns), named])
    return _table(["times native", *owns, "best other"], rows)


def means(book: Book) -> list[str]:
    """Whole work in the geometric mean, beside the best of the others on each line."""
    lines = [line for line in book.lines if line.group == "work"]
    owns = dict.fromkeys(
        s.contestant for line in lines for s in book.row(line) if s.family == "own"
    )
    said = [f"{name} {number(book.mean_to_best_peer(lines, name))}" for name in owns]
    if not said:
        return []
    text = "; ".join(said)
    return [f"Geometric mean to the best peer of each line (to reach: {WHOLE_MEAN}): {text}.", ""]


def failures(book: Book) -> list[str]:
    """Who could not do what."""
    failed = [series for series in book.series.values() if series.failure]
    if not failed:
        return []
    return [
        "Failed:",
        "",
        *(f"- {s.contestant}, {s.line.name}: {s.failure}" for s in failed),
        "",
    ]


def notes(book: Book) -> list[str]:
    """The machine and the single numbers."""
    return [*_table(["", ""], ([key, str(value)] for key, value in book.notes.items()))]


def _groups(book: Book) -> list[str]:
    return list(dict.fromkeys(line.group for line in book.lines))


def long(book: Book, level: str = "##") -> list[str]:
    """The machine, the ratios, what servers spend on single calls, and who failed."""
    parts = notes(book)
    for group in _groups(book):
        parts += [f"{level} {TITLES[group]}", "", *ratios(book, group)]
        if group == "work":
            parts += means(book)
    if "micro-pinned" in _groups(book):
        parts += [f"{level} What the servers spend on a call", "", *servers(book, "micro-pinned")]
    return [*parts, *failures(book)]


def servers(book: Book, group: str) -> list[str]:
    """Microseconds on a processor and context switches, for each server."""
    lines = [line for line in book.lines if line.group == group]
    columns = [n for n in book.contestants if any(_spent(book.get(line, n)) for line in lines)]
    rows = ([line.name, *(_spent(book.get(line, n)) or "-" for n in columns)] for line in lines)
    return _table(["us / switches", *columns], rows)


def _spent(series: Series | None) -> str:
    if series is None:
        return ""
    cpu, switches = series.mean("cpu"), series.mean("switches")
    return "" if cpu is None or switches is None else f"{number(cpu)} / {number(switches)}"


def markdown(book: Book) -> str:
    """Everything."""
    parts = ["# A run of the benchmarks", "", *long(book), "## In short", "", *short(book)]
    parts += ["## Medians, spreads and servers", ""]
    for group in _groups(book):
        parts += [f"### {TITLES[group]}", "", *costs(book, group)]
    return "\n".join(parts)


def inserted(text: str, name: str, lines: Sequence[str]) -> str:
    """*text* with *lines* between its marks of that name; ValueError where it has none."""
    begin, end = f"<!-- {name}: begin, written by make bench -->", f"<!-- {name}: end -->"
    head, found, rest = text.partition(begin)
    _, closed, tail = rest.partition(end)
    if not (found and closed):
        raise ValueError(f"the marks {begin} and {end} are missing")
    return "\n".join([f"{head}{begin}", "", *lines, f"{end}{tail}"])


# --- the plot -----------------------------------------------------------------------------------

_COLOURS: Final = ("#1b6ca8", "#5aa9e6", "#7a5195", "#bc8cc4", "#c0c0c0", "#909090", "#606060")
_BAR, _LEFT, _WIDTH, _MOST = 9, 190, 620, 32.0


def svg(book: Book, group: str) -> str:
    """Bars: times native on a scale of doublings, a colour for each contestant."""
    lines = [line for line in book.lines if line.group == group and book.get(line, NATIVE)]
    names = [
        name
        for name in book.contestants
        if name != NATIVE and any(book.get(line, name) for line in lines)
    ]
    colours = {name: _COLOURS[i % len(_COLOURS)] for i, name in enumerate(names)}
    parts: list[str] = []
    top = 20 + 14 * len(names)
    for i, name in enumerate(names):
        parts.append(
            _box(_LEFT, 10 + 14 * i, 10, colours[name]) + _text(_LEFT + 16, 18 + 14 * i, name)
        )
    for line in lines:
        native = book.get(line, NATIVE)
        assert native is not None
        parts.append(_text(4, top + _BAR * len(names) / 2, line.name))
        for name in names:
            series = book.get(line, name)
            if series is not None:
                times = ratio(series, native)
                parts.append(_box(_LEFT, top, _length(times), colours[name]))
                parts.append(_text(_LEFT + _length(times) + 3, top + _BAR - 1, number(times)))
            top += _BAR
        top += _BAR
    one = _LEFT + _length(1.0)
    parts.append(f'<path d="M{one:.0f} {20 + 14 * len(names)}V{top}" stroke="#c00" fill="none"/>')
    size = f'width="{_LEFT + _WIDTH + 60}" height="{top + 10}"'
    style = "text{font:9px sans-serif}"
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" {size}><style>{style}</style>'
        f'<rect width="100%" height="100%" fill="#fff"/>{"".join(parts)}</svg>\n'
    )


def _length(times: float) -> float:
    """From a quarter of native on, so that what is quicker has a bar too."""
    steps = math.log2(max(times, 0.25)) + 2
    return _WIDTH * min(1.0, steps / (math.log2(_MOST) + 2))


def _box(x: float, y: float, width: float, colour: str) -> str:
    return (
        f'<rect x="{x:.0f}" y="{y:.0f}" width="{width:.0f}" height="{_BAR - 1}" fill="{colour}"/>'
    )


def _text(x: float, y: float, words: str) -> str:
    return f'<text x="{x:.0f}" y="{y:.0f}">{html.escape(words)}</text>'
