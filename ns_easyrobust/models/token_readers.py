"""Which part of a transformer reads its tokens otherwise than through a LayerNorm of each token."""

from __future__ import annotations

import re

from ..utils import nn, torch
from .hooks import frozen
from .outputs import output_of
from .vit import find_patch_embed

_BLOCK = re.compile(r"(?:.*\.)?blocks\w*\.\d+(?=\.)")  # of a ViT, of a Swin's stage, CaiT's blocks_token_only


def reader_without_layer_norm(model: nn.Module, images: torch.Tensor) -> str | None:
    """The first part behind the patch embedding that reads tokens, but not through a LayerNorm of each of them.

    In a pre-LN transformer (arXiv:2002.04745, Figure 1b) every block begins with a LayerNorm, and one follows the last
    block; all else adds to the tokens. The order is that in which the modules with weights run, once, on ``images``
    (B, C, H, W) in eval mode: what runs first in a block, and first after one, must be an ``nn.LayerNorm`` over as many
    features as in the first block.

    Returns:
        Its name and type, as "blocks.0.norm1 (RmsNorm)"; None if there is no such part.

    Example:
        >>> reader_without_layer_norm(model, images) is None  # a ViT
        True
    """
    embedded = set(find_patch_embed(model).modules())
    order: list[nn.Module] = []
    with frozen(model) as inner, torch.no_grad():
        names = {module: name for name, module in inner.named_modules()}
        leaves = (module for module in names if module not in embedded and not list(module.children()))
        handles = [
            module.register_forward_pre_hook(lambda module, args: order.append(module))
            for module in leaves
            if list(module.parameters())
        ]
        try:
            output_of(inner, images)
        finally:
            for handle in handles:
                handle.remove()
    modules = {name: module for module, name in names.items()}
    before: str | None = ""
    width: tuple[int, ...] | None = None
    for module in order:
        block = _BLOCK.match(names[module])
        place = block[0] if block else None
        if place == before:
            continue
        before = place
        if not isinstance(module, nn.LayerNorm) or module.normalized_shape != (width or module.normalized_shape):
            part = names[module]
            if place is not None:  # of a block, its attention rather than the first layer in it
                part = f"{place}.{part[len(place) + 1 :].partition('.')[0]}"
            return f"{part} ({type(modules[part]).__name__})"
        width = module.normalized_shape
    return None
