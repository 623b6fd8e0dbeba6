"""PatchFool: the attack on a vision transformer through one patch (Fu et al. 2022, arXiv:2203.08392).

The perturbation is what stands in the patches, in the model's normalised space, where the
published program's step size has its meaning. It is moved by Adam up the gradient of the
cross-entropy, plus those of the attention that the first half of the blocks pays to the patch,
each freed of what opposes the cross-entropy's.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

from ..errors import ModelError, OptionError
from ..models.attention import attention_blocks, attention_maps, prefix_tokens
from ..models.vit import frozen
from ..utils.seeding import draw_seed
from .gradient import checked
from .patch_forward import Forward, NormalisedSpace, Patches, core, forward_of, patch_grid

_CHOICES = {
    "select": ("attention", "saliency", "random"),
    "loss": ("attention", "ce"),
    "mode": ("official", "exact"),
    "norm": ("none", "linf", "l2"),
}


@dataclass(frozen=True)
class PatchFoolConfig:
    """Settings of :func:`patchfool`; the defaults are the published program's, with its attention loss.

    Attributes:
        patches: how many patches of an image are attacked.
        select: "attention": those that get most of it in block ``layer`` (mean over heads and
            queries); "saliency": those with the largest sum of \\|dCE/dx\\|; "random".
        layer: that block, from 0.
        loss: "ce", or "attention": cross-entropy and ``alpha`` times the attention of blocks 1 to
            L // 2 - 1.
        mode: "official": as published, where the cross-entropy is the batch's mean and the
            projection divides by the gradient's norm, so that the result depends on the batch, and
            only the first patch gets the attention loss. "exact": every image by itself, a true
            projection (norm squared), attention to all the patches (their mean).
        norm: "none": the patch's content is free within the pixel box; "linf", "l2": it stays
            within ``epsilon`` of the image's, "l2" for each channel, as published.
        epsilon: that radius, in pixels of [0, 1]; 0 for "none".
        lr, decay_steps, decay: Adam's step size in normalised values, multiplied by ``decay`` every
            ``decay_steps`` iterations.
    """

    patches: int = 1
    select: str = "attention"
    layer: int = 4
    loss: str = "attention"
    alpha: float = 0.002
    mode: str = "official"
    norm: str = "none"
    epsilon: float = 0.0
    steps: int = 250
    lr: float = 0.22
    decay_steps: int = 10
    decay: float = 0.95

    def __post_init__(self) -> None:
        for name, choices in _CHOICES.items():
            if (found := getattr(self, name)) not in choices:
                raise OptionError(f"patchfool {name}: expected one of {', '.join(choices)}, found {found!r}.")
        for name, least in (("patches", 1), ("layer", 0), ("steps", 1), ("decay_steps", 1)):
            if (number := getattr(self, name)) != int(number) or number < least:
                raise OptionError(f"patchfool {name}: expected a whole number of at least {least}, found {number}.")
        if not (0 <= self.alpha < float("inf") and 0 < self.lr < float("inf") and 0 < self.decay <= 1):
            raise OptionError(
                "patchfool: expected alpha >= 0, lr > 0 and decay in (0, 1], "
                f"found {self.alpha}, {self.lr} and {self.decay}."
            )
        if self.norm == "none" and self.epsilon != 0:
            raise OptionError(
                f"patchfool: expected epsilon 0 with norm 'none', found {self.epsilon}. Choose norm 'linf' or 'l2'."
            )
        if self.norm != "none" and not 0 < self.epsilon < float("inf"):
            raise OptionError(
                f"patchfool: expected epsilon > 0 with norm {self.norm!r}, found {self.epsilon}. Give a radius."
            )
        if self.norm == "linf" and self.epsilon > 1:
            raise OptionError(f"patchfool: expected epsilon in pixels of [0, 1], found {self.epsilon}. Divide by 255.")


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

    The published program, to rounding, at a fraction of its cost: only the chosen patches are
    embedded, and the attention layers, each of which would need a backward pass of its own for
    the projection, share one, with a forward-mode pass for their products with the
    cross-entropy's gradient. Blocks that need not be read keep their fused attention.

    Args:
        model: pixels in [0, 1] to logits, normalisation inside; without one, normalised space is
            pixel space. The model is afterwards as it was.
        pixels: (B, 3, H, W) in [0, 1]. labels: (B,).
        config: by default ``PatchFoolConfig()``.
        generator: draws one seed an image; seed 0 by default.
        seeds: one an image instead; its start is ``torch.rand(3, H, W)`` of a CPU generator with that
            seed, which then also draws the patches for ``select="random"``. In the mode "exact" the
            result of an image then depends on itself and its seed alone, not on its batch.

    Raises:
        DataError: pixels outside [0, 1]. OptionError: more patches than there are, or seeds of
            another number. ModelError: attention is needed and cannot be read (Swin, ResNet), or
            the model has too few blocks.
    """
    config = config or PatchFoolConfig()
    if seeds is None:
        generator = generator if generator is not None else torch.Generator().manual_seed(0)
        seeds = [draw_seed(generator) for _ in pixels]
    if len(seeds) != len(pixels):
        raise OptionError(f"patchfool: expected one seed for each of {len(pixels)} images, found {len(seeds)}.")
    pixels = checked(pixels).detach()
    with frozen(model) as inner, torch.enable_grad():
        space = NormalisedSpace.of(inner, pixels)
        clean = space.normalised(pixels)
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        uniform = torch.stack([torch.rand(pixels.shape[1:], generator=g) for g in generators]).to(pixels)
        patches = _choose(inner, clean, labels, config, generators)
        content = _ascend(inner, clean, labels, patches, uniform, space, config)
    return patches.paste(pixels, space.pixels(content))


