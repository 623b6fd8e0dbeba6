"""A model and images, as most experiments take them."""

from __future__ import annotations

import argparse
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .. import evaluation, nullspace
from ..errors import DataError, ModelError, without_secrets
from ..utils import add_machine_arguments, add_model_arguments, file_or_folder, int_from, pick_device

if TYPE_CHECKING:
    import torch

    from ..models import NormalizedModel
    from .image_set import ImageSet

_MOST = 10**7


def add_input_arguments(
    parser: argparse.ArgumentParser, images: int, synthesis_images: int | None = None, enlarge: bool = False
) -> None:
    """Add the flags of a checkpoint, of images and of the machine.

    Args:
        images: how many are measured on, by default.
        synthesis_images: how many others noise is made with, by default; None where none is made.
        enlarge: whether the model may be made one for larger images.
    """
    evaluation.add_checkpoint_arguments(parser)
    add_model_arguments(parser)
    if enlarge:
        parser.add_argument(
            "--enlarge", type=int_from(1, 16), default=1, metavar="N",
            help="average images N times as large in front of the model, so that patches and the nullspace are larger "
            "(default: 1)",
        )  # fmt: skip
    add_image_arguments(parser, images, synthesis_images)
    add_machine_arguments(parser)


def add_image_arguments(
    parser: argparse.ArgumentParser, images: int, synthesis_images: int | None = None, required: bool = True
) -> None:
    """Add the flags of images alone; those of their preprocessing are a checkpoint's.

    Args:
        required: False where an experiment draws random pixels without them.
    """
    group = parser.add_argument_group("images")
    group.add_argument(
        "--data-dir", type=file_or_folder, required=required, metavar="DIR",
        help="folder of classes, or one with val/, to measure on, and train/, to make noise with"
        + ("" if required else " (default: random pixels)"),
    )  # fmt: skip
    group.add_argument(
        "--images", type=int_from(2, _MOST), default=images, metavar="N",
        help=f"to measure on, at random (default: {images})",
    )  # fmt: skip
    if synthesis_images is not None:
        group.add_argument(
            "--synthesis-images", type=int_from(2, _MOST), default=synthesis_images, metavar="N",
            help=f"others, to make noise with (default: {synthesis_images})",
        )  # fmt: skip
    group.add_argument("-b", "--batch-size", type=int_from(1, 2**20), default=64, metavar="N", help="default: 64")


@dataclass(frozen=True)
class Inputs:
    """What the flags name.

    Attributes:
        model: on ``device``, in eval mode.
        measured, searched: images to measure on, and to make noise with, on ``device``; the same where none is made.
        protocol: plain values that tell all of this apart, for :meth:`~.results.Results.begin`.
    """

    model: NormalizedModel
    device: torch.device
    measured: ImageSet
    searched: ImageSet
    protocol: dict[str, Any] = field(repr=False)


def open_inputs(args: argparse.Namespace) -> Inputs:
    """The model and the images of :func:`add_input_arguments`.

    Raises:
        ModelError: the model has one class, whose probability nothing can change.
        UserError: a checkpoint, folder or flag is not what it should be.
    """
    device = pick_device(args.device)
    model, described = open_model(args, device)
    if model.num_classes == 1:
        raise ModelError(
            f"{args.ckpt_path}: expected two classes or more, found one, whose probability is always 1. Give another "
            "checkpoint."
        )
    measured, searched, more = open_images_of(args, device)
    return Inputs(model, device, measured, searched, {**described, **more, "seed": args.seed})


def open_model(args: argparse.Namespace, device: torch.device) -> tuple[NormalizedModel, dict[str, Any]]:
    """The checkpoint's model, and plain values that tell it apart.

    ``args.input_size`` is then that of the images which are read, ``--enlarge`` times the checkpoint's own.
    """
    from .. import models

    described: dict[str, Any] = {}
    if (factor := getattr(args, "enlarge", 1)) != 1:
        args.input_size = vars(args).setdefault("own_input_size", args.input_size)  # what an earlier call multiplied
    model, _ = evaluation.checkpoint_model(args, device)
    if factor != 1:
        model, described = nullspace.enlarged(model, factor), {"enlarge": factor}
        args.input_size *= factor
    return model.eval(), {
        "model": model.arch,
        "checkpoint": without_secrets(str(args.ckpt_path)),
        "weights": models.state_digest(model),
        "ema": bool(args.use_ema),
        "image_size": args.input_size,
        **described,
    }


def open_images_of(args: argparse.Namespace, device: torch.device) -> tuple[ImageSet, ImageSet, dict[str, Any]]:
    """The images to measure on, those to make noise with, and plain values that tell them apart."""
    from ..data import Preprocessing
    from .image_set import open_image_set, open_images

    root, preprocessing = Path(args.data_dir), Preprocessing(args.input_size, args.crop_pct, args.interpolation)
    where: Any = (args.seed, args.workers)
    protocol: dict[str, Any] = {"preprocessing": str(preprocessing), "batch_size": args.batch_size}
    if hasattr(args, "synthesis_images"):
        measured, searched = open_images(root, preprocessing, args.images, args.synthesis_images, *where)
        protocol |= {"synthesis_n": len(searched), "synthesis_images": searched.digest}
        protocol["synthesis_from"] = searched.origin
    else:
        measured = searched = open_image_set(root, preprocessing, args.images, *where)
    for images, flag in ((measured, "--images"), (searched, "--synthesis-images")):
        if len(images) < 2:
            raise DataError(
                f"{args.data_dir}: expected two images at least for {flag}, found {images.origin}. Give more images."
            )
    protocol |= {"n": len(measured), "images": measured.digest, "images_from": measured.origin}
    protocol["pixels"] = measured.pixels_digest
    if searched is not measured:
        protocol["synthesis_pixels"] = searched.pixels_digest
    measured = measured.to(device)
    return measured, searched.to(device) if "synthesis_n" in protocol else measured, protocol
