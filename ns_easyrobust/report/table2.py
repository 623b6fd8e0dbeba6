"""The paper's Table 2 from records: eleven columns under one protocol, and their Average."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from ..data.benchmarks import ALEXNET_ERROR, SEVERITIES
from ..errors import OptionError
from ..evaluation.records import OF_THE_RUN, Record, column_settings
from . import published
from .columns import Column
from .paired import Difference, combined_interval, difference
from .table import Grid, mismatch
from .wording import show, told

_PRESETS = ("paper", "easyrobust", "native", "custom")  # in the order of preference
_RESIZING = ("resize", "crop", "interpolation", "also")  # a preset fixes these for each model's image size
_EPSILON = 1 / 255  # of the paper's FGSM
_FOLDERS = {(name, severity) for name in ALEXNET_ERROR for severity in SEVERITIES}


class _Place(NamedTuple):
    title: str
    suite: str
    metric: str


PLACES = {
    "clean": _Place("Clean", "imagenet-val", "top1"),
    "patchfool": _Place("PatchFool", "patchfool", "top1"),
    "cw": _Place("CW", "cw", "top1"),
    "fgsm": _Place("FGSM", "fgsm", "top1"),
    "damagenet": _Place("DamageNet", "damagenet", "top1"),
    "a": _Place("A", "imagenet-a", "top1"),
    "c": _Place("C (mCE)", "imagenet-c", "mce"),
    "v2": _Place("V2", "imagenet-v2", "top1"),
    "r": _Place("R", "imagenet-r", "top1"),
    "sketch": _Place("Sketch", "imagenet-sketch", "top1"),
    "stylized": _Place("Stylized", "imagenet-stylized", "top1"),
}


@dataclass(frozen=True)
class Part:
    """One column of the summary.

    Attributes:
        name: of :data:`ns_easyrobust.report.published.COLUMNS`.
        title: as it is shown; FGSM's other radii are in it.
        records: by row; what was not run is not there.
        left_out: titles of the grid's columns that measured the same under other settings.
        standard: whether its attack has the paper's radius, so that it may enter the Average.
        partial: rows that were measured on another part of the images than the column, which have no Average.
    """

    name: str
    title: str
    records: Mapping[str, Record]
    left_out: Sequence[str] = ()
    standard: bool = True
    partial: Sequence[str] = ()

    @property
    def lower_is_better(self) -> bool:
        return self.name == "c"

    def mismatch(self) -> str | None:
        """Why the rows are not comparable image by image, as far as the records tell."""
        return mismatch(list(self.records.items()))

    def protocol(self) -> str:
        """Its settings; what differs between rows with where."""
        names = dict.fromkeys(name for record in self.records.values() for name in column_settings(record))
        lines = []
        for name in (*names, *OF_THE_RUN):
            pairs = [(show(r.protocol.get(name, "not given")), row) for row, r in self.records.items()]
            if any(value != "not given" for value, _ in pairs):
                lines.append(f"{name}={told(pairs)}")
        return ", ".join(lines) or "no settings recorded"


class Summary:
    """The columns of Table 2 for each row of a grid, all of one preset.

    Args:
        grid: the records.
        preset: of the protocols; None: "paper" where any record has it, else the first there is of
            easyrobust, native, custom, and records that name none.

    Attributes:
        preset: the one that was taken; None where the records name none.
        parts: the columns that some row has, by name, in the paper's order.

    Raises:
        OptionError: a preset that no record has.
    """

    def __init__(self, grid: Grid, preset: str | None = None) -> None:
        self.grid, self.preset = grid, _choose_preset(grid, preset)
        self.parts = {name: part for name in PLACES if (part := self._part(name)) is not None}
        chosen, others = self._filled(self._candidates("imagenet-c", "top1"), ("corruption", "severity"))
        self._corruptions = [*chosen, *others]
        self._intervals: dict[tuple[str, str], tuple[float, float] | None] = {}

    def _candidates(self, suite: str, metric: str) -> list[Column]:
        return [
            column
            for column in self.grid.columns
            if (column.suite, column.metric) == (suite, metric) and column.protocol.get("preset") == self.preset
        ]

    def _variant(
        self, columns: Sequence[Column], free: Sequence[str] = (), prefer: Callable[[Column], bool] | None = None
    ) -> list[Column]:
        """The columns of one protocol: preferred, else of most images, else with most cells, else seen first.

        ``free`` names settings that may differ among them.
        """
        free = (*free, *(_RESIZING if self.preset in _PRESETS[:3] else ()))
        variants: dict[str, list[Column]] = {}
        for column in columns:
            kept = {name: value for name, value in column.protocol.items() if name not in free}
            variants.setdefault(json.dumps(kept, sort_keys=True), []).append(column)

        def rank(group: list[Column]) -> tuple[bool, int, int]:
            preferred = prefer is not None and prefer(group[0])
            return preferred, max(map(self._images, group)), sum(len(self.grid.held(column)) for column in group)

        return max(variants.values(), key=rank, default=[])

    def _filled(
        self, columns: Sequence[Column], free: Sequence[str] = (), prefer: Callable[[Column], bool] | None = None
    ) -> tuple[list[Column], list[Column]]:
        """:meth:`_variant`, and those that differ from it in nothing but the images taken, the most images first.

        The latter are for rows that the former lack.
        """
        chosen = self._variant(columns, free, prefer)
        free = (*free, "subset", *(_RESIZING if self.preset in _PRESETS[:3] else ()))

        def settled(column: Column) -> dict[str, Any]:
            return {name: value for name, value in column.protocol.items() if name not in free}

        alike = [settled(column) for column in chosen]
        others = [column for column in columns if column not in chosen and settled(column) in alike]
        return chosen, sorted(others, key=self._images, reverse=True)

    def _images(self, column: Column) -> int:
        return max(record.n for _, record in self.grid.held(column))

    def _part(self, name: str) -> Part | None:
        place = PLACES[name]
        columns = self._candidates(place.suite, place.metric)
        if name == "cw":
            columns = [column for column in columns if column.protocol.get("radius", "unbounded") == "unbounded"]
        prefer = _has_the_papers_radius if name == "fgsm" else None
        chosen, others = self._filled(columns, prefer=prefer)
        if not chosen:
            return None
        own = {row: record for column in chosen for row, record in self.grid.held(column)}
        records = own
        for column in others:
            records = dict(self.grid.held(column)) | records
        ordered = {row: records[row] for row in self.grid.rows if row in records}
        shown = {id(record) for record in records.values()}
        left_out = [c.title for c in columns if any(id(record) not in shown for _, record in self.grid.held(c))]
        partial = [row for row in ordered if row not in own]
        standard = name != "fgsm" or _has_the_papers_radius(chosen[0])
        title = place.title if standard else f"{place.title} {show(chosen[0].protocol.get('epsilon', 'any'))}"
        return Part(name, title, ordered, left_out, standard, partial)

    def record(self, row: str, name: str) -> Record | None:
        return self.parts[name].records.get(row) if name in self.parts else None

    def missing(self, row: str) -> list[str]:
        """Titles of the columns that ``row`` lacks for an Average: not run, FGSM at another radius, other images."""
        lacks = []
        for name, place in PLACES.items():
            part = self.parts.get(name)
            if part is None or row not in part.records or row in part.partial or not part.standard:
                lacks.append(place.title)
        return lacks

    def average(self, row: str) -> float | None:
        """Plain mean of the eleven columns, 100 - mCE for C; None where one is missing."""
        if self.missing(row):
            return None
        return published.average({name: part.records[row].value for name, part in self.parts.items()})

    def corruptions(self, row: str) -> dict[tuple[str, int], Record]:
        """``row``'s accuracy on each (corruption, severity) that was run."""
        found = {}
        for column in reversed(self._corruptions):  # the preferred ones last
            record = self.grid.cell(row, column)
            key = (column.protocol.get("corruption"), column.protocol.get("severity"))
            if record is not None and key in _FOLDERS:
                found[key] = record
        return found

    def corruption_error(self, row: str, corruption: str) -> float | None:
        """CE in percent: mean error over the severities, by AlexNet's; None unless all five are there."""
        found = self.corruptions(row)
        if any((corruption, severity) not in found for severity in SEVERITIES):
            return None
        errors = [100 - found[corruption, severity].value for severity in SEVERITIES]
        return sum(errors) / len(errors) / ALEXNET_ERROR[corruption]

    def difference(self, row: str, name: str) -> Difference | None:
        """To the baseline in column ``name``; None on its own row, or without both."""
        base_row = self.grid.baseline
        if base_row is None or row == base_row:
            return None
        record, base = self.record(row, name), self.record(base_row, name)
        if record is None or base is None:
            return None
        if name != "c":
            return difference(record, base, self.grid.confidence)
        low, high = self._interval(row, name) or (None, None)
        return Difference(record.value - base.value, low, high)

    def average_difference(self, row: str) -> Difference | None:
        """To the baseline's Average; None on its own row, or without both."""
        base_row = self.grid.baseline
        if base_row is None or row == base_row:
            return None
        mine, base = self.average(row), self.average(base_row)
        if mine is None or base is None:
            return None
        low, high = self._interval(row, "average") or (None, None)
        return Difference(mine - base, low, high)

    def _interval(self, row: str, name: str) -> tuple[float, float] | None:
        """Paired bootstrap interval of mCE's or the Average's difference."""
        if (row, name) not in self._intervals:
            terms = self._mce_terms(row) if name == "c" else self._average_terms(row)
            found = combined_interval(terms, self.grid.confidence) if terms else None
            self._intervals[row, name] = found
        return self._intervals[row, name]

    def _mce_terms(self, row: str) -> list[tuple[float, Record, Record]]:
        """The 75 folders' weights in mCE; empty unless they are there and give both rows' mCE."""
        mine, base = self.corruptions(row), self.corruptions(str(self.grid.baseline))
        for which, found in ((row, mine), (str(self.grid.baseline), base)):
            record = self.record(which, "c")
            if record is None or len(found) < len(_FOLDERS) or abs(_mce(found) - record.value) > 0.001:
                return []
        return [(-1 / len(_FOLDERS) / ALEXNET_ERROR[key[0]], mine[key], base[key]) for key in mine]

    def _average_terms(self, row: str) -> list[tuple[float, Record, Record]]:
        terms = [(-weight, record, base) for weight, record, base in self._mce_terms(row)]
        if not terms:
            return []
        for name in PLACES:
            record, base = self.record(row, name), self.record(str(self.grid.baseline), name)
            if name != "c" and record is not None and base is not None:
                terms.append((1.0, record, base))
        return [(weight / len(PLACES), record, base) for weight, record, base in terms]


def _mce(found: Mapping[tuple[str, int], Record]) -> float:
    """In percent, from the accuracies of all 75 folders."""
    return sum((100 - r.value) / ALEXNET_ERROR[name] for (name, _), r in found.items()) / len(_FOLDERS)


def _has_the_papers_radius(column: Column) -> bool:
    epsilon = column.protocol.get("epsilon")
    return isinstance(epsilon, float) and abs(epsilon - _EPSILON) < 1e-9


def _choose_preset(grid: Grid, wanted: str | None) -> str | None:
    suites = {(place.suite, place.metric) for place in PLACES.values()}
    found = {c.protocol.get("preset") for c in grid.columns if (c.suite, c.metric) in suites}
    of_any = {column.protocol.get("preset") for column in grid.columns}
    if wanted is not None and wanted not in of_any:
        named = ", ".join(sorted(str(preset) for preset in of_any if preset)) or "none"
        raise OptionError(
            f"--preset: expected one that the records have ({named}), found {wanted!r}. "
            "Leave it out, or run the benchmark with that protocol."
        )
    return wanted or next((preset for preset in _PRESETS if preset in found), None)
