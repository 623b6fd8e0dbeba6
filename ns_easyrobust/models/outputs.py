"""What models return: logits, or something that holds them; or an assertion, for images of another size."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..errors import DataError, ModelError
from ..utils import nn, torch
from .vit import required_image_size


def output_of(model: nn.Module, images: torch.Tensor) -> Any:
    """What ``model`` returns for ``images`` (B, C, H, W).

    Raises:
        DataError: it fails, and they are of another size than it is built for.
    """
    try:
        return model(images)
    except (AssertionError, RuntimeError) as error:
        size = required_image_size(model)
        if size is None or tuple(images.shape[-2:]) == size:
            raise
        raise DataError(
            f"images: expected {size[0]} x {size[1]} pixels, which the model is built for, found "
            f"{' x '.join(map(str, images.shape[-2:]))}. Resize them in the loader."
        ) from error


def mean_logits(output: Any, images: int) -> torch.Tensor:
    """:func:`logits_of` an output; of two heads' outputs, the mean of their logits.

    A distilled DeiT returns its two heads' logits in training under timm 0.5.4. Without a teacher, it is trained as it
    is evaluated, on their mean, which is what it returns itself under timm 1.x.

    Example:
        >>> mean_logits((torch.zeros(1, 2), torch.ones(1, 2)), 1)
        tensor([[0.5000, 0.5000]])
    """
    if isinstance(output, tuple) and len(output) == 2:
        return (logits_of(output[0], images) + logits_of(output[1], images)) / 2
    return logits_of(output, images)


def logits_of(output: Any, images: int | None = None) -> torch.Tensor:
    """The logits in a model's output: itself, or its ``logits`` (a dict, or Hugging Face's ``ModelOutput``).

    Args:
        output: what a model returned for images (B, C, H, W).
        images: B, where it is known; then the logits of a single image may lack the batch's dimension, which
            EasyRobust's RVT squeezes away, and logits of another number of images are refused.

    Returns:
        (B, K) logits; whole numbers as floats.

    Raises:
        ModelError: it is something else, such as the pair of logits that a distilled DeiT returns in training, or
            other than plain floats and whole numbers (truth values, complex or sparse ones).

    Example:
        >>> logits_of({"logits": torch.zeros(2, 10)}).shape
        torch.Size([2, 10])
    """
    logits = output.get("logits") if isinstance(output, Mapping) else getattr(output, "logits", output)
    if isinstance(logits, torch.Tensor):
        if images == 1 and logits.ndim == 1:
            logits = logits[None]
        is_right = logits.ndim == 2 and images in (None, len(logits))
        if is_right and logits.layout == torch.strided:
            if logits.dtype in (torch.float32, torch.float64, torch.bfloat16, torch.float16):
                return logits
            if logits.dtype in (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8):  # of an integer model
                return logits.float()
        kind = f"{str(logits.layout).removeprefix('torch.')} tensor of {logits.dtype}"
        found = f"a {kind}" if is_right else f"a tensor of shape {tuple(logits.shape)}"
    elif isinstance(output, Mapping):
        found = f"a dict of {', '.join(map(str, list(output)[:5])) or 'nothing'}"
    elif isinstance(output, tuple | list):
        found = f"a {type(output).__name__} of {len(output)}"
    else:
        found = type(output).__name__
    raise ModelError(
        f"the model's output: expected logits ({images or 'B'}, K), or a dict or object with such, found {found}. "
        "Wrap the model so that it returns its logits."
    )
