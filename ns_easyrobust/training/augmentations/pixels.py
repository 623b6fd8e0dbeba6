"""What the methods that change pixels in [0, 1] ask of their images."""

from __future__ import annotations

import argparse

from ...attacks import require_pixels
from ...errors import OptionError
from ...utils import torch


def refuse_erasing_outside(args: argparse.Namespace, use_of_range: str) -> None:
    """Raise OptionError for random erasing that leaves [0, 1].

    Clipping to [0, 1], as public attacks do, would change the erased pixels by far more than the method means to.

    Args:
        args: parsed flags, maybe of a script that has no random erasing.
        use_of_range: what [0, 1] is for, as the error goes on: "to which ... clips".
    """
    if getattr(args, "erase_outside", False) and getattr(args, "reprob", 0) > 0:
        raise OptionError(
            f"erase_outside: expected erased pixels inside [0, 1], {use_of_range}, found them left as drawn. "
            "Leave erase_outside out."
        )


def as_pixels(input: torch.Tensor, method: str) -> torch.Tensor:
    """What a method changes: ``input`` (B, C, H, W) in [0, 1], without its graph and in float32 at least.

    In bfloat16 a step of 1/255 would be lost beside a pixel near 1.

    Raises:
        DataError: ``input`` is outside [0, 1] (by more than rounding), in which the method's numbers are.
    """
    require_pixels(input, method)
    pixels = input.detach()
    return pixels.to(torch.promote_types(pixels.dtype, torch.float32)).clamp(0, 1)
