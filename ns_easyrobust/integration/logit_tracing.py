"""Finds, through autograd, the images that logits were computed from, for a loss function that sees only the logits."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import nn

from ..errors import ModelError
from ..models import logits_of, unwrap

_BASE = 128  # of the digits that number rows; smaller whole numbers are exact in bfloat16 and float16
_MAX_FORWARDS = 32  # the latest are kept: an attack inside a step makes many


class RecordedForward(NamedTuple):
    """One forward pass of the model: images (B, ...) in, logits (B, K) out."""

    images: torch.Tensor
    logits: torch.Tensor


def trace_rows(logits: torch.Tensor, forwards: Sequence[torch.Tensor]) -> list[tuple[int, int]]:
    """Trace each row of ``logits`` to the forward and the row it was split, joined, indexed or cast from.

    The rows of ``logits`` are numbered from 1 and weighted by their numbers. The gradient of the weighted sum then
    shows each number at the row it came from. Three rows, for example, of two forwards of two images each:

    >>> first, second = torch.rand(2, 10, requires_grad=True), torch.rand(2, 10, requires_grad=True)
    >>> logits = torch.cat([second[:1], first])
    >>> weighted_sum = (logits[:, 0] * torch.tensor([1.0, 2.0, 3.0])).sum()
    >>> gradients = torch.autograd.grad(weighted_sum, [first, second], retain_graph=True)
    >>> [gradient[:, 0].tolist() for gradient in gradients]  # of each forward's two rows
    [[2.0, 3.0], [1.0, 0.0]]
    >>> trace_rows(logits, [first, second])
    [(1, 0), (0, 0), (0, 1)]

    Half precision would round large numbers; so the first two columns are weighted, by the two digits of the number
    to base 128. The gradient ends at the outputs of the forwards, so there is no backward pass through the model.

    Args:
        logits: (n, K).
        forwards: outputs (B, K) of the model, with their graphs.

    Returns:
        For each of the n rows, (index into ``forwards``, row of that output).

    Raises:
        ModelError: a row came from none of them, or from several at once (an average).
    """
    n = len(logits)
    sources: dict[int, tuple[int, int]] = {}
    for forward, numbers in enumerate(_numbers_at_sources(logits, forwards)):
        for row, number in enumerate(numbers):
            if number == 0:
                continue  # no row of the logits came from here
            if number in sources or number != int(number):
                raise _untraceable("each to be one image's logits, found a mixture of several")
            sources[int(number)] = (forward, row)
    if sources.keys() != set(range(1, n + 1)):
        raise _untraceable(f"all {n} rows to come from forwards of the model in this step, found {len(sources)}")
    return [sources[number] for number in range(1, n + 1)]


def _numbers_at_sources(logits: torch.Tensor, forwards: Sequence[torch.Tensor]) -> list[list[float]]:
    """For each forward, the number of the row of ``logits`` that each of its rows became; 0 for none.

    Empty if the logits have no graph, or more rows than their columns can number.
    """
    columns = min(2, logits.shape[1])
    if not (logits.requires_grad and forwards and len(logits) < _BASE**columns):
        return []
    numbers = torch.arange(1, len(logits) + 1, device=logits.device)
    digits = torch.stack([numbers % _BASE, numbers // _BASE], dim=1)[:, :columns].to(logits.dtype)
    weighted_sum = (logits[:, :columns] * digits).sum()
    gradients = torch.autograd.grad(weighted_sum, forwards, retain_graph=True, materialize_grads=True)
    return [_from_digits(gradient[:, :columns]) for gradient in gradients]


def _from_digits(digits: torch.Tensor) -> list[float]:
    """The B numbers with these digits (B, 1 or 2), the ones first."""
    place_values = torch.tensor([1.0, _BASE], dtype=torch.float64, device=digits.device)[: digits.shape[1]]
    return (digits.double() @ place_values).tolist()


def _untraceable(expected: str) -> ModelError:
    return ModelError(
        f"the loss was handed logits that cannot be traced to images: expected {expected}. "
        "Call NullspaceAugmentation.loss(input, target, loss_fn) in the script instead."
    )


def logits_in(output: Any) -> Any:
    """The logits in a model's output: the first of a tuple or list, ``logits`` of a dict or ModelOutput, or itself."""
    first = output[0] if isinstance(output, tuple | list) and output else output
    try:
        return logits_of(first)
    except ModelError:
        return first


class ForwardRecorder:
    """Records the forwards of a model since the last :meth:`forget`, for :meth:`source_images`."""

    def __init__(self) -> None:
        self.forwards: deque[RecordedForward] = deque(maxlen=_MAX_FORWARDS)
        self.active = True

    def forget(self) -> None:
        """Drop the recorded forwards and their graphs."""
        self.forwards.clear()

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Record nothing while the body runs, for forwards that do not belong to the training step."""
        was_active, self.active = self.active, False
        try:
            yield
        finally:
            self.active = was_active

    def remember(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        """Forward hook that records a forward whose output holds logits (:func:`logits_in`)."""
        logits = logits_in(output)
        if not (self.active and args and isinstance(args[0], torch.Tensor) and isinstance(logits, torch.Tensor)):
            return
        if logits.requires_grad and logits.ndim == 2 and len(logits) == len(args[0]):
            self.forwards.append(RecordedForward(args[0], logits))

    @contextmanager
    def on(self, model: nn.Module) -> Iterator[ForwardRecorder]:
        """Record the forwards of ``model``, wrapped or not, while the body runs."""
        handle = unwrap(model).register_forward_hook(self.remember)
        try:
            yield self
        finally:
            handle.remove()
            self.forget()

    def source_images(self, logits: torch.Tensor) -> torch.Tensor:
        """The images (n, ...) that ``logits`` (n, K) were computed from; if their sizes differ, resized to the largest.

        Raises:
            ModelError: they cannot be traced (:func:`trace_rows`).
        """
        if self.forwards and logits is self.forwards[-1].logits:
            return self.forwards[-1].images.detach()
        sources = trace_rows(logits, [forward.logits for forward in self.forwards])
        images = [self.forwards[forward].images[row].detach() for forward, row in sources]
        largest = max((image.shape[-2:] for image in images), key=lambda shape: shape[0] * shape[1])
        # shape_texture also trains on smaller images, which the model resizes; the noise has the full size's tokens.
        return torch.stack([_resized(image, largest) for image in images])


def _resized(image: torch.Tensor, size: torch.Size) -> torch.Tensor:
    if image.shape[-2:] == size:
        return image
    return nn.functional.interpolate(image[None], size=tuple(size), mode="bilinear")[0]
