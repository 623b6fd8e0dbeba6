"""Layer-wise relevance propagation (LRP) through a vision transformer, down to the attention of each block.

The rules of Chefer, Gur and Wolf 2021, "Transformer Interpretability Beyond Attention Visualization"
(arXiv:2012.09838, sections 3.1 and 3.2), as its public code has them (hila-chefer/Transformer-Explainability,
``modules/layers_ours.py`` and ``baselines/ViT/ViT_LRP.py``): the relevance of a layer's output is shared among its
inputs in proportion to what they contribute, and its total stays the same.

- linear: the z+ rule, alpha = 1, without the bias (``layers_ours.py:207-230``);
- product of two tensors: each gets the relevance by its share, halved (``ViT_LRP.py:143-157``);
- sum of two tensors: by their shares of each number, then rescaled so that the totals of both are as the absolute
  values of their sums (``layers_ours.py:98-122``), for each image alone. (There over the whole batch, which is why that
  code explains one image at a time.)
- GELU, softmax, LayerNorm, dropout, LayerScale and positive constants: as it is.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple

from ..errors import ModelError
from ..utils import nn, torch
from .attention import attention_blocks, tokens_read
from .projections import plain_qkv
from .token_maps import at_least_float32
from .vit import find_encoder

_STABILISER = 1e-9  # layers_ours.py:10-13
_SUPPORTED = (
    "relevance is propagated through ViT, DeiT and their like: blocks x + attn(norm1(x)), then x + mlp(norm2(x)) with "
    "fc1, act and fc2; one linear head on the class token or on the patch tokens' mean"
)

Calls = dict["nn.Module", tuple["torch.Tensor", "torch.Tensor"]]


class Attribution(NamedTuple):
    """What :func:`propagated_relevance` returns.

    Attributes:
        attentions: R_A of each block, first to last, (B, H, N, N): the relevance of its attention weights.
        tokens: (B, N, D), of the numbers that enter the first block; each image's sum is 1, up to rounding.
    """

    attentions: list[torch.Tensor]
    tokens: torch.Tensor


@contextmanager
def recorded_layers(model: nn.Module) -> Iterator[Calls]:
    """What goes into and comes out of the layers that relevance is propagated through, of the latest forward.

    Raises:
        ModelError: the blocks are not made of such layers.
    """
    calls: Calls = {}

    def keep(module: nn.Module, args: Any, output: Any) -> None:
        calls[module] = (args[0].detach(), output.detach())

    with ExitStack() as undo:
        for module in _layers(model):
            undo.callback(module.register_forward_hook(keep).remove)
        yield calls


def _layers(model: nn.Module) -> list[nn.Module]:
    encoder: Any = find_encoder(model)
    layers: list[nn.Module] = []
    blocks: Sequence[Any] = attention_blocks(model)
    for number, block in enumerate(blocks):
        norm1, qkv = plain_qkv(model, number, block)
        norm2: Any = getattr(block, "norm2", None)
        mlp: Any = getattr(block, "mlp", None)
        parts = {name for name, _ in mlp.named_children()} if isinstance(mlp, nn.Module) else set()
        is_plain = {"fc1", "fc2"} <= parts <= {"fc1", "act", "drop", "drop1", "drop2", "norm", "fc2"} and all(
            isinstance(getattr(mlp, name), nn.Linear) for name in ("fc1", "fc2")
        )
        if not is_plain or not isinstance(norm2, nn.LayerNorm):
            raise _refusal(model, f"{type(mlp).__name__} and {type(norm2).__name__} as mlp and norm2 of block {number}")
        layers += [block, norm1, qkv, block.attn.attn_drop, block.attn.proj, block.attn, norm2, mlp.fc1, mlp.fc2, mlp]
    head, norm = getattr(encoder, "head", None), getattr(encoder, "norm", None)
    if not isinstance(head, nn.Linear) or not isinstance(norm, nn.Module):
        raise _refusal(model, f"{type(norm).__name__} as norm and {type(head).__name__} as head")
    return [*layers, norm, head]


def _refusal(model: nn.Module, found: str) -> ModelError:
    return ModelError(
        f"{type(find_encoder(model)).__name__}: {_SUPPORTED}; found {found}. Use another method or model."
    )


def propagated_relevance(model: nn.Module, calls: Calls, logits: torch.Tensor, labels: torch.Tensor) -> Attribution:
    """The relevance to the logits of ``labels`` (B,), from a forward in eval mode that ``calls`` was recorded of.

    Args:
        calls: of :func:`recorded_layers`.
        logits: (B, K), what that forward returned.

    Raises:
        ModelError: the layers were not put together as the rules have it: other reading of the tokens by the head, two
            heads, blocks that normalise behind their attention.
    """
    relevance = _of_tokens(model, calls, logits, labels)
    attentions: list[torch.Tensor] = []
    for number, block in reversed(list(enumerate(attention_blocks(model)))):
        _require_plain(model, calls, number, block)
        attention, relevance = _through_block(block, calls, relevance)
        attentions.insert(0, attention)
    return Attribution(attentions, relevance)


def _of_tokens(model: nn.Module, calls: Calls, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """The relevance of the last block's tokens (B, N, D)."""
    encoder: Any = find_encoder(model)
    if not {encoder.head, encoder.norm} <= calls.keys() or not torch.equal(calls[encoder.head][1], logits.detach()):
        raise _refusal(model, "logits that are not its head's, as of two heads")
    tokens, read = calls[encoder.norm][1], calls[encoder.head][0]
    places = tokens_read(model)
    pooled = tokens[:, places].mean(1)
    fc_norm = getattr(encoder, "fc_norm", None)
    expected = pooled if fc_norm is None else fc_norm(pooled)
    entered = calls[attention_blocks(model)[-1]][1]
    is_read = read.shape == expected.shape and torch.allclose(read, expected.detach(), rtol=1e-2, atol=1e-3)
    if entered.shape != tokens.shape or not is_read:
        raise _refusal(model, "a head that reads something else")
    chosen = torch.zeros_like(logits, dtype=at_least_float32(logits)).scatter_(1, labels[:, None], 1)
    features = linear_relevance(chosen, read, encoder.head.weight)
    relevance = features.new_zeros(tokens.shape)
    relevance[:, places] = tokens[:, places] * _divided(features, tokens[:, places].sum(1))[:, None]
    return relevance


