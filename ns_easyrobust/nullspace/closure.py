"""Closure of a set of noises under scaling and addition (Figure 5 of arXiv:2403.10476), and what a quadratic predicts.

To second order, influence is a quadratic form of the noise: q(v) = mean over images of |J_x v|^2, where J_x is the
softmax's Jacobian at the image x (:mod:`~ns_easyrobust.nullspace.local_spectrum`). So q(a v) = a^2 q(v), which is at
most a q(v) for a in [0, 1], and q is convex: on the line between two noises it is under the larger of both ends. That
holds of any two directions, and so "closure" near zero is a property of small noise, not of a special set.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

from ..errors import NoiseError, OptionError
from ..utils import np, torch


def even_steps(most: float, points: int) -> list[float]:
    """``points`` values from 0 to ``most``, evenly spaced: the grid of one alpha.

    Raises:
        OptionError: fewer than two points, or ``most`` not positive and finite.
    """
    if points < 2 or not (math.isfinite(most) and most > 0):
        raise OptionError(
            f"alpha: expected two points or more between 0 and a positive finite number, found {points} up to {most}."
        )
    return [most * index / (points - 1) for index in range(points)]


def draw_pairs(noises: int, pairs: int, generator: torch.Generator) -> list[tuple[int, int]]:
    """Different random pairs of ``noises`` numbers; no number is in two of them where there are enough.

    Raises:
        OptionError: there are not so many pairs.
    """
    most = noises * (noises - 1) // 2
    if not 1 <= pairs <= most:
        raise OptionError(
            f"pairs: expected 1 to {most}, as {noises} noises have so many, found {pairs}. Synthesize more noises."
        )
    order = torch.randperm(noises, generator=generator).tolist()
    apart = [(order[index], order[index + 1]) for index in range(0, noises - 1, 2)]
    if pairs <= len(apart):
        return apart[:pairs]
    known = {frozenset(pair) for pair in apart}
    others = [pair for pair in itertools.combinations(range(noises), 2) if frozenset(pair) not in known]
    chosen = torch.randperm(len(others), generator=generator).tolist()
    return apart + [others[index] for index in chosen[: pairs - len(apart)]]


def combined(first: torch.Tensor, second: torch.Tensor, weights: tuple[float, float]) -> torch.Tensor:
    """alpha1 v1 + alpha2 v2, of two noises of one shape."""
    return weights[0] * first + weights[1] * second


class PairForm(NamedTuple):
    """The quadratic form on the plane of two noises: q(a1 v1 + a2 v2) = a1^2 q1 + a2^2 q2 + 2 a1 a2 b.

    Attributes:
        first, second: q1 and q2.
        mixed: b, the mean over images of <J v1, J v2>.
    """

    first: float
    second: float
    mixed: float

    @staticmethod
    def of(first: torch.Tensor, second: torch.Tensor) -> PairForm:
        """Of the responses J_x v1 and J_x v2, each (n, K)."""
        return PairForm(
            *(float((a * b).sum(-1).mean()) for a, b in ((first, first), (second, second), (first, second)))
        )

    def influence(self, alpha1: np.ndarray | float, alpha2: np.ndarray | float) -> np.ndarray:
        """Predicted mse_probability; the arrays are broadcast."""
        a1, a2 = np.asarray(alpha1, float), np.asarray(alpha2, float)
        return np.asarray(a1**2 * self.first + a2**2 * self.second + 2 * a1 * a2 * self.mixed)

    @property
    def cosine(self) -> float:
        """b / sqrt(q1 q2): how alike the two noises move the outputs, in [-1, 1]; 0 where one moves nothing."""
        scale = math.sqrt(self.first * self.second)
        return self.mixed / scale if scale > 0 else 0.0


def norm_at_influence(
    influence: Callable[[float], float], target: float, start: float, *, precision: float = 0.01, tests: int = 40
) -> float:
    """The norm t at which ``influence(t)`` is ``target`` to a relative ``precision``, sought from ``start``.

    Each step goes where log influence, linear in log t through the last two tests, is the target's; the first as if
    influence were quadratic. Once norms on both sides are known, a step beyond them becomes a bisection.

    Args:
        influence: mean influence of noise of norm t along a direction.
        target: > 0.
        start: norm at which the search begins, > 0.

    Raises:
        NoiseError: ``target`` is no positive number, an influence is 0 or not finite, or the target is not reached.
    """
    if not (0 < target < math.inf):
        raise NoiseError(
            f"noise of equal influence: expected a positive influence to equal, found {target:g}. Noise that moves "
            "nothing has no control."
        )
    low, high, slope, norm = 0.0, math.inf, 2.0, start
    previous: tuple[float, float] | None = None
    for _ in range(tests):
        found = influence(norm)
        if not 0 < found < math.inf:
            raise NoiseError(
                f"noise of equal influence: expected a positive finite influence at norm {norm:g}, found {found}."
            )
        gap = math.log(found / target)
        if abs(gap) <= precision:
            return norm
        low, high = (max(low, norm), high) if gap < 0 else (low, min(high, norm))
        if previous is not None and norm != previous[0]:
            slope = min(4.0, max(0.5, (gap - previous[1]) / math.log(norm / previous[0])))
        previous = (norm, gap)
        norm *= math.exp(-max(-3.0, min(3.0, gap / slope)))
        if not low < norm < high:
            norm = math.sqrt(low * high)
    raise NoiseError(
        f"noise of equal influence: expected one of influence {target:g}, found {found:g} at norm {norm:g} after "
        f"{tests} tests. Lower eps: the outputs may not be able to change so much along some directions."
    )


def share_under(values: Sequence[float], bounds: Sequence[float]) -> tuple[int, int]:
    """How many of ``values`` are at most their bounds (but for rounding of 1e-6), and of how many."""
    return sum(value <= bound * (1 + 1e-6) for value, bound in zip(values, bounds, strict=True)), len(values)
