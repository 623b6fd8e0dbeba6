"""Which images a batch of logits came from, read from autograd: for a loss that is handed logits alone."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import nn

from ..errors import ModelError
from ..models.vit import unwrap

_BASE = 128  # whole numbers up to it are exact in bfloat16 and float16
_KEPT = 32  # forwards remembered in a step; attacks inside a step make many


class Forward(NamedTuple):
    """A forward of the model: images (B, ...) in, logits (B, K) out."""

    images: torch.Tensor
    logits: torch.Tensor


def rows_behind(logits: torch.Tensor, forwards: Sequence[torch.Tensor]) -> list[tuple[int, int]]:
    """(forward, row) for each row of ``logits`` (n, K), which was split, joined, indexed or cast from ``forwards``.

    Each row of ``logits`` is given a number, written in its first two columns; the numbers' gradient arrives at
    the row that they came from. A gradient to the forwards' outputs stops there, so no model is run backwards.

    Args:
        forwards: outputs (B, K) with their graphs.

    Raises:
        ModelError: a row came from none of them, or from several at once (an average).
    """
    n = len(logits)
    numbers = torch.arange(1, n + 1, device=logits.device)
    digits = torch.stack([numbers % _BASE, numbers // _BASE], dim=1)[:, : logits.shape[1]].to(logits.dtype)
    found: dict[int, tuple[int, int]] = {}
    if logits.requires_grad and forwards and n < _BASE ** digits.shape[1]:
        gradients = torch.autograd.grad(
            (logits[:, : digits.shape[1]] * digits).sum(), forwards, retain_graph=True, allow_unused=True
        )
        for source, gradient in enumerate(gradients):
            if gradient is None:
                continue
            digit = gradient[:, : digits.shape[1]].double()
            number = digit @ torch.tensor([1.0, _BASE], dtype=torch.float64, device=digit.device)[: digit.shape[1]]
            for row, value in enumerate(number.tolist()):
                if value:
                    if value in found or value != int(value):
                        raise _untraceable("each to be one image's logits, found a mixture of several")
                    found[int(value)] = (source, row)
    if sorted(found) != list(range(1, n + 1)):
        raise _untraceable(f"all {n} rows to come from forwards of the model in this step, found {len(found)}")
    return [found[number] for number in range(1, n + 1)]


def _untraceable(what: str) -> ModelError:
    return ModelError(
        f"the loss was handed logits that cannot be traced to images: expected {what}. "
        "Call NullspaceAugmentation.loss(input, target, loss_fn) in the script instead."
    )


class Watch:
    """The forwards of a model since :meth:`forget`, for :meth:`images_behind`."""

    def __init__(self) -> None:
        self.forwards: list[Forward] = []
        self.awake = True

    def forget(self) -> None:
        """Let go of the forwards and their graphs."""
        self.forwards.clear()

    @contextmanager
    def asleep(self) -> Iterator[None]:
        """For forwards that are no part of the step."""
        before, self.awake = self.awake, False
        try:
            yield
        finally:
            self.awake = before

    def remember(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        """A forward hook; ``output`` may be a tuple with the logits first."""
        logits = output[0] if isinstance(output, tuple | list) and output else output
        if not (self.awake and args and isinstance(args[0], torch.Tensor) and isinstance(logits, torch.Tensor)):
            return
        if logits.requires_grad and logits.ndim == 2 and len(logits) == len(args[0]):
            self.forwards = [*self.forwards[1 - _KEPT :], Forward(args[0], logits)]

    @contextmanager
    def on(self, model: nn.Module) -> Iterator[Watch]:
        """Remember the forwards of ``model``, wrapped or not, while the body runs."""
        handle = unwrap(model).register_forward_hook(self.remember)
        try:
            yield self
        finally:
            handle.remove()
            self.forget()

    def images_behind(self, logits: torch.Tensor) -> torch.Tensor:
        """The images (n, ...) that ``logits`` (n, K) were computed from; of several sizes, all of the largest.

        Raises:
            ModelError: they cannot be traced (:func:`rows_behind`).
        """
        if self.forwards and logits is self.forwards[-1].logits:
            return self.forwards[-1].images.detach()
        places = rows_behind(logits, [forward.logits for forward in self.forwards])
        images = [self.forwards[source].images[row].detach() for source, row in places]
        largest = max((image.shape[-2:] for image in images), key=lambda shape: shape[0] * shape[1])
        # shape_texture trains on small images, which the model brings to its size; noise has that size's tokens
        return torch.stack([_resized(image, largest) for image in images])


def _resized(image: torch.Tensor, size: torch.Size) -> torch.Tensor:
    if image.shape[-2:] == size:
        return image
    return nn.functional.interpolate(image[None], size=tuple(size), mode="bilinear")[0]
