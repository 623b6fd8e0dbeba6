"""Feasible norms against closed forms, scipy's root finder and the measurement of single noises."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.optimize import brentq
from scipy.special import expit, logit
from torch import nn

from ns_easyrobust.errors import NoiseError, OptionError
from ns_easyrobust.nullspace.config import NoiseConfig
from ns_easyrobust.nullspace.feasible import InfluenceProbe, first_crossing, unit_direction
from ns_easyrobust.nullspace.synthesis import measure

EPS = 0.03
WEIGHTS = torch.linspace(-1, 2, 12).view(1, 4, 3)


class Pixels(nn.Module):
    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images.flatten(2).transpose(1, 2)


class TwoLogits(nn.Module):
    """Logits (s, 0), where s is linear in the four tokens."""

    def __init__(self, scale: float = 1.0) -> None:
        super().__init__()
        self.patch_embed = Pixels()
        self.weights = nn.Parameter(WEIGHTS * scale)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        s = (self.patch_embed(images) * self.weights).sum((1, 2))
        return torch.stack([s, torch.zeros_like(s)], 1)


def a_direction(shape=(1, 4, 3), seed=0) -> torch.Tensor:
    return unit_direction(torch.randn(shape, generator=torch.Generator().manual_seed(seed)))


def test_of_two_logits_it_is_the_root_that_scipy_finds():
    """p = expit(s): the distance of (p, 1 - p) from that of the clean s is 2 (p - p0)^2."""
    images = torch.rand(20, 3, 2, 2, generator=torch.Generator().manual_seed(1)) - 0.5
    direction = a_direction()
    slope = float((direction * WEIGHTS).sum())
    clean = (images.flatten(2).transpose(1, 2) * WEIGHTS).sum((1, 2)).double().numpy()

    def influence(t: float) -> float:
        return float(np.mean(2 * (expit(clean + slope * t) - expit(clean)) ** 2))

    probe = InfluenceProbe(TwoLogits(), images.split(7), NoiseConfig(eps=EPS))
    found = probe.feasible_norm(direction, most=1e4)
    assert not found.censored
    assert found.norm == pytest.approx(brentq(lambda t: influence(t) - EPS, 1e-3, 1e3), rel=1e-3)
    assert probe.influence(direction, 2.5) == pytest.approx(influence(2.5), rel=1e-5)


def test_half_the_logits_allow_twice_the_norm():
    """Of clean logits (0, 0) the root is logit(1/2 + sqrt(eps / 2)) over the slope."""
    images, direction = torch.zeros(3, 3, 2, 2), a_direction(seed=3)
    slope = abs(float((direction * WEIGHTS).sum()))
    root = logit(0.5 + math.sqrt(EPS / 2)) / slope
    for scale in (1.0, 0.5, 0.01):
        probe = InfluenceProbe(TwoLogits(scale), [images], NoiseConfig(eps=EPS))
        assert probe.feasible_norm(direction, 1e4).norm == pytest.approx(root / scale, rel=1e-3)
    most = 99 * root
    assert probe.feasible_norm(direction, most)[:2] == (most, True)
    assert probe.feasible_norm(direction, 101 * root)[:2] == (pytest.approx(100 * root, rel=1e-3), False)


def test_on_a_transformer_it_is_the_root_of_measure_and_the_model_is_as_before(trained, digits):
    images, direction = digits[0][1297:1361], a_direction((1, 16, 64))
    trained.train()
    probe = InfluenceProbe(trained, images.split(40), NoiseConfig(eps=EPS))
    found = probe.feasible_norm(direction, most=1e4)
    assert trained.training
    assert all(parameter.requires_grad for parameter in trained.parameters())
    root = brentq(
        lambda t: measure(trained, [images], direction * t).mse_probability - EPS, found.norm / 2, found.norm * 1.4,
        rtol=1e-3,
    )  # fmt: skip
    assert found.norm == pytest.approx(root, rel=0.005)
    assert found.tests < 20


def test_the_first_crossing_is_taken_where_influence_is_not_monotone():
    """0.05 sin^2: over eps from 8.86 on, under it again from 22.6 on."""
    found = first_crossing(lambda t: 0.05 * math.sin(t / 10) ** 2, EPS, 1e4)
    assert found.norm == pytest.approx(10 * math.asin(math.sqrt(0.6)), rel=1e-3)
    assert first_crossing(lambda t: 0.05 * math.sin(t / 10) ** 2, EPS, 8.0)[:2] == (8.0, True)
    jump = first_crossing(lambda t: 0.0 if t < 0.3 else 1.0, EPS, 1e4)  # nothing to interpolate
    assert 0.3 / 1.01 < jump.norm < 0.3


@pytest.mark.parametrize("root", [1e-4, 0.7, 1.0, 3.0, 5e3])
def test_precision_and_where_the_search_begins_do_not_matter_for_a_parabola(root):
    for precision in (0.5, 1e-4):
        found = first_crossing(lambda t: EPS * (t / root) ** 2, EPS, 1e4, precision)
        assert found.norm == pytest.approx(root, rel=1e-9)


def test_what_it_cannot_be_found_of_is_one_line():
    with pytest.raises(NoiseError, match="expected a finite influence at norm 2, found nan"):
        first_crossing(lambda t: math.nan if t > 1 else 0.0, EPS, 1e4)
    with pytest.raises(NoiseError, match=r"expected an influence that vanishes with the noise, found 0\.5"):
        first_crossing(lambda t: 0.5, EPS, 1e4)
    with pytest.raises(OptionError, match=r"expected eps, largest norm and precision > 0, found 0, 1, 0\.01"):
        first_crossing(lambda t: t, 0, 1)


def test_directions_are_centred_per_token_and_of_norm_1():
    value = torch.randn(1, 4, 3, generator=torch.Generator().manual_seed(0)) + torch.arange(4.0).view(1, 4, 1)
    direction = unit_direction(value)
    assert direction.double().norm() == pytest.approx(1, abs=1e-6)
    expected = value.numpy() - value.numpy().mean(-1, keepdims=True)
    np.testing.assert_allclose(direction.numpy(), expected / np.linalg.norm(expected), atol=1e-6)
    for wrong in (torch.ones(1, 4, 3), value / 0):
        with pytest.raises(NoiseError, match="direction: expected finite noise that differs within a token"):
            unit_direction(wrong)


def test_the_influence_on_each_image_is_that_of_its_logit(trained, digits):
    images = digits[0][:10]
    value = torch.randn(1, 16, 64, generator=torch.Generator().manual_seed(3))
    found = InfluenceProbe(trained, images.split(4), NoiseConfig()).per_image(value)
    mean = measure(trained, [images], value)
    assert found.distance.shape == found.unchanged.shape == (10,)
    assert float(found.distance.mean()) == pytest.approx(mean.mse_probability, rel=1e-5)
    assert float(found.unchanged.double().mean()) == pytest.approx(mean.agreement)

    two = torch.randn(6, 3, 2, 2, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        s = TwoLogits()(two)[:, 0].double().numpy()
        shift = float((0.5 * WEIGHTS.double() * WEIGHTS.double()).sum())
    each = InfluenceProbe(TwoLogits(), [two[:2], two[2:]], NoiseConfig()).per_image(0.5 * WEIGHTS)
    np.testing.assert_allclose(each.distance, 2 * (expit(s + shift) - expit(s)) ** 2, atol=1e-6)
    np.testing.assert_array_equal(each.unchanged, (s >= 0) == (s + shift >= 0))
