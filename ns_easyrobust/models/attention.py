"""Attention weights of a plain vision transformer, read while it runs.

They are taken where the blocks hand them to their dropout: after the softmax, before the
dropout, and still part of the autograd graph.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import nn

from ..errors import ModelError, OptionError
from .vit import find_patch_embed, unwrap

_FITS = "attention is read from ViT, DeiT, BEiT and their like: 'blocks' with one 'attn.attn_drop' each"


class AttentionMaps(Mapping[int, torch.Tensor]):
    """Attention (B, H, N, N) by block index, of the newest forward; N counts prefix tokens too.

    Attributes:
        model: the unwrapped eager module to call.
    """

    def __init__(self, model: nn.Module, layers: Collection[int]) -> None:
        self.model = model
        self.layers = layers
        self.newest: dict[int, torch.Tensor] = {}

    def __getitem__(self, layer: int) -> torch.Tensor:
        if layer in self.layers and layer not in self.newest:
            raise ModelError(
                f"attention of block {layer}: expected a forward of this very model inside attention_maps(), "
                "found none. Call the unwrapped eager module that it yields."
            )
        return self.newest[layer]

    def __iter__(self) -> Iterator[int]:
        return iter(self.layers)

    def __len__(self) -> int:
        return len(self.layers)


def attention_blocks(model: nn.Module) -> list[nn.Module]:
    """The encoder's blocks in order, each with an attention whose weights pass through ``attn_drop``.

    Raises:
        ModelError: no patch embedding, or no such blocks (Swin's windows, a ResNet).
    """
    encoder = _encoder(model)
    blocks = list(getattr(encoder, "blocks", None) or [])
    name = type(encoder).__name__
    if not blocks:
        parts = ", ".join(child for child, _ in encoder.named_children())
        raise ModelError(f"{name} has no blocks whose attention can be read: found {parts}; {_FITS}.")
    for i, block in enumerate(blocks):
        if not isinstance(getattr(getattr(block, "attn", None), "attn_drop", None), nn.Module):
            parts = ", ".join(child for child, _ in block.named_children())
            raise ModelError(f"{name}'s block {i} has no attn.attn_drop: found {parts}; {_FITS}.")
    return blocks


def prefix_tokens(model: nn.Module) -> int:
    """How many tokens stand before the patches': the class token, DeiT's distillation token, registers."""
    encoder = _encoder(model)
    for name in ("num_prefix_tokens", "num_tokens"):  # timm 1.x's name, timm 0.5.4's
        if isinstance(number := getattr(encoder, name, None), int):
            return number
    return sum(getattr(encoder, name, None) is not None for name in ("cls_token", "dist_token"))


def _encoder(model: nn.Module) -> nn.Module:
    """The module that the patch embedding is a direct part of."""
    patch_embed = find_patch_embed(model)
    return next(module for module in unwrap(model).modules() if patch_embed in module.children())


@contextmanager
def attention_maps(model: nn.Module, layers: Collection[int] | None = None) -> Iterator[AttentionMaps]:
    """While the body runs, each forward leaves its attention here; a new one drops the last one's.

    Blocks that are read compute their attention step by step (timm 1.x fuses it otherwise, and a
    fused kernel returns no weights); the others stay as they are. All is undone afterwards.

    Args:
        layers: indices of the blocks to read, from 0; None: all of them.

    Raises:
        OptionError: a block that the model does not have.
        ModelError: a model whose attention cannot be read, or no forward ran in the body.
    """
    blocks = attention_blocks(model)
    wanted = sorted(set(range(len(blocks)) if layers is None else layers))
    for layer in wanted:
        if not 0 <= layer < len(blocks):
            raise OptionError(
                f"attention: expected a block in 0..{len(blocks) - 1}, found {layer}. Choose one of them."
            )
    maps = AttentionMaps(unwrap(model), wanted)
    with ExitStack() as undo:
        undo.callback(blocks[0].register_forward_pre_hook(lambda module, args: maps.newest.clear()).remove)
        for layer in wanted:
            undo.enter_context(_recorded(blocks[layer], layer, maps.newest))
        yield maps
        for layer in wanted:
            maps[layer]  # raises where no forward ran


@contextmanager
def _recorded(block: Any, layer: int, maps: dict[int, torch.Tensor]) -> Iterator[None]:
    """Write the block's attention to ``maps[layer]`` whenever it runs."""

    def record(module: nn.Module, args: Any, output: Any) -> None:
        maps[layer] = args[0]

    def check(module: nn.Module, args: Any, output: Any) -> None:
        tokens, shape = args[0].shape[1], tuple(maps[layer].shape) if layer in maps else ()
        if len(shape) != 4 or shape[2:] != (tokens, tokens):
            raise ModelError(
                f"{type(block.attn).__name__} of block {layer}: expected attention of {tokens} tokens to {tokens}, "
                f"found {f'weights of shape {shape}' if shape else 'none'}; {_FITS}."
            )

    fused = getattr(block.attn, "fused_attn", None)
    handles = [block.attn.attn_drop.register_forward_hook(record), block.register_forward_hook(check)]
    try:
        if fused:
            block.attn.fused_attn = False
        yield
    finally:
        for handle in handles:
            handle.remove()
        if fused:
            block.attn.fused_attn = fused
