"""P-Shuffle, P-Rotate and P-Infill: pixels only move, and to where they may."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import torch
from helpers.models import numpy_patches

from ns_easyrobust.errors import OptionError
from ns_easyrobust.training.augmentations.patch_transforms import (
    TRANSFORMS,
    check_grid,
    infill_patches,
    rotate_patches,
    shuffle_patches,
    transform_patches,
)

SIDE = 4


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def images_of(height: int, width: int, number: int = 3) -> torch.Tensor:
    """Images whose pixels are all different."""
    size = number * 3 * height * width
    return torch.randperm(size, generator=seeded(9)).float().view(number, 3, height, width) / size


def cut(images: torch.Tensor) -> list[list[bytes]]:
    """The patches of each image, row by row, as bytes."""
    return [[patch.tobytes() for patch in image] for image in numpy_patches(images.numpy(), SIDE)]


@pytest.mark.parametrize("transform", TRANSFORMS)
def test_random_by_image_and_by_the_generator_alone(transform):
    image = images_of(32, 32, 1).expand(4, -1, -1, -1)
    torch.manual_seed(5)
    before = torch.default_generator.get_state()
    first, again, other = (transform_patches(transform, image, SIDE, generator=seeded(s)) for s in (1, 1, 2))
    assert torch.equal(torch.default_generator.get_state(), before)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert len({each.numpy().tobytes() for each in (*first, image[0])}) == 5
    assert (first.shape, first.dtype) == (image.shape, image.dtype)


def test_shuffled_images_keep_their_patches_in_every_order():
    images = images_of(12, 20)
    for before, after in zip(cut(images), cut(shuffle_patches(images, SIDE, generator=seeded())), strict=True):
        assert sorted(before) == sorted(after)
        assert before != after
    pair = images_of(4, 8, 1).expand(2000, -1, -1, -1)
    kept = (shuffle_patches(pair, SIDE, generator=seeded()) == pair).flatten(1).all(1).float().mean()
    assert abs(kept - 0.5) < 4 * 0.5 / 2000**0.5


def test_rotated_patches_are_turned_at_their_place():
    images = images_of(60, 80)
    after = rotate_patches(images, SIDE, generator=seeded()).numpy()
    seen = Counter()
    for before, turned in zip(images.numpy(), after, strict=True):
        for y in range(0, 60, SIDE):
            for x in range(0, 80, SIDE):
                patch, found = (image[:, y : y + SIDE, x : x + SIDE] for image in (before, turned))
                (turns,) = (k for k in range(4) if np.array_equal(np.rot90(patch, k, axes=(1, 2)), found))
                seen[turns] += 1
    assert len(seen) == 4
    n = sum(seen.values())
    assert all(abs(count - n / 4) < 4 * (n * 3 / 16) ** 0.5 for count in seen.values())


@pytest.mark.parametrize(
    ("grid", "rate", "centre"),
    [
        ((4, 4), 0.25, {(y, x) for y in (1, 2) for x in (1, 2)}),
        ((4, 8), 0.375, {(y, x) for y in (1, 2) for x in range(1, 7)}),
        ((8, 8), 0.25, {(y, x) for y in range(2, 6) for x in range(2, 6)}),
        ((3, 3), 0.1, {(1, 1)}),
    ],
)
def test_infill_puts_the_boundary_into_the_centre(grid, rate, centre):
    rows, columns = grid
    images = images_of(rows * SIDE, columns * SIDE, 20)
    places = [(y, x) for y in range(rows) for x in range(columns)]
    boundary = [i for i, (y, x) in enumerate(places) if y in (0, rows - 1) or x in (0, columns - 1)]
    chosen = set()
    for before, after in zip(cut(images), cut(infill_patches(images, SIDE, rate, generator=seeded())), strict=True):
        assert {place for place, old, new in zip(places, before, after, strict=True) if old != new} == centre
        sources = [before.index(after[places.index(place)]) for place in sorted(centre)]
        assert set(sources) <= set(boundary)
        assert max(Counter(sources).values()) == 1
        chosen.add(tuple(sources))
    assert len(chosen) > 5


@pytest.mark.parametrize(
    ("grid", "rate"), [((4, 4), 0.375), ((4, 4), 0.9), ((3, 9), 0.5), ((2, 2), 0.25), ((1, 5), 0.4)]
)
def test_infill_replaces_its_share_from_what_is_left_of_the_boundary(grid, rate):
    rows, columns = grid
    number = rows * columns
    images = images_of(rows * SIDE, columns * SIDE, 12)
    changed = []
    for before, after in zip(cut(images), cut(infill_patches(images, SIDE, rate, generator=seeded())), strict=True):
        changed.append(tuple(i for i in range(number) if before[i] != after[i]))
        assert len(changed[-1]) == round(rate * number)
        kept = [i for i in range(number) if i not in changed[-1]]
        boundary = [i for i in kept if i // columns in (0, rows - 1) or i % columns in (0, columns - 1)]
        sources = Counter(before.index(after[i]) for i in changed[-1])
        assert set(sources) <= set(boundary)
        assert max(sources.values()) - min(sources[i] for i in boundary) <= 1
    assert len(set(changed)) > 1 or grid == (1, 5)  # which of equally near patches: at random


@pytest.mark.parametrize(
    ("transform", "size", "side", "rate", "match"),
    [
        ("rotate", (32, 30), 8, 0.25, "multiples of the 8 pixels of a transformed patch, found 32 x 30. Resize"),
        ("rotate", (32, 32), 64, 0.25, "multiples of the 64 pixels"),
        ("shuffle", (32, 32), 32, 0.25, "two patches or more, found one of 32 pixels in an image of 32 x 32"),
        ("infill", (32, 32), 32, 0.25, "infill: expected two patches or more, found one"),
        ("infill", (32, 32), 16, 0.1, "1 to 3 of the 4 patches of 16 pixels in an image of 32 x 32, found 0.1"),
        ("infill", (32, 32), 8, 0.99, "1 to 15 of the 16 patches"),
        ("blur", (32, 32), 8, 0.25, "expected one of shuffle, rotate, infill, found 'blur'"),
    ],
)
def test_grids_that_cannot_be_transformed_are_one_line(transform, size, side, rate, match):
    with pytest.raises(OptionError, match=match) as caught:
        check_grid(transform, size, side, rate)
    assert "\n" not in str(caught.value)
    with pytest.raises(OptionError, match=match):
        transform_patches(transform, torch.zeros(2, 3, *size), side, generator=seeded(), rate=rate)
