"""Tests made of the lines of the experiment ``fingerprint``: derived models, and independent ones as if suspected."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from ..errors import DataError
from ..nullspace import HaarOverlap, haar_overlap, rank_p_value, t_p_value
from .statistics import wilson_interval

Lines = Sequence[Mapping[str, Any]]
ROWS, WEIGHTED, ON_IMAGES = range(3)  # the place of each likeness in a line
METRICS = {ROWS: "row space", WEIGHTED: "weighted", ON_IMAGES: "weighted, on images"}


class Rate(NamedTuple):
    """Of ``n`` tests, ``hits`` were of one outcome."""

    hits: int
    n: int

    def __str__(self) -> str:
        low, high = wilson_interval(self.hits, self.n)
        return f"{self.hits}/{self.n} [{low:.0f}, {high:.0f}]"


@dataclass(frozen=True)
class Tested:
    """A suspect against a claimed model, of one metric.

    Attributes:
        claimed, suspect: names.
        likeness: S / sqrt(k1 k2).
        p, p_t: exact rank and Student's t p-value; None with too few independents.
        least: the smallest rank p that there can be.
    """

    claimed: str
    suspect: str
    likeness: float
    p: float | None
    p_t: float | None
    least: float


class FingerprintNumbers:
    """All that tables, findings and picture are made of.

    Args:
        protocol, lines: of the experiment ``fingerprint``.

    Raises:
        DataError: no model has been compared.
    """

    def __init__(self, protocol: Mapping[str, Any], lines: Lines) -> None:
        self.alpha, self.input_dim = float(protocol["alpha"]), int(protocol["input_dim"])
        self.models = {line["name"]: line for line in lines if line["what"] == "model"}
        self.pairs = {line["name"]: line["likeness"] for line in lines if line["what"] == "pairs"}
        self.attacks = {line["name"]: line["steps"] for line in lines if line["what"] == "attack"}
        self.claimed = [name for name, line in self.models.items() if line["group"] == "claimed" and name in self.pairs]
        self.independent = [name for name, line in self.models.items() if line["group"] == "independent"]
        if not self.claimed or not self.independent:
            raise DataError("fingerprint: expected lines of claimed and independent models, found none. Run it anew.")
        self.independent = [name for name in self.independent if name in self.pairs]
        derived = [line for line in self.models.values() if line["group"] == "derived"]
        kinds = dict.fromkeys(line["kind"] for line in derived)
        self.kinds = {
            kind: [
                (claimed, line["name"])
                for claimed in self.claimed
                for line in derived
                if line["kind"] == kind and line["origin"] == self.models[claimed]["kind"]
                if line["name"] in self.pairs[claimed]
            ]
            for kind in kinds
        }
        self.kinds = {kind: pairs for kind, pairs in self.kinds.items() if pairs}

    @property
    def rank(self) -> int:
        """k of the first claimed model."""
        return int(self.models[self.claimed[0]]["k"])

    @property
    def haar(self) -> HaarOverlap:
        """Of S / k, between uniformly random subspaces."""
        found = haar_overlap(self.rank, self.rank, self.input_dim)
        return HaarOverlap(found.mean / self.rank, found.sd / self.rank)

    def null(self, claimed: str, metric: int, without: str | None = None, recipe: str | None = None) -> list[float]:
        """Likenesses of a model to independent ones: none to itself, to ``without``, or to those of a ``recipe``."""
        return [
            self.pairs[claimed][name][metric]
            for name in self.models
            if self.models[name]["group"] == "independent"
            and name in self.pairs[claimed]
            and name != without
            and (recipe is None or self.models[name]["kind"] != recipe)
        ]

    def tested(self, kind: str, metric: int) -> list[Tested]:
        """Of each model of a kind against the claimed one that it is derived from."""
        return [
            self._test(claimed, name, self.pairs[claimed][name][metric], self.null(claimed, metric))
            for claimed, name in self.kinds[kind]
        ]

    def crossed(self, kind: str, metric: int) -> list[Tested]:
        """Of each model of a kind against the claimed ones that it is not derived from."""
        return [
            self._test(claimed, name, found[metric], self.null(claimed, metric))
            for claimed in self.claimed
            for name, found in self.pairs[claimed].items()
            if self.models[name]["group"] == "derived"
            and self.models[name]["kind"] == kind
            and self.models[name]["origin"] != self.models[claimed]["kind"]
        ]

    def falsely_tested(self, metric: int) -> list[Tested]:
        """Of each independent model against each other one; the null has none of the suspect's recipe."""
        return [
            self._test(one, other, self.pairs[one][other][metric],
                       self.null(one, metric, other, self.models[other]["kind"]))
            for one in self.independent
            for other in self.independent
            if one != other and other in self.pairs[one]
        ]  # fmt: skip

    def attack_tested(self, claimed: str, likeness: float, metric: int) -> Tested:
        """Of an attacked model against itself before."""
        return self._test(claimed, claimed, likeness, self.null(claimed, metric))

    def _test(self, claimed: str, suspect: str, likeness: float, null: list[float]) -> Tested:
        return Tested(
            claimed,
            suspect,
            likeness,
            rank_p_value(likeness, null) if null else None,
            t_p_value(likeness, null) if len(null) >= 3 else None,
            1 / (len(null) + 1),
        )

    def told(self, tests: Sequence[Tested], parametric: bool = False) -> Rate | None:
        """How many are called derived; None where the rank p-value can never be as small as the level."""
        if not tests or (not parametric and min(test.least for test in tests) > self.alpha):
            return None
        ps = [test.p_t if parametric else test.p for test in tests]
        return Rate(sum(p is not None and p <= self.alpha for p in ps), len(ps))

    def independent_likenesses(self, metric: int) -> list[float]:
        """Of all pairs of independent models, each once."""
        return [
            self.pairs[one][other][metric]
            for place, one in enumerate(self.independent)
            for other in self.independent[place + 1 :]
            if other in self.pairs[one]
        ]

    def copies(self, metric: int) -> list[float]:
        """Of claimed models to their own symmetric copies."""
        return [pair[metric] for name in self.claimed for pair in self.models[name]["copies"]]

    def accuracy(self, name: str) -> float | None:
        """In percent; None where it was not measured."""
        line = self.models[name]
        return None if line.get("right") is None else 100 * line["right"] / line["n"]

    def accuracy_changes(self, kind: str) -> list[float]:
        """In points, of each model of a kind against the claimed one."""
        pairs = ((self.accuracy(name), self.accuracy(claimed)) for claimed, name in self.kinds[kind])
        return [after - before for after, before in pairs if after is not None and before is not None]


def span(values: Sequence[float], digits: int = 3) -> str:
    """Mean and range, as ``0.510 (0.480 to 0.533)``; 1.000 is 1 after rounding."""
    if not values:
        return "-"
    mean = math.fsum(values) / len(values)
    return f"{mean:.{digits}f} ({min(values):.{digits}f} to {max(values):.{digits}f})"
