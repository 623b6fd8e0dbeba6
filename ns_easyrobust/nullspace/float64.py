"""A model in float64, by which rounding errors are told from other ones."""

from __future__ import annotations

import copy
from typing import Any

from ..errors import ModelError
from ..utils import nn, torch


def float64_copy(model: nn.Module, images: torch.Tensor) -> tuple[Any, Any]:
    """A copy of ``model`` in float64 and eval mode, where ``images`` (B, C, H, W) are, and its output for them.

    Raises:
        ModelError: it does not run in float64.
    """
    exact = copy.deepcopy(model).to(images.device, torch.float64).eval()
    try:
        with torch.no_grad():
            return exact, exact(images.double())
    except RuntimeError as error:  # ConViT's positions are always of float32
        raise ModelError(
            f"{type(model).__name__}: expected a model that runs in float64, found one that does not ({error}). "
            "Use another one."
        ) from error
