"""The verb ``export``: write a checkpoint in the layout that EasyRobust or timm loads."""

from __future__ import annotations

import argparse
import re
from pathlib import Path

from ..errors import OutputError, printable
from ..models import LAYOUTS, is_url
from ..utils import add_model_kwargs, file_or_folder, os_errors_as_output_errors


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags of ``ns-easyrobust export``."""
    parser.add_argument(
        "checkpoint", type=file_or_folder, metavar="CKPT", help="file or address, in any form that load_model takes"
    )
    parser.add_argument(
        "--layout", required=True, choices=LAYOUTS,
        help="easyrobust: 0.mean, 0.std, 1.*, for its benchmark.py; timm: bare names, for timm itself",
    )  # fmt: skip
    parser.add_argument(
        "--output",
        type=file_or_folder,
        metavar="FILE",
        help="file to write (default: CKPT's name with the layout in it)",
    )
    parser.add_argument("--mean", type=float, nargs="+", help="input mean, if the checkpoint carries none")
    parser.add_argument("--std", type=float, nargs="+", help="input standard deviation, likewise")
    parser.add_argument(
        "--model", metavar="ARCH", help="architecture or factory: for .npz, and to look up mean and std"
    )
    add_model_kwargs(parser)
    parser.add_argument("--overwrite", action="store_true", help="replace the output file if it exists")


def default_output(source: str, layout: str) -> Path:
    """``<stem>.<layout>.pth.tar`` beside ``source``, or in the current folder if ``source`` is an address."""
    folder = Path() if is_url(source) else Path(source).parent
    name = re.sub(r"^\w+://[^/?#]*|[?#].*", "", source).rsplit("/", 1)[-1] if is_url(source) else Path(source).name
    stem = re.sub(r"(\.(pth|pt|tar|bin|ckpt|npz|safetensors))+$", "", name) or "checkpoint"
    return folder / f"{stem}.{layout}.pth.tar"


def run(args: argparse.Namespace) -> None:
    """Write the file and print what it contains.

    Raises:
        OutputError: the file exists (without ``--overwrite``), is the source, or cannot be written.
        UserError: what :func:`ns_easyrobust.models.checkpoint_save.export_checkpoint` raises.
    """
    from ..models import export_checkpoint, read_checkpoint

    output = Path(args.output) if args.output else default_output(args.checkpoint, args.layout)
    with os_errors_as_output_errors(output):  # no permission to look there, or too long a name
        is_there = output.exists() or output.is_symlink()
    if is_there and not args.overwrite:
        raise OutputError(f"{output}: expected no file there, found one. Choose another --output, or pass --overwrite.")
    checkpoint = read_checkpoint(args.checkpoint)
    if output.exists() and output.samefile(checkpoint.path):
        raise OutputError(
            f"{output}: expected another file than the source, found the source. Choose another --output."
        )
    exported = export_checkpoint(
        checkpoint,
        output,
        args.layout,
        mean=args.mean,
        std=args.std,
        arch=args.model,
        model_kwargs=args.model_kwargs,
    )
    mean, std = (" ".join(f"{value:.6g}" for value in values) for values in (exported.mean, exported.std))
    print(f"wrote {printable(str(exported.path))} (layout {exported.layout}: {', '.join(exported.entries)})")
    print(f"mean {mean}, std {std}, from the {exported.normalization_origin}")
