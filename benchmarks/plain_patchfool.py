"""PatchFool written plainly: what ``ns_easyrobust.patchfool`` is timed and tested against.

Fu et al. 2022, "Patch-Fool" (arXiv:2203.08392), with the settings of its published program. The
perturbation and its mask have the size of the image, attention comes from hooks on every block, and
each attention layer takes one backward pass of its own down to the image. Nothing here is shared with
the package's attack; of the package it uses only ``frozen``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from ns_easyrobust.models import frozen


def plain_patchfool(
    model: nn.Sequential,
    pixels: torch.Tensor,
    labels: torch.Tensor,
    config: Any,
    *,
    seeds: Sequence[int] | None = None,
) -> torch.Tensor:
    """Adversarial pixels (B, 3, H, W) in [0, 1] of the last iterate.

    Args:
        model: ``Sequential(Normalize, vit)`` with timm's ``blocks`` and unfused attention.
        config: a ``PatchFoolConfig``.
        seeds: one an image; it draws the start, ``torch.rand(3, H, W)``, and then a random choice of patches.
            By default 0, 1, 2, ...
    """
    fused = [block.attn for block in model[1].blocks if getattr(block.attn, "fused_attn", False)]
    try:
        for attention in fused:  # timm 1.x: a fused kernel returns no weights
            attention.fused_attn = False
        with frozen(model), torch.enable_grad():
            return _attack(model, pixels, labels, config, range(len(pixels)) if seeds is None else seeds)
    finally:
        for attention in fused:
            attention.fused_attn = True


def _attack(
    model: nn.Sequential, pixels: torch.Tensor, labels: torch.Tensor, config: Any, seeds: Sequence[int]
) -> torch.Tensor:
    vit, exact = model[1], config.mode == "exact"
    mean, std = model[0].mean[:, None, None].to(pixels), model[0].std[:, None, None].to(pixels)
    low, high = (0 - mean) / std, (1 - mean) / std
    clean = (pixels - mean) / std
    size = vit.patch_embed.patch_size
    columns = pixels.shape[-1] // size[1]
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    uniform = torch.stack([torch.rand(pixels.shape[1:], generator=generator) for generator in generators]).to(pixels)

    chosen = _choose(vit, clean, labels, config, generators)  # (B, P)
    mask = torch.zeros(len(pixels), 1, *pixels.shape[2:], dtype=pixels.dtype, device=pixels.device)
    for b, patches in enumerate(chosen.tolist()):
        for patch in patches:
            top, left = patch // columns * size[0], patch % columns * size[1]
            mask[b, :, top : top + size[0], left : left + size[1]] = 1
    radius = config.epsilon / std

    if config.norm == "linf":
        delta = clean + (2 * uniform - 1) * radius
    else:
        delta = (uniform - mean) / std
    delta = torch.clamp(delta, low, high).requires_grad_()
    base = clean * (1 - mask)
    optimizer = torch.optim.Adam([delta], lr=config.lr)
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, config.decay_steps, config.decay)
    layers = range(1, len(vit.blocks) // 2) if config.loss == "attention" else range(0)
    targets = chosen if exact else chosen[:, :1]

    for _ in range(config.steps):
        logits, maps = _forward(vit, base + delta * mask)
        loss = F.cross_entropy(logits, labels, reduction="sum" if exact else "mean")
        (ce_gradient,) = torch.autograd.grad(loss, delta, retain_graph=len(layers) > 0)
        gradient = ce_gradient
        for layer in layers:
            seen = _log_attention(maps[layer], _prefix(maps[layer], vit, clean) + targets).mean((1, 2))  # (B,)
            (g,) = torch.autograd.grad(seen.sum() if exact else seen.mean(), delta, retain_graph=layer != layers[-1])
            gradient = gradient + config.alpha * _without_conflict(g, ce_gradient, exact)
        delta.grad = -gradient
        optimizer.step()
        schedule.step()
        with torch.no_grad():
            change = (delta - clean) * mask
            if config.norm == "l2":
                norm = change.flatten(2).norm(dim=2)[:, :, None, None]
                delta.copy_(clean + change * torch.where(norm > radius, radius / norm, 1))
            elif config.norm == "linf":
                delta.copy_(torch.maximum(torch.minimum(delta, clean + radius), clean - radius))
            delta.copy_(torch.clamp(delta, low, high))
    content = (delta.detach() * std + mean).clamp(0, 1)
    return torch.where(mask.bool(), content, pixels)


def _forward(vit: nn.Module, images: torch.Tensor) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """Logits and every block's attention (B, H, N, N)."""
    maps: list[torch.Tensor] = []
    hooks = [
        block.attn.attn_drop.register_forward_hook(lambda module, args, output: maps.append(args[0]))
        for block in vit.blocks
    ]
    try:
        return vit(images), maps
    finally:
        for hook in hooks:
            hook.remove()


def _prefix(attention: torch.Tensor, vit: nn.Module, images: torch.Tensor) -> int:
    """How many tokens stand before the patches' where ``attention`` (B, H, N, N) is paid."""
    return attention.shape[-1] - _patches(vit, images)


def _patches(vit: nn.Module, images: torch.Tensor) -> int:
    size = vit.patch_embed.patch_size
    return images[0, 0].numel() // (size[0] * size[1])


def _choose(
    vit: nn.Module, clean: torch.Tensor, labels: torch.Tensor, config: Any, generators: list[torch.Generator]
) -> torch.Tensor:
    """Indices (B, P) of the attacked patches, best first."""
    size = vit.patch_embed.patch_size
    if config.select == "random":
        drawn = [
            torch.randperm(_patches(vit, clean), generator=generator)[: config.patches] for generator in generators
        ]
        return torch.stack(drawn).to(clean.device)
    if config.select == "attention":
        with torch.no_grad():
            _, maps = _forward(vit, clean)
        attention = maps[config.layer]
        score = attention.mean((1, 2))[:, _prefix(attention, vit, clean) :]
    else:
        image = clean.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(F.cross_entropy(vit(image), labels), image)
        score = F.avg_pool2d(gradient.abs().sum(1, keepdim=True), size).flatten(1)
    return score.topk(config.patches).indices


def _log_attention(attention: torch.Tensor, keys: torch.Tensor) -> torch.Tensor:
    """log of the head-mean attention (B, N, P) that every query pays to the tokens ``keys`` (B, P)."""
    heads = attention.mean(1)  # (B, N, N)
    index = keys[:, None, :].expand(-1, heads.shape[1], -1)
    return heads.gather(2, index).log()


def _without_conflict(g: torch.Tensor, ce_gradient: torch.Tensor, exact: bool) -> torch.Tensor:
    """``g`` less what opposes the cross-entropy's gradient, image by image.

    The published program divides by the norm; the exact projection divides by its square.
    """
    g_flat, ce_flat = g.flatten(1), ce_gradient.flatten(1)
    dot, norm = (g_flat * ce_flat).sum(1), ce_flat.norm(dim=1)
    coefficient = dot / (norm**2 if exact else norm)
    coefficient = torch.where((dot < 0) & (norm > 0), coefficient, 0)
    return g - coefficient[:, None, None, None] * ce_gradient
