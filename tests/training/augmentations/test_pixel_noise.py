from __future__ import annotations

import argparse

import pytest
import torch
from helpers.costs import counted
from helpers.models import small_vit
from scipy import stats
from torch import nn

from ns_easyrobust.errors import DataError, OptionError
from ns_easyrobust.training.augmentations.flags import augmentation_from_args, check_augmentation_args
from ns_easyrobust.training.augmentations.pixel_noise import PixelNoise, PixelNoiseSettings
from ns_easyrobust.training.options import build_parser
from ns_easyrobust.utils.seeding import fork_rng

cross_entropy = nn.functional.cross_entropy


def parsed(*words: str) -> argparse.Namespace:
    return build_parser().parse_args(["--aug", "pixel-noise", *words])


def seen_by(companion: PixelNoise, images: torch.Tensor) -> torch.Tensor:
    """The images that the model gets in the companion's next loss."""
    seen = []
    handle = companion.model.register_forward_pre_hook(lambda module, args: seen.append(args[0].clone()))
    companion.loss(images, None, lambda output, target: output.sum())
    handle.remove()
    (pixels,) = seen
    return pixels


def identity(**settings) -> PixelNoise:
    return PixelNoise(nn.Sequential(nn.Conv2d(3, 1, 1)), config=PixelNoiseSettings(**settings))


@pytest.mark.parametrize(("value", "sigma"), [(0.5, 0.5), (0.5, 0.1), (0.9, 0.5)])
def test_mean_and_variance_are_those_of_a_clipped_normal(value, sigma):
    pixels = seen_by(identity(sigma=sigma), torch.full((8, 3, 64, 64), value)).double()
    low, high = -value / sigma, (1 - value) / sigma
    inside, above = stats.norm.cdf(high) - stats.norm.cdf(low), stats.norm.sf(high)
    slope = stats.norm.pdf(high) - stats.norm.pdf(low)
    mean = value * inside - sigma * slope + above
    square = (value**2 + sigma**2) * inside - 2 * value * sigma * slope + above
    square -= sigma**2 * (high * stats.norm.pdf(high) - low * stats.norm.pdf(low))
    std = (square - mean**2) ** 0.5
    assert (pixels.min(), pixels.max()) == (
        (0, 1) if sigma == 0.5 else (pytest.approx(0, abs=0.1), pytest.approx(1, abs=0.1))
    )
    assert pixels.mean().item() == pytest.approx(mean, abs=5 * std / pixels.numel() ** 0.5)
    assert pixels.std().item() == pytest.approx(std, rel=0.02)
    planes = pixels.view(24, -1)  # of each image and channel, 4096 pixels
    assert (planes.corrcoef() - torch.eye(24)).abs().max() < 6 / 64


def test_uniform_sigma_is_uniform_over_the_images():
    change = seen_by(identity(sigma=0.1, uniform_sigma=True), torch.full((400, 3, 24, 24), 0.5)) - 0.5
    shares = change.flatten(1).std(dim=1) / 0.1  # clipping begins at 5 sigma
    assert stats.kstest(shares.numpy(), "uniform").pvalue > 0.01
    assert shares.min() > 0


@pytest.mark.parametrize("uniform", [False, True])
@pytest.mark.parametrize("soft", [False, True])
def test_the_loss_is_the_loops_on_images_with_the_documented_draw(digits, uniform, soft):
    images, labels = digits[0][:6], digits[1][:6]
    target = nn.functional.one_hot(labels, 10).float().roll(1, 0) * 0.3 if soft else labels
    model = small_vit(drop_rate=0.3).train()
    config = PixelNoiseSettings(sigma=0.2, uniform_sigma=uniform)
    loss = PixelNoise(model, config=config).loss(images, target, cross_entropy)
    with fork_rng(PixelNoise(model, config=config).next_seed()):
        sigma = 0.2 * (1 - torch.rand(6, 1, 1, 1)) if uniform else 0.2
        noisy = (images + sigma * torch.randn(6, 3, 32, 32)).clamp(0, 1)
        expected = cross_entropy(model(noisy), target)  # dropout draws after the noise
    assert torch.equal(loss, expected)
    assert loss != cross_entropy(model(images), target)
    loss.backward()
    assert all(parameter.grad.abs().sum() > 0 for parameter in model.parameters())


def test_calls_differ_and_a_rewound_or_resumed_one_repeats():
    companion, images = identity(), torch.full((2, 3, 8, 8), 0.5)
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    first = seen_by(companion, images)
    companion.rewind()
    assert torch.equal(seen_by(companion, images), first)
    state = companion.state_dict()
    second = seen_by(companion, images)
    assert not torch.equal(second, first)
    other = PixelNoise(companion.model, generator=torch.Generator().manual_seed(7))
    assert not torch.equal(seen_by(other, images), first)
    other.load_state_dict(state)
    assert torch.equal(seen_by(other, images), second)
    assert torch.equal(torch.rand(4), expected)


def test_noise_is_drawn_in_float32_under_autocast_and_for_half_precision(digits):
    images = digits[0][:4]
    with torch.autocast("cpu", torch.bfloat16):
        mixed = seen_by(identity(), images)
    whole = seen_by(identity(), images)
    assert mixed.dtype == torch.float32
    assert torch.equal(mixed, whole)
    half = PixelNoise(nn.Sequential(nn.Conv2d(3, 1, 1)).bfloat16())
    assert torch.equal(seen_by(half, images.bfloat16()), seen_by(identity(), images.bfloat16().float()).bfloat16())


def test_flags_and_cost(digits):
    model = small_vit()
    companion = augmentation_from_args(parsed("--pixel-noise-sigma", "0.3", "--pixel-noise-uniform-sigma"), model, [])
    assert companion.config == PixelNoiseSettings(sigma=0.3, uniform_sigma=True)
    assert augmentation_from_args(parsed(), model, []).config == PixelNoiseSettings(sigma=0.5, uniform_sigma=False)
    with counted(model) as count:
        companion.loss(digits[0][:8], digits[1][:8], cross_entropy).backward()
    assert count.equivalents == PixelNoise.cost(companion.config) == 3


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--pixel-noise-sigma 8", "pixel-noise: expected sigma in pixels of .* found 8. Divide it by 255. Its flags"),
        (
            "--erase-outside --reprob 0.25",
            "erase_outside: expected erased pixels inside .*, to which pixel-noise clips",
        ),
    ],
)
def test_flags_without_sense_are_refused_before_anything_is_built(words, message):
    with pytest.raises(OptionError, match=message) as caught:
        check_augmentation_args(parsed(*words.split()))
    assert "\n" not in str(caught.value)
    check_augmentation_args(parsed("--erase-outside"))  # which erases nothing


def test_values_out_of_range_are_refused(digits):
    for sigma in (-0.1, float("nan")):
        with pytest.raises(OptionError, match="pixel-noise: expected sigma >= 0 in pixels"):
            PixelNoiseSettings(sigma=sigma)
    with pytest.raises(DataError, match=r"pixel-noise: expected pixels in \[0, 1\], found \[-1, 1\].*Normalise inside"):
        identity().loss(2 * digits[0][:4] - 1, digits[1][:4], cross_entropy)
