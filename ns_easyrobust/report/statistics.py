"""Intervals and tests for shares of right images: of one model, and of two on the same images."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import NormalDist

import numpy as np

from ..errors import OptionError

_CELLS = 1000  # a multinomial draw over more values costs more than drawing the images themselves
_CHUNK = 1 << 22  # image indices drawn at a time: 32 MB


def wilson_interval(correct: int, n: int, confidence: float = 0.95) -> tuple[float, float]:
    """Wilson's score interval of the share ``correct / n``, both ends in percent.

    Source: E. B. Wilson, "Probable inference, the law of succession, and statistical
    inference", JASA 22 (1927). It stays in [0, 100] and has width at 0 and n correct too.

    Raises:
        OptionError: not 0 <= correct <= n with n >= 1, or confidence not in (0, 1).
    """
    if not (0 <= correct <= n and n >= 1 and 0 < confidence < 1):
        raise OptionError(
            f"interval: expected 0 <= correct <= n, n >= 1 and 0 < confidence < 1, found correct={correct}, "
            f"n={n}, confidence={confidence}. Correct the counts."
        )
    z = NormalDist().inv_cdf((1 + confidence) / 2)
    share, weight = correct / n, z * z / n
    centre = (share + weight / 2) / (1 + weight)
    half = z * (share * (1 - share) / n + weight / n / 4) ** 0.5 / (1 + weight)
    low = 0.0 if correct == 0 else max(0.0, centre - half)  # exact where rounding would miss the end
    high = 1.0 if correct == n else min(1.0, centre + half)
    return 100 * low, 100 * high


def mcnemar(only_a: int, only_b: int) -> float:
    """McNemar's exact p: how likely two equally good models split their disagreements at least this unevenly.

    Two-sided binomial test of ``only_a`` against ``only_b`` at 1/2; 1.0 where they never disagree.
    Source: Q. McNemar, "Note on the sampling error of the difference between correlated
    proportions or percentages", Psychometrika 12 (1947), in its exact form.

    Args:
        only_a, only_b: images that only the first, only the second model got right.

    Raises:
        OptionError: a negative count.
    """
    if min(only_a, only_b) < 0:
        raise OptionError(f"McNemar's test: expected counts >= 0, found {only_a} and {only_b}. Correct the counts.")
    n, k = only_a + only_b, min(only_a, only_b)
    log_term = math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1) - n * math.log(2)
    i = np.arange(k, 0, -1)
    tail = 1 + np.cumprod(i / (n - i + 1)).sum()  # C(n, i - 1) / C(n, i), so nothing overflows
    return min(1.0, 2 * math.exp(log_term) * float(tail))


def bootstrap_difference(
    only_a: int, only_b: int, n: int, *, confidence: float = 0.95, draws: int = 10_000, seed: int = 0
) -> tuple[float, float]:
    """Percentile interval of the paired bootstrap for accuracy A minus accuracy B, in points.

    Images are drawn with replacement, each with both models' verdicts on it, so that only the
    numbers of disagreements matter. Where there are none the interval is (0, 0), which says
    nothing about images beyond these ``n``.

    Args:
        only_a, only_b: images that only A, only B got right.
        n: all images.

    Raises:
        OptionError: counts that are negative or exceed ``n``, or settings outside their range.
    """
    if not (min(only_a, only_b) >= 0 and only_a + only_b <= n and n >= 1):
        raise OptionError(
            f"paired bootstrap: expected counts >= 0 with a sum of at most n, found {only_a} and {only_b} "
            f"of {n}. Correct the counts."
        )
    values = np.repeat([1.0, -1.0, 0.0], [only_a, only_b, n - only_a - only_b])
    low, high = bootstrap_sum([values], confidence=confidence, draws=draws, seed=seed)
    return 100 * low, 100 * high


def bootstrap_sum(
    groups: Sequence[np.ndarray], *, confidence: float = 0.95, draws: int = 10_000, seed: int = 0
) -> tuple[float, float]:
    """Percentile bootstrap interval of the sum of the groups' means.

    Args:
        groups: each (n_g,) floats, a value an image. Images are drawn with replacement within
            a group, independently of the other groups.
        confidence: in (0, 1).
        draws: resamples, >= 100.
        seed: of numpy's generator; equal arguments give equal intervals.

    Raises:
        OptionError: no group, an empty one, or settings outside their range.
    """
    if not groups or min(map(len, groups)) == 0 or not (0 < confidence < 1 and draws >= 100):
        raise OptionError(
            f"bootstrap: expected groups with images, 0 < confidence < 1 and draws >= 100, found sizes "
            f"{list(map(len, groups))}, confidence={confidence}, draws={draws}. Correct the call."
        )
    generator = np.random.default_rng(seed)
    total = np.zeros(draws)
    for values in groups:
        total += _resampled_means(np.asarray(values, float), draws, generator)
    low, high = np.quantile(total, [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(low), float(high)


def _resampled_means(values: np.ndarray, draws: int, generator: np.random.Generator) -> np.ndarray:
    """(draws,) means of samples of len(values) values, with replacement."""
    n = len(values)
    distinct, counts = np.unique(values, return_counts=True)
    if len(distinct) <= _CELLS:
        return generator.multinomial(n, counts / n, size=draws) @ distinct / n
    step = max(1, _CHUNK // n)
    parts = [
        values[generator.integers(n, size=(min(step, draws - start), n))].mean(axis=1)
        for start in range(0, draws, step)
    ]
    return np.concatenate(parts)
