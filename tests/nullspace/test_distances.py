from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.special import softmax

from ns_easyrobust.nullspace.distances import DistanceSums, Moments


@pytest.fixture
def logits():
    """Clean and noisy logits (50, 10), some of another prediction."""
    generator = torch.Generator().manual_seed(0)
    clean = torch.randn(50, 10, generator=generator) * 2
    return clean, clean + torch.randn(50, 10, generator=generator)


def test_means_over_unequal_batches_are_numpys_over_all_images(logits):
    sums = DistanceSums(torch.device("cpu"))
    for clean, noisy in zip(*(part.split(32) for part in logits), strict=True):
        sums.add(clean, noisy)
    means = sums.means_over_ranks()
    clean, noisy = (part.double().numpy() for part in logits)
    distance = ((softmax(noisy, 1) - softmax(clean, 1)) ** 2).sum(1)
    assert float(means.probability.mean) == pytest.approx(distance.mean(), rel=1e-6)
    assert float(means.probability.mean_square) == pytest.approx((distance**2).mean(), rel=1e-6)
    assert float(means.probability.deviation) == pytest.approx(distance.std(), rel=1e-6)
    assert float(means.mse_logits) == pytest.approx(((noisy - clean) ** 2).sum(1).mean(), rel=1e-6)
    assert float(means.agreement) == (noisy.argmax(1) == clean.argmax(1)).mean() < 1
    assert int(means.n) == 50


def test_moments_of_equal_distances_have_no_deviation_in_spite_of_rounding():
    for distance in torch.rand(100, generator=torch.Generator().manual_seed(1)):
        moments = Moments(distance, distance.square() * (1 - 1e-7))
        assert float(moments.deviation) == 0


def test_the_weight_of_smoothing_is_that_of_the_past():
    now, past = (Moments(*torch.tensor(pair)) for pair in ([1.0, 2.0], [3.0, 10.0]))
    assert [float(moment) for moment in now.smoothed(past, 0.75)] == np.average(
        [[1, 2], [3, 10]], axis=0, weights=[0.25, 0.75]
    ).tolist()
