"""Intervals and tests against scipy and closed forms."""

from __future__ import annotations

import time

import numpy as np
import pytest
from scipy import stats
from scipy.stats import binomtest

from ns_easyrobust.errors import OptionError
from ns_easyrobust.report.statistics import bootstrap_difference, bootstrap_sum, mcnemar, wilson_interval


@pytest.mark.parametrize("confidence", [0.8, 0.95, 0.99])
@pytest.mark.parametrize(("correct", "n"), [(0, 1), (1, 1), (0, 50), (50, 50), (3, 7), (40912, 50000), (1, 10**6)])
def test_wilson_interval_is_scipys(correct: int, n: int, confidence: float) -> None:
    expected = binomtest(correct, n).proportion_ci(confidence, method="wilson")
    low, high = wilson_interval(correct, n, confidence)
    assert (low, high) == pytest.approx((100 * expected.low, 100 * expected.high), rel=1e-9, abs=1e-9)
    assert 0 <= low < high <= 100


@pytest.mark.parametrize(("correct", "n", "confidence"), [(-1, 5, 0.95), (6, 5, 0.95), (0, 0, 0.95), (1, 5, 95)])
def test_wilson_interval_of_impossible_counts(correct: int, n: int, confidence: float) -> None:
    with pytest.raises(OptionError, match="expected 0 <= correct <= n"):
        wilson_interval(correct, n, confidence)


@pytest.mark.parametrize(
    ("only_a", "only_b"), [(1, 0), (0, 5), (3, 9), (9, 3), (7, 7), (60, 40), (49_000, 51_000), (100_000, 99_000)]
)
def test_mcnemar_is_scipys_binomial_test(only_a: int, only_b: int) -> None:
    expected = binomtest(only_a, only_a + only_b).pvalue
    assert mcnemar(only_a, only_b) == pytest.approx(expected, rel=1e-8)


def test_mcnemar_at_its_ends() -> None:
    assert mcnemar(0, 0) == 1.0, "no disagreement is no evidence"
    started = time.perf_counter()
    assert mcnemar(0, 200_000) == 0.0
    assert mcnemar(100_000, 100_000) == 1.0
    assert time.perf_counter() - started < 0.5
    with pytest.raises(OptionError, match="counts >= 0"):
        mcnemar(-1, 3)


def test_bootstrap_difference_is_scipys() -> None:
    only_a, only_b, n = 30, 12, 200
    differences = np.repeat([1.0, -1.0, 0.0], [only_a, only_b, n - only_a - only_b])
    expected = stats.bootstrap(
        (differences,), np.mean, n_resamples=10_000, method="percentile", random_state=np.random.default_rng(5)
    ).confidence_interval
    found = bootstrap_difference(only_a, only_b, n)
    assert found == pytest.approx((100 * expected.low, 100 * expected.high), abs=0.6)
    assert found == bootstrap_difference(only_a, only_b, n), "equal calls, equal intervals"
    low, high = bootstrap_difference(only_b, only_a, n)
    assert (-high, -low) == pytest.approx(found, abs=0.6)


def test_bootstrap_difference_of_many_images_is_the_normal_interval() -> None:
    only_a, only_b, n = 2500, 2000, 50_000
    share = (only_a - only_b) / n
    error = (((only_a + only_b) / n - share**2) / n) ** 0.5
    expected = (100 * (share - 1.645 * error), 100 * (share + 1.645 * error))
    assert bootstrap_difference(only_a, only_b, n, confidence=0.9) == pytest.approx(expected, abs=0.02)
    assert bootstrap_difference(0, 0, 50) == (0.0, 0.0)


@pytest.mark.parametrize("counts", [(-1, 2, 5), (3, 3, 5), (0, 0, 0)])
def test_bootstrap_difference_of_impossible_counts(counts: tuple[int, int, int]) -> None:
    with pytest.raises(OptionError, match="sum of at most n"):
        bootstrap_difference(*counts)


@pytest.mark.parametrize("distinct", [5, 4000])
def test_bootstrap_sum_adds_independent_groups(distinct: int) -> None:
    """Both ways of drawing, over few values and over many, against the normal interval."""
    generator = np.random.default_rng(1)
    values = generator.normal(2.0, 3.0, distinct)
    groups = [generator.choice(values, 4000), generator.normal(-1.0, 1.0, 6000)]
    error = sum(group.var() / len(group) for group in groups) ** 0.5
    centre = sum(group.mean() for group in groups)
    low, high = bootstrap_sum(groups, draws=4000)
    assert (low, high) == pytest.approx((centre - 1.96 * error, centre + 1.96 * error), abs=0.1 * error)


def test_bootstrap_sum_draws_no_global_numbers_and_refuses_nothing() -> None:
    np.random.seed(3)
    before = np.random.get_state()[1].copy()
    bootstrap_sum([np.arange(5.0)])
    np.testing.assert_array_equal(np.random.get_state()[1], before)
    for groups, draws in (([], 1000), ([np.zeros(0)], 1000), ([np.ones(3)], 10)):
        with pytest.raises(OptionError, match="groups with images"):
            bootstrap_sum(groups, draws=draws)
