"""Sharpness-aware minimisation (SAM, Foret et al. 2021, arXiv:2010.01412) and its adaptive form (ASAM).

The public codes (davda54/sam, EasyRobust's ``optimizer/sam.py``) wrap the optimizer in another, whose state alone is in
checkpoints, without AdamW's moments. Here the optimizer stays what it is, and SAM happens between a gradient and
a step: a context manager, which leaves nothing behind to be saved.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from ..errors import OptionError, TrainingError
from ..utils import nn, setting, settings_from, torch

SAM_PREFIX = "sam-"  # of the flags
_TINY = 1e-12  # added to the norm, as in davda54/sam, sam.py:20


@dataclass(frozen=True)
class SamSettings:
    """Settings of sharpness-aware minimisation, which is off without ``rho``.

    An update costs twice a plain one: every loss of it, the clean and the companion one, is computed and differentiated
    once at the weights and once beside them (:attr:`passes`), 6 forward-equivalents without a companion.

    Raises:
        OptionError: ``rho`` is not a positive number, or missing with ``adaptive``.
    """

    rho: float | None = setting(
        None,
        "sharpness-aware minimisation: least of the worst losses within this L2 distance of the weights, at twice "
        "the cost (0.05: SAM's; 0.1 for ViT-S and 0.2 for ViT-B from scratch)",
        least=0,
        most=100,
    )
    adaptive: bool = setting(False, "ASAM: distances relative to each weight, with a --sam-rho about ten times larger")

    def __post_init__(self) -> None:
        if self.rho is not None and not 0 < self.rho < float("inf"):
            raise OptionError(
                f"rho: expected a distance > 0, found {self.rho}, which would only double the cost. Leave it out."
            )
        if self.adaptive and self.rho is None:
            raise OptionError("adaptive: expected rho with it, the distance, found none. Give it, or leave both out.")

    @property
    def passes(self) -> int:
        """How often an update computes and differentiates its losses: what its cost is multiplied by."""
        return 1 if self.rho is None else 2


def sam_from_args(args: argparse.Namespace) -> SamSettings:
    """The settings in parsed flags, those of ``add_settings(group, SamSettings, SAM_PREFIX)``.

    Raises:
        OptionError: as :class:`SamSettings`, with the flag's name.
    """
    try:
        return SamSettings(**settings_from(args, SamSettings, SAM_PREFIX)[0])
    except OptionError as error:
        raise OptionError(f"--{SAM_PREFIX}{error.line}") from None


@contextmanager
def perturbed_weights(model: nn.Module, rho: float, *, adaptive: bool = False) -> Iterator[bool]:
    """Move the weights to where their loss is the worst within ``rho``, to first order, for the body.

    With the gradient g in the parameters' ``.grad``, the weights w become w + e, where e = rho g / ||g||_2 (eq. 2 of
    Foret et al.; davda54/sam, sam.py:16-28), or e = rho w^2 g / ||w g||_2 if ``adaptive`` (Kwon et al. 2021,
    arXiv:2102.11600, as davda54/sam has it; the authors' code adds 0.01 to |w|, and leaves parameters that are not
    called a weight unscaled). The norm is over all parameters, and 1e-12 is added to it. Gradients may carry a
    GradScaler's factor, which e does not depend on.

    The gradients are cleared on entry, and the body computes those of the update::

        loss_fn(model(input), target).backward()
        with perturbed_weights(model, rho=0.05):
            loss_fn(model(input), target).backward()
        optimizer.step()
        optimizer.zero_grad()

    Afterwards the parameters have their bits of before, also those that the second loss does not reach, and so have the
    buffers: running statistics count the batch once. Storages stay; the optimizer and DDP see the same tensors.

    Args:
        model: with the first gradients in its parameters. Under DDP those are the averaged ones, so that e is the
            same on all ranks; under ``no_sync()`` each rank would go its own way (m-sharpness, Foret et al., sec. 3).
        rho: length of e, in the weights' units; of (e / w) if ``adaptive``.
        adaptive: ASAM.

    Yields:
        Whether the weights were moved. If a gradient is not finite they are not, and the gradients are kept, so that
        a GradScaler skips the update by them.

    Raises:
        TrainingError: there are no gradients.
    """
    moved = [parameter for parameter in model.parameters() if parameter.grad is not None]
    if not moved:
        raise TrainingError("expected gradients in the model's parameters, found none. Call backward() before.")
    scale = rho / (_norm(moved, adaptive) + _TINY)
    if not bool(scale.isfinite() & (scale > 0)):
        yield False
        return
    kept = [(tensor, tensor.detach().clone()) for tensor in (*moved, *model.buffers())]
    try:
        _ascend(moved, scale, adaptive)
        yield True
    finally:
        with torch.no_grad():
            for tensor, before in kept:
                tensor.copy_(before)


def _norm(parameters: list[nn.Parameter], adaptive: bool) -> torch.Tensor:
    """||g||_2, or ||w g||_2, over all ``parameters``."""
    norms = []
    with torch.no_grad():
        for parameter in parameters:
            assert parameter.grad is not None
            norms.append(torch.linalg.vector_norm(parameter.abs() * parameter.grad if adaptive else parameter.grad))
        return torch.linalg.vector_norm(torch.stack(norms))


def _ascend(parameters: list[nn.Parameter], scale: torch.Tensor, adaptive: bool) -> None:
    """Add e to the parameters, and clear their gradients."""
    with torch.no_grad():
        for parameter in parameters:
            assert parameter.grad is not None
            step = parameter.square() * parameter.grad if adaptive else parameter.grad
            parameter.add_(step * scale)
            parameter.grad = None
