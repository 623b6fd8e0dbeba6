"""Intervals over images and over seeds, against scipy, closed forms and simulated coverage."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from ns_easyrobust.errors import OptionError
from ns_easyrobust.report.seed_statistics import (
    Finding,
    claim,
    interval_of_mean,
    mean_over_seeds,
    over_images,
    over_seeds,
    smallest_effect,
)
from ns_easyrobust.report.statistics import bootstrap_sum, mcnemar, paired_interval

GENERATOR = np.random.default_rng(16)


def ends(found: Finding) -> tuple[float, float]:
    return found.low, found.high


def shares(n: int, seeds: int, generator: np.random.Generator, accuracy: float, steadiness: float = 20.0) -> np.ndarray:
    """(n,) mean bits of ``seeds`` runs on images of which most are right nearly always or nearly never."""
    q = generator.beta(accuracy / steadiness, (1 - accuracy) / steadiness, n)
    return (generator.random((seeds, n)) < q).mean(axis=0)


def test_mean_over_seeds_are_shares() -> None:
    bits = [np.array(own, bool) for own in ([1, 0, 1, 0], [1, 0, 0, 0], [1, 1, 1, 0])]
    np.testing.assert_allclose(mean_over_seeds(bits), [1, 1 / 3, 2 / 3, 0])
    for wrong in ([], [np.ones(3, bool), np.ones(4, bool)]):
        with pytest.raises(OptionError, match="expected those of the same images"):
            mean_over_seeds(wrong)


@pytest.mark.parametrize("confidence", [0.8, 0.95])
@pytest.mark.parametrize("n", [1, 5, 400])
def test_over_images_is_scipys_paired_t_with_one_image_more_that_either_wins(n: int, confidence: float) -> None:
    a, b = shares(n, 3, GENERATOR, 0.7), shares(n, 2, GENERATOR, 0.5)
    expected = stats.ttest_rel([*a, 1, 0], [*b, 0, 1])
    found = over_images([a - b], confidence=confidence)
    assert found.p == pytest.approx(expected.pvalue)
    assert found.df == pytest.approx(n + 1)
    interval = expected.confidence_interval(confidence)
    assert ends(found) == pytest.approx((max(-1, interval.low), min(1, interval.high)))


def test_of_verdicts_it_is_bonett_and_prices_interval() -> None:
    only_a, only_b, n = 14, 5, 300
    a, b = (only_a + 1) / (n + 2), (only_b + 1) / (n + 2)
    half = stats.t.ppf(0.975, n + 1) * math.sqrt((a + b - (a - b) ** 2) / (n + 1))
    found = over_images([np.repeat([1.0, -1.0, 0.0], [only_a, only_b, n - only_a - only_b])])
    assert ends(found) == pytest.approx((a - b - half, a - b + half))
    score = paired_interval(120, only_a, only_b, n - 120 - only_a - only_b)
    assert ends(found) == pytest.approx(np.array(score) / 100, abs=0.004), "two sound intervals are close"
    assert found.p == pytest.approx(mcnemar(only_a, only_b), abs=0.03)


def test_where_no_image_differs_the_interval_is_as_wide_as_three_images() -> None:
    """None of n images differs: by the rule of three up to 3 / n of others may, in either direction."""
    for n in (100, 10_000):
        found = over_images([np.zeros(n)])
        assert found.p == 1.0
        assert found.low == -found.high
        assert 2 / n < found.high < 4 / n


def test_several_sets_add_their_variances_as_welch() -> None:
    one, other = shares(90, 3, GENERATOR, 0.6) - 0.5, 0.3 * (shares(400, 3, GENERATOR, 0.4) - 0.5)
    found = over_images([one, other], reaches=[1.0, 0.3])
    expected = stats.ttest_ind([*one, 1, -1], -np.array([*other, 0.3, -0.3]), equal_var=False)
    assert (found.p, found.df) == pytest.approx((expected.pvalue, expected.df))
    assert ends(found) == pytest.approx(tuple(expected.confidence_interval()))
    drawn = bootstrap_sum([one, other])
    assert ends(found) == pytest.approx(drawn, abs=0.06 * (drawn[1] - drawn[0])), "as the bootstrap of the reports"


@pytest.mark.parametrize(("n", "accuracy"), [(60, 0.02), (200, 0.02), (200, 0.5), (1000, 0.1)])
@pytest.mark.parametrize("seeds", [(3, 3), (3, 1)])
def test_interval_over_images_covers_the_truth(n: int, accuracy: float, seeds: tuple[int, int]) -> None:
    """Of a method that turns every 50th image: expected, and plainly missed by the t interval of few differences."""
    generator, draws, turned = np.random.default_rng(n), 400, 0.02
    truth, covered = turned * (1 - 2 * accuracy), 0
    for _ in range(draws):
        q = generator.beta(accuracy / 20, (1 - accuracy) / 20, n)
        own = np.where(generator.random(n) < turned, 1 - q, q)
        a, b = ((generator.random((count, n)) < p).mean(axis=0) for count, p in zip(seeds, (own, q), strict=True))
        found = over_images([a - b])
        covered += found.low <= truth <= found.high
    assert covered / draws > 0.95 - 3 * math.sqrt(0.95 * 0.05 / draws)


def test_the_plain_t_interval_would_not_cover_where_few_images_differ() -> None:
    generator, truth, covered = np.random.default_rng(0), 0.01, [0, 0]
    for _ in range(300):
        values = (generator.random(100) < truth).astype(float)
        half = stats.t.ppf(0.975, 99) * values.std(ddof=1) / 10
        covered[0] += abs(values.mean() - truth) <= half
        found = over_images([values])
        covered[1] += found.low <= truth <= found.high
    assert covered[0] < 0.75 * 300
    assert covered[1] > 0.93 * 300


def test_over_seeds_is_scipys() -> None:
    own, base = {"0": 61.2, "1": 60.1, "2": 62.0}, {"0": 58.3, "1": 58.9, "2": 59.7}
    a, b = np.array(list(own.values())), np.array(list(base.values()))
    paired, expected = over_seeds(own, base, 0.9), stats.ttest_rel(a, b)
    assert paired is not None
    assert (paired.p, paired.df) == pytest.approx((expected.pvalue, 2))
    assert ends(paired) == pytest.approx(stats.t.interval(0.9, 2, np.mean(a - b), stats.sem(a - b)))
    assert over_seeds(own, dict(reversed(base.items()))) == over_seeds(own, base), "by seed, not by order"

    welch, expected = over_seeds(own, {"7": 58.3, "8": 58.9}), stats.ttest_ind(a, [58.3, 58.9], equal_var=False)
    assert welch is not None
    assert (welch.p, welch.df) == pytest.approx((expected.pvalue, expected.df))
    assert ends(welch) == pytest.approx(tuple(expected.confidence_interval()))

    given, expected = over_seeds(own, {"no seed": 60.0}), stats.ttest_1samp(a, 60.0)
    assert given is not None
    assert (given.p, given.df) == pytest.approx((expected.pvalue, 2))
    turned = over_seeds({"no seed": 60.0}, own)
    assert turned is not None
    assert ends(turned) == pytest.approx((-given.high, -given.low))


def test_a_single_run_of_a_seed_is_no_given_checkpoint() -> None:
    """Two samples of one variance, of which the second has one value: scipy's pooled t test."""
    own = {"seed 0": 61.2, "seed 1": 60.1, "seed 2": 62.0}
    expected = stats.ttest_ind(list(own.values()), [59.0])
    found, turned = (over_seeds(*both, single_is_given=False) for both in ((own, {"seed 0": 59.0}),
                                                                          ({"seed 0": 59.0}, own)))  # fmt: skip
    assert found is not None
    assert turned is not None
    assert (found.p, found.df) == pytest.approx((expected.pvalue, 2))
    assert ends(found) == pytest.approx(tuple(expected.confidence_interval()))
    assert ends(turned) == pytest.approx((-found.high, -found.low))
    given = over_seeds(own, {"no seed": 59.0})
    assert given is not None
    assert given.half_width == pytest.approx(found.half_width / 2), "1/3 of the variance, not 1/3 + 1"


