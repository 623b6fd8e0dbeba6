"""Confidence intervals and tests for accuracies: of one model, and of two models on the same images."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from statistics import NormalDist

from ..errors import DataError, OptionError
from ..evaluation import Record, images_digest, load_correctness
from ..utils import np

_MAX_DISTINCT = 1000  # with more distinct values a multinomial draw costs more than drawing the images themselves
_CHUNK = 1 << 22  # image indices drawn at a time: 32 MB


def wilson_interval(correct: float, n: float, confidence: float = 0.95) -> tuple[float, float]:
    """Wilson's score interval of the proportion ``correct / n``, both ends in percent.

    Source: E. B. Wilson, "Probable inference, the law of succession, and statistical
    inference", JASA 22 (1927). It stays in [0, 100] and has a positive width even at 0 and n correct. Both may be
    fractions: an effective size, where observations depend on each other.

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
    low = 0.0 if correct == 0 else max(0.0, centre - half)  # exactly 0 or 1, which rounding could miss
    high = 1.0 if correct == n else min(1.0, centre + half)
    return 100 * low, 100 * high


def mcnemar(only_a: int, only_b: int) -> float:
    """McNemar's exact p: how likely equally good models are to split their disagreements at least this unevenly.

    Two-sided binomial test of ``only_a`` against ``only_b`` at 1/2; 1.0 if the models never disagree.
    Source: Q. McNemar, "Note on the sampling error of the difference between correlated
    proportions or percentages", Psychometrika 12 (1947), in its exact form.

    Args:
        only_a, only_b: numbers of images that only the first or only the second model classified correctly.

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


def paired_interval(both: int, only_a: int, only_b: int, neither: int, confidence: float = 0.95) -> tuple[float, float]:
    """Score interval of accuracy A minus accuracy B on the same images, in percentage points.

    It joins the Wilson intervals of both accuracies by the correlation of their verdicts. So it has a positive width
    also where the models never disagree, where a bootstrap would claim (0, 0), and keeps its coverage where they
    disagree on a few images.
    Source: R. G. Newcombe, "Improved confidence intervals for the difference between binomial proportions based on
    paired data", Statistics in Medicine 17 (1998), method 10.

    Args:
        both, only_a, only_b, neither: numbers of images that both models, only one, or none classified correctly.

    Raises:
        OptionError: a negative count, no image at all, or confidence not in (0, 1).
    """
    n = both + only_a + only_b + neither
    if min(both, only_a, only_b, neither) < 0 or n < 1 or not 0 < confidence < 1:
        raise OptionError(
            "paired interval: expected counts >= 0, at least one image and 0 < confidence < 1, found "
            f"{both}, {only_a}, {only_b}, {neither} and confidence={confidence}. Correct the counts."
        )
    (down_a, up_a), (down_b, up_b) = (_wilson_arms(count, n, confidence) for count in (both + only_a, both + only_b))
    phi = _correlation(both, only_a, only_b, neither)
    delta = 100 * (only_a - only_b) / n
    down = math.sqrt(max(0.0, down_a**2 - 2 * phi * down_a * up_b + up_b**2))
    up = math.sqrt(max(0.0, up_a**2 - 2 * phi * up_a * down_b + down_b**2))
    return max(-100.0, delta - down), min(100.0, delta + up)


def _wilson_arms(correct: int, n: int, confidence: float) -> tuple[float, float]:
    """How far Wilson's interval reaches below and above the accuracy, in points."""
    low, high = wilson_interval(correct, n, confidence)
    return 100 * correct / n - low, high - 100 * correct / n


def _correlation(both: int, only_a: int, only_b: int, neither: int) -> float:
    """Of two models' verdicts, in [-1, 1]; a positive one with Newcombe's continuity correction."""
    margins = (both + only_a) * (only_b + neither) * (both + only_b) * (only_a + neither)
    if not margins:
        return 0.0
    excess = float(both * neither - only_a * only_b)
    if excess > 0:
        excess = max(0.0, excess - (both + only_a + only_b + neither) / 2)
    return excess / math.sqrt(margins)


def holm(ps: Sequence[float]) -> list[float]:
    """p-values adjusted for their number, in the given order; each is compared with the level itself.

    Source: S. Holm, "A simple sequentially rejective multiple test procedure", Scandinavian Journal of Statistics 6
    (1979).
    """
    adjusted, largest = [0.0] * len(ps), 0.0
    for rank, index in enumerate(sorted(range(len(ps)), key=ps.__getitem__)):
        largest = max(largest, min(1.0, (len(ps) - rank) * ps[index]))
        adjusted[index] = largest
    return adjusted


