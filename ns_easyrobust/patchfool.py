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

from .attacks import checked
from .attention import attention_blocks, attention_maps, prefix_tokens
from .errors import ModelError, OptionError
from .patches import Forward, Patches, core, forward_of, patch_grid
from .randomness import draw_seed
from .vit import find_normalize, frozen

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
            raise OptionError(f"patchfool: expected epsilon > 0 with norm {self.norm!r}, found {self.epsilon}.")
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
        space = _Space.of(inner, pixels)
        clean = space.normalised(pixels)
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        uniform = torch.stack([torch.rand(pixels.shape[1:], generator=g) for g in generators]).to(pixels)
        patches = _choose(inner, clean, labels, config, generators)
        content = _ascend(inner, clean, labels, patches, uniform, space, config)
    return patches.paste(pixels, space.pixels(content))


@dataclass(frozen=True)
class _Space:
    """Normalised space; mean and std are (C, 1, 1)."""

    mean: torch.Tensor
    std: torch.Tensor

    @classmethod
    def of(cls, model: nn.Module, like: torch.Tensor) -> _Space:
        layer = find_normalize(model)
        if layer is None:
            return cls(like.new_zeros(1, 1, 1), like.new_ones(1, 1, 1))
        mean, std = (layer.get_buffer(name).to(like).reshape(-1, 1, 1) for name in ("mean", "std"))
        return cls(mean, std)

    def normalised(self, pixels: torch.Tensor) -> torch.Tensor:
        return (pixels - self.mean) / self.std

    def pixels(self, normalised: torch.Tensor) -> torch.Tensor:
        return (normalised * self.std + self.mean).clamp(0, 1)

    def boxed(self, normalised: torch.Tensor) -> torch.Tensor:
        """Clamped to what pixels of [0, 1] can reach."""
        return torch.clamp(normalised, (0 - self.mean) / self.std, (1 - self.mean) / self.std)


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
        return Patches(size, torch.stack(drawn).to(clean.device))
    if config.select == "saliency":
        score = _saliency(core(model), clean, labels, size)
    else:
        score = _attention_received(model, clean, config.layer, number)
    return Patches(size, score.topk(config.patches, dim=1).indices)


def _attention_received(model: nn.Module, clean: torch.Tensor, layer: int, number: int) -> torch.Tensor:
    """Attention (B, number) that each patch gets in one block, mean over heads and over all queries."""
    if layer >= (depth := len(attention_blocks(model))):
        raise ModelError(
            f"patchfool: expected a model with a block {layer} to choose patches by, found {depth} blocks "
            f"(0..{depth - 1}). Choose one of them as the layer."
        )
    with torch.no_grad(), attention_maps(model, [layer]) as maps:
        core(model)(clean)
    received = maps[layer].mean((1, 2))[:, prefix_tokens(model) :]
    if received.shape[1] != number:
        raise ModelError(
            f"{type(core(model)).__name__}: expected attention to {number} patches after {prefix_tokens(model)} "
            f"prefix tokens, found {received.shape[1]}. Choose patches by saliency or at random."
        )
    return received


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
    space: _Space,
    config: PatchFoolConfig,
) -> torch.Tensor:
    """The patches' normalised content (B, P, C, h, w) after the last iteration.

    Args:
        clean: (B, C, H, W), normalised. uniform: of the same shape, drawn from [0, 1].
    """
    layers, (blocks, prefix) = _attended_layers(model, config), _blocks_and_prefix(model)
    forward = forward_of(model, clean, patches, blocks, prefix)
    keys = prefix + (patches.chosen if config.mode == "exact" else patches.chosen[:, :1])
    before, uniform, radius = patches.cut(clean), patches.cut(uniform), config.epsilon / space.std
    start = before + (2 * uniform - 1) * radius if config.norm == "linf" else space.normalised(uniform)
    content = space.boxed(start).requires_grad_()
    optimizer = torch.optim.Adam([content], lr=config.lr)
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, config.decay_steps, config.decay)
    with _reading(model, layers) as (maps, middle):
        for _ in range(config.steps):
            gradient = _ce_gradient(forward, content, labels, config.mode, retain=bool(layers))
            if layers:
                share = 1 if config.mode == "exact" else 1 / len(labels)
                seen = [share * _log_attention(maps[layer], keys) for layer in layers]
                towards = _without_conflict(seen, middle[0], content, gradient, exact=config.mode == "exact")
                gradient = gradient + config.alpha * towards
            content.grad = -gradient
            optimizer.step()
            schedule.step()
            with torch.no_grad():
                content.copy_(space.boxed(_within(content, before, radius, config.norm)))
    return content.detach()