def _require_plain(model: nn.Module, calls: Calls, number: int, block: Any) -> None:
    """That each layer ran and read what the one before it returned."""
    order = [(block, block.norm1), (block.norm2, block.mlp), (block.norm1, block.attn), (block.attn, block.attn.qkv)]
    missing = [
        module for module in (block.attn.qkv, block.attn.proj, block.mlp.fc1, block.mlp.fc2) if module not in calls
    ]
    if missing:
        raise _refusal(model, f"{type(block).__name__} {number}, which does not call its {type(missing[0]).__name__}")
    for before, after in order:
        side = 0 if before is block or before is block.attn else 1
        if calls[before][side].data_ptr() != calls[after][0].data_ptr():
            raise _refusal(model, f"{type(block).__name__} {number}, whose layers are in another order")


def _through_block(block: Any, calls: Calls, relevance: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """R_A, and the relevance of the block's input."""
    entered, left = calls[block]
    between = calls[block.norm2][0]
    kept, branch = sum_relevance(relevance, between, left)
    branch = linear_relevance(branch, calls[block.mlp.fc2][0], block.mlp.fc2.weight)
    branch = linear_relevance(branch, calls[block.mlp.fc1][0], block.mlp.fc1.weight)
    relevance = copy_relevance(kept + branch, between)

    kept, branch = sum_relevance(relevance, entered, between)
    attn, heads = block.attn, block.attn.num_heads
    branch = linear_relevance(branch, calls[attn.proj][0], attn.proj.weight)
    weights = calls[attn.attn_drop][0].to(branch.dtype)
    query, key, value = calls[attn.qkv][1].to(branch.dtype).unflatten(-1, (3, heads, -1)).permute(2, 0, 3, 1, 4)
    of_heads = branch.unflatten(-1, (heads, -1)).transpose(1, 2)
    of_weights, of_value = product_relevance(of_heads, weights, value)
    of_query, of_key = product_relevance(of_weights, query, key.mT)
    of_qkv = torch.stack((of_query, of_key.mT, of_value)).permute(1, 3, 0, 2, 4).flatten(2)
    branch = linear_relevance(of_qkv, calls[attn.qkv][0], attn.qkv.weight)
    return of_weights, copy_relevance(kept + branch, entered)


def linear_relevance(relevance: torch.Tensor, inputs: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """The z+ rule: of input i, sum over outputs j of relu(x_i w_ji) / sum_k relu(x_k w_jk) times j's relevance.

    Args:
        relevance: (..., out).
        inputs: (..., in).
        weight: (out, in).
    """
    inputs, weight = inputs.to(relevance.dtype), weight.detach().to(relevance.dtype)
    up, down = inputs.clamp_min(0), inputs.clamp_max(0)
    positive, negative = weight.clamp_min(0), weight.clamp_max(0)
    share = _divided(relevance, up @ positive.T + down @ negative.T)
    return up * (share @ positive) + down * (share @ negative)


def product_relevance(
    relevance: torch.Tensor, left: torch.Tensor, right: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Of both factors of ``left @ right``, by what each of their numbers contributes, halved."""
    share = _divided(relevance, left @ right) / 2
    return left * (share @ right.mT), right * (left.mT @ share)


def sum_relevance(relevance: torch.Tensor, one: torch.Tensor, total: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Of both terms of ``total`` = ``one`` + the other, (B, N, D).

    Each image's relevance is shared between the terms as |a| to |b|, where a and b are the sums of what its numbers
    would give them.
    """
    one, total = one.to(relevance.dtype), total.to(relevance.dtype)
    share = _divided(relevance, total)
    terms = (one * share, (total - one) * share)
    sums = [term.sum((1, 2), keepdim=True) for term in terms]
    whole = relevance.sum((1, 2), keepdim=True)
    parts = [_divided(each.abs(), sums[0].abs() + sums[1].abs()) * whole for each in sums]
    first, second = (term * _divided(part, each) for term, part, each in zip(terms, parts, sums, strict=True))
    return first, second


def copy_relevance(relevance: torch.Tensor, inputs: torch.Tensor) -> torch.Tensor:
    """Of numbers that two layers read, from the sum of what both give them: all of it, but for those next to 0.

    The public code's way (``layers_ours.py:143-164``).
    """
    return inputs.to(relevance.dtype) * _divided(relevance, inputs.to(relevance.dtype))


def _divided(numerator: torch.Tensor, denominator: torch.Tensor) -> torch.Tensor:
    """The quotient, 0 where the denominator is."""
    steady = denominator + _STABILISER
    steady = torch.where(steady == 0, torch.full_like(steady, _STABILISER), steady)
    return torch.where(denominator == 0, torch.zeros_like(steady), numerator / steady)