def bootstrap_sum(
    groups: Sequence[np.ndarray], *, confidence: float = 0.95, draws: int = 10_000, seed: int = 0
) -> tuple[float, float]:
    """Percentile bootstrap interval of the sum of the groups' means.

    Args:
        groups: (n_g,) floats each, one value per image. Images are drawn with replacement within
            a group, independently of the other groups.
        confidence: in (0, 1).
        draws: number of resamples, >= 100.
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
    """(draws,) means, each of len(values) values drawn with replacement."""
    n = len(values)
    distinct, counts = np.unique(values, return_counts=True)
    if len(distinct) <= _MAX_DISTINCT:
        return generator.multinomial(n, counts / n, size=draws) @ distinct / n
    draws_at_a_time = max(1, _CHUNK // n)
    chunks = [
        values[generator.integers(n, size=(min(draws_at_a_time, draws - start), n))].mean(axis=1)
        for start in range(0, draws, draws_at_a_time)
    ]
    return np.concatenate(chunks)


_logger = logging.getLogger(__name__)
DRAWS = 2000  # for combined_interval


@dataclass(frozen=True)
class Difference:
    """One number minus the baseline's.

    Attributes:
        delta: the difference, in the unit of both numbers.
        low, high: its interval (:func:`paired_interval`; of combinations :func:`combined_interval`); None unless the
            bits of both on the same images are available.
        p: McNemar's exact p of two accuracies; None as above, and for combinations (mCE, Average).
    """

    delta: float
    low: float | None = None
    high: float | None = None
    p: float | None = None

    @property
    def excludes_zero(self) -> bool:
        """Whether 0 is outside the interval; False where there is none."""
        return self.low is not None and self.high is not None and not self.low <= 0 <= self.high


def correctness_of(record: Record) -> np.ndarray:
    """The record's bits: (n,) booleans by sorted path, so those of records with equal :attr:`Record.images` align.

    Raises:
        DataError: no bits were kept, or their file is missing, damaged or another record's.
    """
    if record.right_path is None or record.images is None:
        raise DataError(f"{record.label}, {record.suite}: expected per-image bits, found none. Measure it again.")
    bits, digest = _sorted_bits(record.right_path)
    if digest != record.images or int(bits.sum()) != record.correct:
        raise DataError(
            f"{record.right_path}: expected the {record.correct} right images of {record.label}, {record.suite}, "
            f"found other ones ({int(bits.sum())} right). Measure it again."
        )
    return bits


@lru_cache(maxsize=2048)  # safe, as the name of a file contains the hash of its content
def _sorted_bits(path: Path) -> tuple[np.ndarray, str]:
    paths, bits = load_correctness(path)
    order = sorted(range(len(paths)), key=paths.__getitem__)
    return bits[order], images_digest(paths)


def tasks_differ(one: Record, other: Record) -> bool:
    """Whether labels, allowed answers or files are known to differ, even if the image paths are equal."""
    return one.task is not None and other.task is not None and one.task != other.task


def _paired_bits(record: Record, base: Record) -> tuple[np.ndarray, np.ndarray] | None:
    """Both records' bits, aligned; None if they are not comparable, with a warning if a file is the reason."""
    if record.correct is None or base.correct is None or record.images is None or record.images != base.images:
        return None
    if record.right is None or base.right is None or tasks_differ(record, base):
        return None
    try:
        return correctness_of(record), correctness_of(base)
    except DataError as error:
        _logger.warning("no paired comparison: %s", error)
        return None


def difference(record: Record, base: Record, confidence: float = 0.95) -> Difference:
    """``record`` minus ``base``, with interval and p if the bits of both on the same images are available."""
    delta = record.value - base.value
    pair = _paired_bits(record, base)
    if pair is None:
        return Difference(delta)
    bits, base_bits = pair
    both, only, only_base = (int(which.sum()) for which in (bits & base_bits, bits & ~base_bits, base_bits & ~bits))
    low, high = paired_interval(both, only, only_base, len(bits) - both - only - only_base, confidence)
    return Difference(delta, low, high, mcnemar(only, only_base))


def are_significant(differences: Sequence[Difference | None], confidence: float = 0.95) -> list[bool]:
    """Which of one row's differences are more than chance, at the level 1 - ``confidence``.

    Those with a p, by McNemar's test with :func:`holm`'s correction for their number; the others, where the interval
    excludes 0.
    """
    with_p = {index: found.p for index, found in enumerate(differences) if found is not None and found.p is not None}
    adjusted = dict(zip(with_p, holm(list(with_p.values())), strict=True))
    return [
        adjusted[index] <= 1 - confidence if index in adjusted else found is not None and found.excludes_zero
        for index, found in enumerate(differences)
    ]


def combined_interval(
    terms: Iterable[tuple[float, Record, Record]], confidence: float = 0.95, draws: int = DRAWS
) -> tuple[float, float] | None:
    """Paired bootstrap interval of the sum of weight * (accuracy of record - accuracy of base), in percentage points.

    Terms over the same set of images (clean, FGSM, the 75 folders of ImageNet-C, which hold the same
    photographs) are resampled together, each image with all its bits; different sets are resampled
    independently, even where one is a subset of the other.

    Args:
        terms: (weight, record, base), both of metric top1.

    Returns:
        Both ends, or None if the bits of a term's two records on the same images are not available.
    """
    groups: dict[str, np.ndarray] = {}
    for weight, record, base in terms:
        pair = _paired_bits(record, base)
        if pair is None or record.images is None:
            return None
        values = 100 * weight * (pair[0].astype(float) - pair[1])
        groups[record.images] = groups.get(record.images, 0.0) + values
    return bootstrap_sum(list(groups.values()), confidence=confidence, draws=draws)
