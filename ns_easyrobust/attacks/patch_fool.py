"""PatchFool: an attack on a vision transformer through a few patches (Fu et al. 2022, arXiv:2203.08392).

The content of the patches is optimised in the model's normalised space, for which the published
step size is meant. Adam ascends the gradient of the cross-entropy plus the gradients of the
attention that the first half of the blocks pays to the patches, each without its component
opposed to the gradient of the cross-entropy.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from ..errors import ModelError, OptionError
from ..models import attention_blocks, attention_maps, bare_vit, frozen, prefix_tokens
from ..utils import draw_seed
from .base import Attack, checked_pixels
from .patch_fool_config import PatchFoolConfig
from .patch_forward import ForwardFunction, NormalisedSpace, Patches, patch_forward, patch_grid


def patchfool(
    model: nn.Module,
    pixels: torch.Tensor,
    labels: torch.Tensor,
    config: PatchFoolConfig | None = None,
    *,
    generator: torch.Generator | None = None,
    seeds: Sequence[int] | None = None,
) -> torch.Tensor:
    """PatchFool's last iterate (B, 3, H, W) in [0, 1]; only the chosen patches differ from ``pixels``.

    It computes what the published program computes, up to rounding, at a fraction of the cost:
    only the chosen patches are embedded; and the attention layers, each of which would need its
    own backward pass for the projection, share one, plus a forward-mode pass for the products of
    their gradients with the cross-entropy's. Blocks that are not read keep their fused attention.

    Args:
        model: maps pixels in [0, 1] to logits, with the normalisation inside; without one,
            normalised space is pixel space. The model is left unchanged.
        pixels: (B, 3, H, W) in [0, 1]. labels: (B,).
        config: by default ``PatchFoolConfig()``.
        generator: draws one seed per image; by default a generator with seed 0.
        seeds: one per image, instead of ``generator``. An image starts from ``torch.rand(3, H, W)``
            of a CPU generator with its seed, which then also draws the patches for
            ``select="random"``. In mode "exact", its result then depends only on the image and its seed.

    Raises:
        DataError: pixels outside [0, 1]. OptionError: more patches than the image has, or not one
            seed per image. ModelError: attention is needed and cannot be read (Swin, ResNet), the
            model has too few blocks, or its tokens do not form a grid of patches.
    """
    config = config or PatchFoolConfig()
    if seeds is None:
        generator = generator if generator is not None else torch.Generator().manual_seed(0)
        seeds = [draw_seed(generator) for _ in pixels]
    if len(seeds) != len(pixels):
        raise OptionError(f"patchfool: expected one seed for each of {len(pixels)} images, found {len(seeds)}.")
    pixels = checked_pixels(pixels).detach()
    with frozen(model) as inner, torch.enable_grad():
        space = NormalisedSpace.of(inner, pixels)
        clean = space.normalised(pixels)
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        uniform = torch.stack([torch.rand(pixels.shape[1:], generator=rng) for rng in generators]).to(pixels)
        patches = _choose_patches(inner, clean, labels, config, generators)
        content = _ascend(inner, clean, labels, patches, uniform, space, config)
    return patches.paste(pixels, space.pixels(content))


def _choose_patches(
    model: nn.Module,
    clean: torch.Tensor,
    labels: torch.Tensor,
    config: PatchFoolConfig,
    generators: Sequence[torch.Generator],
) -> Patches:
    """The patches to attack, those with the highest score first."""
    size, number = patch_grid(model, clean)
    if config.patches > number:
        raise OptionError(f"patchfool patches: expected at most the image's {number}, found {config.patches}.")
    if config.select == "random":
        drawn = [torch.randperm(number, generator=generator)[: config.patches] for generator in generators]
        return Patches(size, number, torch.stack(drawn).to(clean.device))
    if config.select == "saliency":
        score = _saliency(bare_vit(model), clean, labels, size)
    else:
        received = _attention_received(model, clean, config.layer)
        score = received[:, _first_patch_token(received.shape[1], prefix_tokens(model), number) :]
    return Patches(size, number, score.topk(config.patches, dim=1).indices)


def _attention_received(model: nn.Module, clean: torch.Tensor, layer: int) -> torch.Tensor:
    """Attention (B, N) that each token receives in block ``layer``, mean over heads and queries."""
    if layer >= (depth := len(attention_blocks(model))):
        raise ModelError(
            f"patchfool: expected a model with a block {layer} to choose patches by, found {depth} blocks "
            f"(0..{depth - 1}). Choose one of them as the layer"
            + ("." if depth >= 4 else ", and the loss 'ce', for the attention loss needs 4.")
        )
    with torch.no_grad(), attention_maps(model, [layer]) as maps:
        bare_vit(model)(clean)
    return maps[layer].mean((1, 2))


def _first_patch_token(tokens: int, prefix: int, number: int) -> int:
    """Index of the first patch token, which is ``prefix``; ModelError unless ``tokens`` = ``prefix`` + ``number``."""
    if tokens != prefix + number:
        raise ModelError(
            f"patchfool: expected attention among {prefix} prefix tokens and {number} patches, found {tokens} tokens. "
            "Choose patches by saliency or at random, and the loss 'ce'."
        )
    return prefix


def _saliency(vit: nn.Module, clean: torch.Tensor, labels: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """Absolute gradient of the cross-entropy, summed over the values of each patch: (B, n)."""
    leaf = clean.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(F.cross_entropy(vit(leaf), labels, reduction="sum"), leaf)
    return F.avg_pool2d(gradient.abs().sum(1, keepdim=True), size, divisor_override=1).flatten(1)


def _attended_layers(model: nn.Module, config: PatchFoolConfig) -> range:
    """The blocks whose attention to the patches is maximised; none for the loss "ce"."""
    if config.loss == "ce":
        return range(0)
    layers = range(1, (depth := len(attention_blocks(model))) // 2)
    if not layers:
        raise ModelError(
            f"patchfool: expected at least 4 blocks for the attention loss, found {depth}. Choose the loss 'ce'."
        )
    return layers


def _blocks_and_prefix(model: nn.Module) -> tuple[list[nn.Module], int]:
    """The model's blocks and the number of tokens before the patches'; ([], 0) where attention cannot be read."""
    try:
        return attention_blocks(model), prefix_tokens(model)
    except ModelError:
        return [], 0


@contextmanager
def _read_attention(model: nn.Module, layers: range) -> Iterator[tuple[Mapping[int, torch.Tensor], list[torch.Tensor]]]:
    """The newest forward's attention maps, and the tokens entering the last but one of ``layers`` (or the only one)."""
    if not layers:
        yield {}, []
        return
    tokens: list[torch.Tensor] = []

    def record(module: nn.Module, args: tuple[torch.Tensor, ...]) -> None:
        tokens[:] = args[:1]

    handle = attention_blocks(model)[max(layers[-1] - 1, 1)].register_forward_pre_hook(record)
    try:
        # Block 0 is read too, because a fused kernel has no second derivative.
        with attention_maps(model, range(layers.stop)) as maps:
            yield maps, tokens
    finally:
        handle.remove()


