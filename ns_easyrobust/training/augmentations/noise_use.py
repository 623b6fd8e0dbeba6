"""What training does with a noise: whether images share it, which loss it gives, and whether it is one of pixels."""

from __future__ import annotations

import argparse
import math
import numbers
from dataclasses import dataclass, fields
from typing import Any

from ... import nullspace
from ...errors import ModelError, NoiseError, OptionError
from ...models import find_normalize, find_patch_embed
from ...utils import choices_of, nn, setting, settings_from, torch

_MOST_KEPT = 10_000


@dataclass(frozen=True)
class NoiseUse:
    """What :class:`~ns_easyrobust.training.augmentations.nullspace.NullspaceAugmentation` does with its noises.

    By default what the paper does: the images of an update share the newest noise, and the loss is the loop's.
    The draws of an update come from the seed of this call, in the order given here, and before the model's dropout.

    ``fresh``: each image gets a noise of its own, as the companion draws it: ``random`` N(0, 1) for each element,
    scaled to the synthesized noise's norm; ``permuted`` the synthesized noise's elements in a random order.

    ``bank``: each image gets c * (w_1 s_1 v_1 + ... + w_n s_n v_n), of the n <= ``bank`` newest noises v, oldest first.
    Drawn are, for all images and noises at a time, independently: w from the flat Dirichlet distribution (w_i = e_i /
    sum_j e_j with standard exponential e_i); the signs s_i, each with probability 1/2; and for each image c, uniform in
    (0, 1].

    ``eps_growth``: at a renewal, the last noise is measured once more, with the model as it now is, on the held-out
    images. If its influence is under half of the eps that it was made with, eps grows by this factor, to 2 at most,
    which no influence exceeds. It stays where that noise was a random start under eps already, which a larger eps does
    not change.

    ``loss``: ``kl`` is KL(p(clean) || p(noisy)), averaged over the images, in place of the loop's loss; no gradient
    enters the clean predictions.

    ``valid_pixels``: v is not added to the patch embedding; the images x become clip(x + d, 0, 1), where d is the
    pixels' change of the least norm whose patch embedding is v (or comes nearest to it, where the projection's rank is
    too low), for the weights as they were when the newest noise was made.

    Raises:
        OptionError: a value is out of range, or ``fresh`` with ``bank``.
    """

    fresh: bool = setting(
        False, "each image of each update gets a noise of its own, of the same norm; for random and permuted"
    )
    bank: int = setting(
        0,
        "noises kept, of which each image gets a random combination; 0: all images get the newest as it is",
        least=0,
        most=_MOST_KEPT,
        metavar="N",
    )
    eps_growth: float = setting(
        1.0,
        "factor by which eps grows at a renewal if the last noise's influence is now under half of eps; 1: it stays",
        least=1,
        most=1000,
        metavar="F",
    )
    loss: str = setting(
        "ce",
        "of the noisy images; ce: the loss that training uses; kl: their predictions' divergence from the clean ones'",
        choices=("ce", "kl"),
    )
    valid_pixels: bool = setting(
        False, "add the noise to the images, as the change of pixels that causes it, and clip them to [0, 1]"
    )

    def __post_init__(self) -> None:
        for item in fields(self):
            least, most, value = item.metadata["least"], item.metadata["most"], getattr(self, item.name)
            if least is not None:
                kind: Any = numbers.Integral if isinstance(item.default, int) else numbers.Real
                noun = "whole number" if kind is numbers.Integral else "number"
                if not (isinstance(value, kind) and math.isfinite(value) and least <= value <= most):
                    raise OptionError(f"noise {item.name}: expected a {noun} from {least} to {most}, found {value!r}.")
        choices = choices_of(type(self), "loss")
        if self.loss not in choices:
            raise OptionError(f"noise loss: expected one of {', '.join(choices)}, found {self.loss!r}.")
        if self.fresh and self.bank:
            raise OptionError(
                "noise fresh: expected no bank beside it, as each image's noise is drawn anew, found a bank of "
                f"{self.bank}. Leave one of them out."
            )


def use_from(args: argparse.Namespace, prefix: str) -> NoiseUse:
    """The use of the noise in parsed flags."""
    return NoiseUse(**settings_from(args, NoiseUse, prefix)[0])


