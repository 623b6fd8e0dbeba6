"""Small models, and what goes on in them by hand."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

from ns_easyrobust.models.architectures import build
from ns_easyrobust.models.normalization import NormalizedModel, with_normalization


def small_vit(num_classes: int = 10, seed: int = 0, arch: str = "vit_micro_patch8_32", **options) -> NormalizedModel:
    torch.manual_seed(seed)
    return with_normalization(build(arch, num_classes=num_classes, **options), (0.5,) * 3, (0.5,) * 3)


class TwoHeads(nn.Module):
    """``model``, whose logits in training are two heads', with the same mean, as of a distilled DeiT of timm 0.5.4."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: torch.Tensor) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
        logits = self.model(images)
        return (logits + logits.detach().sin(), logits - logits.detach().sin()) if self.training else logits


def forward_by_hand(model: nn.Sequential, images: torch.Tensor, value: torch.Tensor, block: int = -1) -> torch.Tensor:
    """Logits with ``value`` on the patch tokens or at a block's input, each part of the transformer called by name."""
    vit = model[1]
    tokens = vit.patch_embed(model[0](images))
    tokens = tokens + value if block == -1 else tokens
    if timm_1 := hasattr(vit, "_pos_embed"):
        tokens = vit.norm_pre(vit.patch_drop(vit._pos_embed(tokens)))
    else:
        tokens = torch.cat((vit.cls_token.expand(len(tokens), -1, -1), tokens), dim=1)
        tokens = vit.pos_drop(tokens + vit.pos_embed)
    if block == -1:
        tokens = vit.blocks(tokens)
    else:
        tokens = vit.blocks[block:](vit.blocks[:block](tokens) + value)
    return vit.forward_head(vit.norm(tokens)) if timm_1 else vit.head(vit.norm(tokens)[:, 0])


STD = (0.2, 0.5, 0.9)


def unequal(**options) -> nn.Module:
    """A small ViT whose pixel and normalised spaces differ."""
    torch.manual_seed(1)
    return with_normalization(build("vit_micro_patch8_32", num_classes=10, **options), (0.4, 0.5, 0.6), STD).eval()


def matrix_of(model: nn.Module, space: str) -> np.ndarray:
    """What one patch goes through, (64, 192): unit vectors sent through the modules themselves."""
    vit = model[1]
    units = torch.eye(192).view(192, 3, 8, 8)
    if space == "pixel":
        units = model[0](units) - model[0](torch.zeros(1, 3, 8, 8))
    with torch.no_grad():
        bias = vit.patch_embed.proj.bias[:, None]
        return (vit.patch_embed.proj(units).flatten(1).T - bias).double().numpy()


def numpy_patches(images: np.ndarray, p: int = 8) -> np.ndarray:
    """(B, C, H, W) to (B, N, C*p*p) by slicing."""
    _, _, h, w = images.shape
    cut = [images[:, :, i : i + p, j : j + p] for i in range(0, h, p) for j in range(0, w, p)]
    return np.stack([patch.reshape(len(images), -1) for patch in cut], axis=1)


class LinearEmbed(nn.Module):
    """Patches of 8 pixels, each mapped to 24 numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.proj, self.img_size = nn.Conv2d(3, 24, 8, 8), (32, 32)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.proj(images).flatten(2).transpose(1, 2)


class LinearViT(nn.Module):
    """Logits H [W x_1, ..., W x_16] + b of 16 patches: linear, so that all influence is known in closed form."""

    def __init__(self, num_classes: int = 4, seed: int = 0) -> None:
        super().__init__()
        self.patch_embed, self.head = LinearEmbed(), nn.Linear(16 * 24, num_classes)
        self.num_classes = num_classes
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.normal_(std=0.1, generator=generator)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.head(self.patch_embed(images).flatten(1))
