"""The table of all records: text, Markdown and CSV, each number with its interval and protocol."""

from __future__ import annotations

import csv
import io
import json
from collections import Counter

from ..evaluation.records import OF_THE_RUN, Record
from .columns import Column
from .paired import Difference
from .sheet import Cell, Sheet, as_markdown, as_text
from .statistics import wilson_interval
from .table import Grid
from .wording import NOT_RUN, chance, number, settings, spread, told

_CSV = ("label", "column", "value", "low", "high", "n", "correct", "unit", "suite", "metric", "protocol")
_CSV_DELTA = ("delta", "delta_low", "delta_high", "mcnemar_p")


def describe_difference(found: Difference, unit: str) -> str:
    """As "(+1.20 [0.31, 2.09], p=0.03)"; interval and p where there are any."""
    parts = [number(found.delta, unit, "+")]
    if found.low is not None and found.high is not None:
        parts[0] += f" [{number(found.low, unit)}, {number(found.high, unit)}]"
    if found.p is not None:
        parts.append(chance(found.p))
    return f"({', '.join(parts)})"


def tone(found: Difference | None, lower_is_better: bool = False) -> str:
    """ "better" or "worse" where the difference's interval excludes 0, else ""."""
    if found is None or found.low is None or found.high is None or found.low <= 0 <= found.high:
        return ""
    return "worse" if (found.delta > 0) == lower_is_better else "better"


def measured_cell(
    record: Record, found: Difference | None, same_n: bool, confidence: float, lower_is_better: bool
) -> Cell:
    """A record's value, its difference to the baseline, Wilson interval and, where the heading has none, n."""
    ends = None if record.correct is None else wilson_interval(record.correct, record.n, confidence)
    rest = (
        "" if found is None else describe_difference(found, record.unit),
        "" if ends is None else f"[{ends[0]:.2f}, {ends[1]:.2f}]",
        "" if same_n else f"n={record.n}",
    )
    return Cell(number(record.value, record.unit), rest, tone=tone(found, lower_is_better))


class Table(Grid):
    """A :class:`~ns_easyrobust.report.table.Grid` that can be written; arguments and errors are its."""

    def to_text(self, *, best: bool = False, width: int | None = None) -> str:
        """Aligned columns for a terminal; in groups of at most ``width`` characters where that is given."""
        return as_text(self.sheet(best=best, mark="*"), width)

    def to_markdown(self, *, best: bool = False) -> str:
        """A GitHub table with the protocols beneath it."""
        return as_markdown(self.sheet(best=best, mark="bold"))

    def to_csv(self) -> str:
        """A line a measurement, in full precision; what was not run has no line.

        A field that does not apply (no interval, no baseline's number) is empty; where there is
        a baseline, its difference, that one's interval and McNemar's p come last.
        """
        stream = io.StringIO()
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow((*_CSV, *_CSV_DELTA) if self.baseline is not None else _CSV)
        for row in self.rows:
            for column, record in self.of_row(row):
                low, high = self.interval(record) or (None, None)
                numbers = (record.value, low, high, record.n, record.correct, record.unit)
                protocol = json.dumps(record.protocol, sort_keys=True)
                line: list[object] = [row, column.title, *numbers, record.suite, record.metric, protocol]
                if self.baseline is not None:
                    found = self.difference(row, column)
                    line += [None] * 4 if found is None else [found.delta, found.low, found.high, found.p]
                writer.writerow(line)  # csv writes None as an empty field
        return stream.getvalue()

    def sheet(self, *, best: bool = False, mark: str = "marked") -> Sheet:
        """The columns :attr:`shown`, with legend, protocols, models and versions; ``mark`` names how the best look."""
        return Sheet(
            heads=[(column.title, self._subtitle(column)) for column in self.shown],
            rows=[
                (self.row_name(row), [self._written(row, column, best) for column in self.shown]) for row in self.rows
            ],
            notes=self._legend(mark if best else None),
            lists=[
                ("Protocol of each column", [self._protocol_line(column) for column in self.shown]),
                ("Model of each row", [f"{row}: {self._row_line(row)}" for row in self.rows]),
                ("Versions", self.versions()),
            ],
        )

    def versions(self) -> list[str]:
        """The one set of versions behind all numbers, or each with its rows."""
        pairs = [(settings(record.versions), row) for (row, _), record in self.cells.items()]
        return [line or "not recorded" for line in spread(pairs)]

    def _numbered(self) -> dict[str, int]:
        """Numbers of the columns that have notes, by key."""
        noted = [column.key for column in self.shown if self.notes(column)]
        return {key: count for count, key in enumerate(noted, start=1)}

    def _subtitle(self, column: Column) -> str:
        counts = {record.n for _, record in self.held(column)}
        n = f"n={counts.pop()}" if len(counts) == 1 else "n differs"
        note = self._numbered().get(column.key)
        return ", ".join(part for part in (column.unit, n) if part) + (f" ({note})" if note else "")

    def _written(self, row: str, column: Column, best: bool) -> Cell:
        """A cell's value, difference, interval and, where the heading has none, n."""
        record = self.cell(row, column)
        if record is None:
            return Cell(NOT_RUN, ran=False)
        same_n = len({other.n for _, other in self.held(column)}) == 1
        found = self.difference(row, column)
        cell = measured_cell(record, found, same_n, self.confidence, column.lower_is_better)
        return cell._replace(best=best and row in self.best(column))

    def _legend(self, mark: str | None) -> list[str]:
        lines = []
        percent = f"{100 * self.confidence:g}%"
        if any(record.correct is not None for record in self.cells.values()):
            lines.append(f"[low, high]: {percent} Wilson interval; n: images.")
        if mark is not None:
            lines.append(f"{mark}: best of its column; none where the rows are not comparable.")
        if self.baseline is not None:
            lines.append(f"(+x): difference to {self.baseline}, in points where the unit is %.")
            found = [self.difference(row, column) for row in self.rows for column in self.shown]
            if any(difference is not None and difference.p is not None for difference in found):
                lines.append(
                    f"(+x [low, high], p): with its {percent} paired bootstrap interval (images, 10000 draws) and "
                    "McNemar's exact p, where both rows' verdicts on the same images were kept. "
                    "No correction for the number of columns."
                )
        numbers = self._numbered()
        for column in self.shown:
            lines += [f"({numbers[column.key]}) {column.title}: {note}." for note in self.notes(column)]
        hidden = Counter(f"{c.suite} {c.metric}" for c in self.columns if c not in self.shown)
        return lines + [f"{name}: {count} variants, each in the CSV." for name, count in hidden.items()]

    def _protocol_line(self, column: Column) -> str:
        run = {name: told(self.run_setting(name, column)) for name in OF_THE_RUN}
        given = {name: value for name, value in run.items() if value != "not given"}
        return f"{column.title}: {settings({**column.protocol, **given}) or 'no settings recorded'}"

    def _row_line(self, row: str) -> str:
        """Model, checkpoint, weights, normalisation, seed, machine and date of one row's records."""
        told_of = self.describe(row)
        sha256 = told_of.pop("sha256", None)
        if sha256 is not None:
            told_of["checkpoint"] += f" (sha256 {sha256[:12]})"
        plain = ("model", "checkpoint", "weights")
        words = {"machine": "on "}
        return ", ".join(
            value if name in plain else f"{words.get(name, name + ' ')}{value}" for name, value in told_of.items()
        )
