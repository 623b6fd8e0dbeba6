"""Rounding the squares of enlarged models: sums by brute force, whole levels, and less error than plain rounding."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from helpers.models import matrix_of, numpy_patches

from ns_easyrobust.errors import OptionError
from ns_easyrobust.nullspace.enlargement import enlarged
from ns_easyrobust.nullspace.lattice_rounding import LatticeRounding, embedding_error
from ns_easyrobust.nullspace.nearest import nearest_valid
from ns_easyrobust.nullspace.pixel_noise import rounded_to_8_bits
from ns_easyrobust.nullspace.square_rounding import SquareRounding, nearest_of_sum


def test_the_nearest_numbers_of_a_sum_are_those_of_a_search():
    generator = torch.Generator().manual_seed(0)
    wanted = 3 * torch.rand(40, 4, generator=generator, dtype=torch.float64)
    sums = torch.randint(0, 13, (40,), generator=generator).double()
    found = nearest_of_sum(wanted, sums, 3)
    assert torch.equal(found.sum(-1), sums)
    all_numbers = torch.tensor(list(itertools.product(range(4), repeat=4)), dtype=torch.float64)
    for row, total, own in zip(wanted, sums, found, strict=True):
        possible = all_numbers[all_numbers.sum(-1) == total]
        least = (possible - row).square().sum(-1).min()
        assert torch.isclose((own - row).square().sum(), least)


@pytest.mark.parametrize("total", [7.0, -1.0, 2.5])
def test_a_sum_of_no_such_numbers_is_refused(total):
    with pytest.raises(OptionError, match=r"sums: expected whole numbers in 0\.\.6, of 2 numbers in 0\.\.3, found"):
        nearest_of_sum(torch.tensor([1.0, 2.0]), torch.tensor(total), 3)


@pytest.mark.parametrize("reach", [0, 1, 8])
@pytest.mark.parametrize("factor", [2, 4])
def test_its_guarantees_hold_for_any_pixels(trained, reach, factor):
    """Pixels of no nullspace, many of them black or white, where others have to make up for them."""
    model, generator = enlarged(trained, factor), torch.Generator().manual_seed(reach)
    images, pixels = torch.rand(2, 6, 3, *2 * [32 * factor], generator=generator, dtype=torch.float64)
    rows = torch.linspace(0, 3, 6, dtype=torch.float64).view(6, 1, 1, 1)
    pixels = (0.5 + (pixels - 0.5) * (1 + rows)).clamp(0, 1)
    pixels[5] = images[5] = (pixels[5] + 0.5).round() / 255  # nearly black
    images[:3] = pixels[:3]
    kept = SquareRounding(model, reach=reach)(images, pixels)
    assert torch.allclose(255 * kept, (255 * kept).round(), atol=1e-9)
    assert bool(((kept >= 0) & (kept <= 1)).all())
    assert float((255 * (kept - pixels)).abs().max()) <= max(1, reach + 0.5) + 1e-9
    matrix = matrix_of(trained, "pixel")
    changes = (torch.nn.functional.avg_pool2d(each - images, factor) for each in (kept, rounded_to_8_bits(pixels)))
    found, plain = (np.linalg.norm(numpy_patches(change.numpy()) @ matrix.T, axis=-1) for change in changes)
    assert (found <= plain * (1 + 1e-5) + 1e-7).all()
    assert (found < 0.9 * plain).any()


def test_files_of_larger_images_are_read_nearly_as_before(trained, digits):
    images = torch.nn.functional.interpolate(digits[0][1297:1300].double(), scale_factor=2)
    model = enlarged(trained, 2)
    pixels = nearest_valid(model, images, images.flip(0)).images
    rounding = SquareRounding(model)
    kept = rounding(images, pixels)
    again = SquareRounding(model, like=SquareRounding(trained))
    assert embedding_error(model, images, again(images, pixels)).tolist() == pytest.approx(
        embedding_error(model, images, kept).tolist(), rel=0.2
    )
    levels = 255 * kept
    assert torch.allclose(levels, levels.round(), atol=1e-9)
    assert bool(((kept >= 0) & (kept <= 1)).all())
    assert float((levels - 255 * pixels).abs().max()) < 8
    plain = embedding_error(model, images, rounded_to_8_bits(pixels))
    assert bool((embedding_error(model, images, kept) < plain / 4).all())
    small, moved = images[..., ::2, ::2], pixels[..., ::2, ::2]
    assert torch.equal(SquareRounding(trained)(small, moved), LatticeRounding(trained)(small, moved))
