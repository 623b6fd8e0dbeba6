"""The summary as a sheet: measured rows with their differences, published rows beneath, and how to read both."""

from __future__ import annotations

from collections.abc import Sequence

from ..data.benchmarks import ROBUSTBENCH, released_images
from . import published
from .paired import DRAWS
from .published import PAPER, Published
from .sheet import Cell, Sheet
from .table2 import PLACES, Part, Summary
from .views import describe_difference, measured_cell, tone
from .wording import NOT_RUN, number

NOT_GIVEN = "not given"


def summary_sheet(summary: Summary, rows: Sequence[Published] = ()) -> Sheet:
    """A row of ``summary.grid`` each, then ``rows``; columns that none of them has are named beneath."""
    names = [name for name in PLACES if name in summary.parts or any(name in row.columns for row in rows)]
    heads = [_head(summary, name) for name in names]
    measured = [
        (summary.grid.row_name(row), [*(_cell(summary, row, name) for name in names), _average_cell(summary, row)])
        for row in summary.grid.rows
    ]
    copied = [(f"{row.label} (published, {row.source})", _published_cells(row, names)) for row in rows]
    protocols = [f"{part.title}: {part.protocol()}" for part in summary.parts.values()]
    return Sheet(
        heads=[*heads, ("Average", "of the 11 columns")],
        rows=[*measured, *copied],
        notes=_notes(summary, names, rows),
        lists=[("Protocol of each column", protocols)],
    )


def _head(summary: Summary, name: str) -> tuple[str, str]:
    part = summary.parts.get(name)
    if part is None:
        return PLACES[name].title, NOT_RUN
    counts = {record.n for record in part.records.values()}
    n = f"n={counts.pop()}" if len(counts) == 1 else "n differs"
    return part.title, f"%, {n}" + (", lower is better" if part.lower_is_better else "")


def _cell(summary: Summary, row: str, name: str) -> Cell:
    record = summary.record(row, name)
    if record is None:
        return Cell(NOT_RUN, ran=False)
    part, found = summary.parts[name], summary.difference(row, name)
    same_n = len({other.n for other in part.records.values()}) == 1
    return measured_cell(record, found, same_n, summary.grid.confidence, part.lower_is_better)


def _average_cell(summary: Summary, row: str) -> Cell:
    value = summary.average(row)
    if value is None:
        return Cell(f"needs {len(summary.missing(row))} more", ran=False)
    found = summary.average_difference(row)
    rest = ("" if found is None else describe_difference(found, "%"), "", "")
    return Cell(number(value, "%"), rest, tone=tone(found))


def _published_cells(row: Published, names: Sequence[str]) -> list[Cell]:
    values = [row.columns.get(name) for name in names]
    return [
        Cell(NOT_GIVEN, ran=False) if value is None else Cell(number(value, "%"), ("", "", ""))
        for value in (*values, row.average)
    ]


def _notes(summary: Summary, names: Sequence[str], rows: Sequence[Published]) -> list[str]:
    grid, percent = summary.grid, f"{100 * summary.grid.confidence:g}%"
    notes = [
        f"Columns of Table 2 of {PAPER}, protocol {summary.preset or 'without a preset'}. "
        "Average: plain mean of the eleven, 100 - mCE for C."
    ]
    if any(r.correct is not None for part in summary.parts.values() for r in part.records.values()):
        notes.append(f"[low, high]: {percent} Wilson interval; n: images.")
    if grid.baseline is not None:
        notes.append(
            f"(+x [low, high], p): difference to {grid.baseline} in points, {percent} paired bootstrap interval, "
            f"McNemar's exact p; without the two where both rows' verdicts on the same images were not kept. "
            f"mCE and Average have no p; {DRAWS} draws of images, sets of images that differ drawn independently. "
            "An interval of [0, 0] means no verdict differed. No correction for the number of columns."
        )
    unrun = [PLACES[name].title for name in PLACES if name not in summary.parts]
    if unrun:
        notes.append(f"Not run for any row: {', '.join(unrun)}.")
    for part in summary.parts.values():
        notes += _part_notes(part)
    return notes + ([*_fewer(summary), *published.NOTES] if rows else [])


def _fewer(summary: Summary) -> list[str]:
    """What keeps measured rows from standing beside published ones."""
    columns = []
    for name, part in summary.parts.items():
        whole = ROBUSTBENCH if name == "patchfool" else released_images(PLACES[name].suite)
        fewer = {f"{record.n}" for record in part.records.values() if record.n < whole}
        if fewer:
            columns.append(f"{part.title} (n={', '.join(sorted(fewer, key=int))} of {whole})")
    if not columns:
        return []
    return [
        f"Not to be set beside the published rows, as measured on fewer images than the released sets hold: "
        f"{', '.join(columns)}."
    ]


def _part_notes(part: Part) -> list[str]:
    found = part.mismatch()
    notes = [f"{part.title}: {found}; not comparable image by image."] if found else []
    if not part.standard:
        notes.append(f"{part.title}: another radius than the paper's 1/255, so it does not enter the Average.")
    if part.partial:
        rows = ", ".join(part.partial)
        notes.append(f"{part.title}: {rows}: of another part of the images than the column, so without an Average.")
    if part.left_out:
        notes.append(f"{part.title}: also measured as {'; '.join(part.left_out)}; see the table of all measurements.")
    return notes
