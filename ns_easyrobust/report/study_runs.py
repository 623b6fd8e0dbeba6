"""The runs of a study: a method's seeds, their records, and what each image adds to a number."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import NamedTuple

from ..data import ALEXNET_ERROR, SEVERITIES
from ..errors import DataError, OptionError
from ..evaluation import Record, column_settings, latest
from ..utils import np
from .columns import Column, column_key
from .presentable import presentable, presentable_record
from .statistics import correctness_of

_logger = logging.getLogger(__name__)
MEANS = ("mce", "top1_mean")  # metrics of a whole suite of folders, each of which has a record of its own
_FOLDER_SETTINGS = ("corruption", "severity", "folders")


@dataclass(frozen=True)
class SeedRun:
    """One checkpoint: trained with a seed, or found finished.

    Attributes:
        seed: of the training; None for a finished checkpoint.
        records: of this checkpoint alone, as :func:`read_records` gives them; of repeated ones the newest count.
        updates: of the weights; None where unknown.
        forward_equivalents: cost of the whole training for each image of a batch, in forward passes: the sum over
            updates of an update's forward-equivalents (3 for a plain one: forward 1, backward 2).
        seconds: of wall time that the training took.

    Raises:
        OptionError: no records, records of several checkpoints, or a negative cost.
    """

    seed: int | None
    records: Sequence[Record]
    updates: int | None = None
    forward_equivalents: float | None = None
    seconds: float | None = None

    def __post_init__(self) -> None:
        own = len({record.row for record in self.records})
        if own != 1:
            raise OptionError(
                f"a run of seed {self.seed}: expected records of one checkpoint, found those of {own}. "
                "Give each its own run."
            )
        for name in ("updates", "forward_equivalents", "seconds"):
            cost = getattr(self, name)
            if cost is not None and not 0 <= cost < float("inf"):
                raise OptionError(f"a run of seed {self.seed}: expected {name} >= 0, found {cost}. Correct the cost.")

    @property
    def name(self) -> str:
        return "no seed" if self.seed is None else f"seed {self.seed}"

    @cached_property
    def shown_records(self) -> list[Record]:
        """The newest of repeated records, as reports show them."""
        return [presentable_record(record) for record in latest(self.records)]

    @cached_property
    def cells(self) -> dict[str, Record]:
        """The record of each column's key; the newest where two share it."""
        return {column_key(record): record for record in sorted(self.shown_records, key=lambda record: record.time)}

    def members(self, column: Column) -> list[Member] | None:
        """The accuracies of which the number in ``column`` is made; None if it is not there, or if they are not."""
        if column.key not in self._members:
            record, found = self.cells.get(column.key), None
            if record is not None and record.correct is not None:
                found = [Member("", 1.0, record)]
            elif record is not None and record.metric in MEANS:
                found = self._folders(record)
            self._members[column.key] = found
        return self._members[column.key]

    @cached_property
    def _members(self) -> dict[str, list[Member] | None]:
        return {}

    def _folders(self, mean: Record) -> list[Member] | None:
        """The folders of which ``mean`` is the mean (mCE: of their errors divided by AlexNet's)."""
        settings = _shared_settings(mean)
        folders = {
            (str(each.protocol["corruption"]), each.protocol["severity"]): each
            for each in self.cells.values()
            if (each.suite, each.metric) == (mean.suite, "top1")
            and each.correct is not None
            and {"corruption", "severity"} <= each.protocol.keys()
            and _shared_settings(each) == settings
        }
        if mean.metric == "mce":
            whole = len(ALEXNET_ERROR) * len(SEVERITIES)
            weights = {folder: -1 / whole / ALEXNET_ERROR.get(folder[0], 1.0) for folder in folders}
            start = 100 * sum(1 / error for error in ALEXNET_ERROR.values()) / len(ALEXNET_ERROR)
        else:
            weights, start = dict.fromkeys(folders, 1 / max(1, len(folders))), 0.0
        total = start + sum(weights[folder] * record.value for folder, record in folders.items())
        if abs(total - mean.value) > 0.001:  # of other folders than these
            return None
        return [Member(f"{name} {level}", weights[name, level], each) for (name, level), each in folders.items()]


def _shared_settings(record: Record) -> dict[str, object]:
    return {name: value for name, value in column_settings(record).items() if name not in _FOLDER_SETTINGS}


class Member(NamedTuple):
    """An accuracy that a number is made of: the number is a constant plus the sum of ``weight`` * accuracy."""

    name: str
    weight: float
    record: Record


@dataclass(frozen=True)
class MethodRuns:
    """A method's runs, one a seed. A finished checkpoint is a method with one run, whose seed is None.

    Raises:
        OptionError: no label, no run, or two of the same seed.
    """

    label: str
    runs: Sequence[SeedRun] = field(repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "label", presentable(self.label))
        seeds = [run.name for run in self.runs]
        if not self.label.strip() or not seeds or len(set(seeds)) < len(seeds):
            raise OptionError(
                f"method {self.label!r}: expected a name and runs, each of another seed, found "
                f"{', '.join(seeds) or 'no runs'}. Correct the study."
            )


Contributions = dict[str, tuple[np.ndarray, float]]


def image_values(run: SeedRun, column: Column) -> Contributions | None:
    """What each image adds to the run's number in ``column``, by set of images.

    The sum over sets of the mean over images is the number, but for a constant.

    Returns:
        By digest of the set: (n,) values by sorted path, and the most that one image can add. None if the bits of one
        of the :meth:`SeedRun.members` were not kept or cannot be read; the latter with a warning.
    """
    members = run.members(column)
    if members is None:
        return None
    found: Contributions = {}
    for _, weight, record in members:
        if record.right is None or record.images is None:
            return None
        try:
            bits = correctness_of(record)
        except DataError as error:
            _logger.warning("no paired comparison: %s", error)
            return None
        values, reach = found.get(record.images, (np.zeros(len(bits)), 0.0))
        found[record.images] = (values + 100 * weight * bits, reach + 100 * abs(weight))
    return found
