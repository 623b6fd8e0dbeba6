"""Table 2 as a sheet: measured rows with their differences, published rows beneath them, and notes on both."""

from __future__ import annotations

from collections.abc import Sequence

from ..data import IMAGENET_CLASSES, ROBUSTBENCH
from ..evaluation import TABLE2, Suite, table2_suites
from . import published
from .published import PAPER, Published
from .sheet import (
    NOT_RUN,
    Cell,
    Sheet,
    colour_note,
    describe_difference,
    format_number,
    measured_cell,
    significance,
)
from .statistics import DRAWS, Difference, are_significant
from .table2 import Table2, Table2Column, summary_suites

NOT_GIVEN = "not given"


def table2_sheet(summary: Table2, rows: Sequence[Published] = ()) -> Sheet:
    """The rows of ``summary.table``, then the published ``rows``; the notes name columns that no measured row has."""
    suites = [s for s in summary_suites() if s.name in summary.columns or any(s.name in row.columns for row in rows)]
    names = [suite.name for suite in suites]
    headings = [_head(summary, suite) for suite in suites]
    measured = [(summary.table.row_name(row), _cells(summary, row, names)) for row in summary.table.rows]
    copied = [(f"{row.label} (published, {row.source})", _published_cells(row, names)) for row in rows]
    protocols = [f"{column.title}: {column.protocol()}" for column in summary.columns.values()]
    return Sheet(
        headings=[*headings, ("Average", f"of the {len(TABLE2)} columns")],
        rows=[*measured, *copied],
        notes=_notes(summary, names, rows),
        lists=[("Protocol of each column", protocols)],
    )


def _head(summary: Table2, suite: Suite) -> tuple[str, str]:
    column = summary.columns.get(suite.name)
    if column is None:
        return suite.heading, NOT_RUN
    counts = {record.n for record in column.records.values()}
    n = f"n={counts.pop()}" if len(counts) == 1 else "n differs"
    return column.title, f"%, {n}" + (", lower is better" if column.lower_is_better else "")


def _cells(summary: Table2, row: str, names: Sequence[str]) -> list[Cell]:
    """The row's cells in the columns ``names``, and its Average."""
    differences = [*(summary.difference(row, name) for name in names), summary.average_difference(row)]
    significant = are_significant(differences, summary.table.confidence)
    cells = [
        _cell(summary, row, name, found, is_significant)
        for name, found, is_significant in zip(names, differences, significant, strict=False)  # the Average is left
    ]
    return [*cells, _average_cell(summary, row, differences[-1], significant[-1])]


def _cell(summary: Table2, row: str, name: str, found: Difference | None, is_significant: bool) -> Cell:
    record = summary.record(row, name)
    if record is None:
        return Cell(NOT_RUN, is_number=False)
    column = summary.columns[name]
    same_n = len({other.n for other in column.records.values()}) == 1
    return measured_cell(record, found, same_n, summary.table.confidence, column.lower_is_better, is_significant)


def _average_cell(summary: Table2, row: str, found: Difference | None, is_significant: bool) -> Cell:
    value = summary.average(row)
    if summary.of_own_classes(row):
        return Cell("ImageNet only", is_number=False)
    if value is None:
        return Cell(f"needs {len(summary.missing(row))} more", is_number=False)
    rest = ("" if found is None else describe_difference(found, "%"), "", "")
    return Cell(format_number(value, "%"), rest, significance=significance(found, is_significant))


def _published_cells(row: Published, names: Sequence[str]) -> list[Cell]:
    values = [row.columns.get(name) for name in names]
    return [
        Cell(NOT_GIVEN, is_number=False) if value is None else Cell(format_number(value, "%"), ("", "", ""))
        for value in (*values, row.average)
    ]


def _notes(summary: Table2, names: Sequence[str], rows: Sequence[Published]) -> list[str]:
    table, percent = summary.table, f"{100 * summary.table.confidence:g}%"
    notes = [
        f"Columns of Table 2 of {PAPER}, protocol {summary.preset or 'without a preset'}. "
        "Average: plain mean of the eleven, 100 - mCE for C."
    ]
    if any(r.correct is not None for column in summary.columns.values() for r in column.records.values()):
        notes.append(f"[low, high]: {percent} Wilson interval; n: images.")
    if table.baseline is not None:
        notes.append(
            f"(+x [low, high], p): difference to {table.baseline} in points, {percent} paired score interval (Newcombe "
            "1998, method 10), McNemar's exact p, not corrected for the number of columns; without the two where both "
            f"rows' verdicts on the same images were not kept. mCE and Average have no p, and a paired bootstrap "
            f"interval: {DRAWS} draws of images, sets of images that differ drawn independently."
        )
        notes.append(colour_note(table.confidence))
    own_classes = [row for row in summary.table.rows if summary.of_own_classes(row)]
    not_theirs = {"c"} if len(own_classes) == len(summary.table.rows) else set()
    if own_classes:
        notes.append(
            f"C (top-1): mean accuracy over the corruption folders, for models of other than ImageNet's "
            f"{IMAGENET_CLASSES} classes, which have neither mCE nor an Average: {', '.join(own_classes)}."
        )
    unrun = [suite.heading for suite in table2_suites() if suite.name not in {*summary.columns, *not_theirs}]
    if unrun:
        notes.append(f"Not run for any row: {', '.join(unrun)}.")
    for column in summary.columns.values():
        notes += _column_notes(column)
    return notes + ([*_fewer_images_note(summary), *published.NOTES, *published.row_notes(rows)] if rows else [])


def _fewer_images_note(summary: Table2) -> list[str]:
    """A note naming the columns measured on too few images to be compared with published rows; [] if there are none."""
    columns = []
    for column in summary.columns.values():
        attack = column.suite.attack
        whole = ROBUSTBENCH if attack is not None and attack.sampled else column.suite.released_images
        fewer = {f"{record.n}" for record in column.records.values() if record.n < whole}
        if fewer:
            columns.append(f"{column.title} (n={', '.join(sorted(fewer, key=int))} of {whole})")
    if not columns:
        return []
    return [
        f"Not to be set beside the published rows, as measured on fewer images than the released sets hold: "
        f"{', '.join(columns)}."
    ]


def _column_notes(column: Table2Column) -> list[str]:
    reason = column.mismatch()
    notes = [f"{column.title}: {reason}; not comparable image by image."] if reason else []
    if not column.standard:
        notes.append(f"{column.title}: another radius than the paper's 1/255, so it does not enter the Average.")
    if column.partial:
        rows = ", ".join(column.partial)
        notes.append(f"{column.title}: {rows}: of another part of the images than the column, so without an Average.")
    if column.left_out:
        notes.append(
            f"{column.title}: also measured as {'; '.join(column.left_out)}; see the table of all measurements."
        )
    return notes
