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
    """Of ``n`` tests, ``hits`` were of one outcome.

    Tests of one origin, or of one suspect, are not independent of each other. ``clusters`` is how many origins or
    suspects there are: as many tests count as independent (Kish 1965, at a correlation of 1 within a cluster).
    """

    hits: int
    n: int
    clusters: int

    @property
    def interval(self) -> tuple[float, float]:
        """Wilson's of 95%, in percent."""
        return wilson_interval(self.hits * self.clusters / self.n, self.clusters)

    def __str__(self) -> str:
        low, high = self.interval
        return f"{self.hits}/{self.n} [{low:.0f}, {high:.0f}]"


@dataclass(frozen=True)
class Tested:
    """A suspect against a claimed model, of one metric.

    Attributes:
        claimed, suspect: names.
        likeness: S / sqrt(k1 k2).
        p, p_t: exact rank and Student's t p-value; None with too few independents.
        least: the smallest rank p that there can be.
        cluster: the suspect's origin, or the suspect: what it shares with tests that depend on this one.
    """

    claimed: str
    suspect: str
    likeness: float
    p: float | None
    p_t: float | None
    least: float
    cluster: str


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
        self._families = self._related(derived)
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

    def _related(self, derived: Lines) -> dict[str, str]:
        """A label for each claimed model's kind: the same where one of both is derived from the other."""
        families = {self.models[name]["kind"]: self.models[name]["kind"] for name in self.claimed}
        for line in derived:
            for name in self.claimed:
                if line.get("digest") and line["digest"] == self.models[name].get("digest"):
                    old, new = families[self.models[name]["kind"]], families.get(line["origin"], line["origin"])
                    families = {kind: new if family == old else family for kind, family in families.items()}
        return families

    @property
    def ranks(self) -> list[int]:
        """k of claimed and independent models."""
        return [int(self.models[name]["k"]) for name in [*self.claimed, *self.independent]]

    def haar(self, one: str, other: str) -> HaarOverlap:
        """Of S / sqrt(k1 k2), between uniformly random subspaces of the dimensions of both models."""
        k1, k2 = (int(self.models[name]["k"]) for name in (one, other))
        found, scale = haar_overlap(k1, k2, self.input_dim), math.sqrt(k1 * k2)
        return HaarOverlap(found.mean / scale, found.sd / scale)

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
            self._test(claimed, name, self.pairs[claimed][name][metric], self.null(claimed, metric), claimed)
            for claimed, name in self.kinds[kind]
        ]

    def crossed(self, kind: str, metric: int) -> list[Tested]:
        """Of each model of a kind against the claimed ones that neither it nor its origin is derived from."""
        return [
            self._test(claimed, name, found[metric], self.null(claimed, metric), self.models[name]["origin"])
            for claimed in self.claimed
            for name, found in self.pairs[claimed].items()
            if self.models[name]["group"] == "derived"
            and self.models[name]["kind"] == kind
            and self._families.get(self.models[name]["origin"]) != self._families[self.models[claimed]["kind"]]
        ]

    def falsely_tested(self, metric: int) -> list[Tested]:
        """Of each independent model against each other one; the null has none of the suspect's recipe."""
        return [
            self._test(one, other, self.pairs[one][other][metric],
                       self.null(one, metric, other, self.models[other]["kind"]), other)
            for one in self.independent
            for other in self.independent
            if one != other and other in self.pairs[one]
        ]  # fmt: skip

    def attack_tested(self, claimed: str, likeness: float, metric: int) -> Tested:
        """Of an attacked model against itself before."""
        return self._test(claimed, claimed, likeness, self.null(claimed, metric), claimed)

    def _test(self, claimed: str, suspect: str, likeness: float, null: list[float], cluster: str) -> Tested:
        return Tested(
            claimed,
            suspect,
            likeness,
            rank_p_value(likeness, null) if null else None,
            t_p_value(likeness, null) if len(null) >= 3 else None,
            1 / (len(null) + 1),
            cluster,
        )

    def told(self, tests: Sequence[Tested], parametric: bool = False) -> Rate | None:
        """How many are called derived, of those that could be; None where none could.

        By rank those could whose p-value can be as small as the level, by t those that have one.
        """
        able = [test for test in tests if (test.p_t is not None if parametric else test.least <= self.alpha)]
        if not able:
            return None
        ps = [test.p_t if parametric else test.p for test in able]
        hits = sum(p is not None and p <= self.alpha for p in ps)
        return Rate(hits, len(able), len({test.cluster for test in able}))

    @property
    def independent_pairs(self) -> list[tuple[str, str]]:
        """All pairs of independent models, each once."""
        return [
            (one, other)
            for place, one in enumerate(self.independent)
            for other in self.independent[place + 1 :]
            if other in self.pairs[one]
        ]

    def independent_likenesses(self, metric: int) -> list[float]:
        """Of all pairs of independent models, each once."""
        return [self.pairs[one][other][metric] for one, other in self.independent_pairs]

    def copies(self, metric: int, claimed: str | None = None) -> list[float]:
        """Of one claimed model, or of all, to their own symmetric copies."""
        names = self.claimed if claimed is None else [claimed]
        return [pair[metric] for name in names for pair in self.models[name]["copies"]]

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
