"""A noise on images and models that it was not made for: its influence, beside norm-matched controls."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from ..utils import nn, torch
from .feasible import unit_direction
from .pixel_noise import OutputChange, output_change, pixel_logits

SAME, PERMUTED, RANDOM = "noise", "permuted", "random"


class EncoderControls(NamedTuple):
    """A noise and its controls, (1, *tokens) each: centred per token and of one norm."""

    noise: torch.Tensor
    permuted: torch.Tensor
    random: torch.Tensor


def encoder_controls(value: torch.Tensor, *, generator: torch.Generator) -> EncoderControls:
    """``value`` (1, *tokens, D), its elements in another order, and Gaussian noise, all of its norm once centred.

    Centred, as layer norms take each token's mean away: the controls would else spend a part of their norm on nothing.
    """
    order = torch.randperm(value.numel(), generator=generator)
    others = value.flatten()[order].view_as(value), torch.randn(value.shape, generator=generator)
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
