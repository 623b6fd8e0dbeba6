"""Eq. 4 against its closed form and scipy on a linear model, and its two ways to infinity on a transformer."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from helpers.models import forward_by_hand
from scipy.optimize import minimize
from scipy.stats import chisquare
from torch import nn

from ns_easyrobust.errors import DataError, NoiseError, OptionError
from ns_easyrobust.nullspace.exploratory import (
    NoiseLearner,
    exploratory_loss,
    permuted_control,
    uniform_start,
    within_token_control,
)
from ns_easyrobust.nullspace.synthesis import measure

SIZES = torch.tensor([2.0, 1.8, 1.6, 1.4, 1.2, 1.0, 0.8, 0.4])  # singular values
LAMBDA = 0.3


class Pixels(nn.Module):
    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images.flatten(2).transpose(1, 2)


class Linear(nn.Module):
    """Eight logits, linear in four tokens of three features; what they ignore is each token's mean.

    ``directions`` (12, 8) are those of the singular values ``sizes``.
    """

    def __init__(self, sizes: torch.Tensor = SIZES) -> None:
        super().__init__()
        g = torch.Generator().manual_seed(0)
        noise = torch.randn(8, 4, 3, generator=g)
        self.directions = torch.linalg.qr((noise - noise.mean(-1, keepdim=True)).flatten(1).T)[0]
        self.patch_embed = Pixels()
        self.matrix = nn.Parameter(sizes[:, None] * self.directions.T)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.patch_embed(images).flatten(1) @ self.matrix.T


def pictures(n: int = 6) -> torch.Tensor:
    return torch.rand(n, 3, 2, 2, generator=torch.Generator().manual_seed(1))


def a_start(shape=(1, 4, 3), limit=1.0, seed=0) -> torch.Tensor:
    return uniform_start(shape, limit, torch.Generator().manual_seed(seed))


def test_of_a_linear_model_it_ends_at_the_closed_form_and_where_scipy_does():
    """L = |S c| - lambda log |c| has its minimum along the least singular value, at norm lambda / that."""
    model = Linear()
    learner = NoiseLearner(model, pictures().split(2))
    value = learner.learn(a_start(), LAMBDA, steps=400)
    assert float(value.norm()) == pytest.approx(LAMBDA / 0.4, rel=0.01)
    assert abs(float(value.flatten() @ model.directions[:, 7])) == pytest.approx(LAMBDA / 0.4, rel=0.01)
    found = learner.stationarity(value)
    assert found.distance == pytest.approx(LAMBDA, rel=0.01)
    assert found.radial == pytest.approx(LAMBDA, rel=0.01)
    matrix, basis = model.matrix.detach().double().numpy(), model.directions.double().numpy()
    best = minimize(
        lambda c: np.linalg.norm(matrix @ basis @ c) - LAMBDA * math.log(np.linalg.norm(c)), np.ones(8), tol=1e-10
    )
    images = pictures()
    own = exploratory_loss(model(images), model(images + value.transpose(1, 2).view(1, 3, 2, 2)), value, LAMBDA)
    assert float(own.detach()) == pytest.approx(best.fun, abs=1e-3)
    assert np.linalg.norm(best.x) == pytest.approx(LAMBDA / 0.4, rel=1e-3)


def test_stationarity_is_that_of_the_matrix():
    model, value = Linear(), a_start(seed=4)
    found = NoiseLearner(model, pictures(5).split(2)).stationarity(value)  # batches of 2, 2 and 1
    expected = float((model.matrix.detach() @ value.flatten()).norm())
    assert found == (pytest.approx(expected, rel=1e-5), pytest.approx(expected, rel=1e-5))


def test_where_nothing_is_noticed_each_step_adds_its_share_of_the_norm_until_it_has_grown_a_millionfold():
    learner, start = NoiseLearner(Linear(0 * SIZES), pictures().split(2)), a_start()
    value = learner.learn(start, LAMBDA, steps=10, step_length=0.5)
    growth = math.prod(1 + 0.5 * (1 - step / 10) for step in range(10))
    assert torch.allclose(value, growth * start, rtol=1e-4)
    norms: list[float] = []
    assert learner.learn(start, LAMBDA, 100, 0.5, on_step=lambda loss, norm: norms.append(norm)).norm() == norms[-1]
    assert len(norms) < 100
    assert norms[-2] < 1e6 * start.norm() < norms[-1]


def losses(model: nn.Module, images: torch.Tensor, value: torch.Tensor) -> tuple[float, float]:
    """J and L, each part of the transformer called by name."""
    with torch.no_grad():
        clean, noisy = model(images), forward_by_hand(model, images, value)
    distance = float((noisy - clean).norm(dim=-1).mean())
    return distance, float(exploratory_loss(clean, noisy, value, LAMBDA))


def test_along_all_ones_the_loss_has_no_lower_bound_and_so_they_are_projected_out(trained, digits):
    model, images, value = trained.double(), digits[0][:8].double(), a_start((1, 16, 64)).double()
    distance, loss = losses(model, images, value)
    for size in (1e2, 1e4):
        shifted = value + size
        moved, lower = losses(model, images, shifted)
        assert moved == pytest.approx(distance, rel=1e-4)
        assert lower == pytest.approx(loss - LAMBDA * math.log(shifted.norm() / value.norm()), rel=1e-4)
    learner = NoiseLearner(trained.float(), images.float().split(4))
    found = learner.learn(value.float() + 100, LAMBDA, steps=3)
    assert found.mean(-1).abs().max() < 1e-5
    assert found.norm() < 2 * value.norm()  # of the start, too


def test_layer_norms_bound_j_so_that_a_large_lambda_lets_the_noise_run_away(trained, digits):
    model, images, value = trained.double(), digits[0][:8].double(), a_start((1, 16, 64)).double()
    (near, above), (far, below) = (losses(model, images, size * value) for size in (1e5, 1e6))
    assert far == pytest.approx(near, rel=1e-3)
    assert below == pytest.approx(above - LAMBDA * math.log(10), abs=1e-2)
    single = torch.zeros_like(value)
    single[:, 5] = value[:, 5]  # so that a single token's noise may grow for ever, at a lower price
    (price, above), (same, below) = (losses(model, images, size * single) for size in (1e5, 1e6))
    assert price == pytest.approx(same, rel=1e-3)
    assert price < near
    assert below == pytest.approx(above - LAMBDA * math.log(10), abs=1e-2)
    learner = NoiseLearner(trained.float(), images.float().split(4))
    away = learner.stationarity(learner.learn(value.float(), 100.0, steps=60, step_length=0.5))
    assert away.radial < 0.1 * away.distance


def test_learned_noise_moves_held_out_predictions_less_than_its_permutation_and_leaves_all_as_it_was(trained, digits):
    images = digits[0]
    trained.train()
    before, state = {name: one.clone() for name, one in trained.state_dict().items()}, torch.get_rng_state()
    learner = NoiseLearner(trained, images[:256].split(16))
    value = learner.learn(a_start((1, 16, 64), 0.1), 0.3, steps=40, step_length=0.2)
    assert trained.training
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(one, before[name]) for name, one in trained.state_dict().items())
    assert all(one.grad is None and one.requires_grad for one in trained.parameters())
    control = permuted_control(value, torch.Generator().manual_seed(2))
    learned, other = (measure(trained, [images[1297:1497]], each) for each in (value, control))
    assert learned.mse_probability < other.mse_probability / 4
    one, two, other = (
        learner.learn(a_start((1, 16, 64)), 0.3, steps=2, generator=torch.Generator().manual_seed(seed))
        for seed in (1, 1, 2)
    )
    assert torch.equal(one, two)
    assert not torch.equal(one, other)


def test_a_permutation_has_the_norm_no_token_means_and_another_order():
    value = a_start((1, 5, 7))
    mixed = permuted_control(value, torch.Generator().manual_seed(0))
    assert float(mixed.norm()) == pytest.approx(float(value.norm()), rel=1e-6)
    assert mixed.mean(-1).abs().max() < 1e-6
    assert not torch.allclose(mixed, value, atol=0.1)
    # But for means and scale, its elements are the value's.
    order = torch.randperm(35, generator=torch.Generator().manual_seed(0))
    plain = value.flatten()[order].view(5, 7)
    plain = plain - plain.mean(1, keepdim=True)
    assert torch.allclose(mixed[0] / mixed.norm(), plain / plain.norm(), atol=1e-6)


def test_a_permutation_within_tokens_keeps_each_tokens_elements_in_an_order_of_its_own():
    value = torch.arange(35.0).view(1, 5, 7)  # token t has 7t ... 7t + 6
    mixed = within_token_control(value, torch.Generator().manual_seed(0))
    assert torch.equal(mixed.sort(-1).values, value)
    orders = {tuple(token.tolist()) for token in mixed[0] - 7 * torch.arange(5.0)[:, None]}
    assert len(orders) == 5
    assert tuple(range(7)) not in orders
    assert torch.equal(mixed, within_token_control(value, torch.Generator().manual_seed(0)))
    assert not torch.equal(mixed, within_token_control(value, torch.Generator().manual_seed(1)))


def test_a_permutation_within_tokens_puts_an_element_at_each_place_equally_often():
    value = torch.arange(4.0).expand(1, 4000, 4)
    places = within_token_control(value, torch.Generator().manual_seed(0))[0].long()
    counts = torch.stack([places[:, index].bincount(minlength=4) for index in range(4)])
    assert chisquare(counts.flatten()).pvalue > 1e-3


def test_a_start_is_uniform_and_centred():
    value = uniform_start((1, 50, 400), 0.5, torch.Generator().manual_seed(0))
    assert value.mean(-1).abs().max() < 1e-6
    assert float(value.abs().max()) == pytest.approx(0.5, rel=0.1)
    assert float(value.std()) == pytest.approx(0.5 / math.sqrt(3), rel=0.02)


def test_bad_calls_are_one_line():
    learner = NoiseLearner(Linear(), pictures().split(2))
    for bad in ({"strength": 0.0}, {"strength": math.inf}, {"steps": 0}, {"step_length": 1.0}):
        with pytest.raises(OptionError, match="lambda > 0"):
            learner.learn(a_start(), **({"strength": 1.0, "steps": 2} | bad))
    with pytest.raises(NoiseError, match="differs within a token"):
        learner.learn(torch.ones(1, 4, 3), 1.0, 2)
    with pytest.raises(NoiseError, match="does not fit"):
        learner.learn(a_start((1, 5, 3)), 1.0, 2)
    with pytest.raises(DataError, match="expected images"):
        NoiseLearner(Linear(), [])
    broken = Linear()
    learner = NoiseLearner(broken, pictures().split(2))
    broken.matrix.data[0, 0] = math.nan
    with pytest.raises(NoiseError, match="lambda 1, step 0: expected a finite loss, found nan"):
        learner.learn(a_start(), 1.0, 2)
