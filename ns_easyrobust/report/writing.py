"""The files of a report: Markdown, CSV, a plot and an HTML page."""

from __future__ import annotations

import importlib.util
import logging
from collections.abc import Iterable, Sequence
from pathlib import Path

from ..evaluation import Record
from ..utils import os_errors_as_output_errors, write_text
from .figures import Dot, dot_panels
from .html import html_page
from .published import Published
from .sheet import as_markdown
from .table import ResultsTable
from .table2 import Table2
from .table2_view import table2_sheet

_logger = logging.getLogger(__name__)


def write_report(
    records: Iterable[Record],
    folder: str | Path,
    *,
    baseline: str | None = None,
    best: bool = False,
    preset: str | None = None,
    published_rows: Sequence[Published] = (),
) -> list[Path]:
    """Write results.md, .csv, .html and, where there are accuracies, results.png; an earlier report is replaced.

    Args:
        records: as for :class:`~ns_easyrobust.report.table.ResultsTable`.
        folder: where the files go; created if missing.
        baseline: the row from which differences are taken.
        best: mark the best value of each column.
        preset: of the Table 2 view (:class:`~ns_easyrobust.report.table2.Table2`).
        published_rows: rows of :mod:`ns_easyrobust.report.published` to show beneath that view.

    Returns:
        The paths of the files written.

    Raises:
        OptionError: no records, or an unknown baseline or preset.
        OutputError: the folder cannot be written.
    """
    table = ResultsTable(records, baseline=baseline)
    return write_tables(table, Table2(table, preset), Path(folder), best, published_rows)


def write_tables(
    table: ResultsTable, summary: Table2, folder: Path, best: bool, rows: Sequence[Published]
) -> list[Path]:
    with os_errors_as_output_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
    text = table.to_markdown(best=best)
    if summary.columns or rows:
        text += f"\n## The columns of the paper's Table 2\n\n{as_markdown(table2_sheet(summary, rows))}"
    written = [write_text(folder / "results.md", text), write_text(folder / "results.csv", table.to_csv())]
    picture = _draw(table, folder / "results.png")
    written += [picture] if picture is not None else []
    picture_bytes = picture.read_bytes() if picture is not None else None
    return [*written, write_text(folder / "results.html", html_page(table, summary, rows, picture_bytes, best=best))]


def _draw(table: ResultsTable, path: Path) -> Path | None:
    """Plot the accuracies with their intervals; None if there are none, or if matplotlib is not installed."""
    panels = []
    for column in table.shown:
        if column.unit == "%" and not column.lower_is_better:
            dots = {}
            for row, record in table.column_records(column):
                dots[table.row_name(row)] = Dot(record.value, *(table.interval(record) or (None, None)))
            panels.append((column.title, dots))
    if panels and importlib.util.find_spec("matplotlib") is None:
        _logger.warning("results.png was not drawn: matplotlib is not installed")
        return None
    if not panels:
        return None
    names = {row: table.row_name(row) for row in table.rows}
    caption = f"bars: {100 * table.confidence:g}% Wilson intervals"
    return dot_panels(panels, list(names.values()), path, caption=caption, baseline=names.get(table.baseline or ""))
