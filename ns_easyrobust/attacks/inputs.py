"""What attacks and evaluations give a model, checked and put in order in one place."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import chain
from typing import Any

from ..errors import DataError, ModelError
from ..models import find_normalize, frozen, logits_of, required_image_size, unwrap
from ..utils import nn, torch
from .base import require_adversarial

ROUNDING = 1e-4  # how far computed pixels may lie outside [0, 1]
_UNSIGNED_AND_SIGNED = ("uint8", "int8", "int16", "int32", "int64", "uint16", "uint32", "uint64")
AttackFunction = Callable[["nn.Module", "torch.Tensor", "torch.Tensor"], "torch.Tensor"]


def require_input(model: nn.Module, pixels: torch.Tensor) -> None:
    """Raise an error for images that ``model`` would misread, or that would end in an assertion within it.

    Raises:
        ModelError: the model is built for images of another size, or for another number of channels.
        DataError: the model normalises its input itself, and ``pixels`` are not (B, C, H, W) in [0, 1]; or they have
            twice the precision of its weights.
    """
    normalize = _normalisation(model)
    if normalize is not None:
        require_pixels(pixels, "the transform")
        channels = normalize.get_buffer("mean").numel()
        if channels not in (1, pixels.shape[1]):
            raise ModelError(
                f"expected images of {channels} channels, which the model normalises, found {pixels.shape[1]}. "
                "Give a transform to as many."
            )
    weights = _weights_type(model, pixels)
    if pixels.dtype == torch.float64 != weights:
        raise DataError(
            f"expected pixels of {weights}, as the model's weights, found {pixels.dtype}. Convert by .float()."
        )
    built, found = required_image_size(model), tuple(pixels.shape[2:])
    if built is not None and built != found:
        size = "x".join(map(str, found)) or "no"
        raise ModelError(
            f"expected images of {built[0]}x{built[1]} pixels, which the model is built for, found {size}. "
            "Give a transform of that size, or build the model for this one (img_size=...)."
        )


def _normalisation(model: nn.Module) -> nn.Module | None:
    """The module that normalises the model's pixels: in front of it, or inside with ``mean`` and ``std`` of RGB."""
    front = find_normalize(model)
    return front if front is not None else next(filter(_normalises_rgb, unwrap(model).modules()), None)


def _normalises_rgb(module: nn.Module) -> bool:
    buffers = dict(module.named_buffers(recurse=False))
    if not {"mean", "std"} <= buffers.keys() or buffers["mean"].numel() != 3:
        return False
    return bool(((buffers["mean"] >= 0) & (buffers["mean"] <= 1)).all())  # so of pixels in [0, 1]


def _weights_type(model: nn.Module, pixels: torch.Tensor) -> torch.dtype:
    """The type of the model's weights; of ``pixels`` for a model without any."""
    return next((tensor.dtype for tensor in model.parameters() if tensor.is_floating_point()), pixels.dtype)


def require_pixels(pixels: Any, who: str) -> None:
    """Raise DataError unless ``pixels`` are a float tensor (B, C, H, W) in [0, 1], up to rounding errors."""
    if not (isinstance(pixels, torch.Tensor) and pixels.ndim == 4 and pixels.is_floating_point()):
        shape = f"{pixels.dtype} of shape {tuple(pixels.shape)}" if isinstance(pixels, torch.Tensor) else type(pixels)
        raise DataError(
            f"{who}: expected pixels in [0, 1] as a float tensor (B, C, H, W), found {shape}. Convert by ToTensor."
        )
    if pixels.numel():
        low, high = (value.item() for value in pixels.detach().aminmax())
        if not (low >= -ROUNDING and high <= 1 + ROUNDING):
            raise DataError(
                f"{who}: expected pixels in [0, 1], found [{low:.3g}, {high:.3g}]. "
                "Normalise inside the model (load_model does), not in the transform."
            )


def require_outputs(largest_label: int, outputs: int, who: str) -> None:
    """Raise DataError for a label that is none of the model's ``outputs``."""
    if largest_label >= outputs:
        raise DataError(
            f"{who}: expected labels 0 to {outputs - 1}, the model's outputs, found {largest_label}. "
            "Give the model that these classes were trained with."
        )


