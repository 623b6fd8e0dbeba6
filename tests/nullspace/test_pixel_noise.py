"""Image noise beside the nullspace's: sizes, orders and roundings by numpy, and a linear model in closed form."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from helpers.models import LinearViT, numpy_patches, unequal
from scipy.special import softmax

from ns_easyrobust.errors import OptionError
from ns_easyrobust.models.normalization import with_normalization
from ns_easyrobust.nullspace.exact import patch_nullspace
from ns_easyrobust.nullspace.exact_noise import sample_nullspace, valid_nullspace_noise
from ns_easyrobust.nullspace.pixel_noise import (
    output_change,
    permuted_in_patches,
    pixel_logits,
    rounded_to_8_bits,
    scaled_to_rms,
    valid_permutation,
)


def source(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture
def images() -> torch.Tensor:
    return torch.rand(5, 3, 32, 32, generator=source(9), dtype=torch.float64)


def test_a_sample_is_scaled_to_its_rms_image_by_image(images):
    scaled = scaled_to_rms(images * torch.arange(5.0)[:, None, None, None], 0.3)
    assert np.allclose(np.linalg.norm(scaled.flatten(1).numpy(), axis=1) / np.sqrt(3072), [0, *[0.3] * 4])
    with pytest.raises(OptionError, match="rms: expected a number > 0, found 0"):
        scaled_to_rms(images, 0)


def test_a_permutation_keeps_each_patch_s_values_and_leaves_the_nullspace(images):
    model = unequal().double()
    noise = sample_nullspace(patch_nullspace(model, space="pixel"), (3, 32, 32), 8, generator=source(), n=5)
    other = permuted_in_patches(noise, 8, generator=source(1))
    before, after = (np.sort(numpy_patches(value.numpy()), axis=-1) for value in (noise, other))
    assert np.array_equal(before, after)
    assert not torch.equal(noise, other)
    clean = pixel_logits(model, images)
    assert output_change(clean, pixel_logits(model, images + noise)).logits.max() < 1e-12
    assert output_change(clean, pixel_logits(model, images + other)).logits.min() > 1e-3


def test_a_valid_permutation_keeps_values_and_pixels_and_forgets_the_order(images):
    images = 0.4 + 0.2 * images  # where pixels differ much, valid orders are like each other
    noise = valid_nullspace_noise(unequal(), images, generator=source(), iterations=100)
    other = valid_permutation(images, noise, 8, generator=source(1))
    assert bool(((images + other >= 0) & (images + other <= 1)).all())
    before, after = (np.sort(numpy_patches(value.numpy()), axis=-1) for value in (noise, other))
    assert np.array_equal(before, after)
    assert abs(float((noise * other).sum() / noise.square().sum())) < 0.1
    with pytest.raises(OptionError, match="expected that of valid pixels"):
        valid_permutation(images, 2 * noise, 8, generator=source())


def test_all_valid_orders_of_three_elements_are_equally_likely():
    """Of (0.5, 0, -0.5) on pixels (0.1, 0.5, 0.9), with a patch of 1 x 1 and 3 channels, 3 of 6 orders are valid."""
    images = torch.tensor([0.1, 0.5, 0.9]).view(1, 3, 1, 1)
    noise = torch.tensor([0.5, 0.0, -0.5]).view(1, 3, 1, 1)
    counts: dict[tuple[float, ...], int] = {}
    for seed in range(90):
        order = tuple(valid_permutation(images, noise, 1, generator=source(seed)).flatten().tolist())
        counts[order] = counts.get(order, 0) + 1
    assert set(counts) == {(0.5, 0.0, -0.5), (0.0, 0.5, -0.5), (0.5, -0.5, 0.0)}
    assert min(counts.values()) > 15


def test_eight_bits_are_those_of_a_png(images, tmp_path):
    from PIL import Image

    path = tmp_path / "image.png"
    Image.fromarray((images[0].numpy() * 255).round().astype(np.uint8).transpose(1, 2, 0)).save(path)
    assert np.array_equal(rounded_to_8_bits(images[0]).numpy(), np.asarray(Image.open(path)).transpose(2, 0, 1) / 255)


def test_the_change_of_a_linear_model_is_that_of_its_formula(images):
    """Logits move by H W' delta alone: not at all by noise of its own W, and as the formula says by another's."""
    own, other = (with_normalization(LinearViT(seed=seed), (0.5,) * 3, (0.5,) * 3).double() for seed in (1, 2))
    for made_by in (own, other):
        basis = patch_nullspace(made_by, space="pixel")
        noise = sample_nullspace(basis, (3, 32, 32), 8, generator=source(), n=1)
        change = output_change(pixel_logits(own, images), pixel_logits(own, images + noise))
        weight = own[1].patch_embed.proj.weight.flatten(1).detach().numpy()
        moved = (numpy_patches(noise.numpy()) @ weight.T / 0.5).reshape(1, -1) @ own[1].head.weight.detach().numpy().T
        clean = own(images).detach().numpy()
        expected = np.square(softmax(clean + moved, axis=1) - softmax(clean, axis=1)).sum(axis=1)
        assert np.allclose(change.distance.numpy(), expected, atol=1e-12)
        assert (float(change.distance.max()) < 1e-20) == (made_by is own)
        assert np.allclose(change.logits.numpy(), np.abs(moved).max(), atol=1e-9)
