"""The ascent of PatchFool: the gradient of the cross-entropy, plus the attention's without what opposes it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..errors import ModelError
from ..models import attention_blocks, attention_maps, prefix_tokens
from ..utils import nn, torch
from .inputs import require_outputs
from .patch_forward import ForwardFunction, NormalisedSpace, Patches, patch_forward

if TYPE_CHECKING:
    from .patch_fool import PatchFool


def first_patch_token(tokens: int, prefix: int, number: int) -> int:
    """Index of the first patch token among ``tokens``: ``prefix``, or 0 in blocks that the prefix joins later (ConViT).

    Raises:
        ModelError: there are other tokens than ``prefix`` and the ``number`` of patches.
    """
    if tokens == number:
        return 0
    if tokens != prefix + number:
        raise ModelError(
            f"patchfool: expected attention among {prefix} prefix tokens and {number} patches, found {tokens} tokens. "
            "Choose patches by saliency or at random, and the loss 'ce'."
        )
    return prefix


def _blocks_and_prefix(model: nn.Module) -> tuple[list[nn.Module], int]:
    """The model's blocks and the number of tokens before the patches'; ([], 0) where attention cannot be read."""
    try:
        return attention_blocks(model), prefix_tokens(model)
    except ModelError:
        return [], 0


def _attended_layers(model: nn.Module, config: PatchFool) -> range:
    """The blocks whose attention to the patches is maximised; none for the loss "ce"."""
    if config.loss == "ce":
        return range(0)
    layers = range(1, (depth := len(attention_blocks(model))) // 2)
    if not layers:
        raise ModelError(
            f"patchfool: expected at least 4 blocks for the attention loss, found {depth}. Choose the loss 'ce'."
        )
    return layers


@dataclass
class _AttentionReading:
    """What the newest forward has left to read.

    Attributes:
        maps: attention (B, H, N, N) by block.
        layers: the blocks whose attention counts.
        middle: (B, N, D), the tokens that enter the last but one of them (or the only one).
    """

    maps: Mapping[int, torch.Tensor]
    layers: range
    middle: torch.Tensor | None = None

    def hand_over(self) -> tuple[list[torch.Tensor], torch.Tensor]:
        """The maps and the middle tokens, which are forgotten here: their graph goes with the caller's last use."""
        assert self.middle is not None
        middle, self.middle = self.middle, None
        return [self.maps[layer] for layer in self.layers], middle


@contextmanager
def _read_attention(model: nn.Module, layers: range) -> Iterator[_AttentionReading]:
    """While the body runs, each forward of ``model`` leaves its attention and its middle tokens to be read."""
    if not layers:
        yield _AttentionReading({}, layers)
        return
    # Block 0 is read too, because a fused kernel has no second derivative.
    with attention_maps(model, range(layers.stop)) as maps:
        reading = _AttentionReading(maps, layers)

        def keep_tokens(module: nn.Module, args: tuple[torch.Tensor, ...]) -> None:
            reading.middle = args[0]

        handle = attention_blocks(model)[max(layers[-1] - 1, 1)].register_forward_pre_hook(keep_tokens)
        try:
            yield reading
        finally:
            handle.remove()


def ascend(
    model: nn.Module,
    clean: torch.Tensor,
    labels: torch.Tensor,
    patches: Patches,
    uniform: torch.Tensor,
    space: NormalisedSpace,
    config: PatchFool,
) -> torch.Tensor:
    """The patches' normalised content (B, P, C, h, w) after the last iteration.

    Args:
        clean: (B, C, H, W), the normalised images. uniform: of the same shape, drawn from [0, 1).
    """
    layers, (blocks, prefix) = _attended_layers(model, config), _blocks_and_prefix(model)
    forward = patch_forward(model, clean, patches, blocks, prefix)
    original, uniform = patches.cut(clean), patches.cut(uniform)
    start = space.normalised(uniform)
    if config.norm == "linf":
        start = original + (2 * uniform - 1) * config.epsilon / space.std
    content = space.boxed(start).requires_grad_()
    optimizer = torch.optim.Adam([content], lr=config.lr)
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, config.decay_steps, config.decay)
    largest_label = int(labels.max())
    with _read_attention(model, layers) as reading:
        for _ in range(config.steps):
            gradient = _ce_gradient(forward, content, labels, largest_label, config.mode, retain=bool(layers))
            if layers:
                gradient = gradient + config.alpha * _attention_gradient(
                    *reading.hand_over(), patches, prefix, content, gradient, config.mode
                )
            content.grad = -gradient
            optimizer.step()
            schedule.step()
            with torch.no_grad():
                content.copy_(space.boxed(space.project(content, original, config.epsilon, config.norm)))
    return content.detach()


