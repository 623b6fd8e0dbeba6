"""Nullspace finetuning in a script's own training function: its loss function is wrapped to add the companion loss."""

from __future__ import annotations

import argparse
import functools
import itertools
import logging
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar
from unittest import mock

import torch
from torch import nn
from torch.amp.grad_scaler import GradScaler

from ..errors import DataError, OptionError
from ..models import unwrap
from ..training import NullspaceAugmentation, augmentation_from_args, augmentation_names
from ..utils import rank
from .logit_tracing import ForwardRecorder

_logger = logging.getLogger(__name__)
BRANCHES = ("first", "all")
Trainer = TypeVar("Trainer", bound=Callable[..., Any])


class CompanionLoss(nn.Module):
    """A script's loss function plus the companion loss: that of the same images with noise on the encoder's input.

    The images are those that the logits were computed from, whatever the script does to its batches.

    Args:
        loss_fn: the script's loss function.
        augmentation: its :meth:`~ns_easyrobust.training.augmentations.nullspace.NullspaceAugmentation.loss` is added.
        recorder: records the model's forwards.
        branch: one of :data:`BRANCHES`: whether only the first loss of each optimizer step gets a companion, as the
            paper's authors do it, or all of them do.
        log_interval: optimizer steps between two log lines.
    """

    def __init__(
        self,
        loss_fn: Callable[..., torch.Tensor],
        augmentation: NullspaceAugmentation,
        recorder: ForwardRecorder,
        branch: str = "first",
        log_interval: int = 50,
    ) -> None:
        super().__init__()
        self.loss_fn, self.augmentation, self.recorder, self.branch = loss_fn, augmentation, recorder, branch
        self.log_interval, self.steps, self.losses = log_interval, 0, 0

    def forward(self, logits: torch.Tensor, target: torch.Tensor, *rest: Any) -> torch.Tensor:
        loss = self.loss_fn(logits, target, *rest)
        if not (torch.is_grad_enabled() and self.recorder.active) or (self.losses and self.branch == "first"):
            return loss
        with self.recorder.paused():
            images = self.recorder.source_images(logits)
            companion = self.augmentation.loss(
                images, target, lambda noisy, labels: self.loss_fn(noisy, labels, *rest), new_step=not self.losses
            )
        self.losses += 1
        if self.branch == "first":
            self.recorder.forget()
            self.recorder.active = False  # until the optimizer steps
        if self.steps % self.log_interval == 0 and self.losses == 1 and rank() == 0:
            values = (self.steps, float(loss.detach().mean()), float(companion.detach().mean()))
            _logger.info("--aug: step %d: loss %.4f, companion %.4f", *values)
        return loss + companion

    def step_done(self, *_: Any) -> None:
        """Start the next step; the optimizer calls this hook after each step."""
        self.steps, self.losses = self.steps + 1, 0
        self.recorder.active = True
        self.recorder.forget()


class FirstBatches:
    """A loader that ends each epoch after at most ``n`` batches; all other attributes are those of ``loader``."""

    def __init__(self, loader: Any, n: int) -> None:
        self.loader, self.n = loader, n

    def __len__(self) -> int:
        return min(self.n, len(self.loader))

    def __iter__(self) -> Iterator[Any]:
        return itertools.islice(iter(self.loader), self.n)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.loader, name)


def add_script_args(parser: argparse.ArgumentParser) -> None:
    """Add the flags of :func:`nullspace_augmented` that ``add_nullspace_args`` does not add."""
    parser.add_argument(
        "--epoch-steps", type=int, default=0, metavar="N", help="batches of an epoch; 0: all (default: 0)"
    )
    parser.add_argument(
        "--ns-branch",
        default="first",
        choices=BRANCHES,
        help="losses of a step that get a noisy companion, where a script has several (default: first)",
    )