def check_use(use: NoiseUse, method: str, *, draws_fresh: bool, warm_start: bool, solver: str) -> None:
    """Raise OptionError for a use that has no meaning for this method."""
    if use.fresh and not draws_fresh:
        raise OptionError(
            f"noise fresh: expected a noise whose direction does not matter (random, permuted), found {method}, of "
            "which no other can be drawn. Give bank, for random combinations of those that were found."
        )
    if use.eps_growth > 1 and warm_start and solver == "paper":
        raise OptionError(
            "noise eps_growth: expected no warm_start with the solver paper, which returns a start under eps as it is, "
            "so that a larger eps would change nothing. Leave one of them out."
        )


def check_valid_pixels(model: nn.Module) -> None:
    """Raise ModelError unless ``model`` embeds patches of pixels in [0, 1] by one linear map."""
    nullspace.find_projection(model)
    norm = getattr(find_patch_embed(model), "norm", None)
    if norm is not None and not isinstance(norm, nn.Identity):
        raise ModelError(
            f"valid_pixels: expected a patch embedding that is linear, found {type(norm).__name__} behind its "
            "projection. Leave valid_pixels out."
        )
    if find_normalize(model) is None:
        raise ModelError(
            f"valid_pixels: expected a normalisation in front of {type(model).__name__}, so that its input is pixels "
            "in [0, 1], found none. Wrap it, Sequential(Normalize(mean, std), vit), or leave valid_pixels out."
        )


def gaussians_like(value: torch.Tensor, count: int) -> torch.Tensor:
    """``count`` Gaussian noises of the norm of ``value`` (1, *tokens), from the global generator: (count, *tokens)."""
    drawn = torch.randn(count, value.numel(), dtype=value.dtype, device=value.device)
    return (drawn * (value.norm() / drawn.norm(dim=1, keepdim=True))).view(count, *value.shape[1:])


def permutations_of(value: torch.Tensor, count: int) -> torch.Tensor:
    """``count`` random orders of the elements of ``value`` (1, *tokens), by the global generator: (count, *tokens)."""
    elements = value.flatten()
    orders = [torch.randperm(len(elements), device=value.device) for _ in range(count)]
    return torch.stack([elements[order] for order in orders]).view(count, *value.shape[1:])


def random_combinations(values: torch.Tensor, count: int) -> torch.Tensor:
    """``count`` combinations of ``values`` (n, *tokens), as :class:`NoiseUse` says of a bank: (count, *tokens).

    Drawn from the global generator of their device: exponentials (count, n), uniform numbers (count, n), of which
    those under 1/2 mean a negative sign, and uniform numbers (count, 1), whose differences from 1 are the scales; all
    in float64.
    """
    like = torch.empty(count, len(values), dtype=torch.float64, device=values.device)
    weights = torch.empty_like(like).exponential_().clamp_min(torch.finfo(like.dtype).tiny)
    weights = weights / weights.sum(dim=1, keepdim=True)
    signs = torch.where(torch.rand_like(like) < 0.5, -1.0, 1.0)
    scales = 1 - torch.rand_like(like[:, :1])
    return torch.tensordot((scales * signs * weights).to(values.dtype), values, dims=1)


def with_pixel_noise(pixels: torch.Tensor, value: torch.Tensor, inverse: torch.Tensor, patch_size: int) -> torch.Tensor:
    """clip(``pixels`` + the pixels' change for ``value``, 0, 1).

    Args:
        pixels: (B, C, H, W) in [0, 1].
        value: noise on the patch embedding, (1, *tokens) or (B, *tokens).
        inverse: (C*p*p, D), :func:`~ns_easyrobust.nullspace.patch_pseudo_inverse` for pixels.
        patch_size: p, in pixels.

    Raises:
        NoiseError: ``value`` has another number of tokens than ``pixels`` have patches.
    """
    tokens = value.flatten(1, -2)  # a Swin's, (H/p, W/p, D) under timm 1.x, row by row
    channels, height, width = pixels.shape[1:]
    if (height % patch_size, width % patch_size) != (0, 0) or tokens.shape[1] * patch_size**2 != height * width:
        raise NoiseError(
            f"noise does not fit these images: expected {tokens.shape[1]} patches of {patch_size} x {patch_size}, "
            f"found {height} x {width} pixels. Synthesize it for this image size."
        )
    change = nullspace.unpatchify(tokens @ inverse.T, patch_size, (channels, height, width))
    return (pixels.to(change.dtype) + change).clamp(0, 1).to(pixels.dtype)
