"""The same model for larger images: average pooling as part of the patch embedding, whose nullspace becomes larger."""

from __future__ import annotations

import copy
from typing import Any, TypeVar

from torch import nn

from ..errors import OptionError
from ..models import find_patch_embed, required_image_size
from .exact import find_projection

Model = TypeVar("Model", bound=nn.Module)


def enlarged(model: Model, factor: int) -> Model:
    """A copy of ``model`` for images ``factor`` times as large, which it averages over squares of that side.

    Its logits for an image are those of ``model`` for ``avg_pool2d(image, factor)``, up to rounding. Patches become
    ``factor`` times as large, their grid stays, and so does the rank of the patch embedding: the share of a patch's
    numbers that is nullspace rises from 1 - D / (C p^2) to 1 - D / (C p^2 factor^2), as of models that were built with
    larger patches. What is gained is finer than the images that ``model`` was made for.

    Args:
        model: with or without normalisation in front.
        factor: >= 1; 1 gives an equal copy.

    Raises:
        OptionError: ``factor`` < 1.
        ModelError: the patch embedding is not linear.

    Example:
        >>> larger = enlarged(model, 2)
        >>> pixels = torch.rand(8, 3, 64, 64)
        >>> torch.allclose(larger(pixels), model(torch.nn.functional.avg_pool2d(pixels, 2)), atol=1e-5)
        True
    """
    if isinstance(factor, bool) or not isinstance(factor, int) or factor < 1:
        raise OptionError(f"factor: expected a whole number >= 1, found {factor!r}.")
    larger = copy.deepcopy(model)
    small, embed = find_projection(larger), find_patch_embed(larger)
    side = small.kernel_size[0] * factor
    # On no device, where no initial weights are drawn from the global generator: all are replaced at once.
    shape = small.in_channels, small.out_channels, side, side
    projection = nn.Conv2d(*shape, bias=small.bias is not None, device="meta")
    spread = small.weight.detach().repeat_interleave(factor, 2).repeat_interleave(factor, 3) / factor**2
    projection.weight = nn.Parameter(spread, requires_grad=small.weight.requires_grad)
    projection.bias = small.bias
    projection.train(small.training)
    described: Any = embed
    if size := required_image_size(larger):
        described.img_size = tuple(factor * length for length in size)
    described.patch_size = (side, side)
    described.proj = projection
    if isinstance(image_size := getattr(larger, "image_size", None), int):
        larger.image_size = factor * image_size  # type: ignore[assignment]
    return larger
