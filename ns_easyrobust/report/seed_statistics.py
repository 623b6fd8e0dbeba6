"""Intervals and tests of a difference between two methods, each trained with several seeds, on the same images.

Two things are random: which images were drawn, and what each training drew. Either gives an interval of its own, and
what is claimed has to survive both.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from ..errors import OptionError
from ..utils import np

POWER = 0.8  # of smallest_effect: the customary one


@dataclass(frozen=True)
class Finding:
    """An interval of a difference, and the test of the hypothesis that there is none.

    Attributes:
        low, high: ends of the interval, in the unit of the differences.
        p: two-sided.
        df: degrees of freedom of the t distribution that gave them; infinite for a normal one.
    """

    low: float
    high: float
    p: float
    df: float

    @property
    def half_width(self) -> float:
        return (self.high - self.low) / 2


class Interval(NamedTuple):
    """A mean and the ends of its confidence interval, all in one unit."""

    mean: float
    low: float
    high: float


def interval_of_mean(values: Sequence[float] | np.ndarray, confidence: float = 0.95) -> Interval:
    """Mean of independent values with Student's t interval; infinite ends of a single one.

    Args:
        values: one for each image, pair, head or seed, whichever was drawn at random.
        confidence: in (0, 1).

    Source: Student, "The probable error of a mean", Biometrika 6 (1908).

    Raises:
        OptionError: no value, or confidence not in (0, 1).
    """
    _require_confidence(confidence)
    if len(values) == 0:
        raise OptionError("interval of a mean: expected a value at least, found none. Correct the call.")
    mean = float(np.mean(values))
    if len(values) == 1:
        return Interval(mean, -math.inf, math.inf)
    half = _quantile(len(values) - 1, confidence) * float(np.std(values, ddof=1)) / math.sqrt(len(values))
    return Interval(mean, mean - half, mean + half)


def mean_over_seeds(bits: Sequence[np.ndarray]) -> np.ndarray:
    """(n,) shares in [0, 1]: in how many of the seeds' runs each image was right.

    Args:
        bits: (n,) booleans of each seed, of the same images in the same order.

    Raises:
        OptionError: no seed, or other numbers of images.
    """
    sizes = sorted({len(own) for own in bits})
    if len(sizes) != 1:
        raise OptionError(f"bits over seeds: expected those of the same images, found sizes {sizes}. Correct the call.")
    return np.mean(np.stack([np.asarray(own, float) for own in bits]), axis=0)


def over_images(
    groups: Sequence[np.ndarray], reaches: Sequence[float] | None = None, confidence: float = 0.95
) -> Finding:
    """Paired t interval over images of the sum of the groups' means, with two more images a group: +reach and -reach.

    Differences between mean shares are no longer -1, 0 or 1, so McNemar's test and Newcombe's score interval do not
    apply. The plain t interval does, except where hardly any image differs: there it is too narrow, and (0, 0) where
    none does. An image that the one wins and an image that the other wins, added to each group, mend that.

    Source: D. G. Bonett and R. M. Price, "Adjusted Wald confidence interval for a difference of binomial proportions
    based on paired data", Journal of Educational and Behavioral Statistics 37 (2012), which this is for differences in
    {-1, 0, 1}, but for t in place of its normal quantile and the sample's variance in place of the population's. Of
    several groups the variances add, with Welch and Satterthwaite's degrees of freedom.

    Args:
        groups: (n_g,) differences each, one an image. The groups hold different images, drawn independently.
        reaches: the greatest difference that one image of each group can make; 1 for all if not given.
        confidence: in (0, 1).

    Raises:
        OptionError: no group, an empty one, a difference beyond its reach, or confidence not in (0, 1).
    """
    reaches = [1.0] * len(groups) if reaches is None else reaches
    sizes = [len(values) for values in groups]
    _require_confidence(confidence)
    if not groups or min(sizes) == 0 or len(reaches) != len(groups):
        raise OptionError(
            f"interval over images: expected groups with images and a reach each, found sizes {sizes} and "
            f"{len(reaches)} reaches. Correct the call."
        )
    for values, reach in zip(groups, reaches, strict=True):
        if not float(np.abs(values).max()) <= reach * (1 + 1e-9):
            raise OptionError(
                f"interval over images: expected differences of at most {reach:g}, found "
                f"{float(np.abs(values).max()):g}. Correct the call."
            )
    totals = [n + 2 for n in sizes]
    centres = [float(np.sum(values)) / total for values, total in zip(groups, totals, strict=True)]
    squares = [
        (float(np.sum((np.asarray(values, float) - centre) ** 2)) + 2 * (reach**2 + centre**2)) / (total - 1) / total
        for values, reach, centre, total in zip(groups, reaches, centres, totals, strict=True)
    ]
    found = _student(sum(centres), squares, [total - 1 for total in totals], confidence)
    most = sum(reaches)
    return Finding(max(-most, found.low), min(most, found.high), found.p, found.df)


def over_seeds(
    own: Mapping[str, float], base: Mapping[str, float], confidence: float = 0.95, *, single_is_given: bool = True
) -> Finding | None:
    """Student's t interval of the difference of means over seeds; None where neither has two.

    Paired by seed where both have the same ones (n - 1 degrees of freedom); against one single value, from the
    other's spread (n - 1); else from both spreads, by Welch's approximation.

    Source: Student, "The probable error of a mean", Biometrika 6 (1908); B. L. Welch, "The generalization of
    'Student's' problem when several different population variances are involved", Biometrika 34 (1947).

    Args:
        own, base: the value of each run, by a name that tells its seed.
        single_is_given: a single value is of a checkpoint that no seed stands for, and has no spread; if not, it is of
            one seed, which varies as the other's do (the t interval of two samples of one variance).

    Raises:
        OptionError: one of them is empty, or confidence not in (0, 1).
    """
    _require_confidence(confidence)
    if not own or not base:
        raise OptionError(
            "interval over seeds: expected a value of each method at least, found none. Correct the call."
        )
    if max(len(own), len(base)) < 2:
        return None
    delta = _mean(own.values()) - _mean(base.values())
    if own.keys() == base.keys():
        samples = [[own[seed] - base[seed] for seed in own]]
    else:
        samples = [list(values.values()) for values in (own, base) if len(values) > 1]
    squares = [float(np.var(sample, ddof=1)) / len(sample) for sample in samples]
    if not single_is_given and min(len(own), len(base)) == 1:
        squares = [square * (1 + len(sample)) for square, sample in zip(squares, samples, strict=True)]
    return _student(delta, squares, [len(sample) - 1 for sample in samples], confidence)


def claim(images: Finding, seeds: Finding | None) -> Finding:
    """What may be claimed: the wider of both intervals, and the larger of both p; ``images`` where that is all."""
    if seeds is None:
        return images
    wider = seeds if seeds.half_width > images.half_width else images
    return Finding(wider.low, wider.high, max(images.p, seeds.p), wider.df)


def smallest_effect(found: Finding, confidence: float = 0.95, power: float = POWER, tests: int = 1) -> float:
    """The smallest true difference that a study with this spread finds, at level 1 - confidence, with that power.

    With several ``tests`` at that level divided by their number: the strictest step of Holm's correction. By the
    noncentral t distribution; the far tail, which has next to nothing of the power, is left out.
    Source: J. Cohen, "Statistical power analysis for the behavioral sciences", 2nd edition (1988), chapter 2.

    Raises:
        OptionError: confidence or power not in (0, 1), or no test.
    """
    from scipy import special

    _require_confidence(confidence)
    if not (0 < power < 1 and tests >= 1):
        raise OptionError(
            f"smallest effect: expected a power in (0, 1) and tests >= 1, found {power} and {tests}. Correct the call."
        )
    quantile = _quantile(found.df, 1 - (1 - confidence) / tests)
    if math.isinf(found.df):
        shift = quantile + float(special.ndtri(power))
    else:
        shift = float(special.nctdtrinc(found.df, 1 - power, quantile))
    return found.half_width * shift / _quantile(found.df, confidence)


def _student(delta: float, squares: Sequence[float], dfs: Sequence[float], confidence: float) -> Finding:
    """The t interval of ``delta``, whose squared standard error is the sum of ``squares``."""
    from scipy import special

    square = sum(squares)
    if square == 0:  # of seeds that all gave the same
        return Finding(delta, delta, 1.0 if delta == 0 else 0.0, min(dfs))
    df = square**2 / sum(own**2 / own_df for own, own_df in zip(squares, dfs, strict=True))
    error = math.sqrt(square)
    half = _quantile(df, confidence) * error
    return Finding(delta - half, delta + half, min(1.0, 2 * float(special.stdtr(df, -abs(delta) / error))), df)


def _quantile(df: float, confidence: float) -> float:
    from scipy import special

    share = (1 + confidence) / 2
    return float(special.ndtri(share) if math.isinf(df) else special.stdtrit(df, share))


def _mean(values: Iterable[float]) -> float:
    return float(np.mean(list(values)))


def _require_confidence(confidence: float) -> None:
    if not 0 < confidence < 1:
        raise OptionError(f"interval: expected 0 < confidence < 1, found {confidence}. Correct the call.")
