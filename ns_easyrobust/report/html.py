"""The report as one self-contained HTML page: no scripts, no network access, the figure embedded."""

from __future__ import annotations

import base64
import re
from collections.abc import Sequence
from dataclasses import replace
from html import escape

from ..data import ALEXNET_ERROR, SEVERITIES
from .published import Published
from .sheet import NOT_RUN, Cell, Sheet, format_count, format_value
from .table import ResultsTable
from .table2 import Table2
from .table2_view import table2_sheet

# Colours follow the reader's light or dark setting; green and red are equally light and always accompany a sign.
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
# Content security policy: whatever a label contains, the page loads nothing and runs nothing.
_POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"


def html_page(
    table: ResultsTable,
    summary: Table2,
    rows: Sequence[Published] = (),
    picture: bytes | None = None,
    *,
    best: bool = False,
) -> str:
    """The whole page as HTML.

    Args:
        table, summary: both of the same records.
        rows: published rows, shown beneath the measured ones and marked as published.
        picture: the bytes of a PNG file.
        best: mark the best value of each column in the table of all measurements.
    """
    sections = [_opening(table)]
    if summary.columns or rows:
        sections.append(_section("The columns of the paper's Table 2", _sheet(table2_sheet(summary, rows), rows)))
    if picture is not None:
        data = base64.b64encode(picture).decode("ascii")
        image = f'<img alt="accuracies with their intervals" src="data:image/png;base64,{data}">'
        sections.append(_section("Accuracies", image))
    sections += [_corruptions(summary), _measurements(table, best), _provenance(table)]
    head = (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{escape(_POLICY)}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>Robustness report</title><style>{_STYLE}</style></head>"
    )
    return f"{head}\n<body>\n" + "\n".join(section for section in sections if section) + "\n</body></html>\n"


def _opening(table: ResultsTable) -> str:
    days = sorted({record.created[:10] for record in table.cells.values()})
    summary_line = (
        f"{format_count(len(table.cells), 'measurement')} of {format_count(len(table.rows), 'model')}, {days[0]}"
    )
    summary_line += f" to {days[-1]}" if len(days) > 1 else ""
    summary_line += f"; baseline: {table.baseline}" if table.baseline is not None else ""
    return f"<h1>Robustness report</h1>\n<p>{escape(summary_line)}. Every measured number comes from a record.</p>"


def _section(title: str, body: str) -> str:
    return f"<section><h2>{escape(title)}</h2>\n{body}</section>"


def _grid(headings: Sequence[str], rows: Sequence[str]) -> str:
    """An HTML table from header cells and rows that already are HTML."""
    return (
        f'<div class="scroll"><table><thead><tr><th></th>{"".join(headings)}</tr></thead>\n'
        f"<tbody>{chr(10).join(rows)}</tbody></table></div>"
    )


def _sheet(sheet: Sheet, published: Sequence[Published] = ()) -> str:
    """The sheet as HTML; its last rows are the ``published`` ones, set apart by their style."""
    headings = [f"<th>{escape(title)}<small>{escape(subtitle)}</small></th>" for title, subtitle in sheet.headings]
    names = [escape(name) for name, _ in sheet.rows[: len(sheet.rows) - len(published)]]
    row_classes = [""] * len(names) + [' class="published"'] * len(published)
    names += [f"{escape(row.label)}<small>published, {escape(row.source)}</small>" for row in published]
    rows = [
        f'<tr{row_class}><th scope="row">{name}</th>{"".join(map(_cell, cells))}</tr>'
        for row_class, name, (_, cells) in zip(row_classes, names, sheet.rows, strict=True)
    ]
    notes = "".join(f"<p>{escape(note)}</p>" for note in sheet.notes)
    return f'{_grid(headings, rows)}\n<div class="notes">{notes}</div>\n{_lists(sheet)}'


def _cell(cell: Cell) -> str:
    if not cell.is_number:
        return f'<td class="absent">{escape(cell.value)}</td>'
    details = []
    for index, piece in enumerate(cell.rest):
        if piece:  # the first piece is the difference, which alone is coloured
            css_class = f' class="{cell.significance}"' if cell.significance and index == 0 else ""
            details.append(f"<small{css_class}>{_unbroken_brackets(escape(piece))}</small>")
    value = f'<span class="best">{escape(cell.value)}</span>' if cell.best else escape(cell.value)
    return f"<td>{value}{''.join(details)}</td>"


