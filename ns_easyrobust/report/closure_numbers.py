"""The numbers of Figure 5, taken from the lines of the experiment ``closure``."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

from .. import nullspace
from ..utils import np
from .seed_statistics import Interval, interval_of_mean
from .sheet import format_count

NULLSPACE = "nullspace"
_FEWEST = 5  # noises or pairs of which t intervals are shown: of fewer they reach where influence or a cosine cannot
_NORMAL = 1.96  # standard errors: half of a 95% interval
NORM_SHARES = (0.25, 0.5, 1.0, 2.0)  # of the nullspace noises' mean norm, at which directions are counted


def spread_of(values: Sequence[float] | np.ndarray) -> Interval:
    """Mean with its 95% interval (Student's t); of 2 to 4 values, with the smallest and the largest."""
    if are_few(len(values)):
        return Interval(float(np.mean(values)), float(np.min(values)), float(np.max(values)))
    return interval_of_mean(values)


def are_few(count: int) -> bool:
    """Whether ``count`` values have no interval, but a range."""
    return 1 < count < _FEWEST


def spread_name(count: int, noun: str) -> str:
    """What the ends of :func:`spread_of` are, of ``count`` noises or pairs."""
    if are_few(count):
        return f"smallest and largest of {count} {noun}s"
    return f"95% interval over {format_count(count, noun)}, Student's t"


def _exp(found: Interval) -> Interval:
    return Interval(*map(float, np.exp(found)))


class ClosureNumbers:
    """What lines of the experiment ``closure`` say, by kind of noise."""

    def __init__(self, protocol: Mapping[str, Any], lines: Sequence[Mapping[str, Any]]) -> None:
        self.protocol = protocol
        self.eps: float = protocol["eps"]
        self.alphas: list[float] = protocol["alphas"]
        self.shares: list[float] = protocol["shares"]
        parts: dict[str, list[Mapping[str, Any]]] = {}
        for line in lines:
            parts.setdefault(line["part"], []).append(line)
        self.checks = parts.get("check", [])
        self.spectrum: Mapping[str, Any] | None = next(iter(parts.get("spectrum", [])), None)
        self.quadratic = {(line["kind"], line["number"]): line["predicted"] for line in parts.get("quadratic", [])}
        self._singles, self._pairs = parts.get("single", []), parts.get("pair", [])

    @cached_property
    def kinds(self) -> list[str]:
        return list(dict.fromkeys(line["kind"] for line in self._singles))

    def singles(self, kind: str) -> list[Mapping[str, Any]]:
        """Single noises of a kind."""
        return [line for line in self._singles if line["kind"] == kind]

    def pairs(self, kind: str) -> list[Mapping[str, Any]]:
        """Pairs of noises of a kind."""
        return [line for line in self._pairs if line["kind"] == kind]

    def grid(self, kind: str) -> np.ndarray:
        """(alphas, alphas): mean influence over pairs; alpha1 by row."""
        return np.mean([line["grid"] for line in self.pairs(kind)], axis=0)

    @cached_property
    def noises(self) -> int:
        """How many of each kind."""
        return len(self.singles(NULLSPACE))

    @cached_property
    def drawn_pairs(self) -> int:
        """How many of each kind."""
        return len(self.pairs(NULLSPACE))

    @cached_property
    def paired_noises(self) -> int:
        """How many noises of a kind are in a pair."""
        return len({number for line in self.pairs(NULLSPACE) for number in line["numbers"]})

    @property
    def places_below_1(self) -> list[int]:
        """Where in the grid alpha is in (0, 1)."""
        return [place for place, alpha in enumerate(self.alphas) if 0 < alpha < 1]

    def means(self, kind: str) -> list[Interval]:
        """Influence at each alpha, mean over noises and its spread: what Figure 5(a) shows."""
        return [spread_of(column) for column in np.array([line["influences"] for line in self.singles(kind)]).T]

    def image_error(self, kind: str, place: int) -> float:
        """What the standard error over images of :meth:`means` is at most: the mean of the noises' own.

        The noises share their images, so that their errors may all be alike.
        """
        return float(np.mean([line["errors"][place] for line in self.singles(kind)]))

    def beside_eps(self, kind: str) -> tuple[int, int]:
        """How many noises are over eps, and how many under, by 1.96 of their own standard errors over images."""
        gaps = [(line["influence"] - self.eps, _NORMAL * line["error"]) for line in self.singles(kind)]
        return sum(gap > most for gap, most in gaps), sum(gap < -most for gap, most in gaps)

    def scaled(self, kind: str, name: str = "influences") -> list[Interval]:
        """Influence at each alpha over its value at 1 (by name squared or not), mean over noises and its spread."""
        at_1 = "influence" if name == "influences" else "unsquared"
        rows = np.array([np.array(line[name]) / line[at_1] for line in self.singles(kind) if line[at_1] > 0])
        return [spread_of(column) for column in rows.T]

    def line(self, kind: str) -> list[Interval]:
        """Influence on alpha1 + alpha2 = 1 at each share of the first noise, mean over pairs and its spread."""
        return [spread_of(column) for column in np.array([line["line"] for line in self.pairs(kind)]).T]

    def line_shape(self, kind: str) -> list[Interval]:
        """As :meth:`line`, each pair's divided by the mean of its two ends, so that pairs may differ in influence."""
        rows = np.array([line["line"] for line in self.pairs(kind)])
        rows = rows / ((rows[:, :1] + rows[:, -1:]) / 2)
        return [spread_of(column) for column in rows.T]

    def under_share_of(self, kind: str, bound: str) -> tuple[int, int]:
        """How many noises have at every alpha in (0, 1) at most alpha times a bound.

        Args:
            bound: ``eps``; ``own``, their influence at 1; or ``unsquared``, that in the distance of Eq. 5.
        """
        places = self.places_below_1
        scaled, at_1 = ("unsquareds", "unsquared") if bound == "unsquared" else ("influences", "influence")
        good = 0
        for line in self.singles(kind):
            most = self.eps if bound == "eps" else line[at_1]
            found, _ = nullspace.share_under(
                [line[scaled][place] for place in places], [self.alphas[place] * most for place in places]
            )
            good += found == len(places)
        return good, len(self.singles(kind))

    def lines_under(self, kind: str, bound: str) -> tuple[int, int]:
        """How many pairs' lines stay under ``eps``, or under the ``chord`` between the influences of both ends."""
        good = 0
        for line in self.pairs(kind):
            ends = line["line"][-1], line["line"][0]  # of the first noise, of the second
            bounds = [share * ends[0] + (1 - share) * ends[1] for share in self.shares]
            found, count = nullspace.share_under(line["line"], bounds if bound == "chord" else [self.eps] * len(bounds))
            good += found == count
        return good, len(self.pairs(kind))

    def pairs_with_ends_under(self, kind: str) -> int:
        """How many pairs have both ends of the line under eps: only theirs can be under it whole."""
        return sum(max(line["line"][0], line["line"][-1]) <= self.eps for line in self.pairs(kind))

    def inner_under(self, kind: str) -> tuple[int, int]:
        """How many points of the lines, ends apart, are under eps, of how many."""
        inner = np.array([line["line"][1:-1] for line in self.pairs(kind)])
        return int((inner <= self.eps).sum()), inner.size

    def ratios(self, kind: str, prediction: str) -> Interval:
        """Measured / predicted influence, geometric mean over the grid where both alphas are > 0, and over pairs.

        Args:
            prediction: ``jacobian``, or ``ends``: alpha1^2 q1 + alpha2^2 q2 of the measured influences of both noises.
        """
        alphas = np.array(self.alphas[1:])
        logs = []
        for line in self.pairs(kind):
            form = nullspace.PairForm(*line["form"])
            if prediction == "ends":
                form = nullspace.PairForm(line["line"][-1], line["line"][0], 0.0)
            expected = form.influence(alphas[:, None], alphas[None, :])
            logs.append(float(np.mean(np.log(np.array(line["grid"])[1:, 1:] / expected))))
        return _exp(spread_of(logs))

    def cosine(self, kind: str) -> Interval:
        """Of the responses of a pair's noises, mean over pairs and its interval by Fisher's z; of 2 to 4, its spread.

        Source: R. A. Fisher, "On the 'probable error' of a coefficient of correlation", Metron 1 (1921).
        """
        values = [nullspace.PairForm(*line["form"]).cosine for line in self.pairs(kind)]
        found = spread_of(values)
        if are_few(len(values)) or len(values) == 1 or max(map(abs, values)) >= 1:
            return found
        return Interval(*(math.tanh(value) for value in interval_of_mean(np.arctanh(values))))

    def gain_over_quadratic(self, kind: str) -> Interval:
        """Measured influence at 1 over the Jacobian's prediction, geometric mean over noises and its spread."""
        singles = self.singles(kind)
        return _exp(spread_of([math.log(line["influence"] / self.quadratic[kind, line["number"]]) for line in singles]))

    def noticed(self, norm: float) -> tuple[int, bool]:
        """How many directions reach eps at ``norm``, to second order, and whether there may be more than were found."""
        assert self.spectrum is not None
        values = np.array(self.spectrum["values"])
        count = int((values * norm**2 >= self.eps).sum())
        return count, count == len(values) < self.spectrum["rank"]

    @property
    def norms_counted(self) -> list[float]:
        """Norms at which directions are counted: shares and multiples of the nullspace noises' mean norm."""
        mean = float(np.mean([line["norm"] for line in self.singles(NULLSPACE)]))
        return [share * mean for share in NORM_SHARES]