def test_of_one_seed_each_there_is_no_interval_over_seeds() -> None:
    assert over_seeds({"0": 60.0}, {"0": 59.0}) is None
    assert over_seeds({"0": 60.0}, {"no seed": 59.0}) is None


def test_seeds_that_agree_exactly_have_no_width() -> None:
    assert over_seeds({"0": 2.0, "1": 3.0}, {"0": 1.0, "1": 2.0}) == Finding(1.0, 1.0, 0.0, 1)
    assert over_seeds({"0": 2.0, "1": 2.0}, {"0": 2.0, "1": 2.0}) == Finding(0.0, 0.0, 1.0, 1)


def test_a_claim_is_the_wider_interval_and_the_larger_p() -> None:
    narrow, wide = Finding(1.0, 2.0, 0.04, 200), Finding(-1.0, 4.0, 0.03, 2)
    assert claim(narrow, wide) == Finding(-1.0, 4.0, 0.04, 2)
    assert claim(wide, narrow) == Finding(-1.0, 4.0, 0.04, 2)
    assert claim(narrow, None) == narrow


@pytest.mark.parametrize("df", [1, 2, 5.5, 40, 1e4])
@pytest.mark.parametrize("power", [0.5, 0.8])
def test_smallest_effect_has_that_power_by_the_noncentral_t(df: float, power: float) -> None:
    error, quantile = 1.7, stats.t.ppf(0.975, df)
    effect = smallest_effect(Finding(3 - quantile * error, 3 + quantile * error, 0.5, df), power=power)
    assert stats.nct.sf(quantile, df, effect / error) == pytest.approx(power, abs=1e-5)