def _ce_gradient(
    forward: ForwardFunction,
    content: torch.Tensor,
    labels: torch.Tensor,
    largest_label: int,
    mode: str,
    *,
    retain: bool,
) -> torch.Tensor:
    """Gradient of the cross-entropy; ``retain`` keeps the attention maps' graph, and no more, for their gradient."""
    logits = forward(content)
    require_outputs(largest_label, logits.shape[1], "patchfool")
    loss = nn.functional.cross_entropy(logits, labels, reduction="sum" if mode == "exact" else "mean")
    return torch.autograd.grad(loss, content, retain_graph=retain)[0]


def _attention_gradient(
    maps: Sequence[torch.Tensor],
    middle: torch.Tensor,
    patches: Patches,
    prefix: int,
    content: torch.Tensor,
    g: torch.Tensor,
    mode: str,
) -> torch.Tensor:
    """The attention's gradients summed over blocks, each without its component opposed to the cross-entropy's, ``g``.

    With J_l the log-attention that block l pays to the patches, g_l its gradient and u = g / |g|,
    it is the sum over l of g_l - min(<g_l, u>, 0) e, where e = u is a projection and e = g the
    published form. The sum of the g_l takes one backward pass. It is linear in the cotangents that
    start the pass, so the derivatives of <sum, u> with respect to them are the directional
    derivatives along u: a forward-mode pass, which gives every <g_l, u>. For the last two blocks
    it stops before them, at ``middle``, where their cotangents are known.

    Args:
        maps: (B, H, N, N), the attention of each block.
        middle: (B, N, D), the tokens that enter the last but one of the blocks.
        content, g: (B, P, C, h, w).
    """
    exact = mode == "exact"
    weight = 1 if exact else 1 / len(g)
    attacked = patches.chosen if exact else patches.chosen[:, :1]
    firsts = [first_patch_token(attention.shape[-1], prefix, patches.number) for attention in maps]
    terms = [
        weight * _log_attention(attention, first + attacked) for attention, first in zip(maps, firsts, strict=True)
    ]
    early, late = terms[:-2], terms[-2:]
    late_cotangents = [torch.autograd.grad(term.sum(), middle, retain_graph=True)[0] for term in late]
    cotangents = [torch.ones_like(term) for term in early] + [torch.stack(late_cotangents).sum(0)]
    for cotangent in cotangents:
        cotangent.requires_grad_()
    (total,) = torch.autograd.grad([*early, middle], content, cotangents, create_graph=True)
    u = _unit(g)
    *products, middle_tangent = torch.autograd.grad(total, cotangents, u)
    products += [(cotangent * middle_tangent).flatten(1).sum(1) for cotangent in late_cotangents]
    opposed = torch.stack(products).clamp(max=0).sum(0)
    return total.detach() - opposed.view(-1, 1, 1, 1, 1) * (u if exact else g)


def _log_attention(attention: torch.Tensor, keys: torch.Tensor) -> torch.Tensor:
    """Log of the head-mean ``attention`` (B, H, N, N) to tokens ``keys`` (B, K), mean over queries and keys: (B,)."""
    index = keys[:, None, None, :].expand(-1, *attention.shape[1:3], -1)
    paid = attention.gather(3, index).mean(1)  # (B, N, K)
    return paid.clamp_min(torch.finfo(paid.dtype).tiny).log().mean((1, 2))  # log(0) after underflow would give nan


def _unit(g: torch.Tensor) -> torch.Tensor:
    """``g`` (B, ...) divided by its norm, image by image; zero stays zero.

    It is divided by its largest value first, because the squares of a confident model's gradient underflow.
    """
    tiny, flat = torch.finfo(g.dtype).tiny, g.flatten(1)
    flat = flat / flat.abs().amax(1, keepdim=True).clamp_min(tiny)
    return (flat / flat.norm(dim=1, keepdim=True).clamp_min(tiny)).view_as(g)
