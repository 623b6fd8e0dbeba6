"""Losses of a training run: of logits, however the model returns them, and of several views of an image."""

from __future__ import annotations

import argparse
from typing import Any

import torch
from timm.data import Mixup
from timm.loss import JsdCrossEntropy, LabelSmoothingCrossEntropy, SoftTargetCrossEntropy
from torch import nn

from ..models import mean_logits
from .image_flags import mixes


class LogitsLoss(nn.Module):
    """``loss_fn`` of a model's output: of the logits in a dict or ModelOutput, of the mean of two heads' logits."""

    def __init__(self, loss_fn: nn.Module) -> None:
        super().__init__()
        self.loss_fn = loss_fn

    def forward(self, output: Any, target: torch.Tensor) -> torch.Tensor:
        """The loss of ``output`` for the labels (B,) or soft targets (B, K)."""
        loss: torch.Tensor = self.loss_fn(mean_logits(output, len(target)), target)
        return loss


class SplitLoss(LogitsLoss):
    """AugMix's loss of ``splits`` views: CE(clean) + 12 JSD, by timm's ``JsdCrossEntropy``.

    JSD is the mean over the views of KL(p_view || M), with M the mean of their probabilities, not below 1e-7
    (Hendrycks et al. 2020, section 3; google-research/augmix 9b9824c, imagenet.py:279-291).

    Attributes:
        plain: the loss of a single view, for companion losses, with the same smoothing.
    """

    def __init__(self, plain: LogitsLoss, splits: int, smoothing: float = 0.0) -> None:
        super().__init__(JsdCrossEntropy(num_splits=splits, smoothing=smoothing))
        self.plain, self.splits = plain, splits

    def forward(self, output: Any, target: torch.Tensor) -> torch.Tensor:
        """The loss of ``output`` for the views of a batch, all clean ones first, and the labels (B,) of its images."""
        return super().forward(output, target.repeat(self.splits))


def join_views(images: torch.Tensor | list[torch.Tensor], device: torch.device) -> torch.Tensor:
    """A batch's images (B, C, H, W), or its views as (views B, C, H, W) in timm's order, all clean ones first."""
    if isinstance(images, torch.Tensor):
        return images.to(device, non_blocking=True)
    return torch.cat([view.to(device, non_blocking=True) for view in images])


def first_view(
    images: torch.Tensor, target: torch.Tensor, loss_fn: nn.Module, output: Any
) -> tuple[torch.Tensor, Any, nn.Module]:
    """Images, output and loss for companion losses: of a batch of several views the clean ones, with the plain loss."""
    if not isinstance(loss_fn, SplitLoss):
        return images, output, loss_fn
    clean = None if output is None else mean_logits(output, len(images))[: len(target)]
    return images[: len(target)], clean, loss_fn.plain


def build_mixup_and_loss(args: argparse.Namespace) -> tuple[Mixup | None, nn.Module]:
    """Mixup, or None if it is off, and the loss function; with mixup, smoothing is in the targets that it makes."""
    if mixes(args):
        mixup = Mixup(
            mixup_alpha=args.mixup,
            cutmix_alpha=args.cutmix,
            cutmix_minmax=args.cutmix_minmax,
            prob=args.mixup_prob,
            switch_prob=args.mixup_switch_prob,
            mode=args.mixup_mode,
            label_smoothing=args.smoothing,
            num_classes=args.num_classes,
        )
        return mixup, LogitsLoss(SoftTargetCrossEntropy())
    plain = LogitsLoss(LabelSmoothingCrossEntropy(args.smoothing) if args.smoothing else nn.CrossEntropyLoss())
    return None, SplitLoss(plain, args.aug_splits, args.smoothing) if args.jsd_loss else plain