def _unbroken_brackets(text: str) -> str:
    return re.sub(r"\[[^][]*\]", r"<span>\g<0></span>", text)


def _lists(sheet: Sheet) -> str:
    lists = []
    for heading, items in sheet.lists:
        lines = "".join(f"<li>{escape(item)}</li>" for item in items)
        lists.append(f'<details open class="lists"><summary>{escape(heading)}</summary><ul>{lines}</ul></details>')
    return "\n".join(lists)


def _measurements(table: ResultsTable, best: bool) -> str:
    sheet = table.sheet(best=best, mark="bold")
    return _section("All measurements", _sheet(replace(sheet, lists=sheet.lists[:1])))


def _corruptions(summary: Table2) -> str:
    """Accuracy on each corruption and severity, one table per row; "" if ImageNet-C was not run."""
    rows = [row for row in summary.table.rows if summary.corruptions(row)]
    is_number = {corruption for row in rows for corruption, _ in summary.corruptions(row)}
    if not is_number:
        return ""
    names, unrun = ([name for name in ALEXNET_ERROR if (name in is_number) is was_run] for was_run in (True, False))
    notes = [
        "Top-1 in percent at severities 1 to 5; CE: mean error over the five in percent of AlexNet's "
        "(Hendrycks and Dietterich 2019), lower is better; mCE: the mean of the fifteen.",
        *([f"Not run for any row: {', '.join(unrun)}."] if unrun else []),
    ]
    notes_html = "".join(f"<p>{escape(note)}</p>" for note in notes)
    tables = [
        f"<div><h3>{escape(summary.table.row_name(row))}</h3>{_corruption_grid(summary, row, names)}</div>"
        for row in rows
    ]
    return _section("ImageNet-C", f'<div class="notes">{notes_html}</div><div class="side">{"".join(tables)}</div>')


def _corruption_grid(summary: Table2, row: str, names: Sequence[str]) -> str:
    by_folder, lines = summary.corruptions(row), []
    for name in names:
        records = [by_folder.get((name, severity)) for severity in SEVERITIES]
        accuracies = [None if record is None else record.value for record in records]
        known = [accuracy for accuracy in accuracies if accuracy is not None]
        mean = sum(known) / len(known) if len(known) == len(accuracies) else None
        cells = [_heat_cell(accuracy) for accuracy in (*accuracies, mean)]
        error = summary.corruption_error(row, name)
        cells.append(_heat_cell(None) if error is None else f"<td>{error:.2f}</td>")
        lines.append(f'<tr><th scope="row">{escape(name)}</th>{"".join(cells)}</tr>')
    mce = summary.record(row, "c")
    mce_cell = _heat_cell(None) if mce is None else f"<td>{mce.value:.2f}</td>"
    lines.append(f'<tr><th scope="row">mCE</th>{"<td></td>" * (len(SEVERITIES) + 1)}{mce_cell}</tr>')
    headings = [f"<th>{head}</th>" for head in (*SEVERITIES, "mean", "CE")]
    return _grid(headings, lines)


def _heat_cell(accuracy: float | None) -> str:
    if accuracy is None:
        return f'<td class="absent">{NOT_RUN}</td>'
    return f'<td class="heat" style="--share: {accuracy / 100:.3f}">{accuracy:.2f}</td>'


def _provenance(table: ResultsTable) -> str:
    """The weights, the machine and the software versions behind the numbers."""
    facts_by_row = {row: table.describe(row) for row in table.rows}
    names = list(dict.fromkeys(name for facts in facts_by_row.values() for name in facts))
    rows = [
        f'<tr><th scope="row">{escape(table.row_name(row))}</th>'
        + "".join(f'<td class="text">{escape(facts.get(name, format_value(None)))}</td>' for name in names)
        + "</tr>"
        for row, facts in facts_by_row.items()
    ]
    versions = "".join(f"<p>{escape(line)}</p>" for line in table.versions())
    headings = [f"<th>{escape(name)}</th>" for name in names]
    return _section("Where the numbers come from", f'{_grid(headings, rows)}\n<div class="notes">{versions}</div>')
