"""Image noise beside that of the patch embedding's nullspace: at a given size, in another order, as a file keeps it."""

from __future__ import annotations

from typing import NamedTuple

from ..errors import OptionError
from ..models import frozen, logits_of, output_of
from ..utils import nn, torch
from .distances import probability_distance
from .exact_noise import patchify, unpatchify


def scaled_to_rms(noise: torch.Tensor, rms: float) -> torch.Tensor:
    """``noise`` (B, C, H, W) with each image's root mean square ``rms``, > 0; an image of zeros stays so.

    Raises:
        OptionError: ``rms`` is not positive.
    """
    if not rms > 0:
        raise OptionError(f"rms: expected a number > 0, found {rms}.")
    own = noise.square().mean(dim=(1, 2, 3), keepdim=True).sqrt()
    return torch.where(own > 0, noise * (rms / own), noise)


def permuted_in_patches(noise: torch.Tensor, patch_size: int, *, generator: torch.Generator) -> torch.Tensor:
    """The elements of each patch in a random order of its own: the same norms and values, outside the nullspace.

    Args:
        noise: (B, C, H, W), with sides that are multiples of ``patch_size``.
        generator: source of the orders.

    Raises:
        OptionError: the sides do not fit.
    """
    patches = patchify(noise, patch_size, noise.shape[1] * patch_size**2)
    keys = torch.rand(patches.shape, generator=generator, device=generator.device)
    return unpatchify(patches.gather(-1, keys.argsort(-1).to(patches.device)), patch_size, noise.shape[1:])


def valid_permutation(
    images: torch.Tensor, noise: torch.Tensor, patch_size: int, *, generator: torch.Generator, rounds: int = 30
) -> torch.Tensor:
    """The elements of each patch in a random order among those that keep ``images + noise`` in [0, 1].

    The norm-matched control of :func:`~.exact_noise.valid_nullspace_noise`, which a permutation without regard to the
    pixels would turn into noise that has to be clipped, and so is smaller. In each round the elements of all patches
    are paired at random, and a pair changes places where both pixels stay valid. As pairs are drawn without regard to
    the noise, this walk's stationary distribution is uniform over the valid orders that it can reach.

    Args:
        images: (B, C, H, W) in [0, 1], with sides that are multiples of ``patch_size``.
        noise: of the same shape; ``images + noise`` is in [0, 1].
        generator: source of the pairs, which all patches share.
        rounds: of pairings; on photographs, after 20 the cosine between both noises is below 0.01.

    Raises:
        OptionError: the shapes do not fit, or ``images + noise`` leaves [0, 1].
    """
    if images.shape != noise.shape or not bool((((images + noise) >= 0) & ((images + noise) <= 1)).all()):
        raise OptionError(
            "noise: expected that of valid pixels, in the images' shape, found another. Correct the call."
        )
    size = noise.shape[1] * patch_size**2
    # Elements first, so that a pairing takes whole rows.
    pixels = patchify(images, patch_size, size).flatten(0, 1).T.contiguous()
    values = patchify(noise, patch_size, size).flatten(0, 1).T.contiguous()
    for _ in range(rounds):
        order = torch.randperm(size, generator=generator, device=generator.device).to(pixels.device)
        one, other = order[: size // 2], order[size // 2 : 2 * (size // 2)]
        mine, theirs = values[one], values[other]
        here, there = pixels[one] + theirs, pixels[other] + mine
        swaps = (torch.minimum(here, there) >= 0) & (torch.maximum(here, there) <= 1)
        values[one], values[other] = torch.where(swaps, theirs, mine), torch.where(swaps, mine, theirs)
    return unpatchify(values.T.reshape(len(images), -1, size), patch_size, images.shape[1:])


def rounded_to_8_bits(pixels: torch.Tensor) -> torch.Tensor:
    """Pixels in [0, 1] as an 8-bit file without loss (PNG) would return them."""
    return (pixels * 255).round() / 255


class OutputChange(NamedTuple):
    """How the outputs on each of n images changed; on the CPU, float64 but for ``unchanged``.

    Attributes:
        distance: (n,) squared L2 distance between softmax outputs; its mean is mse_probability.
        unchanged: (n,) whether the prediction stays.
        confidence: (n,) largest change of a class's probability.
        logits: (n,) largest change of a logit.
    """

    distance: torch.Tensor
    unchanged: torch.Tensor
    confidence: torch.Tensor
    logits: torch.Tensor


def output_change(clean: torch.Tensor, noisy: torch.Tensor) -> OutputChange:
    """The change from ``clean`` to ``noisy`` logits, (n, K) each."""
    clean, noisy = clean.cpu().double(), noisy.cpu().double()
    return OutputChange(
        distance=probability_distance(clean, noisy),
        unchanged=clean.argmax(-1) == noisy.argmax(-1),
        confidence=(noisy.softmax(-1) - clean.softmax(-1)).abs().amax(-1),
        logits=(noisy - clean).abs().amax(-1),
    )


def pixel_logits(model: nn.Module, images: torch.Tensor) -> torch.Tensor:
    """Logits (n, K) of a model in eval mode and full precision; it is as before afterwards."""
    with frozen(model) as inner, torch.no_grad(), torch.autocast(images.device.type, enabled=False):
        return logits_of(output_of(inner, images), len(images))
