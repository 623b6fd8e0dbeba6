"""The report as one HTML page that needs nothing else: no script, no network, its picture inside."""

from __future__ import annotations

import base64
import re
from collections.abc import Sequence
from dataclasses import replace
from html import escape

from ..data.benchmarks import ALEXNET_ERROR, SEVERITIES
from .published import Published
from .sheet import Cell, Sheet
from .summary_sheet import summary_sheet
from .table2 import Summary
from .views import Table
from .wording import NOT_RUN, counted, show

# Colours follow the reader's light or dark setting; green and red of equal lightness beside a sign, never alone.
_STYLE = """
:root { color-scheme: light dark; --ink: #1b1f24; --pale: #5b6570; --line: #d5dae0; --ground: #ffffff;
  --head: #f3f5f7; --better: #0b6b3a; --worse: #a4262c; --heat: 0, 114, 178; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e9ec; --pale: #9aa4ae; --line: #3a424b; --ground: #14181c;
  --head: #1e242a; --better: #5fd396; --worse: #ff8f8f; --heat: 86, 180, 233; } }
body { font: 15px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--ground);
  max-width: 110rem; margin: 2rem auto; padding: 0 1.5rem; }
h1 { font-size: 1.6rem; margin-bottom: .2rem; } h2 { font-size: 1.2rem; margin-top: 2.5rem; }
h3 { font-size: 1rem; margin: 1.2rem 0 .3rem; }
.scroll { overflow-x: auto; border: 1px solid var(--line); border-radius: 6px; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; min-width: 100%; }
th, td { padding: .4rem .45rem; text-align: right; border-bottom: 1px solid var(--line); vertical-align: top;
  white-space: nowrap; }
thead th { background: var(--head); white-space: normal; min-width: 4.6rem; vertical-align: bottom; }
tbody th { text-align: left; font-weight: 600; position: sticky; left: 0; background: var(--ground);
  white-space: normal; min-width: 12rem; max-width: 22rem; overflow-wrap: anywhere; }
thead th:first-child { text-align: left; position: sticky; left: 0; }
tr:last-child > * { border-bottom: 0; }
tr.published > * { background: var(--head); font-weight: 400; }
small, .notes, .lists { color: var(--pale); }
small { display: block; font-weight: 400; font-size: .72rem; white-space: normal; }
small span { white-space: nowrap; }
.better { color: var(--better); } .worse { color: var(--worse); } .best { font-weight: 700; }
.absent { color: var(--pale); font-style: italic; font-size: .85rem; }
td.heat { background: rgba(var(--heat), calc(var(--share) * .55)); }
.notes, .lists { font-size: .85rem; overflow-wrap: anywhere; } .notes p { margin: .3rem 0; }
.side { display: flex; flex-wrap: wrap; gap: 1.5rem; } .side > * { min-width: 0; }
.side th, .side td { padding: .2rem .5rem; min-width: 2.6rem; } .side tbody th { min-width: 8rem; }
img { max-width: 100%; background: #ffffff; border-radius: 6px; padding: .5rem; box-sizing: border-box; }
td.text { text-align: left; white-space: normal; overflow-wrap: anywhere; min-width: 8rem; }
"""
# Whatever a label may hold, the page loads nothing and runs nothing.
_POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"


def page(
    table: Table, summary: Summary, rows: Sequence[Published] = (), picture: bytes | None = None, *, best: bool = False
) -> str:
    """The whole page as HTML.

    Args:
        table, summary: of the same records.
        rows: published ones, shown beneath the measured ones and marked.
        picture: a PNG file's bytes.
        best: mark the best of each column of all measurements.
    """
    parts = [_opening(table)]
    if summary.parts or rows:
        parts.append(_section("The columns of the paper's Table 2", _sheet(summary_sheet(summary, rows), rows)))
    if picture is not None:
        data = base64.b64encode(picture).decode("ascii")
        drawn = f'<img alt="accuracies with their intervals" src="data:image/png;base64,{data}">'
        parts.append(_section("Accuracies", drawn))
    parts += [_corruptions(summary), _measurements(table, best), _provenance(table)]
    head = (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{escape(_POLICY)}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>Robustness report</title><style>{_STYLE}</style></head>"
    )
    return f"{head}\n<body>\n" + "\n".join(part for part in parts if part) + "\n</body></html>\n"


def _opening(table: Table) -> str:
    days = sorted({record.created[:10] for record in table.cells.values()})
    told = f"{counted(len(table.cells), 'measurement')} of {counted(len(table.rows), 'model')}, {days[0]}"
    told += f" to {days[-1]}" if len(days) > 1 else ""
    told += f"; baseline: {table.baseline}" if table.baseline is not None else ""
    return f"<h1>Robustness report</h1>\n<p>{escape(told)}. Every measured number comes from a record.</p>"


def _section(title: str, body: str) -> str:
    return f"<section><h2>{escape(title)}</h2>\n{body}</section>"


def _grid(heads: Sequence[str], rows: Sequence[str]) -> str:
    """A table of ready header cells and ready rows."""
    return (
        f'<div class="scroll"><table><thead><tr><th></th>{"".join(heads)}</tr></thead>\n'
        f"<tbody>{chr(10).join(rows)}</tbody></table></div>"
    )


