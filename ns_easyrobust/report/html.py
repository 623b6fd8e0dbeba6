"""The report as one self-contained HTML page: no scripts, no network access, the figure embedded.

The page is the template ``templates/results.html.jinja``; this module gathers what it shows.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from ..data import ALEXNET_ERROR, SEVERITIES
from .published import Published
from .sheet import NOT_RUN, format_count, format_value
from .table import ResultsTable
from .table2 import Table2
from .table2_view import table2_sheet

if TYPE_CHECKING:
    from jinja2 import Template


class _CorruptionLine(NamedTuple):
    """Accuracy in percent at each severity, its mean, and the CE; None for what was not run."""

    corruption: str
    accuracies: Sequence[float | None]
    mean: float | None
    error: float | None


class _HeatMap(NamedTuple):
    """One row's results on ImageNet-C; ``of_imagenet``: its model has ImageNet's classes, for which there is a CE."""

    row: str
    lines: Sequence[_CorruptionLine]
    mce: float | None
    of_imagenet: bool


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
    table2, measurements = table2_sheet(summary, rows), table.sheet(best=best, mark="bold")
    measured, published = table2.rows[: len(table.rows)], table2.rows[len(table.rows) :]
    rows_on_c = [row for row in table.rows if summary.corruptions(row)]
    were_run = {corruption for row in rows_on_c for corruption, _ in summary.corruptions(row)}
    corruptions = [name for name in ALEXNET_ERROR if name in were_run]
    heat_maps = [_heat_map(summary, row, corruptions) for row in rows_on_c]
    facts_by_row = {row: table.describe(row) for row in table.rows}
    fact_names = list(dict.fromkeys(name for facts in facts_by_row.values() for name in facts))
    return _template().render(
        opening=_opening(table),
        table2=replace(table2, rows=measured) if summary.columns or rows else None,
        published_rows=[(row, cells) for row, (_, cells) in zip(rows, published, strict=True)],
        picture=None if picture is None else base64.b64encode(picture).decode("ascii"),
        severities=SEVERITIES,
        heat_maps=heat_maps,
        any_of_imagenet=any(heat_map.of_imagenet for heat_map in heat_maps),
        corruptions_not_run=[name for name in ALEXNET_ERROR if name not in were_run],
        not_run=NOT_RUN,
        measurements=replace(measurements, lists=measurements.lists[:1]),
        fact_names=fact_names,
        facts_by_row=[
            (table.row_name(row), [facts.get(name, format_value(None)) for name in fact_names])
            for row, facts in facts_by_row.items()
        ],
        versions=table.versions(),
    )


def _template() -> Template:
    import jinja2  # here, as a verb's --help imports this module

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["split_brackets"] = re.compile(r"(\[[^][]*\])").split
    return environment.get_template("results.html.jinja")


def _opening(table: ResultsTable) -> str:
    days = sorted({record.created[:10] for record in table.cells.values()})
    text = f"{format_count(len(table.cells), 'measurement')} of {format_count(len(table.rows), 'model')}, {days[0]}"
    text += f" to {days[-1]}" if len(days) > 1 else ""
    return text + (f"; baseline: {table.baseline}" if table.baseline is not None else "")


def _heat_map(summary: Table2, row: str, corruptions: Sequence[str]) -> _HeatMap:
    records = summary.corruptions(row)
    lines = []
    for corruption in corruptions:
        found = [records.get((corruption, severity)) for severity in SEVERITIES]
        accuracies = [None if record is None else record.value for record in found]
        known = [accuracy for accuracy in accuracies if accuracy is not None]
        mean = sum(known) / len(known) if len(known) == len(SEVERITIES) else None
        lines.append(_CorruptionLine(corruption, accuracies, mean, summary.corruption_error(row, corruption)))
    mce = summary.record(row, "c")
    of_imagenet = not summary.of_own_classes(row)
    return _HeatMap(summary.table.row_name(row), lines, None if mce is None else mce.value, of_imagenet)
