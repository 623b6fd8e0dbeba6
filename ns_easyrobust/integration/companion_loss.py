"""A companion loss beside a script's own loss function, which is handed logits, not images."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from ..training import Augmentation, part_loss
from ..utils import rank, world_size
from .logit_tracing import ForwardRecorder, logits_in

_logger = logging.getLogger(__name__)
BRANCHES = ("first", "all")


class CompanionLoss(nn.Module):
    """A script's loss function plus the companion loss, or that alone where it replaces the clean loss.

    The images are those that the logits were computed from, whatever the script does to its batches.

    Args:
        loss_fn: the script's loss function.
        augmentation: its :meth:`~ns_easyrobust.training.augmentations.base.Augmentation.loss` is added.
        branch: one of :data:`BRANCHES`: whether only the first loss of each optimizer step gets a companion, as the
            paper's authors do it, or all of them do. A companion that replaces the clean loss replaces all of them.
        log_interval: optimizer steps between two log lines.
    """

    def __init__(
        self,
        loss_fn: Callable[..., torch.Tensor],
        augmentation: Augmentation,
        branch: str = "first",
        log_interval: int = 50,
    ) -> None:
        super().__init__()
        self.loss_fn, self.augmentation, self.log_interval = loss_fn, augmentation, log_interval
        self.branch = "all" if augmentation.replaces_clean else branch
        self.recorder = ForwardRecorder()  # to be switched on for the model that is trained
        self.steps = 0  # of the optimizer
        self.companions = 0  # losses of this step that have got one

    def forward(self, logits: Any, target: torch.Tensor, *rest: Any) -> torch.Tensor:
        """The script's loss and its companion, added (Algorithm 1, lines 17-19), or the companion in its place.

        Of the companion's outputs, ``loss_fn`` is given what the script gives it of clean ones: logits, or what holds
        them.

        The script's loss alone without gradients, and with ``branch`` "first" for the further losses of a step, unless
        they are replaced.
        """
        loss = self.loss_fn(logits, target, *rest)
        if not (torch.is_grad_enabled() and self.recorder.active):
            return loss
        with self.recorder.paused():
            companion = part_loss(
                self.augmentation,
                self.recorder.source_images(logits_in(logits)),
                target,
                lambda noisy, labels: self.loss_fn(
                    logits_in(noisy) if isinstance(logits, torch.Tensor) else noisy, labels, *rest
                ),
                output=logits,
                new_step=self.companions == 0,
            )
        self._companion_added(loss, companion)
        if not self.augmentation.replaces_clean:
            return loss + companion  # line 19 of the algorithm
        # The script's forward went through DDP, which waits for gradients of all its parameters.
        return companion + 0 * loss if world_size() > 1 else companion

    def _companion_added(self, loss: torch.Tensor, companion: torch.Tensor) -> None:
        """Count it, and log the step's first; with ``branch`` "first", it is the step's only one."""
        self.companions += 1
        if self.branch == "first":
            self.recorder.forget()
            self.recorder.active = False  # until the optimizer steps
        if self.steps % self.log_interval == 0 and self.companions == 1 and rank() == 0:
            values = (self.steps, float(loss.detach().mean()), float(companion.detach().mean()))
            _logger.info("--aug: step %d: loss %.4f, companion %.4f", *values)

    def step_done(self) -> None:
        """Start the next step; to be called after each step of the optimizer, also a skipped one."""
        self.steps, self.companions = self.steps + 1, 0
        self.recorder.active = True
        self.recorder.forget()