def _choose(
    model: nn.Module,
    clean: torch.Tensor,
    labels: torch.Tensor,
    config: PatchFoolConfig,
    generators: Sequence[torch.Generator],
) -> Patches:
    """The patches to attack, the best first."""
    size, number = patch_grid(model, clean)
    if config.patches > number:
        raise OptionError(f"patchfool patches: expected at most the image's {number}, found {config.patches}.")
    if config.select == "random":
        drawn = [torch.randperm(number, generator=generator)[: config.patches] for generator in generators]
        return Patches(size, number, torch.stack(drawn).to(clean.device))
    if config.select == "saliency":
        score = _saliency(core(model), clean, labels, size)
    else:
        received = _attention_received(model, clean, config.layer)
        score = received[:, _first_patch(received.shape[1], prefix_tokens(model), number) :]
    return Patches(size, number, score.topk(config.patches, dim=1).indices)


def _attention_received(model: nn.Module, clean: torch.Tensor, layer: int) -> torch.Tensor:
    """Attention (B, N) that each token gets in one block, mean over heads and over all queries."""
    if layer >= (depth := len(attention_blocks(model))):
        raise ModelError(
            f"patchfool: expected a model with a block {layer} to choose patches by, found {depth} blocks "
            f"(0..{depth - 1}). Choose one of them as the layer"
            + ("." if depth >= 4 else ", and the loss 'ce', for the attention loss needs 4.")
        )
    with torch.no_grad(), attention_maps(model, [layer]) as maps:
        core(model)(clean)
    return maps[layer].mean((1, 2))


def _first_patch(tokens: int, prefix: int, number: int) -> int:
    """``prefix``, if that and the ``number`` of patches make up the ``tokens``."""
    if tokens != prefix + number:
        raise ModelError(
            f"patchfool: expected attention among {prefix} prefix tokens and {number} patches, found {tokens} tokens. "
            "Choose patches by saliency or at random, and the loss 'ce'."
        )
    return prefix


