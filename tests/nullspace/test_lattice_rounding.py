"""Rounding within the nullspace: all levels tried on small lattices, and never worse than rounding each pixel."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from helpers.models import matrix_of, numpy_patches, unequal

from ns_easyrobust.errors import DataError, ModelError, OptionError
from ns_easyrobust.nullspace.exact import patch_nullspace
from ns_easyrobust.nullspace.exact_noise import sample_nullspace, valid_nullspace_noise
from ns_easyrobust.nullspace.lattice_rounding import LatticeRounding, embedding_error, rounded_in_nullspace
from ns_easyrobust.nullspace.pixel_noise import rounded_to_8_bits


def source(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


class OneProjection(torch.nn.Module):
    """A model of one patch of 1 x 1 pixels whose embedding is ``matrix`` (D, C)."""

    def __init__(self, matrix: list[list[float]]) -> None:
        super().__init__()
        weight = torch.tensor(matrix, dtype=torch.float64)
        self.num_classes, self.patch_embed = 2, torch.nn.Module()
        self.patch_embed.proj = torch.nn.Conv2d(weight.shape[1], len(weight), 1, 1).double()
        self.patch_embed.proj.weight.data = weight[..., None, None]


def wrapped(matrix: list[list[float]]) -> torch.nn.Module:
    from ns_easyrobust.models.normalization import with_normalization

    channels = len(matrix[0])
    return with_normalization(OneProjection(matrix), (0.0,) * channels, (1.0,) * channels).double()


@pytest.fixture(scope="module")
def noisy() -> tuple[torch.nn.Module, torch.Tensor, torch.Tensor]:
    model, images = unequal().double(), torch.rand(4, 3, 32, 32, generator=source(), dtype=torch.float64)
    images[0] = (images[0] - 0.5).clamp(0, 1)  # half of it black
    return model, images, images + valid_nullspace_noise(model, images, generator=source(), iterations=100)


@pytest.mark.parametrize("seed", range(4))
def test_of_all_levels_near_a_small_patch_it_finds_a_good_one(seed):
    """A 2 x 4 map: of the 7 ** 4 points within 3 levels, plain rounding's is far from the best."""
    matrix = torch.randn(2, 4, generator=source(seed), dtype=torch.float64)
    model = wrapped(matrix.tolist())
    images = 0.3 + 0.4 * torch.rand(20, 4, 1, 1, generator=source(seed + 9), dtype=torch.float64)
    noise = sample_nullspace(patch_nullspace(model, space="pixel"), (4, 1, 1), 1, generator=source(), n=20)
    pixels = images + 0.1 * noise.clamp(-2, 2)
    kept = rounded_in_nullspace(model, images, pixels, reach=3)
    levels = (kept * 255).flatten(1)
    assert torch.allclose(levels, levels.round(), atol=1e-9)
    nearby = np.array(list(itertools.product(range(-3, 4), repeat=4)))
    tried = np.rint(pixels.flatten(1).numpy() * 255)[:, None] + nearby  # (20, 7 ** 4, 4)
    errors = np.linalg.norm((tried - images.flatten(1).numpy()[:, None] * 255) @ matrix.numpy().T, axis=-1)
    found = np.linalg.norm((levels - images.flatten(1) * 255).numpy() @ matrix.numpy().T, axis=-1)
    middle = len(nearby) // 2  # no move: plain rounding
    assert (found >= errors.min(1) - 1e-9).all()
    assert (found <= errors[:, middle] + 1e-9).all()
    assert np.mean(found) < 0.8 * np.mean(errors[:, middle])


def test_an_orthogonal_map_has_nothing_to_gain():
    """Columns of equal length at right angles: the nearest point is plain rounding's, and it is found."""
    model = wrapped(np.diag([2.0, 2.0, 2.0]).tolist())
    images = torch.rand(9, 3, 1, 1, generator=source(), dtype=torch.float64)
    assert torch.equal(rounded_in_nullspace(model, images, images), rounded_to_8_bits(images))


