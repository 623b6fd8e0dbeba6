"""Controls of encoder noise, and pixel noise over batches, against the formula of a linear model."""

from __future__ import annotations

import numpy as np
import torch
from helpers.models import LinearViT, numpy_patches
from scipy.special import softmax

from ns_easyrobust.models.normalization import with_normalization
from ns_easyrobust.nullspace.pixel_noise import pixel_logits
from ns_easyrobust.nullspace.transfer import encoder_controls, pixel_change, ratio_error


def test_controls_are_centred_and_of_the_norm_that_the_centred_noise_has():
    value = torch.randn(1, 5, 8, generator=torch.Generator().manual_seed(0)) + 3
    found = encoder_controls(value, generator=torch.Generator().manual_seed(1))
    centred = (value - value.mean(-1, keepdim=True)).numpy()
    assert np.allclose(found.noise.numpy(), centred, atol=1e-5)
    for control in found:
        assert float(control.mean(-1).abs().max()) < 1e-5
        assert np.isclose(float(control.norm()), np.linalg.norm(centred), rtol=1e-5)
    assert not torch.allclose(found.noise, found.permuted, atol=0.1)
    shuffled = value.flatten()[torch.randperm(40, generator=torch.Generator().manual_seed(1))].view(1, 5, 8)
    own = shuffled - shuffled.mean(-1, keepdim=True)
    assert torch.allclose(found.permuted, own * (found.noise.norm() / own.norm()), atol=1e-5)


def test_where_a_model_reads_a_token_s_mean_noise_and_controls_keep_it():
    value = torch.randn(1, 5, 8, generator=torch.Generator().manual_seed(0)) + 3
    found = encoder_controls(value, generator=torch.Generator().manual_seed(1), centre=False)
    assert torch.equal(found.noise, value)
    assert torch.allclose(found.permuted.flatten().sort()[0], value.flatten().sort()[0])
    assert np.isclose(float(found.random.norm()), float(value.norm()), rtol=1e-5)


def test_the_error_of_a_ratio_is_that_of_other_samples_of_images():
    """By simulation: the spread of the ratio's logarithm over samples."""
    rng = np.random.default_rng(0)
    base = rng.gamma(2, size=(400, 200))
    own = 0.3 * base * rng.gamma(4, size=base.shape)
    spread = np.log(own.mean(1) / base.mean(1)).std()
    found = [ratio_error(*map(torch.from_numpy, pair)) for pair in zip(own, base, strict=True)]
    assert np.isclose(np.mean(found), spread, rtol=0.1)
    assert ratio_error(torch.zeros(3), torch.ones(3)) is None
    assert ratio_error(torch.ones(1), torch.ones(1)) is None


def test_pixel_noise_over_batches_changes_a_linear_model_as_its_formula_says():
    model = with_normalization(LinearViT(seed=3), (0.5,) * 3, (0.25,) * 3).double()
    generator = torch.Generator().manual_seed(0)
    images, noise = (torch.rand(5, 3, 32, 32, generator=generator, dtype=torch.float64) for _ in range(2))
    batches = images.split(2)
    change = pixel_change(model, batches, noise.split(2), [pixel_logits(model, batch) for batch in batches])
    weight = model[1].patch_embed.proj.weight.flatten(1).detach().numpy()
    moved = (numpy_patches(noise.numpy()) @ weight.T / 0.25).reshape(5, -1) @ model[1].head.weight.detach().numpy().T
    clean = model(images).detach().numpy()
    expected = np.square(softmax(clean + moved, axis=1) - softmax(clean, axis=1)).sum(axis=1)
    assert np.allclose(change.distance.numpy(), expected, rtol=1e-9)
    assert np.array_equal(change.unchanged.numpy(), clean.argmax(1) == (clean + moved).argmax(1))
    assert expected.min() > 1e-4
