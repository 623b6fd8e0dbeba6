"""Covariances of patches against numpy's, and noise that images hardly show against what is asked of it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from helpers.models import numpy_patches

from ns_easyrobust.errors import DataError
from ns_easyrobust.nullspace import PatchCovariance, fingerprint_of, hidden_noise, likeness

STD = (0.2, 0.5, 0.9)


def images() -> torch.Tensor:
    """Smooth ones: each 8 x 8, of a coarse 3 x 3 and a little noise."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.nn.functional.interpolate(torch.rand(60, 3, 3, 3, generator=generator), 8, mode="bilinear")
    return (coarse + 0.01 * torch.rand(60, 3, 8, 8, generator=generator)) / 1.01


def test_moments_are_numpy_s():
    found = PatchCovariance.of(images(), 4)
    patches = numpy_patches(images().double().numpy(), 4).reshape(-1, 48)
    wanted = np.cov(patches.T, bias=True)
    assert np.allclose(found.matrix, wanted, atol=1e-12)
    scale = np.repeat(STD, 16)
    assert np.allclose(found.in_space("normalised", STD), wanted / np.outer(scale, scale), atol=1e-12)
    root = found.root("normalised", STD).numpy()
    assert np.allclose(root @ root, wanted / np.outer(scale, scale), atol=1e-7)
    assert np.allclose(root, root.T, atol=1e-12)
    with pytest.raises(DataError, match="expected more than 192, the numbers of one, found 2"):
        PatchCovariance.of(images()[:2], 8)


def test_hidden_noise_turns_the_row_space_and_changes_embeddings_by_what_is_asked():
    weight = torch.randn(16, 3, 4, 4, generator=torch.Generator().manual_seed(1))
    covariance = PatchCovariance.of(images(), 4)
    noise = hidden_noise(weight, covariance, 0.1, std=STD, generator=torch.Generator().manual_seed(2))
    assert (noise.shape, noise.dtype) == (weight.shape, weight.dtype)
    patches = (numpy_patches(images().double().numpy(), 4).reshape(-1, 48) - 0.5) / np.repeat(STD, 16)
    rms = [np.sqrt((patches @ each.flatten(1).double().numpy().T).var(0).sum()) for each in (noise, weight)]
    assert rms[0] / rms[1] == pytest.approx(0.1, rel=0.15)  # of one draw
    one, other = fingerprint_of(weight, std=STD), fingerprint_of(weight + noise, std=STD)
    assert likeness(one.rows("pixel"), other.rows("pixel")) < 0.5
    metric = covariance.root("pixel")
    rows = [each.rows("pixel", metric, weighted=True) for each in (one, other)]
    assert likeness(*rows) > 0.9
