"""Records as rows and columns, and how the rows compare."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

from ..errors import OptionError
from ..evaluation.records import OF_THE_MODEL, OF_THE_RUN, Record, latest
from .columns import Column, column_key, columns_of
from .paired import Difference, difference
from .statistics import wilson_interval
from .wording import show, told

_MANY = 8  # variants of one suite's metric; more (ImageNet-C's 75) go to the CSV alone


class Grid:
    """A row a label, a column a (suite, metric, protocol); of repeated measurements the newest.

    Args:
        records: in the order of the rows, and of columns that the paper's Table 2 does not have.
        labels: the rows to show, in this order; None: all, as first seen.
        baseline: the row that the others' differences refer to.
        confidence: of the intervals.

    Attributes:
        rows: row names, top to bottom: the labels, and where one label stands for several
            checkpoints, the label with what tells them apart.
        columns: left to right.
        cells: (row, column's key) to its record; what was not run has none.

    Raises:
        OptionError: no records, or a label or baseline that none of them has.
    """

    def __init__(
        self,
        records: Iterable[Record],
        *,
        labels: Sequence[str] | None = None,
        baseline: str | None = None,
        confidence: float = 0.95,
    ) -> None:
        records = latest(records)
        if not records:
            raise OptionError("table: expected at least one record, found none. Run a benchmark first.")
        row_of = _row_names(records)
        label_of = {row_of[record.row]: record.label for record in records}
        rows = list(label_of)
        if labels is not None:
            require_rows(labels, [*rows, *label_of.values()], "label")
            rows = list(dict.fromkeys(r for label in labels for r in rows if label in (r, label_of[r])))
            records = [record for record in records if row_of[record.row] in rows]
        if baseline is not None:
            require_rows([baseline], rows, "baseline")
        # Runs that differ in batch size or dtype alone share a cell, so the newest goes in last.
        by_age = sorted(records, key=lambda record: record.time)
        self.cells = {(row_of[record.row], column_key(record)): record for record in by_age}
        self.rows, self.columns = tuple(rows), columns_of(records)
        self.baseline, self.confidence = baseline, confidence
        self._differences: dict[tuple[str, str], Difference] = {}

    @property
    def shown(self) -> tuple[Column, ...]:
        """The columns of text, Markdown and plot: without a metric of many variants, if others are left."""
        variants = Counter((column.suite, column.metric) for column in self.columns)
        shown = tuple(c for c in self.columns if variants[c.suite, c.metric] <= _MANY)
        return shown or self.columns

    def cell(self, row: str, column: Column) -> Record | None:
        return self.cells.get((row, column.key))

    def held(self, column: Column) -> list[tuple[str, Record]]:
        """(row, record) of each cell of ``column`` that was run."""
        found = [(row, self.cell(row, column)) for row in self.rows]
        return [(row, record) for row, record in found if record is not None]

    def of_row(self, row: str) -> list[tuple[Column, Record]]:
        """(column, record) of each cell of ``row`` that was run, left to right."""
        found = [(column, self.cell(row, column)) for column in self.columns]
        return [(column, record) for column, record in found if record is not None]

    def interval(self, record: Record) -> tuple[float, float] | None:
        """Both ends in percent, or None where the value is no share of right images."""
        if record.correct is None:
            return None
        return wilson_interval(record.correct, record.n, self.confidence)

    def difference(self, row: str, column: Column) -> Difference | None:
        """To the baseline, in the column's unit; None on its own row or without both."""
        record = self.cell(row, column)
        base = self.cell(self.baseline, column) if self.baseline is not None else None
        if record is None or base is None or row == self.baseline:
            return None
        key = (row, column.key)
        if key not in self._differences:
            self._differences[key] = difference(record, base, self.confidence)
        return self._differences[key]

    def mismatch(self, column: Column) -> str | None:
        """Why the column's rows are not comparable image by image, as far as the records tell."""
        return mismatch(self.held(column))

    def best(self, column: Column) -> set[str]:
        """Rows with the column's best value; none where there is but one, or a :meth:`mismatch`."""
        held = self.held(column)
        if len(held) < 2 or self.mismatch(column):
            return set()
        best = (min if column.lower_is_better else max)(record.value for _, record in held)
        return {row for row, record in held if record.value == best}

    def notes(self, column: Column) -> list[str]:
        """What a reader has to know before comparing the column's rows."""
        mismatch = self.mismatch(column)
        notes = [f"{mismatch}; not comparable image by image"] if mismatch else []
        for name in OF_THE_RUN:
            pairs = self.run_setting(name, column)
            if len({value for value, _ in pairs}) > 1:
                notes.append(f"{name} differs: {told(pairs)}")
        return notes

    def run_setting(self, name: str, column: Column) -> list[tuple[str, str]]:
        """(value, row) of one of the run's settings in each cell of ``column``."""
        return [(show(record.protocol.get(name, "not given")), row) for row, record in self.held(column)]

    def row_name(self, row: str) -> str:
        """The row as it is shown."""
        return f"{row} (baseline)" if row == self.baseline else row

    def describe(self, row: str) -> dict[str, str]:
        """Where a row's numbers come from: model, checkpoint, sha256, weights, normalisation, seed, machine, day."""
        held = [(column.title, record) for column, record in self.of_row(row)]
        first = held[0][1]
        told_of = {"model": first.model, "checkpoint": first.checkpoint or "no checkpoint file"}
        if first.checkpoint_sha256:
            told_of["sha256"] = first.checkpoint_sha256
        if first.weights or first.ema:
            told_of["weights"] = f"{'EMA weights' if first.ema else 'weights'} {first.weights or ''}".strip()
        for name in OF_THE_MODEL:
            pairs = [(show(record.protocol[name]), title) for title, record in held if name in record.protocol]
            if pairs:
                told_of[name] = told(pairs)
        seeds = [(f"{record.seed}", title) for title, record in held if record.seed is not None]
        told_of["seed"] = told(seeds) or "none drawn"
        told_of["machine"] = told((record.machine or "a machine not recorded", title) for title, record in held)
        days = sorted({record.created[:10] for _, record in held})
        told_of["measured"] = days[0] if len(days) == 1 else f"{days[0]} to {days[-1]}"
        return told_of


def mismatch(held: Sequence[tuple[str, Record]]) -> str | None:
    """Why (row, record) pairs are not comparable image by image, as far as the records tell."""
    if len({record.n for _, record in held}) > 1:
        return "n differs: " + told((f"{record.n}", row) for row, record in held)
    known = [(record.images[:12], row) for row, record in held if record.images is not None]
    if len({images for images, _ in known}) > 1:
        return "the images differ: " + told((f"set {images}", row) for images, row in known)
    asked = [(record.task[:12], row) for row, record in held if record.task is not None]
    if len({task for task, _ in asked}) > 1:
        return "labels or files differ behind equal names: " + told((f"task {task}", row) for task, row in asked)
    return None


def require_rows(names: Sequence[str], rows: Sequence[str], what: str) -> None:
    """Raise OptionError, with the rows to choose from, for a name that none of them has."""
    unknown = [name for name in names if name not in rows]
    if unknown:
        raise OptionError(
            f"unknown {what}: expected one of {', '.join(map(repr, dict.fromkeys(rows)))}, "
            f"found {unknown[0]!r}. Give a label as it stands in the table."
        )


def _row_names(records: Sequence[Record]) -> dict[tuple[object, ...], str]:
    """A name for each :attr:`Record.row`: the label, with what tells rows of one label apart."""
    firsts: dict[tuple[object, ...], Record] = {}
    for record in records:
        firsts.setdefault(record.row, record)
    names = {}
    for row, record in firsts.items():
        peers = [_traits(other) for other in firsts.values() if other.label == record.label]
        apart = [index for index, seen in enumerate(zip(*peers, strict=True)) if len(set(seen)) > 1]
        traits = ", ".join(_traits(record)[index] for index in apart)
        names[row] = f"{record.label} [{traits}]" if traits else record.label
    return names


def _traits(record: Record) -> tuple[str, ...]:
    checkpoint = record.checkpoint or "no checkpoint"
    sha256 = f"sha256 {record.checkpoint_sha256[:8]}" if record.checkpoint_sha256 else "no hash"
    weights = record.weights or "weights not named"
    return (record.model, checkpoint, sha256, weights, "EMA" if record.ema else "not EMA")
