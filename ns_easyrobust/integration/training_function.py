"""Nullspace finetuning in a script's own training function, whose loss function is replaced by a CompanionLoss."""

from __future__ import annotations

import argparse
import functools
import itertools
import logging
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from torch import nn
from torch.amp.grad_scaler import GradScaler

from ..errors import DataError, OptionError
from ..models import register_small_models, unwrap
from ..training import augmentation_from_args, check_augmentation_args, chosen_names
from ..utils import replaced_attributes
from .companion_loss import BRANCHES, CompanionLoss

_logger = logging.getLogger(__name__)
Trainer = TypeVar("Trainer", bound=Callable[..., Any])


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
        help="losses of a step that get a companion, where a script has several; all, where it replaces them "
        "(default: first)",
    )


def _check_loader(loader: Any, epoch_steps: int) -> None:
    """Raise if ``epoch_steps`` is negative or the loader has no batches; warn if it has fewer than ``epoch_steps``."""
    if epoch_steps < 0:
        raise OptionError(f"epoch_steps: expected a number of batches >= 0, found {epoch_steps}.")
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


def _check_choices(args: argparse.Namespace) -> None:
    """Check what the parser does not: values from a YAML file."""
    chosen_names(str(getattr(args, "aug", "none")))
    branch = getattr(args, "ns_branch", BRANCHES[0])
    if branch not in BRANCHES:
        raise OptionError(f"ns_branch: expected one of {', '.join(BRANCHES)}, found {branch!r}. Correct it.")


def _companion_loss_from_args(
    args: argparse.Namespace, model: nn.Module, loader: Iterable[Any], loss_fn: Callable[..., torch.Tensor]
) -> CompanionLoss:
    """The companion loss that the flags ask for; where the script has no such flag, its default."""
    check_augmentation_args(args)
    generator = torch.Generator().manual_seed(getattr(args, "seed", 0))
    augmentation = augmentation_from_args(args, model, loader, generator=generator)
    assert augmentation is not None
    branch, log_interval = getattr(args, "ns_branch", BRANCHES[0]), getattr(args, "log_interval", 50)
    return CompanionLoss(loss_fn, augmentation, branch, log_interval)


@contextmanager
def _steps_counted(loss: CompanionLoss, optimizer: torch.optim.Optimizer) -> Iterator[None]:
    """Tell ``loss`` of the optimizer's steps, also of those that a gradient scaler skips."""
    original_step = GradScaler.step

    def scaler_step(self: GradScaler, *args: Any, **options: Any) -> Any:
        result = original_step(self, *args, **options)
        if loss.companions:  # not reset by the hook: gradients were not finite, and the optimizer was not called
            loss.step_done()
        return result

    hook = optimizer.register_step_post_hook(lambda *_: loss.step_done())
    try:
        with replaced_attributes(GradScaler, step=scaler_step):
            yield
    finally:
        hook.remove()


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
        OptionError: ``aug``, ``ns_branch``, ``epoch_steps`` or a method's setting in ``args`` out of range, or two
            methods that each replace the clean loss.

    Example:
        >>> import argparse
        >>> @nullspace_augmented
        ... def train_one_epoch(epoch, model, loader, optimizer, loss_fn, args):
        ...     for input, target in loader:
        ...         optimizer.zero_grad()
        ...         loss_fn(model(input), target).backward()
        ...         optimizer.step()
        ...     return loss_fn.augmentation.history  # of the loss with noise that was added
        >>> parser = argparse.ArgumentParser()
        >>> add_nullspace_args(parser)
        >>> args = parser.parse_args(["--aug", "nullspace", "--ns-max-steps", "5", "--ns-interval", "3"])
        >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
        >>> history = train_one_epoch(0, model, loader, optimizer, torch.nn.CrossEntropyLoss(), args)
        >>> [entry["step"] for entry in history]
        [0, 3]
    """
    register_small_models()
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
        epoch_steps = getattr(args, "epoch_steps", 0)
        _check_loader(loader, epoch_steps)
        _check_choices(args)
        batches = FirstBatches(loader, epoch_steps) if epoch_steps else loader
        if getattr(args, "aug", "none") == "none":
            return train_one_epoch(epoch, model, batches, optimizer, loss_fn, args, *more, **options)
        key = unwrap(model)
        if key not in companion_losses:
            companion_losses.clear()
            companion_losses[key] = _companion_loss_from_args(args, model, loader, loss_fn)
        loss = companion_losses[key]
        loss.loss_fn = loss_fn
        with loss.recorder.on(model), _steps_counted(loss, optimizer):
            return train_one_epoch(epoch, model, batches, optimizer, loss, args, *more, **options)

    augmented.is_nullspace_augmented = True  # type: ignore[attr-defined]
    return augmented  # type: ignore[return-value]