@pytest.mark.parametrize("df", [2, 40, math.inf])
def test_smallest_effect_of_one_of_several_tests(df: float) -> None:
    """At level 0.05 / 12; of the normal one in closed form."""
    law = stats.norm if math.isinf(df) else stats.t(df)
    error, strict = 1.7, law.ppf(1 - 0.025 / 12)
    half = law.ppf(0.975) * error
    effect = smallest_effect(Finding(-half, half, 1.0, df), tests=12)
    if math.isinf(df):
        assert effect == pytest.approx(error * (strict + stats.norm.ppf(0.8)))
    else:
        assert stats.nct.sf(strict, df, effect / error) == pytest.approx(0.8, abs=1e-4)


def test_smallest_effect_of_a_normal_interval() -> None:
    assert smallest_effect(Finding(-1.959964, 1.959964, 1.0, math.inf)) == pytest.approx(1.959964 + 0.841621, abs=1e-5)


def test_bad_calls_are_refused() -> None:
    for groups, reaches in (([], None), ([np.zeros(0)], None), ([np.zeros(3)], [1.0, 1.0])):
        with pytest.raises(OptionError, match="expected groups with images and a reach each"):
            over_images(groups, reaches)
    with pytest.raises(OptionError, match=r"expected differences of at most 1, found 1\.5"):
        over_images([np.array([1.5])])
    with pytest.raises(OptionError, match="expected a value of each method"):
        over_seeds({}, {"0": 1.0})
    for confidence in (0.0, 1.0):
        with pytest.raises(OptionError, match="expected 0 < confidence < 1"):
            over_images([np.zeros(3)], confidence=confidence)
    with pytest.raises(OptionError, match="expected a power"):
        smallest_effect(Finding(0, 1, 1, 2), power=1.0)


def test_the_interval_of_a_mean_is_students() -> None:
    values = GENERATOR.exponential(size=7)
    found = interval_of_mean(values, 0.9)
    expected = stats.t.interval(0.9, 6, loc=values.mean(), scale=stats.sem(values))
    assert found == pytest.approx((values.mean(), *expected))
    assert interval_of_mean([2.0]) == (2.0, -math.inf, math.inf)
    for wrong in (([], 0.95), ([1.0], 1.0)):
        with pytest.raises(OptionError):
            interval_of_mean(*wrong)
