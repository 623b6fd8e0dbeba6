"""Transformed images: what each kind is, by the weights themselves."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.linalg
import torch
from helpers.models import matrix_of, numpy_patches

from ns_easyrobust.nullspace import nearest, transformed
from ns_easyrobust.nullspace.lattice_rounding import LatticeRounding
from ns_easyrobust.nullspace.row_space import PatchRowSpace
from ns_easyrobust.nullspace.transformed import TransformedKinds, transformed_images


def patches(images: torch.Tensor) -> np.ndarray:
    return numpy_patches(images.double().numpy()).reshape(-1, 192)


def test_each_kind_is_what_it_says(trained, digits):
    images = digits[0][1297:1301]
    found, residual = transformed_images(trained, images, images.flip(0))
    assert tuple(found) == TransformedKinds.ALL
    x, t = patches(images), patches(images.flip(0))
    least, valid, rounded = (patches(each) for each in found.values())
    matrix = matrix_of(trained, "pixel")
    null, rows = scipy.linalg.null_space(matrix, rcond=1e-6), scipy.linalg.orth(matrix.T)

    # Eq. 12: Wz = Wx, and what is left of t - z lies in the row space.
    assert np.abs((least - x) @ rows).max() < 1e-6
    assert np.abs((t - least) @ null).max() < 1e-6
    assert least.min() < 0

    # In the box: as near to W x as is said, not nearer to t than without a box, and much nearer than x is.
    assert (valid.min(), valid.max()) == (0, 1)
    size = np.maximum(np.linalg.norm(x @ rows, axis=1), 192**0.5 / 255)
    seen = (np.linalg.norm((valid - x) @ rows, axis=1) / size).reshape(4, 16).max(1)
    assert residual.numpy() == pytest.approx(seen, rel=0.02, abs=1e-7)
    away = [np.linalg.norm(t - each) for each in (least, valid, x)]
    assert away[0] < away[1] < 0.9 * away[2]
    # The optimality conditions: z - t is a row-space vector R'y where z is inside, beyond 0 or 1 elsewhere.
    for z, aim in zip(valid, t, strict=True):
        free = (z > 0) & (z < 1)
        if free.sum() > 64:  # R'y is determined
            y = np.linalg.lstsq(rows[free], (z - aim)[free], rcond=None)[0]
            assert np.abs(np.clip(aim + rows @ y, 0, 1) - z).max() < 1e-4

    assert np.abs(rounded * 255 - np.rint(valid * 255)).max() < 1e-9
    assert np.abs(rounded - valid).max() > 0.4 / 255


def test_rounding_within_the_nullspace_is_a_kind_of_its_own(trained, digits):
    images = digits[0][1297:1299]
    kinds = TransformedKinds
    found, _ = transformed_images(trained, images, images.flip(0), rounding=LatticeRounding(trained))
    lattice, rounded, valid = (patches(found[kind]) for kind in (kinds.LATTICE, kinds.ROUNDED, kinds.VALID))
    assert np.abs(lattice * 255 - np.rint(lattice * 255)).max() < 1e-9
    assert (lattice.min(), lattice.max()) == (0, 1)
    assert np.abs(lattice - valid).max() <= 8.5 / 255 + 1e-9
    matrix, x = matrix_of(trained, "pixel"), patches(images)
    errors = [np.linalg.norm((each - x) @ matrix.T, axis=1) for each in (lattice, rounded)]
    assert (errors[0] <= errors[1] * (1 + 1e-5)).all()
    assert errors[0].mean() < 0.7 * errors[1].mean()


def test_a_given_row_space_is_used_and_one_is_made_once(trained, digits, monkeypatch):
    images, made = digits[0][1297:1299], []

    class Counted(PatchRowSpace):
        def __init__(self, *args):
            made.append(args)
            super().__init__(*args)

    space = PatchRowSpace(trained)
    for module in (nearest, transformed):
        monkeypatch.setattr(module, "PatchRowSpace", Counted)
    expected = transformed_images(trained, images, images.flip(0), iterations=3)
    assert len(made) == 1
    found = transformed_images(trained, images, images.flip(0), iterations=3, space=space)
    assert len(made) == 1
    assert all(torch.equal(found.images[kind], expected.images[kind]) for kind in TransformedKinds.ALL)
