"""The image nearest to a target that the patch embedding takes for a source, against scipy."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.linalg
import scipy.optimize
import torch
from helpers.models import matrix_of, numpy_patches, unequal
from torch import nn

from ns_easyrobust.errors import DataError, OptionError
from ns_easyrobust.models.normalization import with_normalization
from ns_easyrobust.nullspace.nearest import nearest_in_nullspace, nearest_valid


class Tiny(nn.Module):
    """Patches of 2 pixels, 12 numbers each, mapped to 5."""

    def __init__(self) -> None:
        super().__init__()
        self.patch_embed = nn.Module()
        self.patch_embed.proj = nn.Conv2d(3, 5, 2, 2)


@pytest.fixture
def tiny():
    torch.manual_seed(0)
    return with_normalization(Tiny(), (0.5,) * 3, (0.2, 0.5, 0.9))


def drawn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


def bounded_least_squares(matrix: np.ndarray, source: np.ndarray, target: np.ndarray) -> np.ndarray:
    """scipy's: ||z - t|| and, weighed so that it is met, ||Wz - Wx||, with z in [0, 1]."""
    weighed = 1e5 * matrix
    return scipy.optimize.lsq_linear(
        np.vstack([np.eye(len(source)), weighed]), np.concatenate([target, weighed @ source]), bounds=(0, 1),
        method="bvls", tol=1e-15, max_iter=1000,
    ).x  # fmt: skip


def test_in_the_box_it_is_scipys_bounded_least_squares(tiny):
    sources, targets = drawn(2, 3, 4, 4), drawn(2, 3, 4, 4, seed=1).round()
    found = nearest_valid(tiny, sources, targets, tolerance=1e-10, iterations=20000)
    matrix = tiny[1].patch_embed.proj.weight.detach().double() / torch.tensor([0.2, 0.5, 0.9]).view(1, 3, 1, 1)
    matrix = matrix.flatten(1).numpy()
    ours, x, t = (numpy_patches(images.double().numpy(), 2) for images in (found.images, sources, targets))
    expected = np.array(
        [
            [bounded_least_squares(matrix, *pair) for pair in zip(*image, strict=True)]
            for image in zip(x, t, strict=True)
        ]
    )
    assert np.abs(ours - expected).max() < 1e-6
    assert 0.05 < (ours == 0).mean() + (ours == 1).mean() < 1  # the box does bind
    assert float(found.residual.max()) <= 1e-10


def test_without_the_box_it_is_numpys_least_squares():
    model = unequal()
    sources, targets = drawn(2, 3, 32, 32), drawn(2, 3, 32, 32, seed=1)
    found = numpy_patches(nearest_in_nullspace(model, sources, targets).numpy())
    x, t = (numpy_patches(images.double().numpy()) for images in (sources, targets))
    basis = scipy.linalg.null_space(matrix_of(model, "pixel"), rcond=1e-6)
    coefficients = np.linalg.lstsq(basis, (t - x).reshape(-1, 192).T, rcond=None)[0]
    assert np.abs(found - x - (basis @ coefficients).T.reshape(x.shape)).max() < 1e-6
    assert np.abs(found - x).max() > 0.1


def test_valid_pixels_change_the_output_as_little_as_is_said(trained, digits):
    images = digits[0][1297:1303]
    found = nearest_valid(trained, images, images.flip(0))
    assert (float(found.images.min()), float(found.images.max())) == (0, 1)
    assert found.images.dtype == torch.float64
    basis = scipy.linalg.orth(matrix_of(trained, "pixel").T)
    x, z = (numpy_patches(each.double().numpy()) @ basis for each in (images, found.images))
    least = 192**0.5 / 255  # norm of a patch one level bright
    seen = np.linalg.norm(z - x, axis=-1) / np.maximum(np.linalg.norm(x, axis=-1), least)
    assert found.residual.numpy() == pytest.approx(seen.max(1), rel=0.02, abs=1e-6)
    assert float(found.residual.max()) <= 1e-6
    with torch.no_grad():
        clean, seen, other = (trained(each.float()) for each in (images, found.images, images.flip(0)))
    assert 1000 * float((seen - clean).abs().max()) < float((other - clean).abs().max())
    before, after = ((each - images.flip(0)).square().sum() for each in (images, found.images))
    assert float(after) < 0.9 * float(before)


def test_too_few_steps_are_told_by_the_residual(trained, digits):
    images = digits[0][1297:1299]
    few, more = (nearest_valid(trained, images, images.flip(0), iterations=n, newton_steps=0) for n in (1, 300))
    assert float(few.residual.max()) > 1e-3 > float(more.residual.max())


def test_a_source_is_the_nearest_to_itself_at_once(trained, digits):
    images = digits[0][1297:1299]
    found = nearest_valid(trained, images, images, iterations=1)
    assert torch.equal(found.images, images.double())
    assert float(found.residual.max()) < 1e-12


@pytest.mark.parametrize("function", [nearest_in_nullspace, nearest_valid])
def test_bad_input_is_one_line(trained, function):
    images = torch.rand(1, 3, 32, 32)
    with pytest.raises(OptionError, match=r"targets: expected the sources' shape \(1, 3, 32, 32\), found \(2,"):
        function(trained, images, torch.rand(2, 3, 32, 32))
    with pytest.raises(DataError, match=r"expected pixels in \[0, 1\], found values from"):
        function(trained, images, images + 1)
    with pytest.raises(OptionError, match="iterations: expected a whole number >= 1, found 0"):
        nearest_valid(trained, images, images, iterations=0)
    with pytest.raises(OptionError, match="newton_steps: expected a whole number >= 0, found -1"):
        nearest_valid(trained, images, images, newton_steps=-1)
    for wrong in (0, -1e-6, float("nan"), float("inf")):
        with pytest.raises(OptionError, match="tolerance: expected a number > 0, found"):
            nearest_valid(trained, images, images, tolerance=wrong)


def test_a_black_patchs_residual_is_relative_to_one_level(trained):
    sources = torch.zeros(1, 3, 32, 32)
    found = nearest_valid(trained, sources, drawn(1, 3, 32, 32), iterations=1, newton_steps=0)
    basis = scipy.linalg.orth(matrix_of(trained, "pixel").T)
    seen = np.linalg.norm(numpy_patches(found.images.numpy()) @ basis, axis=-1)
    assert float(found.residual) == pytest.approx(seen.max() / (192**0.5 / 255), rel=1e-5)
