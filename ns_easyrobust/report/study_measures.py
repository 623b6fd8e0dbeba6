"""What methods of a study are compared on: one column, or a weighted sum of some, such as ImageNet-C's groups."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass

from ..data import CORRUPTION_GROUPS, known_corruptions
from ..evaluation import suites
from .columns import Column

NOT_NOISE = "not-noise"
_SUITE = "c"
FOLDER_GROUPS = (*CORRUPTION_GROUPS, NOT_NOISE)
GROUP_NAMES = tuple(f"{_SUITE}:{group}" for group in FOLDER_GROUPS)  # as an endpoint's columns may be named
_OF_FOLDERS = ("corruption", "severity")


@dataclass(frozen=True)
class Measure:
    """What a column of the table shows: one column of the records, or a weighted sum of some.

    Attributes:
        title, unit: as shown.
        terms: (weight, column) each; the value is ``constant`` plus the weighted sum of the columns' values.
        names: what it is made of in words, of a mean of :func:`mean_of`.
    """

    title: str
    unit: str
    terms: tuple[tuple[float, Column], ...]
    constant: float = 0.0
    names: str = ""

    @property
    def column(self) -> Column | None:
        """The one column that it is; None for a sum."""
        return self.terms[0][1] if len(self.terms) == 1 and self.terms[0][0] == 1 else None

    @property
    def key(self) -> tuple[tuple[float, str], ...]:
        """Equal for measures of the same numbers, whatever they are called."""
        return tuple((weight, column.key) for weight, column in self.terms)

    @property
    def lower_is_better(self) -> bool:
        return self.column is not None and self.column.lower_is_better


def mean_of(title: str, parts: Sequence[Column | Measure]) -> Measure | None:
    """Plain mean over ``parts``, all in percent; None if there are none.

    A column in which lower is better counts as 100 - value; a measure is one part, however many columns it has.
    """
    count = len(parts)
    if not count:
        return None
    measures = [part if isinstance(part, Measure) else _higher_is_better(part) for part in parts]
    terms = tuple((weight / count, column) for measure in measures for weight, column in measure.terms)
    constant = sum(measure.constant for measure in measures) / count
    return Measure(title, "%", terms, constant, ", ".join(measure.title for measure in measures))


def _higher_is_better(column: Column) -> Measure:
    if column.lower_is_better:
        return Measure(f"100 - {column.title}", "%", ((-1.0, column),), 100.0)
    return Measure(column.title, "%", ((1.0, column),))


def folder_sets(columns: Sequence[Column]) -> list[list[Column]]:
    """The columns of ImageNet-C's folders among ``columns``: a list for each choice of the other settings."""
    record = suites()[_SUITE].record
    sets: dict[str, list[Column]] = {}
    for column in columns:
        if (column.suite, column.metric, column.unit) == (record, "top1", "%") and {*_OF_FOLDERS} <= {*column.protocol}:
            sets.setdefault(json.dumps(settings_of(column), sort_keys=True), []).append(column)
    return list(sets.values())


def settings_of(column: Column) -> dict[str, object]:
    """The settings of a folder's column, but for which folder it is."""
    return {name: value for name, value in column.protocol.items() if name not in _OF_FOLDERS}


def of_group(folders: Sequence[Column], group: str) -> list[Column]:
    """Those of ``folders`` whose corruption is of this one of ``FOLDER_GROUPS``; ``not-noise`` is the other three."""
    known = known_corruptions()
    own = {name: known[name].group for name in map(corruption_of, folders) if name in known and known[name].group}
    wanted = {*CORRUPTION_GROUPS} - {"noise"} if group == NOT_NOISE else {group}
    return [folder for folder in folders if own.get(corruption_of(folder)) in wanted]


def corruption_of(folder: Column) -> str:
    return str(folder.protocol["corruption"])


def named_parts(name: str, columns: Sequence[Column], folders: Sequence[Sequence[Column]]) -> list[Column | Measure]:
    """What a suite's name or one of ``GROUP_NAMES`` stands for in a mean: its columns in percent, or its folders' mean.

    Args:
        columns: which the study shows.
        folders: as :func:`folder_sets` gives them; the mean of each set's folders is a part of its own.
    """
    if name not in GROUP_NAMES:
        return [column for column in columns if column.unit == "%" and column.suite == suites()[name].record]
    groups = [of_group(own, name.removeprefix(f"{_SUITE}:")) for own in folders]
    means = [mean_of(f"{name} (mean of its {len(own)} folders)", own) for own in groups]
    return [mean for mean in means if mean is not None]
