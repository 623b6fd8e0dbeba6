"""The texture of a mark: in the nullspace, the most visible of it, and how much it stands out."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from helpers.models import numpy_patches
from scipy.ndimage import gaussian_filter
from torch import nn

from ns_easyrobust.errors import ModelError, OptionError
from ns_easyrobust.nullspace.enlargement import enlarged
from ns_easyrobust.nullspace.exact import patch_nullspace
from ns_easyrobust.nullspace.texture import mark_contrast, textured, visible_texture


def seen_energy(patches: np.ndarray, blur: float) -> np.ndarray:
    """Of patches (n, 3, p, p) repeated without end, energy of the blurred luminance."""
    luminance = np.einsum("ncij,c->nij", patches, [0.2126, 0.7152, 0.0722])
    return np.stack([gaussian_filter(each, blur, mode="wrap", truncate=8) for each in luminance])


def test_the_texture_is_the_nullspace_s_most_visible_direction(trained):
    texture = visible_texture(trained, 32, 16, blur=1.0)
    assert texture.shape == (3, 32, 16)
    assert float(texture.square().mean()) == pytest.approx(1)
    patches = numpy_patches(texture[None].numpy())[0]
    assert np.allclose(patches, patches[0])  # the same in each
    weight = trained[1].patch_embed.proj.weight.detach().double().numpy().reshape(64, -1)
    std = trained[0].std.flatten().double().numpy().repeat(64)
    assert np.abs((weight / std) @ patches[0]).max() < 1e-5 * np.abs(weight / std).sum(1).max()
    basis = patch_nullspace(trained, space="pixel").numpy()
    blurred = seen_energy(basis.reshape(-1, 3, 8, 8), 1.0).reshape(len(basis), -1)
    most = np.linalg.eigvalsh(blurred @ blurred.T)[-1]
    own = seen_energy(patches[:1].reshape(1, 3, 8, 8), 1.0)
    assert (own**2).sum() / (patches[0] ** 2).sum() == pytest.approx(most, rel=5e-3)  # SciPy samples its Gaussian


@pytest.mark.parametrize("factor", [1, 2])
def test_the_texture_is_that_of_a_dense_decomposition(trained, factor):
    """The first eigenvector of N B' B N', N a basis of the whole nullspace and B a matrix from NumPy's transform."""
    model, side = enlarged(trained, factor), 8 * factor
    found = numpy_patches(visible_texture(model, 2 * side, side)[None].numpy(), side)[0, 0]
    basis = patch_nullspace(model, space="pixel").numpy()
    luminance = np.einsum("ncij,c->nij", basis.reshape(-1, 3, side, side), [0.2126, 0.7152, 0.0722])
    away = np.fft.fftfreq(side)
    kept = np.exp(-2 * (np.pi * 0.4) ** 2 * np.add.outer(away**2, away**2))
    blurred = np.fft.ifft2(np.fft.fft2(luminance) * kept).real.reshape(len(basis), -1)
    expected = np.linalg.eigh(blurred @ blurred.T)[1][:, -1] @ basis
    cosine = found @ expected / np.linalg.norm(found) / np.linalg.norm(expected)
    assert abs(cosine) == pytest.approx(1, abs=1e-6)
    assert float(found.sum()) > -1e-6


def test_a_mark_is_drawn_in_the_texture_where_it_covers():
    images, mark, texture = torch.full((2, 3, 4, 4), 0.5), torch.zeros(4, 4), torch.ones(3, 4, 4)
    mark[0, 0], mark[1, 1] = 1, 0.5
    texture[0] = -3
    found = textured(images, mark, texture, 0.2)
    assert found[1, :, 0, 0].tolist() == pytest.approx([0, 0.7, 0.7])  # clipped at 0
    assert found[0, :, 1, 1].tolist() == pytest.approx([0.2, 0.6, 0.6])
    assert torch.equal(found[:, :, 2:], images[:, :, 2:])


def test_contrast_is_measured_under_the_mark_and_elsewhere():
    mark = torch.zeros(40, 40)
    mark[:20] = 1
    images = torch.full((1, 3, 40, 40), 0.5)
    change = torch.full_like(images, 0.01)
    change[:, :, :20] = 0.2
    plain = mark_contrast(images, change, mark)
    assert [float(value) for value in plain[:3]] == pytest.approx([0.2, 0.01, 0.2 * 255], rel=1e-5)
    signs = 1 - 2 * ((torch.arange(40)[:, None] + torch.arange(40)) % 2)
    fine = mark_contrast(images + 0.1 * signs, change * signs, mark)
    assert float(fine.inside) == pytest.approx(0.2)
    assert float(fine.relative) == pytest.approx(2, rel=0.02)  # the image's own texture has half the contrast
    assert float(fine.afar) < 0.01 < 0.19 < float(plain.afar)


def test_what_has_no_texture_is_refused(trained):
    with pytest.raises(OptionError, match="blur: expected a number of pixels > 0, found 0"):
        visible_texture(trained, 32, 32, blur=0)
    with pytest.raises(OptionError, match="multiples of 8, found 32 x 30"):
        visible_texture(trained, 32, 30)
    with pytest.raises(OptionError, match=r"sides of 9 pixels at least, .* found \(1, 3, 8, 8\)"):
        mark_contrast(torch.rand(1, 3, 8, 8), torch.rand(1, 3, 8, 8), torch.ones(8, 8))
    with pytest.raises(OptionError, match="strength"):
        textured(torch.rand(1, 3, 8, 8), torch.ones(8, 8), torch.ones(3, 8, 8), 0)
    trained[1].patch_embed.proj = nn.Conv2d(3, 200, 8, 8)
    with pytest.raises(ModelError, match="expected a patch embedding with a nullspace, found none"):
        visible_texture(trained, 32, 32)