def _check_loader(loader: Any, epoch_steps: int) -> None:
    """Raise if ``epoch_steps`` is negative or the loader has no batches; warn if it has fewer than ``epoch_steps``."""
    if epoch_steps < 0:
        raise OptionError(f"--epoch-steps: expected a number of batches >= 0, found {epoch_steps}.")
    if not hasattr(loader, "__len__"):
        return
    if not len(loader):
        raise DataError(
            f"too few images for one batch: expected at least {getattr(loader, 'batch_size', 'a batch of')} for each "
            "process, found fewer. Lower the batch size."
        )
    if epoch_steps > len(loader):
        _logger.warning(
            "--epoch-steps %d: an epoch of these images has %d batches, and ends there", epoch_steps, len(loader)
        )


@contextmanager
def _count_skipped_steps(loss: CompanionLoss) -> Iterator[None]:
    """Count the steps that the gradient scaler skips because gradients are not finite."""
    original_step = GradScaler.step

    def step(self: Any, *args: Any, **options: Any) -> Any:
        result = original_step(self, *args, **options)
        if loss.losses:
            loss.step_done()
        return result

    with mock.patch.object(GradScaler, "step", step):
        yield


def nullspace_augmented(train_one_epoch: Trainer) -> Trainer:
    """Wrap an EasyRobust script's ``train_one_epoch`` to add the companion loss that its flags ask for.

    To use it without the verb ``launch``, add three lines to the script::

        from ns_easyrobust import add_nullspace_args, nullspace_augmented
        add_nullspace_args(parser)
        train_one_epoch = nullspace_augmented(train_one_epoch)

    The function is called as before, ``(epoch, model, loader, optimizer, loss_fn, args, ...)``. Its
    loss function is replaced by a :class:`CompanionLoss` during each call; the noise, and the count of
    steps that share it, carry over to the next epoch. With ``--aug none`` no loss is added.

    Raises:
        ModelError: the model has no single patch embedding, or the loss function is given logits that
            cannot be traced to images (:func:`~ns_easyrobust.integration.logit_tracing.trace_rows`).
        DataError: the loader has no batches, or cannot be copied.
        OptionError: ``--aug``, ``--ns-branch`` or ``--epoch-steps`` out of range.
    """
    if getattr(train_one_epoch, "is_nullspace_augmented", False):
        return train_one_epoch
    companion_losses: dict[nn.Module, CompanionLoss] = {}  # at most one entry: the model in training

    @functools.wraps(train_one_epoch)
    def augmented(
        epoch: int,
        model: nn.Module,
        loader: Iterable[Any],
        optimizer: torch.optim.Optimizer,
        loss_fn: Callable[..., torch.Tensor],
        args: argparse.Namespace,
        *more: Any,
        **options: Any,
    ) -> Any:
        full_loader, epoch_steps = loader, getattr(args, "epoch_steps", 0)
        _check_loader(loader, epoch_steps)
        loader = FirstBatches(loader, epoch_steps) if epoch_steps else loader
        # argparse does not check values from a YAML file.
        for name, choices in (("aug", augmentation_names()), ("ns_branch", BRANCHES)):
            if (value := getattr(args, name, choices[0])) not in choices:
                raise OptionError(f"{name}: expected one of {', '.join(choices)}, found {value!r}. Correct the flag.")
        if getattr(args, "aug", "none") == "none":
            return train_one_epoch(epoch, model, loader, optimizer, loss_fn, args, *more, **options)
        key = unwrap(model)
        if key not in companion_losses:
            companion_losses.clear()
            generator = torch.Generator().manual_seed(getattr(args, "seed", 0))
            augmentation = augmentation_from_args(args, model, full_loader, generator=generator)
            assert augmentation is not None
            branch = getattr(args, "ns_branch", BRANCHES[0])
            companion_losses[key] = CompanionLoss(
                loss_fn, augmentation, ForwardRecorder(), branch, getattr(args, "log_interval", 50)
            )
        loss = companion_losses[key]
        loss.loss_fn = loss_fn
        hook = optimizer.register_step_post_hook(loss.step_done)
        try:
            with loss.recorder.on(model), _count_skipped_steps(loss):
                return train_one_epoch(epoch, model, loader, optimizer, loss, args, *more, **options)
        finally:
            hook.remove()

    augmented.is_nullspace_augmented = True  # type: ignore[attr-defined]
    return augmented  # type: ignore[return-value]
