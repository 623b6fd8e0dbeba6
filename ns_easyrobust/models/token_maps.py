"""From numbers of patch tokens to maps over the image."""

from __future__ import annotations

from collections.abc import Sequence

from ..errors import ModelError
from ..utils import nn, torch
from .vit import find_patch_embed


def at_least_float32(tensor: torch.Tensor) -> torch.dtype:
    """The dtype in which maps of ``tensor`` are computed: its own, or float32 where that is coarser."""
    return torch.promote_types(tensor.dtype, torch.float32)


def upscaled(relevance: torch.Tensor, size: Sequence[int]) -> torch.Tensor:
    """``relevance`` (B, 1, h, w) bilinearly on ``size`` (H, W), each image from 0 to 1; 0 where it is constant.

    The public code divides 0 by 0 there (``ViT/explainer.py:29`` of hila-chefer/RobustViT), which makes all weights
    NaN.
    """
    maps = nn.functional.interpolate(relevance, size=tuple(size), mode="bilinear", align_corners=False)
    least, greatest = maps.amin((1, 2, 3), keepdim=True), maps.amax((1, 2, 3), keepdim=True)
    span = greatest - least
    return (maps - least) / torch.where(span > torch.finfo(span.dtype).tiny, span, torch.ones_like(span))


def patch_grid(model: nn.Module, tokens: int, size: Sequence[int]) -> tuple[int, int]:
    """(h, w) with h w = ``tokens``: the patches over an image of ``size`` (H, W) pixels.

    Raises:
        ModelError: there are as many tokens as no such grid has, as after patch dropout.
    """
    patch_embed = find_patch_embed(model)
    patch = getattr(patch_embed, "patch_size", None)
    height, width = patch if isinstance(patch, tuple) else (patch, patch)
    grids = [(size[0] // height, size[1] // width)] if isinstance(height, int) and isinstance(width, int) else []
    if isinstance(grid := getattr(patch_embed, "grid_size", None), tuple):
        grids.append(grid)  # of a hybrid, whose patches are those of a feature map
    for rows, columns in grids:
        if rows * columns == tokens:
            return rows, columns
    raise ModelError(
        f"{type(patch_embed).__name__}: expected one token for each patch of an image of {size[0]}x{size[1]}, found "
        f"{tokens} tokens. Relevance has no place in the image then; leave patch dropout off."
    )
