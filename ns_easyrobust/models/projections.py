"""The query, key and value matrices of a vision transformer's heads, and what goes in and comes out of its attention.

In the paper's notation (arXiv:2403.10476, Proposition 1): head i of a layer of width d maps tokens X (n, d) to
Softmax(X Q_i K_i' X' / sqrt(d_k)) X V_i. timm's ``qkv`` is one linear layer whose weight has the rows of all heads'
queries, then of all keys, then of all values (timm 0.5.4, ``vision_transformer.py``,
``Attention.forward``; BEiT alike).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

from ..errors import ModelError
from ..utils import nn, torch
from .attention import attention_blocks, attention_maps
from .outputs import output_of
from .vit import find_encoder, unwrap

_SUPPORTED = (
    "heads are read from ViT, DeiT, BEiT and their like: a LayerNorm 'norm1', then 'attn.qkv', one linear layer"
)


@dataclass(frozen=True, eq=False)
class HeadProjections:
    """The projection matrices of one layer's heads, float64 on the CPU, without biases.

    Attributes:
        query, key, value: (h, d, d_k), the paper's Q_i, K_i and V_i; they act on the layer norm's output.
        gain: (d,) the layer norm's gamma.
    """

    query: torch.Tensor
    key: torch.Tensor
    value: torch.Tensor
    gain: torch.Tensor

    @property
    def width(self) -> int:
        """d, features of a token."""
        return len(self.gain)


def head_projections(model: nn.Module) -> list[HeadProjections]:
    """Those of each block, in order.

    Raises:
        ModelError: no blocks with such attention (Swin's windows, a ResNet), no LayerNorm in front of it, other layers
            than one linear ``qkv``, or something between the projections and the heads (normalised or rotated queries
            and keys, gated outputs); or weights that are not finite.
    """
    return [_projections(model, layer, block) for layer, block in enumerate(attention_blocks(model))]


def plain_qkv(model: nn.Module, layer: int, block: Any) -> tuple[nn.LayerNorm, nn.Linear]:
    """A block's layer norm in front of its attention, and the one linear layer of its queries, keys and values.

    Raises:
        ModelError: they are not there, or something lies between the projections and the heads, as
            :func:`head_projections` has it.
    """
    attention, norm = block.attn, getattr(block, "norm1", None)
    place = _place(model, layer)
    if not isinstance(norm, nn.LayerNorm):
        raise _no_heads(place, f"{'no norm1' if norm is None else f'{type(norm).__name__} as norm1'}")
    qkv = getattr(attention, "qkv", None)
    if not isinstance(qkv, nn.Linear) or type(qkv).forward is not nn.Linear.forward:
        raise _no_heads(place, ", ".join(name for name, _ in attention.named_children()) + " in its attention")
    between = [
        name
        for name in ("q_norm", "k_norm", "norm", "gate")  # timm 1.x
        if not isinstance(getattr(attention, name, None), nn.Identity | type(None))
    ]
    if getattr(find_encoder(model), "rope", None) is not None:
        between.append("rope (rotated queries and keys)")
    if between:
        raise _no_heads(place, f"{', '.join(between)} between the projections and the heads")
    return norm, qkv


def _place(model: nn.Module, layer: int) -> str:
    return f"{type(find_encoder(model)).__name__}'s block {layer}"


def _projections(model: nn.Module, layer: int, block: Any) -> HeadProjections:
    attention, place = block.attn, _place(model, layer)
    norm, qkv = plain_qkv(model, layer, block)
    weight = qkv.weight.detach().to("cpu", torch.float64)
    heads, width = attention.num_heads, weight.shape[1]
    if len(weight) % (3 * heads):
        raise _no_heads(place, f"{len(weight)} outputs of qkv for {heads} heads")
    gain = (
        torch.ones(width, dtype=torch.float64) if norm.weight is None else norm.weight.detach().to("cpu", weight.dtype)
    )
    if not (torch.isfinite(weight).all() and torch.isfinite(gain).all()):
        raise ModelError(f"{place}: expected finite weights, found NaN or infinity. Check the checkpoint.")
    query, key, value = weight.view(3, heads, -1, width).transpose(-1, -2).contiguous().unbind(0)
    return HeadProjections(query, key, value, gain)


def _no_heads(place: str, found: str) -> ModelError:
    return ModelError(f"{place} has no heads Softmax(Q K') V of one layer norm: found {found}; {_SUPPORTED}.")


def attention_inputs(model: nn.Module, images: torch.Tensor) -> list[torch.Tensor]:
    """What each block's attention reads, (B, N, d): the tokens after the layer norm in front of it.

    Args:
        images: (B, C, H, W) as the model expects them, which all run at once. The forward runs in the model's present
            mode, without a graph.

    Raises:
        ModelError: as :func:`head_projections`; an attention that does not read its ``norm1``'s output (a layer norm
            behind it), or is none of tokens to tokens (XCiT).
    """
    head_projections(model)
    blocks: Sequence[Any] = attention_blocks(model)
    normed: dict[int, torch.Tensor] = {}
    read: dict[int, torch.Tensor] = {}
    with ExitStack() as undo, torch.no_grad():
        for layer, block in enumerate(blocks):
            undo.callback(block.norm1.register_forward_hook(_keep_output(normed, layer)).remove)
            undo.callback(block.attn.register_forward_pre_hook(_keep_input(read, layer)).remove)
        with attention_maps(model):  # refuses attention that is none of tokens to tokens; one image shows it
            output_of(unwrap(model), images[:1])
        output_of(unwrap(model), images)
    for layer in range(len(blocks)):
        if read[layer] is not normed.get(layer):
            raise _no_heads(_place(model, layer), "attention of other tokens than it")
    return [read[layer] for layer in range(len(blocks))]


def _keep_output(kept: dict[int, torch.Tensor], layer: int) -> Any:
    return lambda module, args, output: kept.update({layer: output})


def _keep_input(kept: dict[int, torch.Tensor], layer: int) -> Any:
    return lambda module, args: kept.update({layer: args[0]})


def head_outputs(model: nn.Module, layer: int, tokens: torch.Tensor) -> torch.Tensor:
    """What all heads of a block make of ``tokens`` (B, N, d), side by side: (B, N, h * d_k), before they are mixed.

    The block's own attention runs, with its biases and BEiT's position bias, without a graph.
    """
    attention: Any = attention_blocks(model)[layer].attn
    with _mixed(attention) as outputs, torch.no_grad():
        attention(tokens)
    return outputs[0]


@contextmanager
def _mixed(attention: Any) -> Iterator[list[torch.Tensor]]:
    """The inputs of ``attention``'s output projection, as it runs."""
    found: list[torch.Tensor] = []
    handle = attention.proj.register_forward_pre_hook(lambda module, args: found.append(args[0]))
    try:
        yield found
    finally:
        handle.remove()
