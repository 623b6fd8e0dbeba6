"""Pairs, grids and quadratic forms against closed forms, and a model whose nullspace is known."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import nn

from ns_easyrobust.errors import NoiseError, OptionError
from ns_easyrobust.nullspace.closure import PairForm, combined, draw_pairs, even_steps, norm_at_influence, share_under
from ns_easyrobust.nullspace.config import NoiseConfig
from ns_easyrobust.nullspace.feasible import InfluenceProbe
from ns_easyrobust.nullspace.local_spectrum import SoftmaxJacobian


class Pixels(nn.Module):
    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images.flatten(2).transpose(1, 2)


class LinearReader(nn.Module):
    """Logits (B, 4): a (4, 12) matrix, whose nullspace has 8 dimensions, times four tokens of three features."""

    def __init__(self) -> None:
        super().__init__()
        self.patch_embed = Pixels()
        self.matrix = nn.Parameter(torch.randn(4, 12, generator=torch.Generator().manual_seed(0)))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.patch_embed(images).flatten(1) @ self.matrix.T


@pytest.fixture
def linear() -> tuple[LinearReader, torch.Tensor]:
    return LinearReader(), torch.rand(20, 3, 2, 2, generator=torch.Generator().manual_seed(1)) - 0.5


def test_of_a_linear_models_nullspace_every_combination_has_no_influence_and_of_others_it_has(linear):
    model, images = linear
    probe, grid = InfluenceProbe(model, [images], NoiseConfig()), even_steps(2.0, 5)
    null = torch.linalg.svd(model.matrix.detach().double())[2][4:].float().view(8, 1, 4, 3)
    rows = model.matrix.detach()[:2].view(2, 1, 4, 3)
    for alpha1 in grid:
        for alpha2 in grid:
            found = [
                float(probe.per_image(combined(*pair, (alpha1, alpha2))).distance.mean())
                for pair in (100 * null[:2], rows)
            ]
            assert found[0] < 1e-9
            assert (found[1] > 1e-3) == (alpha1 + alpha2 > 0)
    jacobian = SoftmaxJacobian(model, [images])
    assert PairForm.of(*map(jacobian.responses, null[:2])).influence(1, 1) < 1e-12
    assert (jacobian.spectrum(12).values > 1e-6).sum() == 3  # rows of the matrix less their mean, as softmax ignores it


def test_the_quadratic_form_predicts_small_noise_on_the_whole_grid_with_its_mixed_term(linear):
    model, images = linear
    generator = torch.Generator().manual_seed(2)
    first = 0.002 * torch.randn(1, 4, 3, generator=generator)
    second = 0.5 * first + 0.002 * torch.randn(1, 4, 3, generator=generator)  # so that b is not 0
    jacobian, probe = SoftmaxJacobian(model, images.split(7)), InfluenceProbe(model, [images], NoiseConfig())
    form = PairForm.of(jacobian.responses(first), jacobian.responses(second))
    assert abs(form.cosine) > 0.1
    alphas = np.array(even_steps(2.0, 4))
    measured = [
        [float(probe.per_image(combined(first, second, (one, other))).distance.mean()) for other in alphas]
        for one in alphas
    ]
    np.testing.assert_allclose(measured, form.influence(alphas[:, None], alphas[None]), rtol=0.05, atol=1e-9)


def test_a_forms_values_are_those_of_its_vectors():
    """q(a1 v1 + a2 v2) of J v1 = (1, 0), J v2 = (1, 2): (a1 + a2)^2 + (2 a2)^2."""
    form = PairForm.of(torch.tensor([[1.0, 0.0]]), torch.tensor([[1.0, 2.0]]))
    assert form == (1, 5, 1)
    assert form.influence(2, 3) == 25 + 36
    assert form.cosine == pytest.approx(1 / math.sqrt(5))
    assert PairForm(0.0, 1.0, 0.0).cosine == 0


def test_pairs_are_different_random_and_apart_where_they_can_be():
    def pairs(noises, count, seed=0):
        return draw_pairs(noises, count, torch.Generator().manual_seed(seed))

    apart = [number for pair in pairs(100, 10) for number in pair]
    assert len(set(apart)) == 20
    assert set(apart) <= set(range(100))
    assert apart != [number for pair in pairs(100, 10, seed=1) for number in pair]
    everything = {frozenset(pair) for pair in pairs(5, 10)}
    assert len(everything) == 10
    assert all(len(pair) == 2 for pair in everything)
    with pytest.raises(OptionError, match="pairs: expected 1 to 10, as 5 noises have so many, found 11"):
        pairs(5, 11)


def test_a_grid_is_even_and_of_sane_size():
    assert even_steps(2.0, 5) == [0, 0.5, 1, 1.5, 2]
    assert 1.0 in even_steps(2.0, 11)
    for most, points in ((2.0, 1), (-1.0, 5), (math.nan, 5), (math.inf, 5), (0.0, 5)):
        with pytest.raises(OptionError, match="alpha: expected two points or more between 0 and a positive finite"):
            even_steps(most, points)


@pytest.mark.parametrize("influence", [lambda t: 0.3 * t**2, lambda t: 0.3 * t**1.3, lambda t: 2 * t**4 / (10 + t**4)])
def test_the_norm_of_equal_influence_is_found_from_far_away(influence):
    for start in (1e-3, 1.0, 50.0):
        norm = norm_at_influence(influence, 0.04, start, precision=1e-3)
        assert influence(norm) == pytest.approx(0.04, rel=1e-3)


def test_what_has_no_norm_of_equal_influence_is_one_line():
    with pytest.raises(NoiseError, match="expected a positive influence to equal, found 0"):
        norm_at_influence(lambda t: t, 0.0, 1.0)
    with pytest.raises(NoiseError, match="expected a positive finite influence at norm 1, found nan"):
        norm_at_influence(lambda t: math.nan, 0.1, 1.0)
    with pytest.raises(NoiseError, match=r"expected one of influence 0\.1, found 0\.05 at norm .* after 40 tests"):
        norm_at_influence(lambda t: 0.05, 0.1, 1.0)


def test_rounding_does_not_put_a_value_over_its_bound():
    assert share_under([1.0, 2.0, 3.0], [1.0, 1.9999999, 2.9]) == (2, 3)
