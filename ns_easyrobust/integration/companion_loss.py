"""Nullspace finetuning in a training function that is not ours: the companion loss joins its loss from outside."""

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

from ..errors import DataError, OptionError
from ..models.vit import unwrap
from ..training.augmentations.nullspace import NullspaceAugmentation, augmentation_from_args, augmentation_names
from ..utils.distributed import rank
from .logit_tracing import Watch

_logger = logging.getLogger(__name__)
BRANCHES = ("first", "all")
Trainer = TypeVar("Trainer", bound=Callable[..., Any])


class CompanionLoss(nn.Module):
    """A script's loss function that adds the loss of the same images with noise on the encoder's input.

    The images are those that the logits came from, whatever the script does to its batches. One
    companion an optimizer step: of the step's first loss, as the paper's authors add it, or of all.

    Args:
        loss_fn: the script's.
        augmentation: whose :meth:`~ns_easyrobust.training.augmentations.nullspace.NullspaceAugmentation.loss` is added.
        watch: on the model's forwards.
        branch: of :data:`BRANCHES`.
        log_interval: steps between two lines of the log.
    """

    def __init__(
        self,
        loss_fn: Callable[..., torch.Tensor],
        augmentation: NullspaceAugmentation,
        watch: Watch,
        branch: str = "first",
        log_interval: int = 50,
    ) -> None:
        super().__init__()
        self.loss_fn, self.augmentation, self.watch, self.branch = loss_fn, augmentation, watch, branch
        self.log_interval, self.steps, self.losses = log_interval, 0, 0

    def forward(self, logits: torch.Tensor, target: torch.Tensor, *rest: Any) -> torch.Tensor:
        loss = self.loss_fn(logits, target, *rest)
        if not (torch.is_grad_enabled() and self.watch.awake) or (self.losses and self.branch == "first"):
            return loss
        with self.watch.asleep():
            images = self.watch.images_behind(logits)
            companion = self.augmentation.loss(
                images, target, lambda out, to: self.loss_fn(out, to, *rest), new_step=not self.losses
            )
        self.losses += 1
        if self.branch == "first":
            self.watch.forget()
            self.watch.awake = False  # until the optimizer has stepped
        if self.steps % self.log_interval == 0 and self.losses == 1 and rank() == 0:
            values = (self.steps, float(loss.detach().mean()), float(companion.detach().mean()))
            _logger.info("--aug: step %d: loss %.4f, companion %.4f", *values)
        return loss + companion

    def step_done(self, *_: Any) -> None:
        """The optimizer's step hook."""
        self.steps, self.losses = self.steps + 1, 0
        self.watch.awake = True
        self.watch.forget()


class FirstBatches:
    """The first ``n`` batches of a loader's every epoch; all else of it is the loader's."""

    def __init__(self, loader: Any, n: int) -> None:
        self.loader, self.n = loader, n

    def __len__(self) -> int:
        return min(self.n, len(self.loader))

    def __iter__(self) -> Iterator[Any]:
        return itertools.islice(iter(self.loader), self.n)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.loader, name)


def add_script_args(parser: argparse.ArgumentParser) -> None:
    """The flags of :func:`nullspace_augmented` alone."""
    parser.add_argument(
        "--epoch-steps", type=int, default=0, metavar="N", help="batches of an epoch; 0: all (default: 0)"
    )
    parser.add_argument(
        "--ns-branch",
        default="first",
        choices=BRANCHES,
        help="losses of a step that get a noisy companion, where a script has several (default: first)",
    )


def _check_loader(loader: Any, steps: int) -> None:
    """Raise where an epoch would train nothing, and say where it is shorter than asked."""
    if steps < 0:
        raise OptionError(f"--epoch-steps: expected a number of batches >= 0, found {steps}.")
    if not hasattr(loader, "__len__"):
        return
    if not len(loader):
        raise DataError(
            f"too few images for one batch: expected at least {getattr(loader, 'batch_size', 'a batch of')} for each "
            "process, found fewer. Lower the batch size."
        )
    if steps > len(loader):
        _logger.warning("--epoch-steps %d: an epoch of these images has %d batches, and ends there", steps, len(loader))


@contextmanager
def _skips_count(loss: CompanionLoss) -> Iterator[None]:
    """A step that the gradient scaler skips, for gradients that are not finite, is a step too."""
    take = torch.amp.GradScaler.step

    def step(self: Any, *args: Any, **options: Any) -> Any:
        taken = take(self, *args, **options)
        if loss.losses:
            loss.step_done()
        return taken

    with mock.patch.object(torch.amp.GradScaler, "step", step):
        yield


def nullspace_augmented(train_one_epoch: Trainer) -> Trainer:
    """An EasyRobust script's ``train_one_epoch``, with the companion loss that its flags ask for.

    By hand it is three lines of the script::

        from ns_easyrobust import add_nullspace_args, nullspace_augmented
        add_nullspace_args(parser)
        train_one_epoch = nullspace_augmented(train_one_epoch)

    The function is called as before, ``(epoch, model, loader, optimizer, loss_fn, args, ...)``. Its
    loss is replaced by a :class:`CompanionLoss` for the call; noise and rounds go on from epoch to
    epoch. Nothing happens with ``--aug none``.

    Raises:
        ModelError: the model has no single patch embedding, or a loss is handed logits that cannot
            be traced to images (:func:`~ns_easyrobust.integration.logit_tracing.rows_behind`).
    """
    if getattr(train_one_epoch, "is_nullspace_augmented", False):
        return train_one_epoch
    of_model: dict[nn.Module, CompanionLoss] = {}  # the one at work

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
        batches, steps = loader, getattr(args, "epoch_steps", 0)
        _check_loader(loader, steps)
        loader = FirstBatches(loader, steps) if steps else loader
        for name, choices in (
            ("aug", augmentation_names()),
            ("ns_branch", BRANCHES),
        ):  # a YAML file sets them unchecked
            if (found := getattr(args, name, choices[0])) not in choices:
                raise OptionError(f"{name}: expected one of {', '.join(choices)}, found {found!r}. Correct the flag.")
        if getattr(args, "aug", "none") == "none":
            return train_one_epoch(epoch, model, loader, optimizer, loss_fn, args, *more, **options)
        key = unwrap(model)
        if key not in of_model:
            of_model.clear()
            generator = torch.Generator().manual_seed(getattr(args, "seed", 0))
            augmentation = augmentation_from_args(args, model, batches, generator=generator)
            assert augmentation is not None
            branch = getattr(args, "ns_branch", BRANCHES[0])
            of_model[key] = CompanionLoss(loss_fn, augmentation, Watch(), branch, getattr(args, "log_interval", 50))
        loss = of_model[key]
        loss.loss_fn = loss_fn
        hook = optimizer.register_step_post_hook(loss.step_done)
        try:
            with loss.watch.on(model), _skips_count(loss):
                return train_one_epoch(epoch, model, loader, optimizer, loss, args, *more, **options)
        finally:
            hook.remove()

    augmented.is_nullspace_augmented = True  # type: ignore[attr-defined]
    return augmented  # type: ignore[return-value]
