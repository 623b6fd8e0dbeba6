"""The paper's Table 2 from records: its eleven columns under one protocol, and their Average."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from ..data import ALEXNET_ERROR, SEVERITIES
from ..errors import OptionError
from ..evaluation import (
    RUN_SETTINGS,
    TABLE2,
    Record,
    Suite,
    column_settings,
    corruption_error,
    mean_corruption_error,
    mean_corruption_suite,
    table2_suites,
)
from . import published
from .columns import Column, mismatch
from .sheet import format_value, join_values
from .statistics import Difference, combined_interval, difference
from .table import ResultsTable

_PRESETS = ("paper", "easyrobust", "native", "custom")  # in order of preference
_RESIZING = ("resize", "crop", "interpolation", "also")  # a preset derives these from each model's image size
_EPSILON = 1 / 255  # radius of the paper's FGSM
_FOLDERS = {(name, severity) for name in ALEXNET_ERROR for severity in SEVERITIES}


@dataclass(frozen=True)
class Table2Column:
    """One column of the summary.

    Attributes:
        suite: whose records it holds.
        title: as shown; it includes FGSM's radius if that is not the paper's.
        records: by row; rows that were not run are absent.
        left_out: titles of the table's columns of the same suite and metric whose records are not all shown here.
        standard: whether its attack has the paper's radius, so that it may enter the Average.
        partial: rows measured on a subset of images other than the column's; they have no Average.
    """

    suite: Suite
    title: str
    records: Mapping[str, Record]
    left_out: Sequence[str] = ()
    standard: bool = True
    partial: Sequence[str] = ()

    @property
    def lower_is_better(self) -> bool:
        return self.suite.lower_is_better

    def mismatch(self) -> str | None:
        """Why the rows are not comparable image by image; None if the records show no reason."""
        return mismatch(list(self.records.items()))

    def protocol(self) -> str:
        """The column's settings; where rows differ in one, each value is given with its rows."""
        names = dict.fromkeys(name for record in self.records.values() for name in column_settings(record))
        lines = []
        for name in (*names, *RUN_SETTINGS):
            pairs = [(format_value(r.protocol.get(name, "not given")), row) for row, r in self.records.items()]
            if any(value != "not given" for value, _ in pairs):
                lines.append(f"{name}={join_values(pairs)}")
        return ", ".join(lines) or "no settings recorded"


def summary_suites() -> tuple[Suite, ...]:
    """The columns of Table 2, and behind mCE the mean that stands in its place for other classes than ImageNet's."""
    suites = table2_suites()
    place = 1 + [suite.name for suite in suites].index("c")
    return (*suites[:place], mean_corruption_suite(), *suites[place:])


