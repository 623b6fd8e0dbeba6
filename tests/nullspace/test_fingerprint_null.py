"""p-values against counts by hand, their uniformity under the null by simulation, and verdicts in words."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import stats

from ns_easyrobust.errors import ModelError, OptionError
from ns_easyrobust.nullspace import (
    PatchCovariance,
    compare_fingerprints,
    fingerprint_of,
    likeness,
    rank_p_value,
    t_p_value,
)


def made(seed: int, side: int = 2):
    weight = torch.randn(4, 3, side, side, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return weight, fingerprint_of(weight, std=(0.5,) * 3, name=str(seed))


def test_rank_p_values_by_hand():
    null = [0.1, 0.2, 0.3, 0.4]
    assert rank_p_value(0.5, null) == 1 / 5
    assert rank_p_value(0.35, null) == 2 / 5
    assert rank_p_value(0.3, null) == 3 / 5  # a tie counts against
    assert rank_p_value(0.0, null) == 1
    with pytest.raises(OptionError, match="found none"):
        rank_p_value(0.5, [])


def test_both_are_uniform_where_their_assumptions_hold():
    scores = np.random.default_rng(0).normal(0.3, 0.4, (2000, 10))
    values = 1 / (1 + np.exp(-scores))
    ranks = np.array([rank_p_value(row[0], list(row[1:])) for row in values])
    assert np.allclose(np.bincount(np.rint(10 * ranks).astype(int), minlength=11)[1:] / 2000, 0.1, atol=0.03)
    assert stats.kstest([t_p_value(row[0], list(row[1:])) for row in values], "uniform").pvalue > 0.01
    with pytest.raises(OptionError, match="found 2"):
        t_p_value(0.5, [0.1, 0.2])


@pytest.mark.parametrize("statistic", ["weighted", "rows"])
def test_a_copy_is_derived_and_another_model_is_not(statistic):
    weight, claimed = made(0)
    suspect = fingerprint_of(weight + 0.01 * made(99)[0], std=(0.5,) * 3, name="b")
    others = [made(seed)[1] for seed in range(1, 25)]
    found = compare_fingerprints(claimed, suspect, others, statistic=statistic)
    assert found.verdict == "derived"
    assert found.p == found.least_p == 1 / 25
    assert found.p_t < 1e-6
    assert found.likeness > 0.99 > max(found.null)
    assert found.overlap == pytest.approx(4, rel=0.01)
    assert found.haar.mean == pytest.approx(4 / 3)
    other = compare_fingerprints(claimed, others[0], others[1:], statistic=statistic)
    assert other.verdict == "not told apart from independent"
    few = compare_fingerprints(claimed, suspect, others[:18], statistic=statistic)
    assert (few.p, few.verdict) == (1 / 19, "cannot be said")
    none = compare_fingerprints(claimed, suspect)
    assert (none.p, none.p_t, none.verdict, none.least_p) == (None, None, "cannot be said", 1)


def test_on_images_likenesses_are_those_in_their_metric():
    (_, claimed), (_, suspect), (_, other) = (made(seed) for seed in range(3))
    covariance = PatchCovariance(torch.diag(torch.linspace(0.01, 1, 12, dtype=torch.float64)))
    found = compare_fingerprints(claimed, suspect, [other], statistic="images", covariance=covariance)
    rows = [each.rows("pixel", covariance.root(), weighted=True) for each in (claimed, suspect, other)]
    assert found.likeness == pytest.approx(likeness(rows[0], rows[1]))
    assert found.null == pytest.approx([likeness(rows[0], rows[2])])
    assert found.likeness != pytest.approx(compare_fingerprints(claimed, suspect).likeness, abs=1e-3)


def test_what_cannot_be_compared_is_told():
    claimed, suspect = made(0)[1], made(1)[1]
    with pytest.raises(OptionError, match="0: expected an independently trained model"):
        compare_fingerprints(claimed, suspect, [made(2)[1], made(0)[1]])
    with pytest.raises(ModelError, match="expected patches of 2 pixels"):
        compare_fingerprints(claimed, suspect, [made(2, side=3)[1]])
    with pytest.raises(OptionError, match="alpha"):
        compare_fingerprints(claimed, suspect, alpha=1.5)
    for more in ({"statistic": "images"}, {"covariance": PatchCovariance(torch.eye(12))}):
        with pytest.raises(OptionError, match="covariance: expected one with the statistic images alone"):
            compare_fingerprints(claimed, suspect, **more)
    with pytest.raises(OptionError, match="statistic"):
        compare_fingerprints(claimed, suspect, statistic="best")