def _sheet(sheet: Sheet, published: Sequence[Published] = ()) -> str:
    """A sheet; its last rows are the ``published`` ones, set apart."""
    heads = [f"<th>{escape(title)}<small>{escape(below)}</small></th>" for title, below in sheet.heads]
    names = [escape(name) for name, _ in sheet.rows[: len(sheet.rows) - len(published)]]
    marks = [""] * len(names) + [' class="published"'] * len(published)
    names += [f"{escape(row.label)}<small>published, {escape(row.source)}</small>" for row in published]
    rows = [
        f'<tr{mark}><th scope="row">{name}</th>{"".join(map(_cell, cells))}</tr>'
        for mark, name, (_, cells) in zip(marks, names, sheet.rows, strict=True)
    ]
    notes = "".join(f"<p>{escape(note)}</p>" for note in sheet.notes)
    return f'{_grid(heads, rows)}\n<div class="notes">{notes}</div>\n{_lists(sheet)}'


def _cell(cell: Cell) -> str:
    if not cell.ran:
        return f'<td class="absent">{escape(cell.value)}</td>'
    below = []
    for place, piece in enumerate(cell.rest):
        if piece:  # the first is the difference
            tone = f' class="{cell.tone}"' if cell.tone and place == 0 else ""
            below.append(f"<small{tone}>{_unbroken_brackets(escape(piece))}</small>")
    value = f'<span class="best">{escape(cell.value)}</span>' if cell.best else escape(cell.value)
    return f"<td>{value}{''.join(below)}</td>"


def _unbroken_brackets(text: str) -> str:
    return re.sub(r"\[[^][]*\]", r"<span>\g<0></span>", text)


def _lists(sheet: Sheet) -> str:
    lists = []
    for heading, items in sheet.lists:
        lines = "".join(f"<li>{escape(item)}</li>" for item in items)
        lists.append(f'<details open class="lists"><summary>{escape(heading)}</summary><ul>{lines}</ul></details>')
    return "\n".join(lists)


def _measurements(table: Table, best: bool) -> str:
    sheet = table.sheet(best=best, mark="bold")
    return _section("All measurements", _sheet(replace(sheet, lists=sheet.lists[:1])))


def _corruptions(summary: Summary) -> str:
    """Accuracy on each corruption and severity, a table a row; nothing where ImageNet-C was not run."""
    rows = [row for row in summary.grid.rows if summary.corruptions(row)]
    ran = {corruption for row in rows for corruption, _ in summary.corruptions(row)}
    if not ran:
        return ""
    names, unrun = ([name for name in ALEXNET_ERROR if (name in ran) is wanted] for wanted in (True, False))
    notes = [
        "Top-1 in percent at severities 1 to 5; CE: mean error over the five in percent of AlexNet's "
        "(Hendrycks and Dietterich 2019), lower is better; mCE: the mean of the fifteen.",
        *([f"Not run for any row: {', '.join(unrun)}."] if unrun else []),
    ]
    told = "".join(f"<p>{escape(note)}</p>" for note in notes)
    tables = [
        f"<div><h3>{escape(summary.grid.row_name(row))}</h3>{_breakdown(summary, row, names)}</div>" for row in rows
    ]
    return _section("ImageNet-C", f'<div class="notes">{told}</div><div class="side">{"".join(tables)}</div>')


def _breakdown(summary: Summary, row: str, names: Sequence[str]) -> str:
    found, lines = summary.corruptions(row), []
    for name in names:
        records = [found.get((name, severity)) for severity in SEVERITIES]
        accuracies = [None if record is None else record.value for record in records]
        there = [accuracy for accuracy in accuracies if accuracy is not None]
        mean = sum(there) / len(there) if len(there) == len(accuracies) else None
        cells = [_heat(accuracy) for accuracy in (*accuracies, mean)]
        error = summary.corruption_error(row, name)
        cells.append(_heat(None) if error is None else f"<td>{error:.2f}</td>")
        lines.append(f'<tr><th scope="row">{escape(name)}</th>{"".join(cells)}</tr>')
    mce = summary.record(row, "c")
    last = _heat(None) if mce is None else f"<td>{mce.value:.2f}</td>"
    lines.append(f'<tr><th scope="row">mCE</th>{"<td></td>" * (len(SEVERITIES) + 1)}{last}</tr>')
    heads = [f"<th>{head}</th>" for head in (*SEVERITIES, "mean", "CE")]
    return _grid(heads, lines)


def _heat(accuracy: float | None) -> str:
    if accuracy is None:
        return f'<td class="absent">{NOT_RUN}</td>'
    return f'<td class="heat" style="--share: {accuracy / 100:.3f}">{accuracy:.2f}</td>'


def _provenance(table: Table) -> str:
    """Which weights, on what machine, with which versions."""
    described = {row: table.describe(row) for row in table.rows}
    names = list(dict.fromkeys(name for told in described.values() for name in told))
    rows = [
        f'<tr><th scope="row">{escape(table.row_name(row))}</th>'
        + "".join(f'<td class="text">{escape(told.get(name, show(None)))}</td>' for name in names)
        + "</tr>"
        for row, told in described.items()
    ]
    versions = "".join(f"<p>{escape(line)}</p>" for line in table.versions())
    heads = [f"<th>{escape(name)}</th>" for name in names]
    return _section("Where the numbers come from", f'{_grid(heads, rows)}\n<div class="notes">{versions}</div>')
