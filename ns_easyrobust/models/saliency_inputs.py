"""What saliency maps are made of: images, labels and models, and what does not fit is refused in one line."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import chain
from typing import Any

from ..errors import DataError, ModelError
from ..utils import nn, torch
from .vit import find_encoder

_OF_ROWS_READ = {"attention", "rollout", "attention-grad-cam"}  # their maps are of the tokens that the head reads


def plain_images(images: torch.Tensor) -> torch.Tensor:
    """``images`` without a graph; a copy of those made in inference mode, which have no gradients.

    Raises:
        DataError: they are not (B, C, H, W) in floating point.
    """
    if not isinstance(images, torch.Tensor) or images.dim() != 4 or not images.is_floating_point():
        raise DataError(
            f"images: expected floating-point pixels (B, C, H, W), found {_described(images)}. Stack them, and divide "
            "bytes by 255."
        )
    return images.clone() if images.is_inference() else images.detach()


def labels_of(labels: torch.Tensor | None, logits: torch.Tensor) -> torch.Tensor:
    """(B,) int64 beside ``logits`` (B, K): ``labels``, or without any the top-1.

    Raises:
        ModelError: a logit is NaN.
        DataError: ``labels`` are not one whole number in [0, K) an image.
    """
    if broken := int(logits.isnan().any(1).sum()):
        raise ModelError(
            f"the model's output: expected numbers, found NaN among the logits of {broken} of {len(logits)} images. "
            "Look for it in the pixels and the weights; half precision may be too coarse."
        )
    if labels is None:
        return logits.argmax(1)
    found = _described(labels)
    if isinstance(labels, torch.Tensor) and labels.shape == logits.shape[:1] and _is_whole(labels):
        whole = labels.to(logits.device, torch.int64, copy=True)  # a copy: inference mode may have made them
        low, high = (int(bound) for bound in whole.aminmax())
        if low >= 0 and high < logits.shape[1]:
            return whole
        found = f"values from {low} to {high}"
    raise DataError(
        f"labels: expected {len(logits)} whole numbers from 0 to {logits.shape[1] - 1}, one an image, found {found}. "
        "Give those of these images, or none for the model's own decisions."
    )


def _is_whole(values: torch.Tensor) -> bool:
    return not (values.is_floating_point() or values.is_complex() or values.dtype == torch.bool)


def _described(found: Any) -> str:
    is_tensor = isinstance(found, torch.Tensor)
    return f"{found.dtype} of shape {tuple(found.shape)}" if is_tensor else type(found).__name__


def require_fit(model: nn.Module, methods: Iterable[str], needs_gradients: bool) -> None:
    """Refuse what the methods do not follow, or could not.

    Raises:
        ModelError: the head reads the tokens otherwise than the methods have it; or gradients are needed, and the
            weights were made in inference mode.
    """
    encoder: Any = find_encoder(model)
    pool, named = getattr(encoder, "global_pool", None), sorted(_OF_ROWS_READ.intersection(methods))
    includes = pool == "avg" and getattr(encoder, "pool_include_prefix", False)
    if named and isinstance(pool, str) and (includes or pool not in ("", "token", "avg")):
        raise ModelError(
            f"{type(encoder).__name__}: expected a head that reads a token or the patches' mean, found global_pool="
            f"{pool}{', pool_include_prefix' if includes else ''}, which {', '.join(named)} would not explain. Use "
            "grad-cam."
        )
    weights = chain(encoder.parameters(), encoder.buffers())
    if needs_gradients and any(weight.is_inference() for weight in weights):
        raise ModelError(
            f"{type(encoder).__name__}: expected weights made outside of torch.inference_mode, found others, through "
            "which there are no gradients. Load the model outside of it, or use attention or rollout."
        )
