"""The course of trainings that ``dynamics`` shows: noise and accuracy of each method by training step."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from ..evaluation import ADVERSARIAL, CLEAN, OOD
from .seed_statistics import Interval, interval_of_mean

Line = Mapping[str, Any]
TOTAL = "total"
MEASURES = (ADVERSARIAL, OOD, TOTAL, CLEAN)


class Course:
    """What the lines say of each method by training step. The newest of repeated lines counts.

    Args:
        lines: of the experiment ``dynamics``: ``run``, ``start`` and ``checkpoint``.
        baseline: the method trained without noise; None if there is none among them.

    Attributes:
        labels: methods, in the order of the lines.
        seeds: of every method.
        updates: after which there are checkpoints.
        columns: (title, group, n) of each column.
    """

    def __init__(self, lines: Sequence[Line], baseline: str | None) -> None:
        runs = {(line["label"], line["seed"]): line for line in lines if line["kind"] == "run"}
        points = {(line["label"], line["seed"], line["update"]): line for line in lines if line["kind"] == "checkpoint"}
        self.runs = runs
        self._starts = {line["start"]: line["columns"] for line in lines if line["kind"] == "start"}
        self._points = {key: line["columns"] for key, line in points.items()}
        self.labels = list(dict.fromkeys(label for label, _ in runs))
        self.seeds = sorted({seed for _, seed in runs})
        self.updates = sorted({update for _, _, update in points})
        self.baseline = baseline if baseline in self.labels else None
        first: Sequence[Line] = next(iter(self._points.values()), [])
        self.columns = [(column["title"], column["group"], column["n"]) for column in first]

    @property
    def measures(self) -> list[str]:
        """Of :data:`MEASURES`, those that there are columns of."""
        groups = {group for _, group, _ in self.columns}
        return [measure for measure in MEASURES if measure == TOTAL or measure in groups]

    def points(self) -> Iterator[tuple[tuple[str, int, int], Sequence[Line]]]:
        """(method, seed, update) of each checkpoint, and its columns."""
        yield from self._points.items()

    def noisy(self) -> list[str]:
        """The methods with noises."""
        return [label for label in self.labels if all(run["norm"] for run in self.of(label))]

    def is_searched(self, label: str) -> bool:
        """Whether the method's noises come of a search: of others all that is known is their held-out influence."""
        return any(run["mse_probability"] != run["held_out"] for run in self.of(label))

    def of(self, label: str) -> list[Line]:
        """A method's runs."""
        return [run for (own, _), run in self.runs.items() if own == label]

    def start(self, label: str, seed: int, measure: str) -> float:
        """The start's mean of the columns of ``measure``, in percent."""
        return mean_of_group(self._starts[self.runs[label, seed]["start"]], measure)

    def relative(self, label: str, update: int, measure: str) -> dict[int, float]:
        """By seed, the mean of the columns divided by the start's; 1 after no updates, as in Figure 4.

        Without the seeds of a start of which nothing was right.
        """
        starts = {seed: self.start(label, seed, measure) for own, seed in self.runs if own == label}
        if update == 0:
            return {seed: 1.0 for seed, start in starts.items() if start}
        return {
            seed: mean_of_group(columns, measure) / starts[seed]
            for (own, seed, step), columns in self._points.items()
            if own == label and step == update and starts[seed]
        }

    def gain(self, label: str, update: int, measure: str) -> dict[int, float]:
        """By seed, the mean of the columns minus the baseline's with the same seed, in points; {} without one."""
        if self.baseline is None:
            return {}
        base = {
            seed: mean_of_group(columns, measure)
            for (own, seed, step), columns in self._points.items()
            if own == self.baseline and step == update
        }
        return {
            seed: mean_of_group(columns, measure) - base[seed]
            for (own, seed, step), columns in self._points.items()
            if own == label and step == update and seed in base
        }

    def noise(self, label: str, number: str) -> dict[int, Interval]:
        """By step, the mean over seeds of ``norm``, ``mse_probability`` or ``held_out``, where all runs have it."""
        by_step: dict[int, list[float]] = {}
        for run in self.of(label):
            for step, value in zip(run["steps"], run[number], strict=True):
                if value is not None:
                    by_step.setdefault(step, []).append(value)
        whole = len(self.of(label))
        return {step: interval_of_mean(own) for step, own in sorted(by_step.items()) if len(own) == whole}

    def growth(self, label: str) -> list[float]:
        """Of each run with two noises or more: the mean norm of the later half of them over that of the earlier."""
        norms = [run["norm"] for run in self.of(label) if len(run["norm"]) > 1]
        return [mean(own[-(len(own) // 2) :]) / mean(own[: len(own) // 2]) for own in norms]


def mean_of_group(columns: Sequence[Line], measure: str) -> float:
    """The plain mean of the columns of a group, or of all for the total, in percent, higher is better.

    The total is the Average of the paper's Table 2, of the columns that there are.
    """
    return mean([column["value"] for column in columns if measure in (TOTAL, column["group"])])


def mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)


def rounds(runs: Sequence[Line], reached: Callable[[Line, int], bool | None]) -> tuple[int, int]:
    """In how many noises of the runs ``reached(run, place)``, and of how many it is known (not None)."""
    found = [own for run in runs for place in range(len(run["norm"])) if (own := reached(run, place)) is not None]
    return sum(found), len(found)
