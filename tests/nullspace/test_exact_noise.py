"""Exact nullspaces of the patch embedding, against numpy and scipy."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.linalg
import scipy.optimize
import torch
from helpers.models import matrix_of, numpy_patches, unequal

from ns_easyrobust.nullspace.exact import patch_nullspace
from ns_easyrobust.nullspace.exact_noise import project_to_nullspace, sample_nullspace, valid_nullspace_noise


def rms(noise: torch.Tensor) -> float:
    return float(noise.square().mean().sqrt())


def scaled_into_the_box(basis: torch.Tensor, images: torch.Tensor) -> torch.Tensor:
    """The obvious alternative: a sample, each patch of it as long as its first pixel at a bound allows."""
    generator = torch.Generator().manual_seed(0)
    sample = sample_nullspace(basis, (3, 32, 32), 8, generator=generator, n=len(images)).numpy()
    sample, pixels = numpy_patches(sample), numpy_patches(images.double().numpy())
    room = np.where(sample > 0, 1 - pixels, pixels) / np.abs(sample)
    return torch.from_numpy(sample * room.min(-1, keepdims=True))


def test_invisible_noise_fills_the_valid_pixels(trained, digits):
    """On a trained model it changes the logits at least 1000 times less than its own permutation."""
    images = digits[0][1297:1321]
    assert (images == 0).float().mean() > 0.2  # where scaling a sample down would leave nothing
    state = torch.get_rng_state()
    noise = valid_nullspace_noise(trained, images, generator=torch.Generator().manual_seed(0))
    assert torch.equal(state, torch.get_rng_state())
    assert noise.shape == images.shape
    assert noise.dtype == torch.float32
    noisy = images + noise
    assert float(noisy.min()) >= 0
    assert float(noisy.max()) <= 1
    basis = patch_nullspace(trained, space="pixel")
    assert rms(noise) > 0.3
    assert rms(noise) > 8 * rms(scaled_into_the_box(basis, images))
    generator = torch.Generator().manual_seed(1)
    permuted = torch.stack([v.flatten()[torch.randperm(3072, generator=generator)].view_as(v) for v in noise])
    with torch.no_grad():
        clean = trained(images)
        assert (clean.argmax(1) == digits[1][1297:1321]).float().mean() > 0.7
        change, control = (float((trained(images + v) - clean).abs().max()) for v in (noise, permuted))
    assert 1000 * change < control
    assert control > 1


def test_patches_are_left_out_only_where_there_is_less_room_than_elsewhere(trained, digits):
    """Linear programming, an independent oracle, finds less there than the other patches got."""
    images = digits[0][1297:1305]
    noise = valid_nullspace_noise(trained, images, generator=torch.Generator().manual_seed(0))
    sizes = np.sqrt((numpy_patches(noise.numpy()) ** 2).mean(-1))
    empty = sizes == 0
    assert empty.mean() < 0.2
    matrix = matrix_of(trained, "pixel")
    for pixels in numpy_patches(images.double().numpy())[empty][:5]:
        bounds = np.stack([-pixels, 1 - pixels], axis=1)
        brightest = scipy.optimize.linprog(-np.ones(192), A_eq=matrix, b_eq=np.zeros(64), bounds=bounds).x
        assert np.sqrt((brightest**2).mean()) < np.median(sizes[~empty])


@pytest.mark.parametrize("embed_dim", [64, 144])
def test_valid_noise_is_in_the_nullspace_in_every_patch(digits, embed_dim):
    """Also with nullity 48 of 192, where black patches have room for zero alone."""
    model = unequal(embed_dim=embed_dim)
    images = digits[0][:4].double()
    noise = valid_nullspace_noise(model, images, generator=torch.Generator().manual_seed(0))
    outside = noise - project_to_nullspace(patch_nullspace(model, space="pixel"), noise, 8)
    norms, residues = (np.linalg.norm(numpy_patches(v.numpy()), axis=-1) for v in (noise, outside))
    assert (residues <= 1.01e-6 * norms).all()
    assert ((images + noise) >= 0).all()
    assert ((images + noise) <= 1).all()
    assert (norms > 1e-3).mean() > (0.99 if embed_dim == 64 else 0.3)


def test_valid_noise_follows_the_generator(digits):
    model, images = unequal(), digits[0][:2]
    first, again, other = (
        valid_nullspace_noise(model, images, generator=torch.Generator().manual_seed(seed), iterations=30)
        for seed in (0, 0, 1)
    )
    assert torch.equal(first, again)
    assert not torch.allclose(first, other, atol=0.1)
