"""Records as rows and columns, the comparison of rows, and the table as text, Markdown and CSV."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from functools import cached_property

from ..errors import OptionError
from ..evaluation import Record, latest
from ..utils import as_csv
from .columns import (
    Column,
    column_key,
    column_notes,
    columns_of,
    mismatch,
    protocol_line,
    require_rows,
    row_names,
    shown_columns,
)
from .presentable import presentable, presentable_record
from .provenance import facts_line, facts_of
from .sheet import (
    NOT_RUN,
    Cell,
    Sheet,
    as_markdown,
    as_text,
    colour_note,
    format_settings,
    group_values,
    measured_cell,
)
from .statistics import Difference, are_significant, difference, wilson_interval

_CSV_FIELDS = ("label", "column", "value", "low", "high", "n", "correct", "unit", "suite", "metric", "protocol")
_CSV_DELTA_FIELDS = ("delta", "delta_low", "delta_high", "mcnemar_p")


class ResultsTable:
    """One row per label and one column per (suite, metric, protocol), with the newest of repeated measurements.

    Args:
        records: their order gives that of the rows, and of columns that the paper's Table 2 does not have.
        labels: the rows to show, in this order; None for all, in order of first appearance.
        baseline: the row from which the others' differences are taken.
        confidence: of the intervals, in (0, 1).

    Attributes:
        rows: row names, top to bottom: the labels, and where several checkpoints share one label,
            the label followed by what distinguishes them.
        columns: left to right.
        cells: the record of each (row, column's key); what was not run is absent.

    Raises:
        OptionError: no records, or a label or baseline that none of them has.

    Example:
        >>> recorder = Recorder("results.jsonl", {"label": "ViT", "model": "vit_micro_patch8_32"})
        >>> for epsilon in (0.0, 64 / 255):
        ...     top1 = evaluate_imagenet_fgsm(model, data_dir / "val", epsilon=epsilon, records=recorder, workers=0)
        >>> table = ResultsTable(read_records("results.jsonl"))
        >>> table.rows, [column.title for column in table.columns]
        (('ViT',), ['fgsm top1 (epsilon=0)', 'fgsm top1 (epsilon=0.25098)'])
    """

    def __init__(
        self,
        records: Iterable[Record],
        *,
        labels: Sequence[str] | None = None,
        baseline: str | None = None,
        confidence: float = 0.95,
    ) -> None:
        records = [presentable_record(record) for record in latest(records)]
        if not records:
            raise OptionError("table: expected at least one record, found none. Run a benchmark first.")
        row_of = row_names(records)
        label_of = {row_of[record.row]: record.label for record in records}
        rows = list(label_of)
        if labels is not None:
            labels = [presentable(label) for label in labels]
            require_rows(labels, [*rows, *label_of.values()], "label")
            rows = list(dict.fromkeys(r for label in labels for r in rows if label in (r, label_of[r])))
            records = [record for record in records if row_of[record.row] in rows]
        if baseline is not None:
            baseline = presentable(baseline)
            require_rows([baseline], rows, "baseline")
        # Runs that differ only in batch size or dtype share a cell, so the newest must be entered last.
        by_age = sorted(records, key=lambda record: record.time)
        self.cells = {(row_of[record.row], column_key(record)): record for record in by_age}
        self.rows, self.columns = tuple(rows), columns_of(records)
        self.baseline, self.confidence = baseline, confidence
        self._by_column = {
            column.key: [(row, self.cells[row, column.key]) for row in self.rows if (row, column.key) in self.cells]
            for column in self.columns
        }
        self._best: dict[str, set[str]] = {}
        self._differences: dict[tuple[str, str], Difference] = {}

    @cached_property
    def shown(self) -> tuple[Column, ...]:
        """The columns of text, Markdown and plot: without metrics of many variants, unless no others exist."""
        return shown_columns(self.columns)

    def cell(self, row: str, column: Column) -> Record | None:
        return self.cells.get((row, column.key))

    def column_records(self, column: Column) -> list[tuple[str, Record]]:
        """(row, record) for each cell of ``column`` that was run, top to bottom."""
        return self._by_column[column.key]

    def row_records(self, row: str) -> list[tuple[Column, Record]]:
        """(column, record) for each cell of ``row`` that was run, left to right."""
        cells = [(column, self.cell(row, column)) for column in self.columns]
        return [(column, record) for column, record in cells if record is not None]

    def interval(self, record: Record) -> tuple[float, float] | None:
        """Both ends of the Wilson interval in percent; None if the value is not a proportion of correct images."""
        if record.correct is None:
            return None
        return wilson_interval(record.correct, record.n, self.confidence)

    def difference(self, row: str, column: Column) -> Difference | None:
        """From the baseline, in the column's unit; None for the baseline itself, or if either is missing."""
        record = self.cell(row, column)
        base = self.cell(self.baseline, column) if self.baseline is not None else None
        if record is None or base is None or row == self.baseline:
            return None
        key = (row, column.key)
        if key not in self._differences:
            self._differences[key] = difference(record, base, self.confidence)
        return self._differences[key]

    def mismatch(self, column: Column) -> str | None:
        """Why the column's rows are not comparable image by image; None if the records show no reason."""
        return mismatch(self.column_records(column))

    def best(self, column: Column) -> set[str]:
        """Rows with the column's best value; empty if only one row was run, or if there is a :meth:`mismatch`."""
        if column.key not in self._best:
            column_records = self.column_records(column)
            comparable = len(column_records) > 1 and not self.mismatch(column)
            best = (min if column.lower_is_better else max)(record.value for _, record in column_records)
            self._best[column.key] = {row for row, record in column_records if comparable and record.value == best}
        return self._best[column.key]

    def notes(self, column: Column) -> list[str]:
        """What a reader must know before comparing the column's rows."""
        return column_notes(self.column_records(column))

    def row_name(self, row: str) -> str:
        """The row's name as shown, with the baseline marked."""
        return f"{row} (baseline)" if row == self.baseline else row

    def describe(self, row: str) -> dict[str, str]:
        """Where a row's numbers come from: model, checkpoint, sha256, weights, normalisation, seed, machine, day."""
        return facts_of(self.row_records(row))

    def to_text(self, *, best: bool = False, width: int | None = None) -> str:
        """Aligned columns for a terminal, split into groups of at most ``width`` characters if given."""
        return as_text(self.sheet(best=best, mark="*"), width)

    def to_markdown(self, *, best: bool = False) -> str:
        """A GitHub table with the protocols beneath it."""
        return as_markdown(self.sheet(best=best, mark="bold"))

    def to_csv(self) -> str:
        """One line per measurement, in full precision; what was not run has no line.

        A text that a spreadsheet would run as a formula has an apostrophe in front.
        A field that does not apply (no interval, no number of the baseline) is empty. If there is a
        baseline, the difference from it, that difference's interval and McNemar's p come last.
        """
        lines: list[Sequence[object]] = []
        lines.append((*_CSV_FIELDS, *_CSV_DELTA_FIELDS) if self.baseline is not None else _CSV_FIELDS)
        for row in self.rows:
            for column, record in self.row_records(row):
                low, high = self.interval(record) or (None, None)
                numbers = (record.value, low, high, record.n, record.correct, record.unit)
                protocol = json.dumps(record.protocol, sort_keys=True)
                line: list[object] = [row, column.title, *numbers, record.suite, record.metric, protocol]
                if self.baseline is not None:
                    diff = self.difference(row, column)
                    line += [None] * 4 if diff is None else [diff.delta, diff.low, diff.high, diff.p]
                lines.append(line)
        return as_csv(lines)

    def sheet(self, *, best: bool = False, mark: str = "marked") -> Sheet:
        """The columns :attr:`shown`, with legend, protocols, models and versions; ``mark`` says how the best look."""
        return Sheet(
            headings=[(column.title, self._subtitle(column)) for column in self.shown],
            rows=[(self.row_name(row), self._sheet_cells(row, best)) for row in self.rows],
            notes=self._legend(mark if best else None),
            lists=[
                (
                    "Protocol of each column",
                    [protocol_line(c, self.column_records(c)) for c in self.shown],
                ),
                ("Model of each row", [f"{row}: {facts_line(self.describe(row))}" for row in self.rows]),
                ("Versions", self.versions()),
            ],
        )

    def versions(self) -> list[str]:
        """The software versions, if the same for all numbers, or else each set of versions with its rows."""
        pairs = [(format_settings(record.versions), row) for (row, _), record in self.cells.items()]
        return [line or "not recorded" for line in group_values(pairs)]

    @cached_property
    def _note_numbers(self) -> dict[str, int]:
        """The footnote number of each column that has notes, by column key."""
        noted = [column.key for column in self.shown if self.notes(column)]
        return {key: count for count, key in enumerate(noted, start=1)}

    @cached_property
    def _counts(self) -> dict[str, set[int]]:
        """The numbers of images of each column's records, by column key."""
        return {key: {record.n for _, record in records} for key, records in self._by_column.items()}

    def _subtitle(self, column: Column) -> str:
        counts = self._counts[column.key]
        n = f"n={next(iter(counts))}" if len(counts) == 1 else "n differs"
        note = self._note_numbers.get(column.key)
        return ", ".join(text for text in (column.unit, n) if text) + (f" ({note})" if note else "")

    def _sheet_cells(self, row: str, best: bool) -> list[Cell]:
        """The row's cells as shown: value, difference, interval and, where the rows differ in n, n."""
        cells, differences = [], [self.difference(row, column) for column in self.shown]
        significant = are_significant(differences, self.confidence)
        for column, found, is_significant in zip(self.shown, differences, significant, strict=True):
            record = self.cell(row, column)
            if record is None:
                cells.append(Cell(NOT_RUN, is_number=False))
                continue
            same_n = len(self._counts[column.key]) == 1
            cell = measured_cell(record, found, same_n, self.confidence, column.lower_is_better, is_significant)
            cells.append(cell._replace(best=best and row in self.best(column)))
        return cells

    def _legend(self, mark: str | None) -> list[str]:
        lines = []
        percent = f"{100 * self.confidence:g}%"
        if any(record.correct is not None for record in self.cells.values()):
            lines.append(f"[low, high]: {percent} Wilson interval; n: images.")
        if mark is not None:
            lines.append(f"{mark}: best of its column; none where the rows are not comparable.")
        if self.baseline is not None:
            lines.append(f"(+x): difference to {self.baseline}, in points where the unit is %.")
            differences = [self.difference(row, column) for row in self.rows for column in self.shown]
            if any(diff is not None and diff.p is not None for diff in differences):
                lines.append(
                    f"(+x [low, high], p): with its {percent} paired score interval (Newcombe 1998, method 10) and "
                    "McNemar's exact p, not corrected for the number of columns, where both rows' verdicts on the same "
                    "images were kept."
                )
                lines.append(colour_note(self.confidence))
        numbers = self._note_numbers
        for column in self.shown:
            lines += [f"({numbers[column.key]}) {column.title}: {note}." for note in self.notes(column)]
        shown = {column.key for column in self.shown}
        hidden = Counter(c.title.partition(" (")[0] for c in self.columns if c.key not in shown)
        return lines + [f"{name}: {count} variants, each in the CSV." for name, count in hidden.items()]
