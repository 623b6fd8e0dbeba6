"""Images in memory and a short training loop: what ``fingerprint_models.py`` makes its models with."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn
from tqdm import tqdm

from ns_easyrobust.data import Preprocessing, open_image_folder
from ns_easyrobust.models import NormalizedModel, logits_of

WARM_UP = 0.05  # of all steps


@dataclass(frozen=True)
class Recipe:
    """How a model is trained.

    Attributes:
        lr: largest learning rate of AdamW, after a linear warm-up and before a cosine to 0.
        decay: weight decay of matrices and kernels.
        augment: ``none``, ``flip``, ``shift`` (a flip and up to an eighth of the side), ``zoom`` (a flip and a crop).
        half: train on images of this parity alone, with as many steps; None: on all.
        start: scale of the patch embedding's random start, beside timm's. A small one is soon forgotten, as timm's is
            by the weight decay of hundreds of epochs: after a few, the row space would still be mostly the start's.
    """

    lr: float = 2e-3
    decay: float = 0.05
    augment: str = "shift"
    half: int | None = None
    start: float = 0.02


@dataclass(frozen=True, eq=False)
class Images:
    """Pixels (N, 3, H, W) uint8 and labels (N,)."""

    pixels: torch.Tensor
    labels: torch.Tensor

    def half(self, parity: int | None) -> Images:
        """Those of even or odd number; None: all."""
        return self if parity is None else Images(self.pixels[parity::2], self.labels[parity::2])


def read_images(folder: Path, side: int, crop_pct: float, what: str, most: int = 10**9) -> Images:
    """All images of a folder of classes, decoded once; or ``most``, evenly spaced."""
    found = open_image_folder(folder, Preprocessing(side, crop_pct).transform())
    count = min(most, len(found))
    pixels = torch.empty(count, 3, side, side, dtype=torch.uint8)
    labels = torch.empty(count, dtype=torch.int64)
    for number in tqdm(range(count), desc=what, unit="image", disable=None):
        image, labels[number] = found[number * len(found) // count]
        pixels[number] = (image * 255).round().to(torch.uint8)
    return Images(pixels, labels)


def augmented(images: torch.Tensor, kind: str, generator: torch.Generator) -> torch.Tensor:
    """Images (B, C, H, W) in [0, 1], each with a flip, a shift or a crop of its own."""
    if kind == "none":
        return images
    count, _, side, _ = images.shape
    flips = torch.rand(count, generator=generator) < 0.5
    images = torch.where(flips[:, None, None, None], images.flip(-1), images)
    if kind == "shift":
        reach = side // 8
        padded = nn.functional.pad(images, (reach,) * 4, mode="reflect")
        tops, lefts = torch.randint(0, 2 * reach + 1, (2, count, 1), generator=generator)
        rows, columns = tops + torch.arange(side), lefts + torch.arange(side)
        return padded[torch.arange(count)[:, None, None, None], torch.arange(3)[:, None, None],
                      rows[:, None, :, None], columns[:, None, None, :]]  # fmt: skip
    if kind == "zoom":
        scales = 0.6 + 0.4 * torch.rand(count, generator=generator)
        shifts = (2 * torch.rand(2, count, generator=generator) - 1) * (1 - scales)
        maps = torch.zeros(count, 2, 3)
        maps[:, 0, 0], maps[:, 1, 1], maps[:, :, 2] = scales, scales, shifts.T
        grid = nn.functional.affine_grid(maps, list(images.shape), align_corners=False)
        return nn.functional.grid_sample(images, grid, padding_mode="reflection", align_corners=False)
    return images


def _optimizer(model: nn.Module, recipe: Recipe) -> torch.optim.Optimizer:
    learning = [each for each in model.parameters() if each.requires_grad]
    groups = [
        {"params": [each for each in learning if each.ndim > 1], "weight_decay": recipe.decay},
        {"params": [each for each in learning if each.ndim <= 1], "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    return torch.optim.AdamW(groups, recipe.lr)


def fit(
    model: NormalizedModel, images: Images, recipe: Recipe, epochs: float, seed: int, name: str,
    batch: int = 128, teacher: NormalizedModel | None = None,
) -> None:  # fmt: skip
    """Train in place, for as many steps as ``epochs`` of all images have.

    Args:
        teacher: its logits are learnt (mean square of the difference, each image's mean taken away), not the labels.
    """
    steps = max(round(epochs * len(images.labels) / batch), 1)
    used = images.half(recipe.half)
    generator = torch.Generator().manual_seed(seed)
    optimizer = _optimizer(model, recipe)
    warm_up = max(round(WARM_UP * steps), 1)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer,
        lambda step: min((step + 1) / warm_up, (1 + math.cos(math.pi * step / steps)) / 2),
    )
    model.train()
    order: list[torch.Tensor] = []
    bar = tqdm(range(steps), desc=name, unit="step", disable=None, mininterval=5)
    for step in bar:
        if not order:
            order = list(torch.randperm(len(used.labels), generator=generator).split(batch))
        chosen = order.pop()
        pixels = augmented(used.pixels[chosen].float() / 255, recipe.augment, generator)
        logits = logits_of(model(pixels), len(pixels))
        if teacher is None:
            loss = nn.functional.cross_entropy(logits, used.labels[chosen])
        else:
            with torch.no_grad():
                wanted = logits_of(teacher(pixels), len(pixels))
            loss = (_centred(logits) - _centred(wanted)).square().mean()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if step % 50 == 0:
            bar.set_postfix(loss=f"{float(loss.detach()):.3f}", refresh=False)
    model.eval()


def _centred(logits: torch.Tensor) -> torch.Tensor:
    return logits - logits.mean(-1, keepdim=True)


@torch.no_grad()
def accuracy(model: NormalizedModel, images: Images) -> float:
    """Share of images whose class is told, in [0, 1]."""
    model.eval()
    right = 0
    for pixels, labels in zip(images.pixels.split(500), images.labels.split(500), strict=True):
        right += int((logits_of(model(pixels.float() / 255), len(labels)).argmax(-1) == labels).sum())
    return right / len(images.labels)
