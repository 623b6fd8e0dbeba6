"""Rounding the squares of enlarged models: sums by brute force, whole levels, and less error than plain rounding."""

from __future__ import annotations

import itertools

import torch

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


def test_files_of_larger_images_are_read_nearly_as_before(trained, digits):
    images = torch.nn.functional.interpolate(digits[0][1297:1300].double(), scale_factor=2)
    model = enlarged(trained, 2)
    pixels = nearest_valid(model, images, images.flip(0)).images
    kept = SquareRounding(model)(images, pixels)
    levels = 255 * kept
    assert torch.allclose(levels, levels.round(), atol=1e-9)
    assert bool(((kept >= 0) & (kept <= 1)).all())
    assert float((levels - 255 * pixels).abs().max()) < 8
    plain = embedding_error(model, images, rounded_to_8_bits(pixels))
    assert bool((embedding_error(model, images, kept) < plain / 4).all())
    small, moved = images[..., ::2, ::2], pixels[..., ::2, ::2]
    assert torch.equal(SquareRounding(trained)(small, moved), LatticeRounding(trained)(small, moved))