def _class_indices(labels: Any, pixels: torch.Tensor, who: str) -> torch.Tensor:
    """``labels`` as int64 on the device of ``pixels``; DataError unless they are one whole number >= 0 an image."""
    if not (isinstance(labels, torch.Tensor) and labels.shape == pixels.shape[:1]):
        found = f"shape {tuple(labels.shape)}" if isinstance(labels, torch.Tensor) else type(labels).__name__
        raise DataError(f"{who}: expected labels as a tensor of shape ({len(pixels)},), found {found}.")
    if str(labels.dtype).removeprefix("torch.") not in _UNSIGNED_AND_SIGNED:
        raise DataError(
            f"{who}: expected class indices as whole numbers, found {labels.dtype}. Give indices, not scores."
        )
    indices = labels.detach().to(pixels.device, torch.int64, copy=True)
    if len(indices) and indices.min() < 0:
        raise DataError(f"{who}: expected class indices from 0, found {int(indices.min())}.")
    return indices


class _LogitsCheck:
    """A forward hook: what the model returns becomes logits that an attack can use, or a ModelError or DataError."""

    def __init__(self, who: str, largest_label: int) -> None:
        self.who, self.largest_label, self.is_first = who, largest_label, True

    def __call__(self, module: nn.Module, args: tuple[torch.Tensor, ...], output: Any) -> torch.Tensor:
        logits = logits_of(output, len(args[0]) if args else None)
        require_outputs(self.largest_label, logits.shape[1], self.who)
        if self.is_first and not bool((logits < math.inf).all()):  # once, as a GPU must wait; -inf masks a class
            raise ModelError(f"{self.who}: expected logits that are numbers, found nan or inf. Check the checkpoint.")
        if torch.is_grad_enabled() and args and args[0].requires_grad and not logits.requires_grad:
            raise gradient_error(self.who)
        self.is_first = False
        return logits


def gradient_error(who: str) -> ModelError:
    """The error for a model whose logits have no gradient to the pixels."""
    return ModelError(
        f"{who}: expected logits with a gradient to the pixels, found none. "
        "Let the model's forward not detach, round or run under torch.no_grad()."
    )


def attack_images(
    who: str, model: nn.Module, pixels: torch.Tensor, labels: torch.Tensor, attack: AttackFunction
) -> torch.Tensor:
    """What ``attack`` makes of checked images, with gradients whatever mode the caller is in.

    ``attack`` gets the frozen and unwrapped model, which returns logits (B, K); a copy of ``pixels`` in [0, 1], where
    they were up to 1e-4 outside, and in the precision of the weights, where theirs was lower; and int64 labels. No
    images give no images.

    Args:
        who: the attack's name, for errors.
        pixels: (B, C, H, W) in [0, 1]. labels: (B,), whole numbers of any type.

    Raises:
        DataError: other pixels or labels, or a label that the model has no output for.
        ModelError: the model is built for other images, was made in inference mode, or returns no logits, or such as
            are nan or inf, not one row an image, or without a gradient to the pixels; or the attack came to nan.
    """
    require_pixels(pixels, who)
    with torch.inference_mode(False), torch.enable_grad():
        indices = _class_indices(labels, pixels, who)
        images = pixels.detach().clone().clamp_(0, 1)
        if not len(images):
            return images
        require_input(model, images)
        images = images.to(torch.promote_types(images.dtype, _weights_type(model, images)))
        if any(tensor.is_inference() for tensor in chain(model.parameters(), model.buffers())):
            raise ModelError(f"{who}: expected a model with gradients, found one made in torch.inference_mode().")
        with frozen(model) as inner:
            handle = inner.register_forward_hook(_LogitsCheck(who, int(indices.max())))
            try:
                attacked = attack(inner, images, indices).detach()
            except RuntimeError as error:
                if "does not require grad" not in str(error):
                    raise
                raise gradient_error(who) from error
            finally:
                handle.remove()
    require_adversarial(attacked, images.shape, who)
    return attacked
