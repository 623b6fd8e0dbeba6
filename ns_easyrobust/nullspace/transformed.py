"""Transformed images: sources changed within the nullspace to look like targets (arXiv:2403.10476, appendices E, F)."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import nn

from .lattice_rounding import LatticeRounding
from .nearest import nearest_in_nullspace, nearest_valid
from .pixel_noise import rounded_to_8_bits
from .row_space import PatchRowSpace
from .square_rounding import SquareRounding


class TransformedKinds:
    """How far a transformed image has come on the way to a file."""

    LEAST_SQUARES = "least squares"  # Eq. 12; pixels may lie outside of [0, 1]
    VALID = "valid pixels"  # nearest with pixels in [0, 1]
    ROUNDED = "8 bits"  # the latter, each pixel rounded
    LATTICE = "8 bits, lattice"  # the latter, rounded so that the patch embedding sees little of it
    ALL = (LEAST_SQUARES, VALID, ROUNDED)


class TransformedImages(NamedTuple):
    """What :func:`transformed_images` returns.

    Attributes:
        images: by name of :class:`TransformedKinds`, (B, C, H, W) float64: those of ALL, and LATTICE where asked for.
        residual: (B,) of those with valid pixels (:class:`~.nearest.NearestImages`).
    """

    images: dict[str, torch.Tensor]
    residual: torch.Tensor


def transformed_images(
    model: nn.Module,
    sources: torch.Tensor,
    targets: torch.Tensor,
    *,
    iterations: int = 1000,
    rounding: LatticeRounding | SquareRounding | None = None,
    space: PatchRowSpace | None = None,
) -> TransformedImages:
    """``sources`` changed to look like ``targets`` while ``model`` sees no change: by Eq. 12, in the box, in 8 bits.

    Args:
        model, sources, targets, iterations, space: as in :func:`~.nearest.nearest_valid`, whose errors are raised.
        rounding: the model's, for images of the kind LATTICE too; made once for many calls, as that takes time.
    """
    space = PatchRowSpace(model, sources.device) if space is None else space
    valid, residual = nearest_valid(model, sources, targets, iterations=iterations, space=space)
    kinds = TransformedKinds
    images = {
        kinds.LEAST_SQUARES: nearest_in_nullspace(model, sources, targets, space=space),
        kinds.VALID: valid,
        kinds.ROUNDED: rounded_to_8_bits(valid),
    }
    if rounding is not None:
        images[kinds.LATTICE] = rounding(sources.double(), valid)
    return TransformedImages(images, residual)
