"""How training changed feasible norms: ratios after to before of each method, over seeds, against a baseline."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from typing import Any, NamedTuple

from ..errors import OptionError
from .presentable import presentable
from .seed_statistics import Finding, over_seeds
from .sheet import Cell, Sheet, as_markdown, as_text, format_p
from .statistics import holm


class Ratio(NamedTuple):
    """A ratio of norms with its interval over seeds, and the p of the hypothesis that it is 1; None with one seed."""

    value: float
    low: float | None
    high: float | None
    p: float | None


class NormChanges:
    """Feasible norms of models before and after training, along the same directions.

    Of each run, the logarithms of the norms are averaged over the directions of a kind, which are fixed; what varies is
    the seed. Intervals are Student's t over seeds of these means (:func:`~.seed_statistics.over_seeds`).

    Args:
        lines: of each model and direction: ``label`` (:attr:`BEFORE` for the start), ``seed`` (None for the start),
            ``kind`` and ``direction`` (of the kind), ``norm``, and ``censored``: whether it is larger than that. A
            direction of kind :attr:`TRAINED_ON` is named as the run that was trained on it (:meth:`run_name`).
        baseline: label of the method to whose ratios the others' are compared; None for no comparisons. Of kind
            ``trained on``, the baseline's norms are those along the other method's noises of the same seed.
        confidence: of the intervals, in (0, 1).

    Attributes:
        labels, kinds: in the order of the lines.

    Raises:
        OptionError: no lines of the start or of a trained model, or an unknown baseline.
    """

    BEFORE, TRAINED_ON = "before", "trained on"

    def __init__(
        self, lines: Iterable[Mapping[str, Any]], baseline: str | None = None, *, confidence: float = 0.95
    ) -> None:
        self._norms: dict[tuple[str, int | None, str], dict[str, tuple[float, bool]]] = {}
        for line in lines:
            key = line["label"], line["seed"], line["kind"]
            self._norms.setdefault(key, {})[line["direction"]] = (line["norm"], line["censored"])
        self.labels = tuple(dict.fromkeys(label for label, _, _ in self._norms if label != self.BEFORE))
        self.kinds = tuple(dict.fromkeys(kind for label, _, kind in self._norms if label == self.BEFORE))
        if not self.labels or not self.kinds or (baseline is not None and baseline not in self.labels):
            raise OptionError(
                f"feasible norms: expected those of the start and of trained models, {baseline or 'a method'} among "
                f"them, found {', '.join(self.labels) or 'no trained model'}."
            )
        self.baseline, self.confidence = baseline, confidence

    @staticmethod
    def run_name(label: str, seed: int | None) -> str:
        """Of a run, for people; also of the noise that it was trained on."""
        return label if seed is None else f"{label}, seed {seed}"

    def seeds(self, label: str) -> list[int | None]:
        """Of the label's runs."""
        return list(dict.fromkeys(seed for own, seed, _ in self._norms if own == label))

    def logs(self, label: str, kind: str, of: str | None = None) -> dict[str, tuple[float, float]]:
        """Mean over directions of log norm, before and after, by run; of those that have all the directions.

        Args:
            of: along the noises that this method was trained on, where ``kind`` is of that; else the label's own.
        """
        found = {}
        for seed in self.seeds(label):
            before, after = (self._norms.get((*run, kind), {}) for run in ((self.BEFORE, None), (label, seed)))
            names = [
                name
                for name in before
                if kind != self.TRAINED_ON or name == self.run_name(label if of is None else of, seed)
            ]
            if names and all(name in after for name in names):
                found[f"seed {seed}"] = (_mean_log(before, names), _mean_log(after, names))
        return found

    def _changes(self, label: str, kind: str, of: str | None = None) -> dict[str, float]:
        return {run: after - before for run, (before, after) in self.logs(label, kind, of).items()}

    def change(self, label: str, kind: str) -> Ratio | None:
        """Geometric mean over directions and seeds of norm after / before; None where no run has all the directions."""
        own = self._changes(label, kind)
        return _ratio(own, dict.fromkeys(own, 0.0), self.confidence)

    def comparison(self, label: str, kind: str) -> Ratio | None:
        """:meth:`change` divided by the baseline's, paired by seed where both have the same; None for the baseline."""
        if self.baseline is None or label == self.baseline:
            return None
        return _ratio(self._changes(label, kind), self._changes(self.baseline, kind, of=label), self.confidence)

    @cached_property
    def adjusted(self) -> dict[tuple[str, str], float]:
        """p of each comparison that has one, by label and kind, adjusted by Holm for the number of all of them."""
        found = {
            (label, kind): ratio.p
            for label in self.labels
            for kind in self.kinds
            if (ratio := self.comparison(label, kind)) is not None and ratio.p is not None
        }
        return dict(zip(found, holm(list(found.values())), strict=True))

    def censored(self, label: str, kind: str, seed: int | None = None) -> int:
        """How many of the label's norms (of one seed, if given) are larger than the largest that was tested."""
        return sum(
            is_censored
            for (own, own_seed, own_kind), norms in self._norms.items()
            if (own, own_kind) == (label, kind) and seed in (None, own_seed)
            for name, (_, is_censored) in norms.items()
            if kind != self.TRAINED_ON or label == self.BEFORE or name == self.run_name(label, own_seed)
        )

    def sheet(self, notes: Sequence[str] = ()) -> Sheet:
        """A row a method beneath one with the norms before, a column a kind; ``notes`` beneath this class's own."""
        rows = [("norm before", [self._before_cell(kind) for kind in self.kinds])]
        for label in self.labels:
            name = f"{label} (baseline)" if label == self.baseline else label
            rows.append((presentable(name), [self._cell(label, kind) for kind in self.kinds]))
        return Sheet([(kind, "after / before") for kind in self.kinds], rows, [*self._notes(), *notes])

    def _before_cell(self, kind: str) -> Cell:
        norms = self._norms[self.BEFORE, None, kind]
        return Cell(f"{math.exp(_mean_log(norms, list(norms))):.4g}", ("", "", self._censored_text(self.BEFORE, kind)))

    def _censored_text(self, label: str, kind: str) -> str:
        count = self.censored(label, kind)
        return f"{count} censored" if count else ""

    def _cell(self, label: str, kind: str) -> Cell:
        change, comparison = self.change(label, kind), self.comparison(label, kind)
        if change is None:
            return Cell("-", is_number=False)
        against = ""
        if comparison is not None:
            against = f"(x{_shown(comparison.value)}{_interval(comparison)}"
            if (p := self.adjusted.get((label, kind))) is not None:
                verdict = "" if p > 1 - self.confidence else " larger" if comparison.value > 1 else " smaller"
                against += f", {format_p(p)}{verdict}"
            against += ")"
        return Cell(_shown(change.value), (_interval(change).strip(), against, self._censored_text(label, kind)))

    def _notes(self) -> list[str]:
        percent = f"{100 * self.confidence:g}%"
        counts = sorted({len(self.seeds(label)) for label in self.labels})
        notes = [
            f"Ratios are geometric means over directions and seeds ({' or '.join(map(str, counts))} a method) of the "
            f"feasible norm after training / before; [low, high]: {percent} interval over seeds, Student's t of the "
            "log of each seed's mean ratio. The directions are fixed, and so are the images."
        ]
        if self.baseline is not None:
            notes.append(
                f"(x...): that ratio divided by {presentable(self.baseline)}'s, paired by seed where both have the "
                f"same, with p adjusted by Holm for all {len(self.adjusted)} comparisons of the table; intervals are "
                f"not. In the column {self.TRAINED_ON}, {presentable(self.baseline)} is measured along the same noises."
            )
        if max(counts) < 2:
            notes.append("One seed a method: no interval, and nothing is said of other seeds.")
        if any(self.censored(label, kind) for label in (self.BEFORE, *self.labels) for kind in self.kinds):
            notes.append(
                "censored: the influence stays under eps up to the largest norm that was tested, which then stands in "
                "its place; a ratio of a censored norm is bound to be too near to 1."
            )
        return notes

    def to_text(self, width: int | None = None, notes: Sequence[str] = ()) -> str:
        """The table for a terminal."""
        return as_text(self.sheet(notes), width)

    def to_markdown(self, notes: Sequence[str] = ()) -> str:
        """The table as GitHub's Markdown."""
        return as_markdown(self.sheet(notes))


def _mean_log(norms: Mapping[str, tuple[float, bool]], names: Sequence[str]) -> float:
    return math.fsum(math.log(norms[name][0]) for name in names) / len(names)


def _ratio(own: Mapping[str, float], base: Mapping[str, float], confidence: float) -> Ratio | None:
    """exp of the difference of two means of logarithms, by run."""
    if not own or not base:
        return None
    delta = math.fsum(own.values()) / len(own) - math.fsum(base.values()) / len(base)
    found: Finding | None = over_seeds(own, base, confidence, single_is_given=False)
    if found is None:
        return Ratio(math.exp(delta), None, None, None)
    return Ratio(math.exp(delta), math.exp(found.low), math.exp(found.high), found.p)


def _interval(ratio: Ratio) -> str:
    return "" if ratio.low is None or ratio.high is None else f" [{_shown(ratio.low)}, {_shown(ratio.high)}]"


def _shown(ratio: float) -> str:
    """To a thousandth, as most are near 1; three digits of others."""
    return f"{ratio:.3f}" if 0.1 < ratio < 10 else f"{ratio:.3g}"
