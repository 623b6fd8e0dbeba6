"""Transformed images: what each kind is."""

from __future__ import annotations

import torch

from ns_easyrobust.nullspace.nearest import nearest_in_nullspace, nearest_valid
from ns_easyrobust.nullspace.transformed import TransformedKinds, transformed_images


def test_each_kind_is_what_it_says(trained, digits):
    images = digits[0][1297:1301]
    found, residual = transformed_images(trained, images, images.flip(0))
    assert tuple(found) == TransformedKinds.ALL
    nearest = nearest_valid(trained, images, images.flip(0))
    assert torch.equal(found[TransformedKinds.LEAST_SQUARES], nearest_in_nullspace(trained, images, images.flip(0)))
    assert torch.equal(found[TransformedKinds.VALID], nearest.images)
    assert torch.equal(residual, nearest.residual)
    levels = 255 * found[TransformedKinds.ROUNDED]
    assert float((levels - levels.round()).abs().max()) < 1e-9
    assert 0 < float((levels - 255 * nearest.images).abs().max()) <= 0.5 + 1e-9
