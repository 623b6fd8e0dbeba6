"""A transformer's head: for how many classes a checkpoint's is, and a new one in its place."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn

from ..errors import ModelError
from .outputs import logits_of
from .strict_load import misfit
from .weights import OF_IMAGE_SIZE, channel_count


def classes_beside(vit: nn.Module, state: Mapping[str, torch.Tensor]) -> int | None:
    """Number of classes of a state dict whose head has an unusual name, from how it differs from the model ``vit``.

    Returns:
        The number, 0 for a state dict that lacks nothing but the head; None if other things differ, or nothing.
    """
    differences, own = misfit(vit, state), vit.state_dict()
    reshaped = [name for name in differences.reshaped if not OF_IMAGE_SIZE.search(name)]
    missing = [name for name in differences.missing if not OF_IMAGE_SIZE.search(name)]
    is_head = all(own[name].shape[:1] == (getattr(vit, "num_classes", None),) for name in (*missing, *reshaped))
    if not is_head or any(not OF_IMAGE_SIZE.search(name) for name in differences.unexpected):
        return None
    if missing:
        return 0 if not reshaped else None
    counts = {state[name].shape[0] for name in reshaped if state[name].ndim}
    return int(counts.pop()) if len(counts) == 1 else None


def reset_head(vit: nn.Module, num_classes: int, arch: str, image_size: int) -> tuple[str, ...]:
    """Give the bare transformer ``vit`` a new head by timm's ``reset_classifier``, with timm's random weights.

    A distilled model gets two, as timm makes them. The weights are drawn from torch's global generator.

    Args:
        image_size: side of the square images in pixels with which the new head is tried.

    Returns:
        Names of the tensors of the new head.

    Raises:
        ModelError: the model has no ``reset_classifier``, or that fails, or does not lead to ``num_classes`` logits.
    """
    reset = getattr(vit, "reset_classifier", None)
    if not callable(reset):
        raise _no_head_error(arch, num_classes, f"no reset_classifier in {type(vit).__name__}")
    before = dict(vit.named_parameters())
    device = next((parameter.device for parameter in before.values()), torch.device("cpu"))
    was_training = vit.training
    try:
        reset(num_classes)
        vit.num_classes = num_classes  # type: ignore[assignment]
        channels = channel_count(vit.state_dict())
        with torch.no_grad():
            image = torch.zeros(1, channels, image_size, image_size, device=device)
            found = logits_of(vit.eval()(image), 1).shape[1]
    except Exception as error:  # a model of the user's own may raise an error of any type
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:200].rstrip(".")
        raise _no_head_error(arch, num_classes, reason) from error
    finally:
        vit.train(was_training)
    if found != num_classes:
        raise _no_head_error(arch, num_classes, f"{found} logits after its reset_classifier({num_classes})")
    return tuple(name for name, parameter in vit.named_parameters() if parameter is not before.get(name))


def _no_head_error(arch: str, num_classes: int, found: str) -> ModelError:
    return ModelError(
        f"{arch}: expected a model whose head can be made anew for {num_classes} classes (timm's reset_classifier), "
        f"found {found}. Put a head for {num_classes} classes into the checkpoint."
    )
