"""Transformed images: sources changed within the nullspace to look like targets (arXiv:2403.10476, appendices E, F)."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import nn

from .nearest import nearest_in_nullspace, nearest_valid
from .pixel_noise import rounded_to_8_bits


class TransformedKinds:
    """How far a transformed image has come on the way to a file."""

    LEAST_SQUARES = "least squares"  # Eq. 12; pixels may lie outside of [0, 1]
    VALID = "valid pixels"  # nearest with pixels in [0, 1]
    ROUNDED = "8 bits"  # the latter, each pixel rounded
    ALL = (LEAST_SQUARES, VALID, ROUNDED)


class TransformedImages(NamedTuple):
    """What :func:`transformed_images` returns.

    Attributes:
        images: by name of :class:`TransformedKinds`, (B, C, H, W) in float64.
        residual: (B,) of those with valid pixels (:class:`~.nearest.NearestImages`).
    """

    images: dict[str, torch.Tensor]
    residual: torch.Tensor


def transformed_images(
    model: nn.Module, sources: torch.Tensor, targets: torch.Tensor, *, iterations: int = 1000
) -> TransformedImages:
    """``sources`` changed to look like ``targets`` while ``model`` sees no change: by Eq. 12, in the box, in 8 bits.

    Args and errors are those of :func:`~.nearest.nearest_valid`.
    """
    valid, residual = nearest_valid(model, sources, targets, iterations=iterations)
    kinds = TransformedKinds
    images = {
        kinds.LEAST_SQUARES: nearest_in_nullspace(model, sources, targets),
        kinds.VALID: valid,
        kinds.ROUNDED: rounded_to_8_bits(valid),
    }
    return TransformedImages(images, residual)
