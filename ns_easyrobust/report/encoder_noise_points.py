"""The numbers of Figure 3: for each lambda, what its noises and their permutations do, with intervals."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .seed_statistics import Interval, interval_of_mean
from .statistics import paired_interval, wilson_interval

CONTROLS = ("permuted", "within")  # all elements in another order, and those of each token
KINDS = ("learned", *CONTROLS)
_SETTLED = (0.75, 1.35)  # <v, grad J> / lambda of noises that are called settled; 1 at a stationary point
_FLAT = 0.1  # <v, grad J> / J, the exponent with which J grows when the noise is scaled: below it J is at its ceiling


@dataclass(frozen=True)
class StrengthPoint:
    """One lambda.

    Attributes:
        strength: lambda.
        lines: of its noises, one a seed.
    """

    strength: float
    lines: Sequence[Mapping[str, Any]]

    @property
    def over_seeds(self) -> bool:
        """Whether intervals are over seeds (Student's t); else over the images of the only noise."""
        return len(self.lines) > 1

    @property
    def n(self) -> int:
        """How many images each noise was measured on."""
        return int(self.lines[0]["n"])

    @property
    def ran_away(self) -> int:
        """How many noises grew past the rise of J, where Eq. 4 falls for ever."""
        return sum(line["radial"] < _FLAT * line["distance"] for line in self.lines)

    @property
    def state(self) -> str:
        """Whether the noises ran away, or ended at another <v, grad J> than lambda; "" where they have settled."""
        if self.ran_away:
            return "ran away"
        least, most = _SETTLED
        shares = [line["radial"] / self.strength for line in self.lines]
        return "" if least <= min(shares) and max(shares) <= most else "not settled"

    @property
    def gives_up_a_token(self) -> bool:
        """Whether more than half of the squared norm lies in one token."""
        return self.number("token_share").mean > 0.5

    def agreement(self, kind: str) -> Interval:
        """Unchanged predictions in percent; Wilson's interval for one noise."""
        shares = [100 * line[kind]["unchanged"] / line["n"] for line in self.lines]
        if self.over_seeds:
            mean, low, high = interval_of_mean(shares)
            return Interval(mean, max(0.0, low), min(100.0, high))
        return Interval(shares[0], *wilson_interval(self.lines[0][kind]["unchanged"], self.n))

    def lead(self, control: str) -> Interval:
        """Agreement of the learned noise minus its control's, in points: paired by image, or by seed."""
        leads = [100 * (line["learned"]["unchanged"] - line[control]["unchanged"]) / line["n"] for line in self.lines]
        if self.over_seeds:
            return interval_of_mean(leads)
        (line,) = self.lines
        only_learned, only_control = (line[control][name] for name in ("only_learned", "only_control"))
        counts = (line["learned"]["unchanged"] - only_learned, only_learned, only_control)
        return Interval(leads[0], *paired_interval(*counts, line["n"] - sum(counts)))

    def mse(self, kind: str) -> Interval:
        """mse_probability."""
        return self._of(kind, "mse_probability", 2.0)

    def logit_distance(self, kind: str) -> Interval:
        """J on the images measured on."""
        return self._of(kind, "logit_distance", math.inf)

    def _of(self, kind: str, name: str, most: float) -> Interval:
        if self.over_seeds:
            found = interval_of_mean([line[kind][name][0] for line in self.lines])
        else:
            found = Interval(*self.lines[0][kind][name])
        return Interval(found.mean, max(0.0, found.low), min(most, found.high))

    def number(self, name: str) -> Interval:
        """A positive number of each noise: the geometric mean over seeds; without an interval for one noise."""
        logs = [math.log(max(line[name], 1e-30)) for line in self.lines]
        if not self.over_seeds:
            return Interval(self.lines[0][name], math.nan, math.nan)
        mean, low, high = (math.exp(min(end, 700.0)) for end in interval_of_mean(logs))
        return Interval(mean, low, high)


def points_of(lines: Sequence[Mapping[str, Any]]) -> list[StrengthPoint]:
    """A point for each lambda, the least first."""
    noises = [line for line in lines if line["kind"] == "noise"]
    strengths = sorted({line["strength"] for line in noises})
    return [StrengthPoint(each, [line for line in noises if line["strength"] == each]) for each in strengths]


def ends_of(points: Sequence[StrengthPoint], of: Callable[[StrengthPoint], Interval]) -> tuple[list[Any], Any]:
    """The means of a series, and how far each interval reaches below and above, as matplotlib's ``yerr`` has it."""
    found = [of(point) for point in points]
    reach = [[0.0 if math.isnan(each.low) else each.mean - each.low for each in found]]
    reach.append([0.0 if math.isnan(each.high) else each.high - each.mean for each in found])
    return [each.mean for each in found], [[max(0.0, end) for end in side] for side in reach]
