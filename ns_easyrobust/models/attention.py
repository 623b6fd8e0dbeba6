"""Attention of vision transformers: recording its weights during a forward, and fusing it temporarily.

The weights are recorded where the blocks pass them to dropout: after the softmax, before the
dropout, and still attached to the autograd graph.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from types import MethodType
from typing import Any

from ..errors import ModelError, OptionError
from ..utils import nn, timm, torch
from .hooks import replaced_forward
from .vit import find_blocks, find_encoder, unwrap

_TOLERANCE = 0.05  # of a sum of weights; bfloat16 has eight bits
_SUPPORTED = "attention is read from ViT, DeiT, BEiT and their like: 'blocks' with one 'attn.attn_drop' each"


class AttentionMaps(Mapping[int, "torch.Tensor"]):
    """Attention weights (B, H, N, N) of the latest forward, by block index; N includes the prefix tokens.

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
    encoder, blocks = find_encoder(model), find_blocks(model)
    name = type(encoder).__name__
    if not blocks:
        children = ", ".join(child for child, _ in encoder.named_children())
        raise ModelError(f"{name} has no blocks whose attention can be read: found {children}; {_SUPPORTED}.")
    for i, block in enumerate(blocks):
        if not isinstance(getattr(getattr(block, "attn", None), "attn_drop", None), nn.Module):
            children = ", ".join(child for child, _ in block.named_children())
            raise ModelError(f"{name}'s block {i} has no attn.attn_drop: found {children}; {_SUPPORTED}.")
    return blocks


def prefix_tokens(model: nn.Module) -> int:
    """Number of tokens before the patch tokens: the class token, DeiT's distillation token, registers."""
    encoder = find_encoder(model)
    for name in ("num_prefix_tokens", "num_tokens"):  # timm 1.x's name, timm 0.5.4's
        if isinstance(number := getattr(encoder, name, None), int):
            return number
    return sum(getattr(encoder, name, None) is not None for name in ("cls_token", "dist_token"))


def tokens_read(model: nn.Module) -> slice:
    """The tokens that the head reads after the last block.

    The class token; with a distilled DeiT's second head, also the distillation token. Where the head pools the patch
    tokens (no class token; BEiT's ``fc_norm``; timm 1.x's ``global_pool`` other than ``token``): all of these.
    """
    encoder, prefix = find_encoder(model), prefix_tokens(model)
    pool = getattr(encoder, "global_pool", None)  # timm 1.x; under 0.5.4 only BEiT pools, by its fc_norm
    pools = pool not in ("token", "") if isinstance(pool, str) else getattr(encoder, "fc_norm", None) is not None
    if pools or not prefix:
        return slice(prefix, None)
    return slice(0, 1 if getattr(encoder, "head_dist", None) is None else 2)


@contextmanager
def attention_maps(model: nn.Module, layers: Collection[int] | None = None) -> Iterator[AttentionMaps]:
    """Record the attention of each forward in the body; a new forward replaces the previous one's.

    The recorded blocks compute their attention step by step (timm 1.x would fuse it, and a fused
    kernel returns no weights); the others stay as they are. Everything is undone afterwards.

    Args:
        model: a vision transformer with the blocks of :func:`attention_blocks`, wrapped or not.
        layers: indices of the blocks to record, from 0; None: all of them.

    Raises:
        OptionError: an index of a block that the model does not have.
        ModelError: the model's attention cannot be read, or no forward ran in the body.
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
            undo.enter_context(_record_attention(blocks[layer], layer, maps.newest))
        yield maps
        for layer in wanted:
            maps[layer]  # raises if no forward ran


@contextmanager
def _record_attention(block: Any, layer: int, maps: dict[int, torch.Tensor]) -> Iterator[None]:
    """Store the block's attention in ``maps[layer]`` whenever the block runs."""

    def record(module: nn.Module, args: Any, output: Any) -> None:
        maps[layer] = args[0]

    adds_up = False  # in the first forward: what mixes the heads after the softmax does so in each

    def check(module: nn.Module, args: Any, output: Any) -> None:
        nonlocal adds_up
        length, shape = args[0].shape[1], tuple(maps[layer].shape) if layer in maps else ()
        if len(shape) != 4 or shape[2:] != (length, length):
            raise ModelError(
                f"{type(block.attn).__name__} of block {layer}: expected attention of {length} tokens to {length}, "
                f"found {f'weights of shape {shape}' if shape else 'none'}; {_SUPPORTED}."
            )
        if not adds_up and ((maps[layer].detach().float().sum(-1) - 1).abs() > _TOLERANCE).any():
            raise ModelError(
                f"{type(block.attn).__name__} of block {layer}: expected weights that sum to 1 over the tokens, found "
                f"others, as of heads that are mixed after the softmax (CaiT); {_SUPPORTED}."
            )
        adds_up = True

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


def _fused_forward(self: Any, tokens: torch.Tensor) -> torch.Tensor:
    """timm 0.5.4's ``Attention.forward`` without dropout and without storing the softmax; (B, N, D) -> (B, N, D)."""
    batch_size, length, width = tokens.shape
    qkv = self.qkv(tokens).reshape(batch_size, length, 3, self.num_heads, width // self.num_heads)
    query, key, value = qkv.permute(2, 0, 3, 1, 4).unbind(0)
    attended = nn.functional.scaled_dot_product_attention(query, key, value, scale=self.scale)
    result: torch.Tensor = self.proj(attended.transpose(1, 2).reshape(batch_size, length, width))
    return result


def _is_fusible(module: nn.Module) -> bool:
    """Whether this is timm 0.5.4's own attention, unchanged and without hooks inside; timm 1.x fuses its own."""
    has_hooks = any(child._forward_hooks or child._forward_pre_hooks for child in module.children())
    return (
        type(module) is timm.models.vision_transformer.Attention
        and not hasattr(module, "fused_attn")
        and "forward" not in vars(module)
        and not has_hooks
    )


@contextmanager
def fused_attention(model: nn.Module) -> Iterator[int]:
    """Let the attention modules of ``model`` use ``scaled_dot_product_attention`` while the body runs.

    The model must be in eval mode, because dropout is left out. Only the attention of timm 0.5.4's ViT and DeiT is
    swapped; modules with a position bias (Swin, BEiT), a changed ``forward`` or hooks inside stay as they are. The
    result is the same up to rounding; on GPUs the fused backward may add in a different order each time. Yields the
    number of modules that were swapped.
    """
    swapped = [module for module in model.modules() if _is_fusible(module)]
    with ExitStack() as undo:
        for module in swapped:
            undo.enter_context(replaced_forward(module, MethodType(_fused_forward, module)))
        yield len(swapped)
