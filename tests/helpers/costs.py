"""What a companion loss costs, counted on the model itself."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn


class Count:
    """Forward-equivalents of what a model was asked for, and whether it was in train mode each time."""

    def __init__(self) -> None:
        self.equivalents = 0
        self.modes: list[bool] = []


@contextmanager
def counted(model: nn.Module) -> Iterator[Count]:
    """Count each forward 1; its backward 2 where the weights got a gradient, 1 where the input alone did."""
    count = Count()

    def after_forward(module, args, output):
        count.equivalents += 1
        count.modes.append(module.training)
        if output.requires_grad:
            cost = 2 if any(parameter.requires_grad for parameter in module.parameters()) else 1
            output.register_hook(lambda gradient: add(cost))

    def add(cost: int) -> None:
        count.equivalents += cost

    handle = model.register_forward_hook(after_forward)
    try:
        yield count
    finally:
        handle.remove()
