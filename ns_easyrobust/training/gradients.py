"""The gradients of an update: of the clean and the companion loss, over its micro-batches, twice with SAM."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch.nn.parallel import DistributedDataParallel

from ..models import unwrap
from ..utils import mean_over_ranks
from .augmentations.joined import part_loss
from .losses import first_view, join_views
from .optimizer import average_gradients, differentiable_attention, is_second_order
from .resume import random_state, set_random_state
from .run import Run
from .sam import perturbed_weights

# Images (B, C, H, W), or a list of their views, and labels (B,) or soft targets (B, K).
Batch = tuple[Any, torch.Tensor]


def set_gradients(run: Run, batches: Sequence[Batch]) -> tuple[float, float]:
    """Set the gradients of the mean loss over the loader's ``batches``, and ``run.stop.agreed``.

    Gradients of several batches are added up, so that memory is needed for one at a time. With ``run.sam`` they are
    those at w + e: a second pass over the very same batches (mixup's draw, dropout, the companion's draws).

    Returns:
        The mean clean and companion loss (at w), averaged over ranks.

    Raises:
        TrainingError: a loss is not finite.
    """
    prepared: Iterable[tuple[torch.Tensor, torch.Tensor]] = (_prepared(run, *batch) for batch in batches)
    if run.sam.rho is None:
        return _backward(run, prepared)
    prepared = list(prepared)  # mixup draws once
    drawn = random_state(run.device)
    losses = _backward(run, prepared)
    with perturbed_weights(unwrap(run.model), run.sam.rho, adaptive=run.sam.adaptive) as moved:
        if moved:
            set_random_state(drawn, run.device)
            if run.augmentation is not None:
                for _ in prepared:
                    run.augmentation.rewind()
            _backward(run, prepared, again=True)
    return losses


def _prepared(run: Run, views: Any, target: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """A batch of the loader on the run's device, its views joined, mixed."""
    images, target = join_views(views, run.device), target.to(run.device, non_blocking=True)
    if run.mixup is not None:
        images, target = run.mixup(images, target)
    if run.args.channels_last:
        images = images.contiguous(memory_format=torch.channels_last)
    return images, target


def _backward(
    run: Run, batches: Iterable[tuple[torch.Tensor, torch.Tensor]], again: bool = False
) -> tuple[float, float]:
    """Set the gradients of the mean loss at the weights as they are, and ``run.stop.agreed``; returns the losses.

    Args:
        again: this is the second pass of an update, beside its weights.
    """
    count = run.args.grad_accum_steps
    numbers = torch.zeros(2, device=run.device)
    run.optimizer.zero_grad()
    for index, (images, target) in enumerate(batches):
        with _averaged_with_the_last(run, is_last=index + 1 == count):
            with run.autocast(), differentiable_attention(run.optimizer):
                clean, companion = _losses(run, images, target, new_step=index == 0 and not again)
            total = (clean + companion) / count
            run.scaler.scale(total).backward(create_graph=is_second_order(run.optimizer))
        numbers += torch.stack([clean.detach().float(), companion.detach().float()]) / count
    if run.replaces_clean:  # DDP averages the gradients of its own forwards only, and there was none
        average_gradients(run.model)
    # Read once the backward is queued, so that a GPU is never idle, and before a non-finite loss changes the weights.
    stop_asked = numbers.new_tensor([float(run.stop.asked)])
    clean_value, companion_value, stop_agreed = mean_over_ranks(torch.cat([numbers, stop_asked])).tolist()
    run.stop.agreed = stop_agreed > 0
    if not math.isfinite(clean_value + companion_value):
        where = f" within --sam-rho {run.sam.rho} of the weights" if again else ""
        losses = f"clean {clean_value}, companion {companion_value}"
        raise run.diverged(f"step {run.at.step}: expected a finite loss{where}, found {losses}")
    return clean_value, companion_value


def _averaged_with_the_last(run: Run, is_last: bool) -> contextlib.AbstractContextManager[Any]:
    """Under DDP, gradients are averaged over ranks once an update, with those of the last micro-batch."""
    if isinstance(run.model, DistributedDataParallel) and not is_last:
        return run.model.no_sync()
    return contextlib.nullcontext()


def _losses(run: Run, images: torch.Tensor, target: torch.Tensor, new_step: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """The clean loss and the companion loss, either of which is 0 where there is none."""
    output, clean = None, torch.zeros((), device=run.device)
    if not run.replaces_clean:
        output = run.model(images)
        clean = run.loss_fn(output, target)
    companion = torch.zeros_like(clean)
    if run.augmentation is not None:  # Algorithm 1, lines 17-19
        images, output, loss_fn = first_view(images, target, run.loss_fn, output)
        companion = part_loss(run.augmentation, images, target, loss_fn, output, new_step)
    return clean, companion
