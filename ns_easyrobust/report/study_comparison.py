"""A study: methods, each with several seeds, under the columns of a benchmark, against a baseline."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from ..errors import OptionError
from ..evaluation import Record, suites
from ..utils import np
from .columns import Column, columns_of, mismatch, require_rows, shown_columns
from .presentable import presentable
from .seed_statistics import Finding, claim, mean_over_seeds, over_images, over_seeds
from .statistics import Difference, are_significant, difference
from .study_measures import GROUP_NAMES, Measure, folder_sets, mean_of, named_parts
from .study_runs import MEANS, Contributions, MethodRuns, SeedRun, image_values


@dataclass(frozen=True)
class Comparison:
    """A method's mean over seeds minus another's.

    Attributes:
        delta: in the unit of the measure.
        images, seeds: its interval over images and that over seeds; the latter None with one seed each.
        claim: the wider of both, with the larger p; None where the bits of all runs on the same images were not kept.
    """

    delta: float
    images: Finding | None = None
    seeds: Finding | None = None
    claim: Finding | None = None

    @property
    def difference(self) -> Difference:
        """As the other tables show it."""
        if self.claim is None:
            return Difference(self.delta)
        return Difference(self.delta, self.claim.low, self.claim.high, self.claim.p)

    @property
    def fields(self) -> dict[str, float]:
        """All numbers that there are, by name, as CSV files have them."""
        found = {"delta": self.delta}
        for prefix, each in (("", self.claim), ("images_", self.images), ("seeds_", self.seeds)):
            if each is not None:
                found |= {f"{prefix}low": each.low, f"{prefix}high": each.high, f"{prefix}p": each.p}
        return found


class StudyComparison:
    """One row a method: means over seeds, differences from the baseline, and what the training cost.

    Args:
        methods: from top to bottom.
        baseline: label of the method from which the others' differences are taken; None for no differences.
        confidence: of the intervals, in (0, 1).
        robust_suites: names of suites, over whose columns mean robustness is taken; all but the clean one's if None.

    Attributes:
        columns: of the records, left to right; of ImageNet-C the mean over its folders, not each of them.
        folders: the columns of ImageNet-C's folders, as :func:`~ns_easyrobust.report.study_measures.folder_sets`
            gives them.
        clean: the column of the clean validation images; None if no run has it.
        robust: the other columns in percent, or those of ``robust_suites``, over which mean robustness is taken.
        measures: what the table shows: :attr:`columns`, then, of two or more of :attr:`robust`, their mean.

    Raises:
        OptionError: no method, two of one label, an unknown baseline, or confidence not in (0, 1).
    """

    def __init__(
        self,
        methods: Sequence[MethodRuns],
        baseline: str | None = None,
        *,
        confidence: float = 0.95,
        robust_suites: Sequence[str] | None = None,
    ) -> None:
        labels = [method.label for method in methods]
        if not labels or len(set(labels)) < len(labels):
            raise OptionError(
                f"study: expected methods of different names, found {', '.join(labels) or 'none'}. Correct the study."
            )
        if not 0 < confidence < 1:
            raise OptionError(f"study: expected 0 < confidence < 1, found {confidence}. Correct the call.")
        if baseline is not None:
            baseline = presentable(baseline)
            require_rows([baseline], labels, "baseline")
        self.methods = {method.label: method for method in methods}
        self.baseline, self.confidence = baseline, confidence
        every = columns_of([record for method in methods for run in method.runs for record in run.shown_records])
        self.columns, self.folders = _shown(every), folder_sets(every)
        validation = suites()["val"].record
        self.clean = next((c for c in self.columns if (c.suite, c.metric) == (validation, "top1")), None)
        robust = [c for c in self.columns if c.unit == "%" and (c.suite, c.metric) != (validation, "top1")]
        if robust_suites is not None:
            records = {suites()[name].record for name in robust_suites}
            robust = [column for column in robust if column.suite in records]
        self.robust = tuple(robust)
        self._sums: dict[tuple[object, ...], Contributions | None] = {}
        self._comparisons: dict[tuple[object, ...], Comparison | None] = {}

    @cached_property
    def measures(self) -> tuple[Measure, ...]:
        plain = tuple(Measure(column.title, column.unit, ((1.0, column),)) for column in self.columns)
        return plain if self.robustness is None or len(self.robust) < 2 else (*plain, self.robustness)

    @cached_property
    def robustness(self) -> Measure | None:
        """:func:`mean_of` the columns :attr:`robust`."""
        return mean_of("mean robustness", self.robust)

    @cached_property
    def overall(self) -> Measure | None:
        """:func:`mean_of` all columns in percent, clean accuracy included."""
        return mean_of("mean of all columns", [column for column in self.columns if column.unit == "%"])

    def mean_over(self, names: Sequence[str]) -> Measure | None:
        """:func:`mean_of` what these names stand for; None if one stands for nothing that was measured.

        Args:
            names: of suites (``val``, ``fgsm``, ...) for each of their columns in percent, or of groups of ImageNet-C's
                corruptions (``c:noise``, ``c:not-noise``, ...) for the mean over their folders, which is one part.

        Raises:
            OptionError: an unknown name.
        """
        known = suites()
        if unknown := [name for name in names if name not in (*known, *GROUP_NAMES)]:
            expected = ", ".join((*known, *GROUP_NAMES))
            raise OptionError(f"suite: expected some of {expected}, found {unknown[0]}. Correct the call.")
        own = [named_parts(name, self.columns, self.folders) for name in names]
        return mean_of("mean", [part for each in own for part in each]) if all(own) else None

    @property
    def robust_names(self) -> str:
        """The columns of :attr:`robustness` in words."""
        return "" if self.robustness is None else self.robustness.names

    def values(self, label: str, measure: Measure) -> dict[str, float]:
        """The value of each run that has all of ``measure``, by the run's name."""
        return {run.name: self._value(run, measure) for run in self._runs(label, measure)}

    def value(self, label: str, measure: Measure) -> float | None:
        """Mean over seeds; None if no run has all of ``measure``."""
        values = list(self.values(label, measure).values())
        return float(np.mean(values)) if values else None

    def deviation(self, label: str, measure: Measure) -> float | None:
        """The sample's standard deviation over seeds; None of fewer than two."""
        values = list(self.values(label, measure).values())
        return float(np.std(values, ddof=1)) if len(values) > 1 else None

    def _runs(self, label: str, measure: Measure) -> list[SeedRun]:
        runs = self.methods[label].runs
        return [run for run in runs if all(column.key in run.cells for _, column in measure.terms)]

    @staticmethod
    def _value(run: SeedRun, measure: Measure) -> float:
        return measure.constant + sum(weight * run.cells[column.key].value for weight, column in measure.terms)

    def column_records(self, column: Column) -> list[tuple[str, Record]]:
        """(method and seed, record) for each run that has ``column``."""
        return [
            (self._run_name(label, run), run.cells[column.key])
            for label, method in self.methods.items()
            for run in method.runs
            if column.key in run.cells
        ]

    def _run_name(self, label: str, run: SeedRun) -> str:
        return label if len(self.methods[label].runs) == 1 else f"{label} {run.name}"

    def mismatch(self, measure: Measure, labels: Sequence[str] | None = None) -> str | None:
        """Why runs of ``labels`` (None for all) are not comparable image by image; None if records show no reason."""
        named = [
            (self._run_name(label, run), run)
            for label in (self.methods if labels is None else labels)
            for run in self._runs(label, measure)
        ]
        for _, column in measure.terms:
            reason = mismatch([(name, run.cells[column.key]) for name, run in named])
            folders: dict[str, list[tuple[str, Record]]] = {}
            for name, run in named:
                for member in run.members(column) or ():
                    folders.setdefault(member.name, []).append((name, member.record))
            reasons = (f"{folder}: {own}" for folder, pairs in folders.items() if (own := mismatch(pairs)))
            reason = reason or next(reasons, None)
            if reason is not None:
                return reason if measure.column is not None else f"{column.title}: {reason}"
        return None

    def comparison(self, label: str, measure: Measure) -> Comparison | None:
        """From the baseline; None for the baseline itself, or if either is missing or of other images."""
        return None if self.baseline is None else self.compare(label, self.baseline, measure)

    def compare(self, label: str, other: str, measure: Measure) -> Comparison | None:
        """``label`` minus ``other``; None for one and the same, or if either is missing or of other images."""
        if label == other:
            return None
        key = label, other, measure.key
        if key not in self._comparisons:
            values = self.value(label, measure), self.value(other, measure)
            missing = None in values or self.mismatch(measure, [label, other])
            self._comparisons[key] = None if missing else self._compare(label, other, measure)
        return self._comparisons[key]

    def _compare(self, label: str, base: str, measure: Measure) -> Comparison:
        own, other = self.values(label, measure), self.values(base, measure)
        delta = float(np.mean(list(own.values())) - np.mean(list(other.values())))
        images = self._over_images(label, base, measure)
        if images is None:
            return Comparison(delta)
        given = any(run.seed is None for each in (label, base) for run in self._runs(each, measure))
        seeds = over_seeds(own, other, self.confidence, single_is_given=given)
        return Comparison(delta, images, seeds, claim(images, seeds))

    def _over_images(self, label: str, base: str, measure: Measure) -> Finding | None:
        """Two single checkpoints by McNemar's test and Newcombe's interval, anything else by the paired t test."""
        runs = self._runs(label, measure), self._runs(base, measure)
        if measure.column is not None and max(map(len, runs)) == 1:
            key = measure.column.key
            found = difference(runs[0][0].cells[key], runs[1][0].cells[key], self.confidence)
            if found.low is not None and found.high is not None and found.p is not None:
                return Finding(found.low, found.high, found.p, float("inf"))
        own, other = (self._mean_contributions(name, measure, of) for name, of in zip((label, base), runs, strict=True))
        if own is None or other is None or own.keys() != other.keys():
            return None
        changes = [values - other[digest][0] for digest, (values, _) in own.items()]
        return over_images(changes, [reach for _, reach in own.values()], self.confidence)

    def _mean_contributions(self, label: str, measure: Measure, runs: Sequence[SeedRun]) -> Contributions | None:
        """What each image adds to the mean over ``runs`` of ``measure``, by set of images."""
        key = label, measure.key, tuple(run.name for run in runs)
        if key not in self._sums:
            self._sums[key] = self._sum(label, measure, runs)
        return self._sums[key]

    def _sum(self, label: str, measure: Measure, runs: Sequence[SeedRun]) -> Contributions | None:
        if measure.column is not None:
            return _mean([image_values(run, measure.column) for run in runs])
        found: Contributions = {}
        for weight, column in measure.terms:
            alone = Measure(column.title, column.unit, ((1.0, column),))
            # Folders are many and large, and each is in few sums: they are not kept.
            own = (self._mean_contributions if column in self.columns else self._sum)(label, alone, runs)
            if own is None:
                return None
            for digest, (values, reach) in own.items():
                before, reached = found.get(digest, (0.0, 0.0))
                found[digest] = (before + weight * values, reached + abs(weight) * reach)
        return found

    def comparisons(self, label: str) -> list[Comparison | None]:
        """One for each of :attr:`measures`."""
        return [self.comparison(label, measure) for measure in self.measures]

    def significant(self, label: str) -> list[bool]:
        """Which of the row's differences are more than chance, by Holm over :attr:`measures`."""
        found = [None if own is None else own.difference for own in self.comparisons(label)]
        return are_significant(found, self.confidence)


def _shown(every: Sequence[Column]) -> tuple[Column, ...]:
    """The columns to show: of a suite of folders its mean alone, and of two means mCE."""
    columns = shown_columns(every)
    with_mean = {column.suite for column in columns if column.metric in MEANS}
    with_mce = {column.suite for column in columns if column.metric == "mce"}
    return tuple(
        column
        for column in columns
        if not (column.suite in with_mean and "corruption" in column.protocol)
        and not (column.suite in with_mce and column.metric == "top1_mean")
    )


def _mean(runs: Sequence[Contributions | None]) -> Contributions | None:
    """The runs' contributions averaged; None if one has none, or if they are of different images."""
    known = [run for run in runs if run is not None]
    if len(known) < len(runs) or any(run.keys() != known[0].keys() for run in known):
        return None
    return {
        digest: (mean_over_seeds([run[digest][0] for run in known]), reach) for digest, (_, reach) in known[0].items()
    }
