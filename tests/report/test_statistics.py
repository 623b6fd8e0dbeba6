"""Intervals and tests against scipy and closed forms."""

from __future__ import annotations

import time

import numpy as np
import pytest
from scipy.stats import binomtest

from ns_easyrobust.errors import OptionError
from ns_easyrobust.report.statistics import (
    Difference,
    are_significant,
    bootstrap_sum,
    holm,
    mcnemar,
    paired_interval,
    wilson_interval,
)


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


# Cavo et al. 2012 (response before and after consolidation therapy), with the
# limits that the R package contingencytables (Fagerland, Lydersen and Laake 2017, chapter 8) prints for Newcombe's
# square-and-add interval.
def test_paired_interval_is_the_published_one() -> None:
    assert paired_interval(59, 6, 16, 80) == pytest.approx((-11.86, -0.46), abs=0.005)
    assert paired_interval(59, 16, 6, 80) == pytest.approx((0.46, 11.86), abs=0.005), "the other way round"


@pytest.mark.parametrize(
    ("counts", "confidence"),
    [((43, 0, 1, 0), 0.95), ((250, 4, 0, 246), 0.95), ((3, 9, 5, 4), 0.8), ((0, 2, 3, 0), 0.99)],
)
def test_paired_interval_joins_scipys_wilson_intervals(counts: tuple[int, int, int, int], confidence: float) -> None:
    n = sum(counts)
    a = np.repeat([1, 1, 0, 0], counts)
    b = np.repeat([1, 0, 1, 0], counts)
    ends_a, ends_b = (binomtest(int(x.sum()), n).proportion_ci(confidence, method="wilson") for x in (a, b))
    phi = 0.0 if len({*a}) == 1 or len({*b}) == 1 else np.corrcoef(a, b)[0, 1]
    if phi > 0:  # Newcombe's correction lowers ad - bc by n / 2
        phi = max(0.0, phi - n / 2 / (n * a.std() * n * b.std()))
    delta = a.mean() - b.mean()
    dl1, du1, dl2, du2 = a.mean() - ends_a.low, ends_a.high - a.mean(), b.mean() - ends_b.low, ends_b.high - b.mean()
    low = delta - (dl1**2 - 2 * phi * dl1 * du2 + du2**2) ** 0.5
    high = delta + (du1**2 - 2 * phi * du1 * dl2 + dl2**2) ** 0.5
    assert paired_interval(*counts, confidence) == pytest.approx((100 * low, 100 * high), abs=1e-9)


def test_paired_interval_of_many_images_is_the_normal_one() -> None:
    only_a, only_b, n = 2500, 2000, 50_000
    share = (only_a - only_b) / n
    error = (((only_a + only_b) / n - share**2) / n) ** 0.5
    expected = (100 * (share - 1.645 * error), 100 * (share + 1.645 * error))
    assert paired_interval(30_000, only_a, only_b, 15_500, 0.9) == pytest.approx(expected, abs=0.02)


def test_few_disagreements_prove_nothing() -> None:
    """4 against 0 of 500 are one sixteenth's luck on either side, p = 0.125; no disagreement is not certainty."""
    low, high = paired_interval(250, 4, 0, 246)
    assert low < 0 < 0.8 < high
    for both in (0, 25, 50):
        low, high = paired_interval(both, 0, 0, 50 - both)
        assert -20 < low < 0 < high < 20
        assert low == pytest.approx(-high)


@pytest.mark.parametrize("counts", [(0, -1, 2, 5), (0, 0, 0, 0)])
def test_paired_interval_of_impossible_counts(counts: tuple[int, int, int, int]) -> None:
    with pytest.raises(OptionError, match="expected counts >= 0, at least one image"):
        paired_interval(*counts)
    with pytest.raises(OptionError, match="confidence=95"):
        paired_interval(1, 1, 1, 1, 95)


def test_holm_by_hand() -> None:
    assert holm([0.04, 0.001, 0.03, 0.2]) == pytest.approx([0.09, 0.004, 0.09, 0.2])  # 2 * .04 < 3 * .03
    assert holm([0.6, 0.7]) == [1.0, 1.0]
    assert holm([]) == []


def test_a_difference_is_significant_by_its_corrected_p_or_else_by_its_interval() -> None:
    with_p = [Difference(1.0, 0.1, 1.9, p) for p in (0.012, 0.03, 0.125)]
    assert are_significant(with_p[:1]) == [True]
    assert are_significant([with_p[1], None]) == [True, False]
    assert are_significant(with_p) == [True, False, False], "3 * 0.012, but 2 * 0.03"
    combined = [Difference(-1.0, -2.0, -0.1), Difference(1.0, -0.1, 2.0), Difference(3.0)]
    assert are_significant([*combined, *with_p]) == [True, False, False, True, False, False]
    assert are_significant([Difference(1.0, 0.1, 1.9, 0.04)], confidence=0.99) == [False]


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
    assert (low, high) == bootstrap_sum(groups, draws=4000), "equal calls, equal intervals"


def test_bootstrap_sum_draws_no_global_numbers_and_refuses_nothing() -> None:
    np.random.seed(3)
    before = np.random.get_state()[1].copy()
    bootstrap_sum([np.arange(5.0)])
    np.testing.assert_array_equal(np.random.get_state()[1], before)
    for groups, draws in (([], 1000), ([np.zeros(0)], 1000), ([np.ones(3)], 10)):
        with pytest.raises(OptionError, match="groups with images"):
            bootstrap_sum(groups, draws=draws)
