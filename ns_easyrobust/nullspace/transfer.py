"""A noise on images and models that it was not made for: its influence, beside norm-matched controls."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from ..utils import nn, torch
from .feasible import unit_direction
from .pixel_noise import OutputChange, output_change, pixel_logits

SAME, PERMUTED, RANDOM = "noise", "permuted", "random"


class EncoderControls(NamedTuple):
    """A noise and its controls, (1, *tokens) each, of one norm."""

    noise: torch.Tensor
    permuted: torch.Tensor
    random: torch.Tensor


def encoder_controls(value: torch.Tensor, *, generator: torch.Generator, centre: bool = True) -> EncoderControls:
    """``value`` (1, *tokens, D), its elements in another order, and Gaussian noise, all of one norm.

    Args:
        centre: take each token's mean off all three, as layer norms do: the controls would else spend a part of their
            norm on nothing. False where a model reads tokens otherwise
            (:func:`~ns_easyrobust.models.reader_without_layer_norm`).
    """
    order = torch.randperm(value.numel(), generator=generator)
    others = value.flatten()[order].view_as(value), torch.randn(value.shape, generator=generator)
    if not centre:
        return EncoderControls(value, *(other * (value.norm() / other.norm()) for other in others))
    direction = unit_direction(value)
    norm = float((value.double() * direction.double()).sum())
    return EncoderControls(norm * direction, *(norm * unit_direction(other) for other in others))


def pixel_change(
    model: nn.Module, batches: Sequence[torch.Tensor], noise: Sequence[torch.Tensor], clean: Sequence[torch.Tensor]
) -> OutputChange:
    """How the outputs change by noise on pixels.

    Args:
        batches: images (B, C, H, W) of each batch.
        noise: for each batch, (B, C, H, W) or (1, C, H, W), in the pixels' units; noisy pixels are not clipped.
        clean: :func:`~.pixel_noise.pixel_logits` of each batch.
    """
    changes = [
        output_change(logits, pixel_logits(model, images + own.to(images)))
        for images, own, logits in zip(batches, noise, clean, strict=True)
    ]
    return OutputChange(*(torch.cat(parts) for parts in zip(*changes, strict=True)))


def ratio_error(own: torch.Tensor, base: torch.Tensor) -> float | None:
    """Standard error of log(mean(own) / mean(base)) over images, of which ``own`` and ``base`` (n,) are influences.

    By the delta method for a ratio of paired means: the error of the mean of own / mean(own) - base / mean(base).

    Returns:
        None where a mean is 0, or there is a single image.

    Source: Cochran, Sampling Techniques (3rd edition, 1977), section 6.4.
    """
    if len(own) < 2 or not (own.mean() > 0 and base.mean() > 0):
        return None
    return float((own / own.mean() - base / base.mean()).std() / math.sqrt(len(own)))
