"""Photographs that an experiment's picture shows: files of the user's choice, or the first of its images."""

from __future__ import annotations

import argparse
import hashlib
from pathlib import Path

from ..errors import DataError, OptionError
from ..utils import file_or_folder, torch


def add_shown_arguments(group: argparse._ActionsContainer, most: int) -> None:
    """Add the flag of at most ``most`` photographs."""
    group.add_argument(
        "--photographs", nargs="+", type=file_or_folder, default=[], metavar="FILE",
        help=f"image files to show, at most {most} (default: the first of the images)",
    )  # fmt: skip


def check_shown(args: argparse.Namespace, most: int) -> None:
    """Refuse more than ``most`` by an OptionError, before anything is opened."""
    if len(args.photographs) > most:
        raise OptionError(f"--photographs: expected at most {most}, found {len(args.photographs)}. Show fewer.")


def add_class_name_argument(group: argparse._ActionsContainer) -> None:
    """Add the flag of the names that classes have in the picture."""
    group.add_argument(
        "--class-names", nargs="+", default=[], metavar="NAME",
        help="of the model's classes, in its order (default: numbers)",
    )  # fmt: skip


def check_class_names(args: argparse.Namespace) -> None:
    """Refuse another number of names than of the opened model's classes by an OptionError."""
    if args.class_names and len(args.class_names) != args.num_classes:
        raise OptionError(
            f"--class-names: expected {args.num_classes}, one a class, found {len(args.class_names)}. Name all."
        )


def read_photographs(args: argparse.Namespace, device: torch.device) -> tuple[torch.Tensor, list[str]]:
    """Pixels (n, 3, H, W) of the files of ``--photographs``, read as the images are, and their names.

    Raises:
        DataError: a file cannot be read.
    """
    from ..data import Preprocessing, read_image

    transform = Preprocessing(args.input_size, args.crop_pct, args.interpolation).transform()
    pixels = torch.stack([transform(read_image(path)) for path in args.photographs]).to(device)
    return pixels, [Path(path).name for path in args.photographs]


def open_shown(args: argparse.Namespace, measured: torch.Tensor) -> tuple[torch.Tensor, list[str], str]:
    """Pixels (n, 3, H, W) of what is shown, its names, and a digest of the pixels.

    Raises:
        DataError: a file cannot be read, or two have one name.
    """
    if args.photographs:
        pixels, names = read_photographs(args, measured.device)
    else:
        pixels, names = measured[:2], [f"image {number + 1}" for number in range(2)]
    if len(set(names)) < len(names):
        raise DataError(f"--photographs: expected different names, found {', '.join(names)[:200]}. Rename one.")
    return pixels, names, hashlib.sha256(pixels.cpu().numpy().tobytes()).hexdigest()
