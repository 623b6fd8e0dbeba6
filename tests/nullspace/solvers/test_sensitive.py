"""The most sensitive direction, against the singular value decomposition and against the other solvers' noise."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from helpers.models import small_vit
from torch import nn

from ns_easyrobust.errors import NoiseError
from ns_easyrobust.nullspace.config import NoiseConfig
from ns_easyrobust.nullspace.synthesis import measure, synthesize

SENSITIVE = NoiseConfig(solver="sensitive", turn=0.1, max_steps=50, pool=6)


class Embed(nn.Conv2d):
    """Patch tokens (B, N, D)."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return super().forward(images).flatten(2).transpose(1, 2)


class LinearInNoise(nn.Module):
    """Logits that are a fixed matrix times the patch tokens, without each token's mean as behind a layer norm."""

    def __init__(self, patches: int = 16, width: int = 48) -> None:
        super().__init__()
        self.patch_embed = Embed(3, width, 8, 8)
        draw = torch.Generator().manual_seed(0)
        left = torch.linalg.qr(torch.randn(10, 10, generator=draw))[0]
        right = torch.linalg.qr(torch.randn(patches * width, 10, generator=draw))[0]
        spectrum = torch.tensor([3, 2, 1.5, 1, 0.8, 0.6, 0.4, 0.3, 0.2, 0.1])
        self.matrix = nn.Parameter(left @ torch.diag(spectrum) @ right.T)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        tokens = self.patch_embed(images)
        return (tokens - tokens.mean(-1, keepdim=True)).flatten(1) @ self.matrix.T


def test_of_a_linear_model_it_is_the_top_singular_direction(digits):
    model, images = LinearInNoise(), digits[0]
    batches = [images[i : i + 64] for i in range(0, 1280, 64)]
    units = torch.eye(16 * 48).view(-1, 16, 48)
    sensitivity = model.matrix.detach() @ (units - units.mean(-1, keepdim=True)).flatten(1).T  # centring is symmetric
    _, values, directions = torch.linalg.svd(sensitivity, full_matrices=False)
    noise = synthesize(model, batches, SENSITIVE)
    direction = noise.value.flatten() / noise.norm
    assert abs(float(direction @ directions[0])) > 0.95
    random = synthesize(model, batches, NoiseConfig(solver="random"))
    # A random direction's squared response is that of the mean of the squared singular values.
    expected = float(values[0] / (values.square().sum() / len(direction)).sqrt())
    assert expected > 15
    assert random.norm > 0.5 * expected * noise.norm


@pytest.fixture
def found(trained, batches):
    return synthesize(trained, batches, SENSITIVE)


@pytest.mark.stress
def test_at_equal_eps_it_is_the_smallest_and_the_spheres_the_largest(trained, batches, found):
    random = synthesize(trained, batches, NoiseConfig(solver="random"))
    sphere = synthesize(trained, batches, replace(SENSITIVE, solver="sphere", max_steps=30))
    assert 6 * found.norm < random.norm < 0.8 * sphere.norm


def test_its_influence_is_just_under_eps(trained, batches, found):
    """On the images that set the final radius, and on those that neither the model nor the noise has seen."""
    judges = [images for images, _ in batches[6:14]]  # the pool took the first six
    influence = measure(trained, judges, found.value)
    assert influence.n == 512
    assert influence.mse_probability == pytest.approx(found.mse_probability, rel=1e-3)
    assert found.stopped
    assert influence.mse_probability_upper < found.config.eps
    assert measure(trained, judges, found.value * 1.6).mse_probability > found.config.eps


@pytest.mark.stress
def test_patience_ends_it_where_the_norm_no_longer_shrinks(trained, batches):
    patient = synthesize(trained, batches, replace(SENSITIVE, turn=1e-9, patience=20, max_steps=1000))
    assert 20 < patient.steps < 110
    assert synthesize(trained, batches, replace(SENSITIVE, patience=20, max_steps=40)).steps == 40


def test_no_steps_leave_the_start_as_it_is_and_zero_has_no_direction(trained, batches):
    start = torch.full((1, 16, 64), 5.0)
    assert torch.equal(synthesize(trained, batches, replace(SENSITIVE, max_steps=0), start=start).value, start)
    with pytest.raises(NoiseError, match="start noise: expected one that differs within a token"):
        synthesize(trained, batches, SENSITIVE, start=torch.zeros(1, 16, 64))


def test_a_model_that_nothing_moves_ends_and_is_told(batches, caplog):
    model = small_vit()
    nn.init.zeros_(model[1].head.weight)
    noise = synthesize(model, batches, replace(SENSITIVE, max_steps=1000, patience=10))
    assert noise.steps < 30
    assert torch.isfinite(noise.value).all()
    assert "the model hardly reacts to anything" in caplog.text