def _ascend(
    model: nn.Module,
    clean: torch.Tensor,
    labels: torch.Tensor,
    patches: Patches,
    uniform: torch.Tensor,
    space: NormalisedSpace,
    config: PatchFoolConfig,
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
    with _read_attention(model, layers) as (attention, middle):
        for _ in range(config.steps):
            gradient = _ce_gradient(forward, content, labels, config.mode, retain=bool(layers))
            if layers:
                gradient = gradient + config.alpha * _attention_gradient(
                    [attention[layer] for layer in layers],  # not in a variable, which would keep the graph alive
                    middle.pop(),
                    patches,
                    prefix,
                    content,
                    gradient,
                    config.mode,
                )
            content.grad = -gradient
            optimizer.step()
            schedule.step()
            with torch.no_grad():
                content.copy_(space.boxed(space.project(content, original, config.epsilon, config.norm)))
    return content.detach()


def _ce_gradient(
    forward: ForwardFunction, content: torch.Tensor, labels: torch.Tensor, mode: str, *, retain: bool
) -> torch.Tensor:
    """Gradient of the cross-entropy; ``retain`` keeps the attention maps' graph, and no more, for their gradient."""
    loss = F.cross_entropy(forward(content), labels, reduction="sum" if mode == "exact" else "mean")
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
    first = _first_patch_token(middle.shape[1], prefix, patches.number)
    terms = [weight * _log_attention(attention, first + attacked) for attention in maps]
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


@dataclass(frozen=True)
class PatchFool(Attack):
    """:func:`patchfool` with its settings."""

    name = "patchfool"
    draws = True

    config: PatchFoolConfig = field(default_factory=PatchFoolConfig)

    def __call__(
        self, model: nn.Module, pixels: torch.Tensor, labels: torch.Tensor, seeds: Sequence[int]
    ) -> torch.Tensor:
        return patchfool(model, pixels, labels, self.config, seeds=seeds)

    def protocol(self) -> dict[str, Any]:
        return asdict(self.config)

    @property
    def title(self) -> str:
        return f"patchfool {self.config.mode}"
