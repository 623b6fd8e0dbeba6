"""Fused attention for transformers whose own is not: swapped in for a while, exactly undone."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from types import MethodType
from typing import Any

import torch
from timm.models.vision_transformer import Attention
from torch import nn


def _attend(self: Any, tokens: torch.Tensor) -> torch.Tensor:
    """timm 0.5.4's ``Attention.forward`` without dropout, its softmax never stored; (B, N, D) -> (B, N, D)."""
    count, length, width = tokens.shape
    heads = self.qkv(tokens).reshape(count, length, 3, self.num_heads, width // self.num_heads)
    query, key, value = heads.permute(2, 0, 3, 1, 4).unbind(0)
    mixed = nn.functional.scaled_dot_product_attention(query, key, value, scale=self.scale)
    result: torch.Tensor = self.proj(mixed.transpose(1, 2).reshape(count, length, width))
    return result


def _is_plain(module: nn.Module) -> bool:
    """timm 0.5.4's own attention, which nobody watches or has changed; timm 1.x's is fused by itself."""
    watched = any(part._forward_hooks or part._forward_pre_hooks for part in module.children())
    return (
        type(module) is Attention
        and not hasattr(module, "fused_attn")
        and "forward" not in vars(module)
        and not watched
    )


@contextmanager
def fused_attention(model: nn.Module) -> Iterator[int]:
    """``scaled_dot_product_attention`` in the attentions of ``model`` (in eval mode: dropout is left out) for the body.

    Only ViT's and DeiT's of timm 0.5.4 are swapped; attentions with a position bias (Swin, BEiT), a changed
    ``forward`` or hooks inside stay as they are. The same function to rounding; on GPUs the fused backward may add in
    another order each time. Yields how many were swapped.
    """
    swapped = [module for module in model.modules() if _is_plain(module)]
    for module in swapped:
        module.forward = MethodType(_attend, module)
    try:
        yield len(swapped)
    finally:
        for module in swapped:
            del module.forward
