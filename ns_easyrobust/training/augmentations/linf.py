"""Ascent of a loss within an L-infinity ball of pixels: what adversarial training and TRADES share."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

from ...attacks import gradient_error, require_radius
from ...errors import OptionError
from ...utils import setting, torch
from .base import Augmentation
from .pixels import refuse_erasing_outside


@dataclass(frozen=True)
class LinfSettings:
    """The attack's budget and the companion's weight; the defaults are those of the paper's Table 3.

    Source: dat/train_hal.py of Liu-Hy/easyrobust f72cee0 (PGD and TPGD of torchattacks, and ``--beta``).

    Raises:
        OptionError: a radius outside [0, 1], no steps, or ``beta`` that is no number >= 0.
    """

    method: ClassVar[str] = "linf"  # for errors

    epsilon: float = setting(8 / 255, "L-infinity radius of the attack in pixels of [0, 1]", least=0, metavar="E")
    steps: int = setting(10, "steps of the attack", least=1, metavar="N")
    step_size: float = setting(2 / 255, "size of each step in pixels of [0, 1]", least=0)
    beta: float = setting(1.0, "weight of the term that is added to the clean loss", least=0)

    def __post_init__(self) -> None:
        require_radius(self.method, self.epsilon)
        require_radius(self.method, self.step_size, name="step_size")
        if self.steps < 1:
            raise OptionError(f"{self.method}: expected steps >= 1, found {self.steps}.")
        if not 0 <= self.beta < float("inf"):
            raise OptionError(f"{self.method}: expected beta >= 0, found {self.beta}.")


class LinfAugmentation(Augmentation):
    """A companion that attacks pixels in [0, 1]."""

    @classmethod
    def check(cls, args: argparse.Namespace) -> None:
        """Refuse also random erasing that leaves [0, 1], where a radius in pixels of [0, 1] means nothing."""
        super().check(args)
        refuse_erasing_outside(args, f"in which {cls.name} has its radius")


def in_full_precision(logits: torch.Tensor) -> torch.Tensor:
    """``logits`` in float32 at least, for the exponentials of a loss under autocast."""
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


def ascent_logits(logits: torch.Tensor) -> torch.Tensor:
    """``logits`` (B, K) for the loss of an attack that uses the sign of the pixels' gradient alone, in full precision.

    Each image's gradient at the logits is scaled by a power of two, to a largest value from 1/2 to 1: the signs stay.
    Else those of an image that the model is sure of are lost below the model in float16, which knows no number under
    6e-8; a GradScaler serves the weights alone.
    """
    logits = in_full_precision(logits)
    if logits.requires_grad:
        logits = logits.view_as(logits)  # whose hook is not the model's output's
        logits.register_hook(_scaled_to_one)
    return logits


def _scaled_to_one(gradient: torch.Tensor) -> torch.Tensor:
    exponent = torch.frexp(gradient.abs().amax(-1, keepdim=True)).exponent
    half = exponent.div(2, rounding_mode="floor")  # in two steps: 2 ** 128 is no float32
    return torch.ldexp(torch.ldexp(gradient, -half), half - exponent)


def uniform_start(pixels: torch.Tensor, epsilon: float) -> torch.Tensor:
    """A point of the ball, drawn uniformly from the global generator, and clipped to [0, 1] (Madry et al. 2018)."""
    return (pixels + torch.empty_like(pixels).uniform_(-epsilon, epsilon)).clamp(0, 1)


def signed_step(
    moved: torch.Tensor, gradient: torch.Tensor, pixels: torch.Tensor, epsilon: float, step_size: float
) -> torch.Tensor:
    """``moved`` + ``step_size`` * sign(``gradient``), projected to within ``epsilon`` of ``pixels``, then to [0, 1]."""
    change = (moved + step_size * gradient.sign() - pixels).clamp(-epsilon, epsilon)
    return (pixels + change).clamp(0, 1)


def ascend(
    losses_of: Callable[[torch.Tensor], torch.Tensor],
    pixels: torch.Tensor,
    start: torch.Tensor,
    settings: LinfSettings,
    *,
    best: bool = False,
) -> torch.Tensor:
    """Signed gradient ascent on each image's loss: ``settings.steps`` steps, each projected.

    The gradient is that of the losses' sum, so that an image's path does not depend on the others in the batch;
    it is taken of the pixels alone.

    Args:
        losses_of: (B, C, H, W) to (B,), with gradients.
        pixels: (B, C, H, W) in [0, 1], the centre of the ball. start: the first iterate, of the same shape.
        best: return of each image the iterate of the largest loss, the start and the last included, which takes one
            more forward (MadryLab/robustness, attacker.py: ``use_best``); otherwise the last iterate.

    Returns:
        (B, C, H, W) in [0, 1] within ``settings.epsilon`` of ``pixels``, without a graph. (With ``best``, a start
        that lies elsewhere may come back.)

    Raises:
        ModelError: the losses have no gradient to the pixels.
    """
    moved, top, highest = start.detach(), start.detach(), None
    for _ in range(settings.steps):
        with torch.enable_grad():
            moved.requires_grad_()
            losses = losses_of(moved)
            if not losses.requires_grad:
                raise gradient_error(settings.method)
            (gradient,) = torch.autograd.grad(losses.sum(), moved)
        moved = moved.detach()
        if best:
            top, highest = _higher(moved, losses.detach(), top, highest)
        moved = signed_step(moved, gradient, pixels, settings.epsilon, settings.step_size)
    if not best:
        return moved
    with torch.no_grad():
        return _higher(moved, losses_of(moved), top, highest)[0]


def _higher(
    images: torch.Tensor, losses: torch.Tensor, top: torch.Tensor, highest: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Of each image the one with the larger loss, the earlier one of equals; and these losses."""
    if highest is None:
        return images, losses
    is_higher = losses > highest
    return torch.where(is_higher[:, None, None, None], images, top), torch.where(is_higher, losses, highest)
