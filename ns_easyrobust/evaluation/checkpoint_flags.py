"""Flags shared by the verbs that load weights and read images, and the model that these flags name."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from ..data import INTERPOLATIONS
from ..errors import OptionError
from ..utils import file_or_folder, float_in, int_from

if TYPE_CHECKING:
    import torch

    from ..models import Checkpoint, NormalizedModel

_LARGEST_SIDE = 8192  # pixels of an image: almost a gigabyte


def add_checkpoint_arguments(
    parser: argparse.ArgumentParser, crop_pct: float | None = 0.875, interpolation: str | None = "bicubic"
) -> None:
    """Add the flags that verbs need, beside :func:`add_model_arguments`, to load weights and read images.

    ``crop_pct`` and ``interpolation`` are defaults; None where a verb's ``--protocol`` decides.
    """
    parser.add_argument(
        "--ckpt-path", type=file_or_folder, required=True, metavar="FILE_OR_URL", help="checkpoint, any form"
    )
    parser.add_argument("--sha256", metavar="HASH", help="refuse any other file")
    add_reading_arguments(parser, crop_pct, interpolation)


def add_reading_arguments(
    parser: argparse.ArgumentParser, crop_pct: float | None = 0.875, interpolation: str | None = "bicubic"
) -> None:
    """Add those of :func:`add_checkpoint_arguments` that name no checkpoint, for verbs that load several."""
    parser.add_argument("--use-ema", action="store_true", help="take the checkpoint's moving average")
    parser.add_argument(
        "--img-size", type=int_from(1, _LARGEST_SIDE), metavar="N", help="build the model for images of this size"
    )
    parser.add_argument(
        "--input-size", type=int_from(1, _LARGEST_SIDE), metavar="N", help="image side (default: the model's)"
    )
    parser.add_argument("--crop-pct", type=float_in(0.01, 1), default=crop_pct, metavar="F",
                        help=f"crop (default: {crop_pct or 'as --protocol says'})")  # fmt: skip
    parser.add_argument("--interpolation", type=_interpolation, default=interpolation, metavar="NAME",
                        help=f"default: {interpolation or 'as --protocol says'}")  # fmt: skip


def _interpolation(text: str) -> str:
    name = {"2": "bilinear", "3": "bicubic"}.get(text, text)  # EasyRobust passes PIL's numbers
    if name not in INTERPOLATIONS:
        raise argparse.ArgumentTypeError(f"expected one of {', '.join(INTERPOLATIONS)}, found {text!r}")
    return name


def checkpoint_model(args: argparse.Namespace, device: torch.device) -> tuple[NormalizedModel, Checkpoint]:
    """The model of ``--model``, ``--ckpt-path`` and ``--use-ema`` on ``device``, and the checkpoint it was loaded from.

    ``args.model``, ``args.num_classes`` and ``args.input_size`` are set to what is used where they are not given.

    Raises:
        OptionError: an ``--input-size`` that the architecture cannot take.
    """
    from ..models import load_model, read_checkpoint, required_image_size

    checkpoint = read_checkpoint(args.ckpt_path, sha256=args.sha256)
    options = {"num_classes": args.num_classes, "mean": args.mean, "std": args.std}
    if args.img_size is not None:
        options["img_size"] = args.img_size
    model = load_model(args.model, checkpoint, ema=args.use_ema, model_kwargs=args.model_kwargs, **options)
    args.model, args.num_classes = model.arch, model.num_classes
    args.model_kwargs = {**model.described.get("model_kwargs", {}), **args.model_kwargs}
    required_size = required_image_size(model)
    if args.input_size is not None and required_size is not None and required_size[-1] != args.input_size:
        raise OptionError(
            f"--input-size {args.input_size}: expected {required_size[-1]}, the size {args.model} is built for. "
            "Leave it out, or build the model for it with --img-size."
        )
    args.input_size = args.input_size or model.image_size
    return model.to(device), checkpoint