def _saliency(vit: nn.Module, clean: torch.Tensor, labels: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """Sum (B, n) over each patch's values of the cross-entropy's absolute gradient."""
    leaf = clean.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(F.cross_entropy(vit(leaf), labels, reduction="sum"), leaf)
    return F.avg_pool2d(gradient.abs().sum(1, keepdim=True), size, divisor_override=1).flatten(1)


def _attended_layers(model: nn.Module, config: PatchFoolConfig) -> range:
    """The blocks whose attention is raised; none for the loss "ce"."""
    if config.loss == "ce":
        return range(0)
    layers = range(1, (depth := len(attention_blocks(model))) // 2)
    if not layers:
        raise ModelError(
            f"patchfool: expected at least 4 blocks for the attention loss, found {depth}. Choose the loss 'ce'."
        )
    return layers


def _blocks_and_prefix(model: nn.Module) -> tuple[list[nn.Module], int]:
    """The model's blocks and how many tokens precede the patches'; none where they cannot be read."""
    try:
        return attention_blocks(model), prefix_tokens(model)
    except ModelError:
        return [], 0


@contextmanager
def _reading(model: nn.Module, layers: range) -> Iterator[tuple[Mapping[int, torch.Tensor], list[torch.Tensor]]]:
    """Attention of ``layers``, and the tokens that enter the last but one of them, in each forward of the body."""
    if not layers:
        yield {}, []
        return
    tokens: list[torch.Tensor] = []

    def record(module: nn.Module, args: tuple[torch.Tensor, ...]) -> None:
        tokens[:] = args[:1]

    handle = attention_blocks(model)[max(layers[-1] - 1, 1)].register_forward_pre_hook(record)
    try:
        # Block 0 is read for its gradient's gradient, which a fused kernel lacks.
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
        clean: (B, C, H, W), normalised. uniform: of the same shape, drawn from [0, 1].
    """
    layers, (blocks, prefix) = _attended_layers(model, config), _blocks_and_prefix(model)
    forward = forward_of(model, clean, patches, blocks, prefix)
    before, uniform = patches.cut(clean), patches.cut(uniform)
    start = space.normalised(uniform)
    if config.norm == "linf":
        start = before + (2 * uniform - 1) * config.epsilon / space.std
    content = space.boxed(start).requires_grad_()
    optimizer = torch.optim.Adam([content], lr=config.lr)
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, config.decay_steps, config.decay)
    with _reading(model, layers) as (attention, middle):
        for _ in range(config.steps):
            gradient = _ce_gradient(forward, content, labels, config.mode, retain=bool(layers))
            if layers:
                gradient = gradient + config.alpha * _attention_gradient(
                    [attention[layer] for layer in layers],  # no name keeps the graph alive
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
                content.copy_(space.boxed(space.within(content, before, config.epsilon, config.norm)))
    return content.detach()


def _ce_gradient(
    forward: Forward, content: torch.Tensor, labels: torch.Tensor, mode: str, *, retain: bool
) -> torch.Tensor:
    """Gradient of the cross-entropy; with ``retain``, the attention's part of the graph is kept, not the rest."""
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
    """The sum over blocks of the attention's gradient, each without what opposes the cross-entropy's gradient ``g``.

    With J_l the log of the attention (B, H, N, N) that block l pays to the patch, g_l its gradient
    and u = g / |g|, it is the sum of g_l - min(<g_l, u>, 0) e, where e = u projects and e = g is
    the published form. The sum takes one backward pass. It is linear in the cotangents that start
    it, so its derivative along u by those is what u does to the network: a forward pass, which
    ends in all the <g_l, u>. For the last two blocks it ends before them, at ``middle``, where
    their cotangents are known.

    Args:
        middle: (B, N, D), the tokens that enter the last but one of the blocks.
        content, g: (B, P, C, h, w).
    """
    exact = mode == "exact"
    share = 1 if exact else 1 / len(g)
    attacked = patches.chosen if exact else patches.chosen[:, :1]
    first = _first_patch(middle.shape[1], prefix, patches.number)
    seen = [share * _log_attention(attention, first + attacked) for attention in maps]
    early, late = seen[:-2], seen[-2:]
    arriving = [torch.autograd.grad(term.sum(), middle, retain_graph=True)[0] for term in late]
    cotangents = [torch.ones_like(term) for term in early] + [torch.stack(arriving).sum(0)]
    for cotangent in cotangents:
        cotangent.requires_grad_()
    (total,) = torch.autograd.grad([*early, middle], content, cotangents, create_graph=True)
    u = _unit(g)
    *products, moved = torch.autograd.grad(total, cotangents, u)
    products += [(cotangent * moved).flatten(1).sum(1) for cotangent in arriving]
    opposed = torch.stack(products).clamp(max=0).sum(0)
    return total.detach() - opposed.view(-1, 1, 1, 1, 1) * (u if exact else g)


def _log_attention(attention: torch.Tensor, keys: torch.Tensor) -> torch.Tensor:
    """log of the head-mean attention (B, H, N, N) to the tokens ``keys`` (B, K), mean over queries and keys: (B,)."""
    index = keys[:, None, None, :].expand(-1, *attention.shape[1:3], -1)
    paid = attention.gather(3, index).mean(1)  # (B, N, K)
    return paid.clamp_min(torch.finfo(paid.dtype).tiny).log().mean((1, 2))  # an underflow to 0 would end in nan


def _unit(g: torch.Tensor) -> torch.Tensor:
    """``g`` (B, ...) divided by its norm, image by image; zero stays zero.

    First by its largest value: the squares of a confident model's gradient underflow.
    """
    tiny, flat = torch.finfo(g.dtype).tiny, g.flatten(1)
    flat = flat / flat.abs().amax(1, keepdim=True).clamp_min(tiny)
    return (flat / flat.norm(dim=1, keepdim=True).clamp_min(tiny)).view_as(g)