class Table2:
    """The columns of Table 2 for each row of a table, all under one preset.

    Args:
        table: the table that holds the records.
        preset: of the protocols; None for the first of paper, easyrobust, native and custom that a
            record of these columns has, or else for records that name no preset.

    Attributes:
        table: as given.
        preset: the one in use; None if the records name none.
        columns: the columns that at least one row has, by the suite's name, in the order of :func:`summary_suites`.

    Raises:
        OptionError: a preset that no record has.
    """

    def __init__(self, table: ResultsTable, preset: str | None = None) -> None:
        self.table, self.preset = table, _choose_preset(table, preset)
        self.columns = {suite.name: column for suite in summary_suites() if (column := self._column(suite)) is not None}
        chosen, others = self._variant_and_fallbacks(self._candidates("imagenet-c", "top1"), ("corruption", "severity"))
        self._corruptions = [*chosen, *others]
        self._intervals: dict[tuple[str, str], tuple[float, float] | None] = {}

    def _candidates(self, suite: str, metric: str) -> list[Column]:
        return [
            column
            for column in self.table.columns
            if (column.suite, column.metric) == (suite, metric)
            and column.protocol.get("preset") == self.preset
            and self._column_records(column)
        ]

    def _column_records(self, column: Column) -> list[tuple[str, Record]]:
        """The cells of ``column``; of the mean over corruptions, which ImageNet has besides mCE, only others'."""
        records = self.table.column_records(column)
        return [(row, r) for row, r in records if r.of_own_classes] if column.metric == "top1_mean" else records

    def _fixed_settings(self, column: Column, free: Sequence[str]) -> str:
        """The settings in which the columns of one variant agree: all but ``free`` and what a preset derives."""
        derived = _RESIZING if self.preset in _PRESETS[:3] else ()
        fixed = {name: value for name, value in column.protocol.items() if name not in (*free, *derived)}
        return json.dumps(fixed, sort_keys=True)

    def _variant(
        self, columns: Sequence[Column], free: Sequence[str] = (), prefer: Callable[[Column], bool] | None = None
    ) -> list[Column]:
        """The columns of one protocol, chosen by ``prefer``, then most images, most cells and first appearance.

        ``free`` names settings that may differ between those columns.
        """
        variants: dict[str, list[Column]] = {}
        for column in columns:
            variants.setdefault(self._fixed_settings(column, free), []).append(column)

        def rank(variant: list[Column]) -> tuple[bool, int, int]:
            preferred = prefer is not None and prefer(variant[0])
            cells = sum(len(self._column_records(column)) for column in variant)
            return preferred, max(map(self._image_count, variant)), cells

        return max(variants.values(), key=rank, default=[])

    def _variant_and_fallbacks(
        self, columns: Sequence[Column], free: Sequence[str] = (), prefer: Callable[[Column], bool] | None = None
    ) -> tuple[list[Column], list[Column]]:
        """:meth:`_variant`, and the columns that differ from it only in the subset of images, most images first.

        The latter fill in rows that the former lack.
        """
        chosen, free = self._variant(columns, free, prefer), (*free, "subset")
        fixed = {self._fixed_settings(column, free) for column in chosen}
        others = [c for c in columns if c not in chosen and self._fixed_settings(c, free) in fixed]
        return chosen, sorted(others, key=self._image_count, reverse=True)

    def _image_count(self, column: Column) -> int:
        return max(record.n for _, record in self._column_records(column))

    def _column(self, suite: Suite) -> Table2Column | None:
        columns = self._candidates(suite.record, suite.metric)
        if suite.name == "cw":
            columns = [column for column in columns if column.protocol.get("radius", "unbounded") == "unbounded"]
        prefer = _has_the_papers_radius if suite.name == "fgsm" else None
        chosen, others = self._variant_and_fallbacks(columns, prefer=prefer)
        if not chosen:
            return None
        own = {row: record for column in chosen for row, record in self._column_records(column)}
        records = own
        for column in others:
            records = dict(self._column_records(column)) | records
        ordered = {row: records[row] for row in self.table.rows if row in records}
        shown_ids = {id(record) for record in records.values()}
        left_out = [
            c.title for c in columns if any(id(record) not in shown_ids for _, record in self._column_records(c))
        ]
        partial = [row for row in ordered if row not in own]
        standard = suite.name != "fgsm" or _has_the_papers_radius(chosen[0])
        title = (
            suite.heading if standard else f"{suite.heading} {format_value(chosen[0].protocol.get('epsilon', 'any'))}"
        )
        return Table2Column(suite, title, ordered, left_out, standard, partial)

    def record(self, row: str, name: str) -> Record | None:
        return self.columns[name].records.get(row) if name in self.columns else None

    def of_own_classes(self, row: str) -> bool:
        """Whether the row's model has other classes than ImageNet's, so that it has neither mCE nor an Average."""
        return any(record.of_own_classes for _, record in self.table.row_records(row))

    def missing(self, row: str) -> list[str]:
        """Titles of the columns that ``row`` lacks for an Average: not run, FGSM at another radius, or other images."""
        titles = []
        for suite in table2_suites():
            column = self.columns.get(suite.name)
            if column is None or row not in column.records or row in column.partial or not column.standard:
                titles.append(suite.heading)
        return titles

    def average(self, row: str) -> float | None:
        """Unweighted mean of the eleven columns, with 100 - mCE for C; None if one is missing, or without ImageNet."""
        if self.missing(row) or self.of_own_classes(row):
            return None
        return published.average({name: self.columns[name].records[row].value for name in TABLE2})

    def corruptions(self, row: str) -> dict[tuple[str, int], Record]:
        """``row``'s record of the accuracy on each (corruption, severity) that was run."""
        records = {}
        for column in reversed(self._corruptions):  # so that preferred columns overwrite the others
            record = self.table.cell(row, column)
            corruption, severity = column.protocol.get("corruption"), column.protocol.get("severity")
            if record is not None and isinstance(severity, int) and (corruption, severity) in _FOLDERS:
                records[str(corruption), severity] = record
        return records

    def corruption_error(self, row: str, corruption: str) -> float | None:
        """CE in percent: the mean error over the severities, divided by AlexNet's on ImageNet.

        None unless all five were run, and for other classes.
        """
        records = self.corruptions(row)
        if self.of_own_classes(row) or any((corruption, severity) not in records for severity in SEVERITIES):
            return None
        return 100 * corruption_error(corruption, [records[corruption, s].value for s in SEVERITIES])

    def difference(self, row: str, name: str) -> Difference | None:
        """From the baseline in column ``name``; None for the baseline itself, or if either is missing."""
        base_row = self.table.baseline
        if base_row is None or row == base_row:
            return None
        record, base = self.record(row, name), self.record(base_row, name)
        if record is None or base is None:
            return None
        if name != "c":
            return difference(record, base, self.table.confidence)
        low, high = self._interval(row, name) or (None, None)
        return Difference(record.value - base.value, low, high)

    def average_difference(self, row: str) -> Difference | None:
        """From the baseline's Average; None for the baseline itself, or if either is missing."""
        base_row = self.table.baseline
        if base_row is None or row == base_row:
            return None
        own, base = self.average(row), self.average(base_row)
        if own is None or base is None:
            return None
        low, high = self._interval(row, "average") or (None, None)
        return Difference(own - base, low, high)

    def _interval(self, row: str, name: str) -> tuple[float, float] | None:
        """Paired bootstrap interval of the difference in mCE (``name`` "c") or in the Average."""
        if (row, name) not in self._intervals:
            terms = self._mce_terms(row) if name == "c" else self._average_terms(row)
            interval = combined_interval(terms, self.table.confidence) if terms else None
            self._intervals[row, name] = interval
        return self._intervals[row, name]

    def _mce_terms(self, row: str) -> list[tuple[float, Record, Record]]:
        """(weight, record, base) of the 75 folders; empty unless both rows have all 75 and an mCE that these give."""
        own, base = self.corruptions(row), self.corruptions(str(self.table.baseline))
        for name, folders in ((row, own), (str(self.table.baseline), base)):
            record = self.record(name, "c")
            if record is None or len(folders) < len(_FOLDERS):
                return []
            mce = mean_corruption_error({folder: each.value for folder, each in folders.items()})
            if abs(100 * mce - record.value) > 0.001:
                return []
        return [(-1 / len(_FOLDERS) / ALEXNET_ERROR[key[0]], own[key], base[key]) for key in own]

    def _average_terms(self, row: str) -> list[tuple[float, Record, Record]]:
        terms = [(-weight, record, base) for weight, record, base in self._mce_terms(row)]
        if not terms:
            return []
        for suite in table2_suites():
            record, base = self.record(row, suite.name), self.record(str(self.table.baseline), suite.name)
            if suite.name != "c" and record is not None and base is not None:
                terms.append((1.0, record, base))
        return [(weight / len(TABLE2), record, base) for weight, record, base in terms]


def _has_the_papers_radius(column: Column) -> bool:
    epsilon = column.protocol.get("epsilon")
    return isinstance(epsilon, float) and abs(epsilon - _EPSILON) < 1e-9


def _choose_preset(table: ResultsTable, wanted: str | None) -> str | None:
    quantities = {(suite.record, suite.metric) for suite in summary_suites()}
    in_table2 = {c.protocol.get("preset") for c in table.columns if (c.suite, c.metric) in quantities}
    in_table = {column.protocol.get("preset") for column in table.columns}
    if wanted is not None and wanted not in in_table:
        named = ", ".join(sorted(str(preset) for preset in in_table if preset)) or "none"
        raise OptionError(
            f"--preset: expected one that the records have ({named}), found {wanted!r}. "
            "Leave it out, or run the benchmark with that protocol."
        )
    return wanted or next((preset for preset in _PRESETS if preset in in_table2), None)
