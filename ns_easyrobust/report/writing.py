"""The files of a report: Markdown, CSV, a plot and an HTML page."""

from __future__ import annotations

import importlib.util
import logging
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

from ..errors import OptionError, OutputError
from ..evaluation import Record
from ..utils import as_utf8, os_errors_as_output_errors, write_together
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

    All of the files are replaced or, where one of them cannot be written, none.

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
    folder = Path(os.path.expanduser(folder))
    return write_tables(table, Table2(table, preset), folder, best, published_rows)


def write_tables(
    table: ResultsTable,
    summary: Table2,
    folder: Path,
    best: bool,
    rows: Sequence[Published],
    forms: Mapping[Path, str] | None = None,
    sources: Sequence[str] = (),
) -> list[Path]:
    """The files of a report, and with them ``forms``, texts by path: all of them are replaced, or none.

    Raises:
        OutputError: as for :func:`write_report`; or one of them is among ``sources``, which the report is made from.
    """
    with os_errors_as_output_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
    text = table.to_markdown(best=best)
    if summary.columns or rows:
        text += f"\n## The columns of the paper's Table 2\n\n{as_markdown(table2_sheet(summary, rows))}"
    contents = {folder / "results.md": as_utf8(text), folder / "results.csv": as_utf8(table.to_csv())}
    picture = _draw(table)
    if picture is not None:
        contents[folder / "results.png"] = picture
    contents[folder / "results.html"] = as_utf8(html_page(table, summary, rows, picture, best=best))
    for path, form in (forms or {}).items():
        if path in contents:
            raise OutputError(f"{path}: expected another file for a leaderboard's form, found the report's own.")
        contents[path] = as_utf8(form)
    for path in contents:
        if any(os.path.exists(path) and os.path.samefile(path, source) for source in sources):
            raise OutputError(
                f"cannot write {path}: the report is made from this file, which would be lost. Nothing was written; "
                "choose another file or folder."
            )
    return write_together({path: _writes(content) for path, content in contents.items()})


def _writes(content: bytes) -> Callable[[Path], int]:
    return lambda temporary: temporary.write_bytes(content)


def _draw(table: ResultsTable) -> bytes | None:
    """A PNG of the accuracies with their intervals; None if there are none, or if they cannot be drawn."""
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
    try:
        return dot_panels(panels, list(names.values()), caption=caption, baseline=names.get(table.baseline or ""))
    except OptionError as error:
        _logger.warning("results.png was not drawn: %s", error)
        return None
