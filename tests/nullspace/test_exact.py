"""Exact nullspaces of the patch embedding, against numpy and scipy."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.linalg
import scipy.optimize
import timm
import torch
from helpers.models import STD, matrix_of, numpy_patches, small_vit, unequal
from torch import nn

from ns_easyrobust.errors import DataError, ModelError, OptionError
from ns_easyrobust.models.architectures import build
from ns_easyrobust.models.normalization import Normalize, with_normalization
from ns_easyrobust.nullspace.exact import find_projection, patch_nullspace, patch_spectrum
from ns_easyrobust.nullspace.exact_noise import project_to_nullspace, sample_nullspace, valid_nullspace_noise


def scipy_nullspace(model: nn.Module, space: str) -> np.ndarray:
    weight = model[1].patch_embed.proj.weight.detach().numpy()
    if space == "pixel":
        weight = weight / model[0].std.numpy()[:, None, None]
    assert weight.dtype == np.float32
    return scipy.linalg.null_space(weight.reshape(64, 192))


@pytest.mark.parametrize("space", ["normalised", "pixel"])
def test_basis_spans_scipys_nullspace(space):
    model = unequal()
    basis = patch_nullspace(model, space=space)
    assert basis.shape == (128, 192)
    assert basis.dtype == torch.float64
    assert not basis.requires_grad
    np.testing.assert_allclose((basis @ basis.T).numpy(), np.eye(128), atol=1e-12)
    angles = scipy.linalg.subspace_angles(basis.numpy().T, scipy_nullspace(model, space).astype(np.float64))
    assert len(angles) == 128
    assert angles.max() < 1e-5  # scipy's is computed in float32
    assert np.abs(matrix_of(model, space) @ basis.numpy().T).max() < 1e-5 * np.abs(matrix_of(model, space)).max()


def test_spaces_differ_by_std():
    model = unequal()
    normalised, pixel = patch_nullspace(model), patch_nullspace(model, space="pixel")
    assert scipy.linalg.subspace_angles(normalised.numpy().T, pixel.numpy().T).max() > 0.1
    divided = pixel.view(-1, 3, 64) / torch.tensor(STD, dtype=torch.float64)[:, None]
    angles = scipy.linalg.subspace_angles(normalised.numpy().T, divided.flatten(1).numpy().T)
    assert angles.max() < 1e-6


def test_sample_leaves_the_logits_alone_and_other_noise_does_not(digits):
    model, images = unequal(), digits[0][:8]
    noise = sample_nullspace(
        patch_nullspace(model, space="pixel"), (3, 32, 32), 8, generator=torch.Generator().manual_seed(0), n=8
    )
    other = noise.flatten(1)[:, torch.randperm(3072)].view_as(noise)
    with torch.no_grad():
        change, control = (float((model((images + v).float()) - model(images)).abs().max()) for v in (noise, other))
    assert 0.9 < float(noise.std()) / (128 / 192) ** 0.5 < 1.1  # lambda ~ N(0, 1)
    assert 1000 * change < control


def test_sample_draws_every_patch_by_itself_from_the_generator_alone():
    basis = patch_nullspace(small_vit())
    state = torch.get_rng_state()
    first, again, other = (
        sample_nullspace(basis, (3, 32, 16), 8, generator=torch.Generator().manual_seed(seed), n=3)
        for seed in (0, 0, 1)
    )
    assert torch.equal(state, torch.get_rng_state())
    assert first.shape == (3, 3, 32, 16)
    assert torch.equal(first, again)
    assert not torch.allclose(first, other)
    patches = numpy_patches(first.numpy()).reshape(24, 192)
    assert np.linalg.matrix_rank(patches) == 24
    np.testing.assert_allclose(patches @ basis.numpy().T @ basis.numpy(), patches, atol=1e-12)


def test_projection_is_orthogonal_idempotent_and_numpys():
    model = unequal()
    basis = patch_nullspace(model, space="pixel")
    perturbation = torch.randn(2, 3, 16, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    projected = project_to_nullspace(basis, perturbation, 8)
    matrix = matrix_of(model, "pixel")
    projector = np.eye(192) - np.linalg.pinv(matrix) @ matrix  # independent of any basis
    expected = numpy_patches(perturbation.numpy()) @ projector
    np.testing.assert_allclose(numpy_patches(projected.numpy()), expected, atol=1e-5)
    torch.testing.assert_close(project_to_nullspace(basis, projected, 8), projected, rtol=0, atol=1e-12)
    assert abs(float(((perturbation - projected) * projected).sum())) < 1e-9
    assert 0.5 < float(projected.norm() / perturbation.norm()) < 0.95
    halved = project_to_nullspace(basis, perturbation.float(), 8)
    assert halved.dtype == torch.float32
    torch.testing.assert_close(halved, projected.float())


def test_planted_rank_deficiency_is_found():
    model = unequal()
    with torch.no_grad():
        weight = model[1].patch_embed.proj.weight
        weight[60:] = weight[:4] + weight[4:8]
        weight[59] = weight[58] + 1e-3 * weight[59]
    spectrum = patch_spectrum(model)
    assert (spectrum.rank, spectrum.nullity) == (60, 132)
    assert patch_nullspace(model).shape == (132, 192)
    assert spectrum.largest_dropped < 1e-6 < spectrum.rtol < spectrum.smallest_kept
    assert spectrum.smallest_kept < 1e-2
    assert patch_spectrum(model, rtol=1e-2).nullity == 133
    assert patch_spectrum(model.double(), rtol=0).nullity <= 132


def test_spectrum_against_numpy_and_of_a_bare_weight():
    model = unequal()
    weight = find_projection(model).weight
    spectrum = patch_spectrum(weight)
    assert (spectrum.embed_dim, spectrum.input_dim, spectrum.patch_size) == (64, 192, 8)
    assert spectrum.rtol == 192 * np.finfo(np.float32).eps
    assert spectrum.largest_dropped is None
    values = np.linalg.svd(weight.detach().double().numpy().reshape(64, 192), compute_uv=False)
    np.testing.assert_allclose(spectrum.singular_values.numpy(), values, rtol=1e-12)
    assert spectrum.smallest_kept == pytest.approx(values[-1] / values[0])
    pixel = patch_spectrum(weight, space="pixel", std=STD).singular_values
    torch.testing.assert_close(pixel, patch_spectrum(model, space="pixel").singular_values, rtol=1e-6, atol=0)
    assert not torch.allclose(pixel, spectrum.singular_values)
    with pytest.raises(ModelError, match="has no pixel space"):
        patch_spectrum(weight, space="pixel")
    assert patch_spectrum(weight.half()).nullity == 128  # not cut at half precision's epsilon
    assert patch_spectrum(weight.double()).rtol == 192 * np.finfo(np.float64).eps


def test_zero_weight_has_nothing_but_a_nullspace():
    spectrum = patch_spectrum(torch.zeros(4, 3, 2, 2))
    assert (spectrum.rank, spectrum.nullity, spectrum.smallest_kept, spectrum.largest_dropped) == (
        0,
        12,
        None,
        0,
    )


def test_swin_has_its_norm_behind_the_projection():
    torch.manual_seed(0)
    swin = build("swin_micro_patch2_32", num_classes=10, embed_dim=8, num_heads=(2, 4), patch_size=2)
    model = with_normalization(swin, (0.5,) * 3, STD).eval()
    basis = patch_nullspace(model, space="pixel")
    assert basis.shape == (4, 12)
    noise = sample_nullspace(basis, (3, 32, 32), 2, generator=torch.Generator().manual_seed(0))
    images = torch.rand(1, 3, 32, 32)
    with torch.no_grad():
        change = float((model((images + noise).float()) - model(images)).abs().max())
        control = float((model((images + noise.flip(-1)).float()) - model(images)).abs().max())
    assert 1000 * change < control


def test_empty_nullspace_is_no_error():
    model = small_vit(embed_dim=192)
    assert patch_nullspace(model).shape == (0, 192)
    assert patch_spectrum(model).nullity == 0
    empty, generator = patch_nullspace(model, space="pixel"), torch.Generator()
    assert not sample_nullspace(empty, (3, 32, 32), 8, generator=generator).any()
    assert not project_to_nullspace(empty, torch.ones(1, 3, 32, 32), 8).any()
    assert not valid_nullspace_noise(model, torch.rand(1, 3, 32, 32), generator=generator, iterations=2).any()


def with_projection(projection: nn.Module, **children: nn.Module) -> nn.Module:
    model = small_vit()
    model[1].patch_embed.proj = projection
    for name, child in children.items():
        model[1].patch_embed.add_module(name, child)
    return model


class PaddedConv(nn.Conv2d):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(nn.functional.pad(x, (1, 1, 1, 1)))


@pytest.mark.parametrize(
    ("model", "found"),
    [
        (with_projection(nn.Conv2d(3, 64, 8, stride=4)), r"stride \(4, 4\)"),
        (with_projection(nn.Conv2d(3, 64, 8, stride=8, padding=1)), r"padding \(1, 1\)"),
        (with_projection(nn.Conv2d(3, 63, 8, stride=8, groups=3)), "groups 3"),
        (with_projection(nn.Conv2d(3, 64, 8, stride=8, dilation=2)), r"dilation \(2, 2\)"),
        (with_projection(nn.Conv2d(3, 64, (8, 4), stride=(8, 4))), r"kernel \(8, 4\)"),
        (with_projection(PaddedConv(3, 64, 8, stride=8)), "PaddedConv as proj"),
        (
            with_projection(nn.Sequential(nn.Conv2d(3, 64, 8, 8), nn.ReLU())),
            "Sequential as proj in PatchEmbed",
        ),
        (with_projection(nn.Conv2d(16, 64, 1), backbone=nn.Conv2d(3, 16, 8, 8)), r"backbone \(Conv2d\)"),
    ],
)
def test_what_is_not_linear_in_separate_patches_is_refused(model, found):
    with pytest.raises(ModelError, match=rf"^VisionTransformer has no exact patch nullspace: .* found .*{found}"):
        patch_nullspace(model)


def test_xcit_and_models_without_a_patch_embedding_are_refused_by_name():
    with pytest.raises(ModelError, match=r"^X[Cc]i[Tt] has no exact patch nullspace"):
        patch_nullspace(build("xcit_nano_12_p16_224"))
    with pytest.raises(ModelError, match="ResNet has no patch embedding"):
        patch_nullspace(timm.create_model("resnet18", num_classes=10))


def test_settings_out_of_range_are_refused():
    model = small_vit()
    with pytest.raises(ModelError, match="VisionTransformer has no pixel space"):
        patch_nullspace(model[1], space="pixel")
    assert len(patch_nullspace(model[1])) == 128
    with pytest.raises(OptionError, match="space: expected one of normalised, pixel, found 'pixels'"):
        patch_nullspace(model, space="pixels")
    for rtol in (-1e-3, 1.0, float("nan")):
        with pytest.raises(OptionError, match="rtol"):
            patch_nullspace(model, rtol=rtol)
    with pytest.raises(OptionError, match="std: expected 3 positive numbers"):
        patch_spectrum(find_projection(model).weight, space="pixel", std=(1, 1))
    with pytest.raises(OptionError, match="divide by 255"):
        patch_spectrum(find_projection(model).weight, space="pixel", std=(58.4, 57.1, 57.4))
    with pytest.raises(ModelError, match=r"expected a floating-point weight \(D, C, p, p\)"):
        patch_spectrum(torch.ones(64, 192))
    with pytest.raises(ModelError, match="finite"):
        patch_spectrum(torch.full((4, 3, 2, 2), float("nan")))


def test_shapes_and_pixels_out_of_range_are_refused():
    model, generator = small_vit(), torch.Generator()
    basis = patch_nullspace(model)
    with pytest.raises(OptionError, match="multiples of the patch size 8"):
        sample_nullspace(basis, (3, 30, 32), 8, generator=generator)
    with pytest.raises(OptionError, match="multiples of the patch size 8"):
        project_to_nullspace(basis, torch.zeros(3, 32, 32), 8)
    with pytest.raises(OptionError, match=r"rows of C\*p\*p = 3\*4\*4 = 48 numbers .* found 192"):
        project_to_nullspace(basis, torch.zeros(1, 3, 32, 32), 4)
    with pytest.raises(OptionError, match="expected floating point, found"):
        project_to_nullspace(basis, torch.zeros(1, 3, 32, 32, dtype=torch.uint8), 8)
    with pytest.raises(OptionError, match="n: expected"):
        sample_nullspace(basis, (3, 32, 32), 8, generator=generator, n=0)
    with pytest.raises(OptionError, match="patch_size"):
        sample_nullspace(basis, (3, 32, 32), 0, generator=generator)
    good = torch.rand(1, 3, 32, 32)
    for images in (good * 255, good - 0.5, good * float("nan"), good[0], (good * 255).byte()):
        with pytest.raises(DataError, match="images: expected"):
            valid_nullspace_noise(model, images, generator=generator)
    with pytest.raises(OptionError, match="multiples"):
        valid_nullspace_noise(model, good[..., :30], generator=generator)
    with pytest.raises(OptionError, match="iterations"):
        valid_nullspace_noise(model, good, generator=generator, iterations=0)
    with pytest.raises(ModelError, match="no pixel space"):
        valid_nullspace_noise(model[1], good, generator=generator)


def test_a_normalisation_of_another_shape_is_understood():
    model = unequal()
    expected = patch_nullspace(model, space="pixel")
    other = nn.Sequential(Normalize((0.4, 0.5, 0.6), STD), model[1])
    other[0].std = other[0].std.view(1, 3, 1, 1)
    assert torch.equal(patch_nullspace(other, space="pixel"), expected)