def test_where_one_pixel_makes_up_for_another_the_best_is_found():
    """W = (8, 1): the error of the first pixel, 8 times as heavy, is a whole number of the second's levels."""
    model = wrapped([[8.0, 1.0]])
    images = torch.tensor([100.25, 100.0], dtype=torch.float64).view(1, 2, 1, 1) / 255
    kept = rounded_in_nullspace(model, images, images) * 255
    assert kept.flatten().tolist() == pytest.approx([100, 102])  # 8 * 0.25 = 2
    assert float(embedding_error(model, images, kept / 255)) < 1e-12
    assert float(embedding_error(model, images, rounded_to_8_bits(images))) == pytest.approx(2 / (8 * 100.25 + 100))


def test_it_is_never_worse_than_plain_rounding_and_much_better_on_average(noisy):
    model, images, pixels = noisy
    kept, plain = rounded_in_nullspace(model, images, pixels), rounded_to_8_bits(pixels)
    matrix = matrix_of(model.float(), "pixel")
    model.double()
    errors = [
        np.linalg.norm(numpy_patches((each - images).numpy()) @ matrix.T, axis=-1) for each in (kept, plain, pixels)
    ]
    assert (errors[0] <= errors[1] * (1 + 1e-5)).all()
    assert np.mean(errors[1] / errors[0]) > 2.2  # 128 of 192 dimensions are free
    assert errors[2].max() < 1e-5
    sizes = np.linalg.norm((numpy_patches(images.numpy()) @ matrix.T).reshape(4, -1), axis=1)
    expected = np.linalg.norm(errors[0], axis=1) / sizes
    assert np.allclose(embedding_error(model, images, kept).numpy(), expected, rtol=1e-4)


def test_levels_are_whole_in_range_and_near(noisy):
    model, images, pixels = noisy
    for reach in (0, 2):
        kept = LatticeRounding(model, reach=reach)(images, pixels)
        levels = kept * 255
        assert torch.allclose(levels, levels.round(), atol=1e-9)
        assert float(kept.min()) >= 0
        assert float(kept.max()) <= 1
        assert float((levels - pixels * 255).abs().max()) <= reach + 0.5 + 1e-9
        assert torch.equal(kept, rounded_to_8_bits(pixels)) == (reach == 0)
    assert bool((pixels < 1 / 510).any())
    assert bool((pixels > 1 - 1 / 510).any())


def test_where_the_given_pixels_miss_the_embedding_it_is_the_images_that_is_sought(noisy):
    model, images, pixels = noisy
    off = (pixels + 1e-3 * torch.randn(pixels.shape, generator=source(), dtype=torch.float64)).clamp(0, 1)
    kept = rounded_in_nullspace(model, images, off)
    assert bool((embedding_error(model, images, kept) < 0.7 * embedding_error(model, images, off)).all())


def test_dtypes_and_black_images(noisy):
    model, images, pixels = noisy
    kept = rounded_in_nullspace(model, images.float(), pixels.float().clamp(0, 1))
    assert kept.dtype == torch.float32
    assert torch.equal(kept, (kept * 255).round() / 255)
    black = torch.zeros(1, 3, 32, 32)
    assert embedding_error(model, black, black).tolist() == [0.0]
    assert embedding_error(model, black, black + 0.1).tolist() == [float("inf")]


def test_what_cannot_be_rounded_is_refused(noisy):
    model, images, pixels = noisy
    with pytest.raises(OptionError, match="reach: expected a whole number of levels >= 0, found -1"):
        LatticeRounding(model, reach=-1)
    with pytest.raises(OptionError, match="expected the images' shape"):
        rounded_in_nullspace(model, images, pixels[:1])
    with pytest.raises(DataError, match=r"expected pixels in \[0, 1\]"):
        rounded_in_nullspace(model, images, pixels + 1)
    with pytest.raises(ModelError, match="no pixel space"):
        rounded_in_nullspace(model[1], images, pixels)
