"""The keys of a vision transformer's last attention: features by which TokenCut tells an object from its background."""

from __future__ import annotations

from typing import Any, NamedTuple

from ..errors import ModelError
from ..utils import nn, torch
from .attention import attention_blocks, attention_maps, prefix_tokens, tokens_read
from .hooks import frozen
from .outputs import output_of

_SUPPORTED = "keys are read from ViT, DeiT, BEiT, EVA and their like: one attn.qkv or attn.k_proj, on all tokens"


class PatchKeys(NamedTuple):
    """Of the patch tokens in the last block, N = height * width row by row.

    Attributes:
        keys: (B, N, D), all heads side by side.
        attention: (B, N), that of the tokens which the head reads, as the class token; mean over heads.
        grid: (height, width).
    """

    keys: torch.Tensor
    attention: torch.Tensor
    grid: tuple[int, int]


def last_keys(model: nn.Module, images: torch.Tensor) -> PatchKeys:
    """The last block's keys of the patch tokens, as attention compares them with queries, and their attention.

    Keys are computed in eval mode from what the last attention gets, because BEiT and EVA use the weights of
    ``attn.qkv`` without calling it. After the norm of the keys where there is one, before a rotary embedding, which
    is of positions.

    Args:
        model: a vision transformer with the blocks of :func:`~ns_easyrobust.models.attention.attention_blocks`,
            wrapped or not; left as it is.
        images: (B, C, S, S), square, as the model takes them.

    Raises:
        ModelError: the model has no such blocks, or its keys cannot be read or are not finite.
    """
    blocks = attention_blocks(model)
    attn: Any = blocks[-1].attn
    inputs: list[torch.Tensor] = []
    handle = attn.register_forward_pre_hook(lambda module, args: inputs.append(args[0]))
    try:
        with frozen(model) as inner, torch.no_grad(), attention_maps(inner, [len(blocks) - 1]) as maps:
            output_of(inner, images)
            keys = _keys_of(attn, inputs[-1]) if inputs else None
    finally:
        handle.remove()
    if keys is None:
        raise ModelError(
            f"{type(attn).__name__} of the last block: expected attn.qkv or attn.k_proj that gives a key for each "
            f"token, found {', '.join(name for name, _ in attn.named_children())}; {_SUPPORTED}."
        )
    prefix = prefix_tokens(model)
    attention = maps[len(blocks) - 1].mean(1)[:, tokens_read(model), prefix:].mean(1)
    keys = keys[:, prefix:]
    side = round(keys.shape[1] ** 0.5)
    if len(keys) != len(images) or side * side != keys.shape[1] or side == 0:
        raise ModelError(
            f"{type(attn).__name__} of the last block: expected a square of patch tokens for each of {len(images)} "
            f"images, found {keys.shape[1]} tokens for each of {len(keys)}; {_SUPPORTED}."
        )
    if not keys.isfinite().all():
        raise ModelError(
            f"{type(attn).__name__} of the last block: expected finite keys, found NaN or infinity. Check the weights."
        )
    return PatchKeys(keys, attention, (side, side))


def _keys_of(attn: Any, tokens: torch.Tensor) -> torch.Tensor | None:
    """Keys (B, N, D) of the tokens (B, N, C) that enter ``attn``; None where they cannot be read."""
    qkv, own = getattr(attn, "qkv", None), getattr(attn, "k_proj", None)
    if tokens.ndim != 3 or (isinstance(qkv, nn.Module) == isinstance(own, nn.Module)):
        return None
    keys: torch.Tensor
    if isinstance(own, nn.Module):
        keys = own(tokens)
    else:
        # BEiT and EVA add a bias of zeros to the keys, and qkv itself has none; others have it in qkv.
        joined: torch.Tensor = qkv(tokens)  # type: ignore[misc]
        if joined.shape[:2] != tokens.shape[:2] or joined.shape[-1] % 3:
            return None
        keys = joined.chunk(3, dim=-1)[1]
    if keys.shape[:2] != tokens.shape[:2]:
        return None
    if isinstance(norm := getattr(attn, "k_norm", None), nn.Module):
        keys = norm(keys.unflatten(-1, (attn.num_heads, -1))).flatten(-2)
    return keys