def _ce_gradient(
    forward: Forward, content: torch.Tensor, labels: torch.Tensor, mode: str, *, retain: bool
) -> torch.Tensor:
    """Gradient of the cross-entropy; on return only what ``retain``ed attention needs of the graph is alive."""
    loss = F.cross_entropy(forward(content), labels, reduction="sum" if mode == "exact" else "mean")
    return torch.autograd.grad(loss, content, retain_graph=retain)[0]


def _log_attention(attention: torch.Tensor, keys: torch.Tensor) -> torch.Tensor:
    """log of the head-mean attention (B, H, N, N) to the tokens ``keys`` (B, K), mean over queries and keys: (B,)."""
    index = keys[:, None, None, :].expand(-1, *attention.shape[1:3], -1)
    paid = attention.gather(3, index).mean(1)  # (B, N, K)
    return paid.clamp_min(torch.finfo(paid.dtype).tiny).log().mean((1, 2))  # an underflow to 0 would end in nan


def _without_conflict(
    seen: Sequence[torch.Tensor], middle: torch.Tensor, content: torch.Tensor, g: torch.Tensor, *, exact: bool
) -> torch.Tensor:
    """The sum of the gradients of ``seen``, each without what opposes the cross-entropy's gradient ``g``.

    With g_l the gradient of ``seen[l]`` (B,) and u = g / |g|, it is the sum of g_l - min(<g_l, u>, 0) e,
    where e = u projects and e = g is the published form. The sum takes one backward pass. It is
    linear in the cotangents that start it, so its derivative along u by those is what u does to the
    network: a forward pass, which ends in all the <g_l, u>. For the last two terms the pass ends at
    ``middle``, where their cotangents are known.

    Args:
        middle: (B, N, D), what all but the last two of ``seen`` precede and those two follow.
        content, g: (B, P, C, h, w).
    """
    each = (-1,) + (1,) * (g.ndim - 1)
    u = g / g.flatten(1).norm(dim=1).clamp_min(torch.finfo(g.dtype).tiny).view(each)
    early, late = seen[:-2], seen[-2:]
    arriving = [torch.autograd.grad(term.sum(), middle, retain_graph=True)[0] for term in late]
    cotangents = [torch.ones_like(term) for term in early] + [torch.stack(arriving).sum(0)]
    for cotangent in cotangents:
        cotangent.requires_grad_()
    (total,) = torch.autograd.grad([*early, middle], content, cotangents, create_graph=True)
    *products, moved = torch.autograd.grad(total, cotangents, u)
    products += [(cotangent * moved).flatten(1).sum(1) for cotangent in arriving]
    opposed = torch.stack(products).clamp(max=0).sum(0).view(each)
    return total.detach() - opposed * (u if exact else g)


def _within(content: torch.Tensor, clean: torch.Tensor, radius: torch.Tensor, norm: str) -> torch.Tensor:
    """``content`` (B, P, C, h, w) brought to within ``radius`` (C, 1, 1) of ``clean``; "l2" for each channel."""
    if norm == "linf":
        return torch.clamp(content, clean - radius, clean + radius)
    if norm == "l2":
        change = content - clean
        length = change.square().sum((1, 3, 4), keepdim=True).sqrt()
        return clean + change * (radius / length.clamp_min(torch.finfo(length.dtype).tiny)).clamp(max=1)
    return content
