"""Newton's method for the nearest image with valid pixels: where first-order steps are slow, against scipy."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.linalg
import scipy.optimize
import torch
from helpers.models import matrix_of, numpy_patches

from ns_easyrobust.nullspace.enlargement import enlarged
from ns_easyrobust.nullspace.nearest import nearest_valid


@pytest.fixture
def harsh(digits) -> torch.Tensor:
    """Images whose pixels are black for the most part: sources and targets."""
    images = digits[0][1297:1303].double()
    return torch.stack((images, images.flip(0)))


def test_slow_patches_are_finished_and_are_scipys_bounded_least_squares(trained, harsh):
    sources, targets = harsh
    slow = nearest_valid(trained, sources, targets, iterations=100, newton_steps=0)
    found = nearest_valid(trained, sources, targets, iterations=100, tolerance=1e-9)
    assert float(slow.residual.max()) > 1e-5
    assert float(found.residual.max()) <= 1e-9
    rows = scipy.linalg.orth(matrix_of(trained, "pixel").T).T
    x, t, ours = (numpy_patches(each.numpy()).reshape(-1, 192) for each in (sources, targets, found.images))
    assert np.abs((ours - x) @ rows.T).max() < 1e-6
    for source, target, own in list(zip(x, t, ours, strict=True))[4:8]:
        weighed = 1e4 * rows
        expected = scipy.optimize.lsq_linear(
            np.vstack([np.eye(192), weighed]), np.concatenate([target, weighed @ source]), bounds=(0, 1),
            method="bvls", tol=1e-15, max_iter=1000,
        ).x  # fmt: skip
        assert np.abs(own - expected).max() < 1e-4


def test_squares_of_larger_images_are_finished_too(trained, harsh):
    sources, targets = (torch.nn.functional.interpolate(each, scale_factor=2) for each in harsh)
    targets = (targets + 0.3 * torch.randn(targets.shape, generator=torch.Generator().manual_seed(1))).clamp(0, 1)
    model = enlarged(trained, 2)
    slow = nearest_valid(model, sources, targets, iterations=40, newton_steps=0)
    found = nearest_valid(model, sources, targets, iterations=40)
    assert float(slow.residual.max()) > 1e-5
    assert float(found.residual.max()) <= 1e-6
    pooled = [torch.nn.functional.avg_pool2d(each, 2).numpy() for each in (sources, found.images)]
    seen = [numpy_patches(each) @ matrix_of(trained, "pixel").T for each in pooled]
    assert np.abs(seen[1] - seen[0]).max() < 1e-4
