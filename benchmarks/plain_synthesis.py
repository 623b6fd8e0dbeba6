"""The published loop of Algorithm 1, written plainly: what ``ns_easyrobust.synthesize`` is timed against.

As the authors' program does it: a fresh clean forward in each step, the noise added in a forward written by
hand, parameters that collect gradients nobody uses, the stop test read in each step, AdamW with its default
decay. It shares nothing with the package.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn


def forward_with_noise(model: nn.Sequential, images: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
    """Logits of ``Sequential(Normalize, vit)`` with ``noise`` on the patch tokens; timm's ViT with a class token."""
    vit: Any = model[1]
    tokens = vit.patch_embed(model[0](images)) + noise
    tokens = torch.cat([vit.cls_token.expand(len(tokens), -1, -1), tokens], dim=1)
    tokens = vit.blocks(vit.pos_drop(tokens + vit.pos_embed))
    logits: torch.Tensor = vit.head(vit.norm(tokens)[:, 0])
    return logits


class PlainLoop:
    """One noise under way; :meth:`step` tests it and, while it is not under ``eps``, updates it."""

    def __init__(
        self, model: nn.Sequential, shape: tuple[int, ...], *, limit: float = 3.0, lr: float = 0.1, eps: float = 0.03
    ) -> None:
        self.model, self.eps = model.eval(), eps
        device = next(model.parameters()).device
        self.noise = torch.empty(shape, device=device).uniform_(-limit, limit).requires_grad_(True)
        self.optimizer = torch.optim.AdamW([self.noise], lr=lr)

    def step(self, images: torch.Tensor) -> tuple[float, bool]:
        """mse_probability of the noise on ``images``, and whether it is under eps."""
        with torch.no_grad():
            clean = self.model(images)
        noisy = forward_with_noise(self.model, images, self.noise)
        moved = float((noisy.softmax(-1) - clean.softmax(-1)).square().sum(-1).mean())
        if moved < self.eps:
            return moved, True
        self.optimizer.zero_grad()
        (noisy - clean).square().sum(-1).mean().backward()
        self.optimizer.step()
        return moved, False
