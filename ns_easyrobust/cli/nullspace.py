"""The verb ``nullspace``: dimensions of the patch embedding's exact nullspace, as in Table 1."""

from __future__ import annotations

import argparse
from pathlib import Path

from ..errors import OptionError, OutputError, printable
from ..nullspace import SPACES
from ..utils import add_model_kwargs, file_or_folder, write_text

_NOTES = {
    "random": "random weights: nothing was learned, so rank-nullity alone decides, nullspace dim = "
    "max(0, input dim - embedding dim); --pretrained takes timm's trained weights.",
    "file": "checkpoint files: a weight does not tell its stride, which is taken to equal the patch size.",
    "paper": "paper: Table 1 of arXiv:2403.10476, for pretrained weights and normalised inputs.",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags: models or checkpoint files, their weights, and the threshold for zero singular values."""
    parser.add_argument(
        "models", nargs="*", type=file_or_folder, metavar="MODEL",
        help="architectures, factories (file.py:function) and checkpoint files or addresses (default: the paper's "
        "eight models)",
    )  # fmt: skip
    add_model_kwargs(parser)
    parser.add_argument(
        "--pretrained", action="store_true", help="timm's trained weights for architectures (a download)"
    )
    parser.add_argument("--ema", action="store_true", help="the moving average's weights in checkpoint files")
    parser.add_argument("--space", default="normalised", choices=SPACES, help="inputs after or before normalisation")
    parser.add_argument(
        "--rtol", type=float, metavar="F",
        help="singular values up to F times the largest are zero (default: max(dimensions) * float epsilon)",
    )  # fmt: skip
    parser.add_argument("--csv", type=file_or_folder, metavar="FILE", help="write the table there too")
    parser.add_argument("--overwrite", action="store_true", help="replace an existing --csv file")


def run(args: argparse.Namespace) -> None:
    """Print the table, and with ``--csv`` also write it to a file.

    Raises:
        ModelError: a name that is neither an architecture nor a file, or no linear patch embedding.
        CheckpointError: a file that cannot be read, or weights that cannot be downloaded.
        OptionError: ``--ema`` without a checkpoint file, ``--pretrained`` with nothing else, bad ``--rtol``.
        OutputError: the ``--csv`` file exists (without ``--overwrite``) or cannot be written.
    """
    from ..experiments import (
        PUBLISHED_DIMENSIONS,
        architecture_row,
        checkpoint_row,
        dimensions_csv,
        dimensions_text,
        is_checkpoint,
    )

    models = args.models or list(PUBLISHED_DIMENSIONS)
    files = [name for name in models if is_checkpoint(name)]
    if args.ema and not files:
        raise OptionError("--ema: expected a checkpoint file among the models, found none. Name one, or drop it.")
    if args.pretrained and len(files) == len(models):
        raise OptionError("--pretrained: expected an architecture, found only checkpoint files. Drop it.")
    if args.csv and Path(args.csv).exists() and not args.overwrite:
        raise OutputError(f"{args.csv} exists: expected a new file. Pass --overwrite or another --csv.")
    rows = [
        checkpoint_row(name, ema=args.ema, space=args.space, rtol=args.rtol)
        if name in files
        else architecture_row(
            name, pretrained=args.pretrained, space=args.space, rtol=args.rtol, model_kwargs=args.model_kwargs
        )
        for name in models
    ]
    if args.csv:
        write_text(args.csv, dimensions_csv(rows))
    print(dimensions_text(rows))
    print(f"\n{args.space} inputs; smallest kept and largest dropped: singular values relative to the largest")
    notes = {"random": any(row.weights == "random" for row in rows), "file": bool(files)}
    notes["paper"] = any(row.published is not None for row in rows)
    for note in (name for name, needed in notes.items() if needed):
        print(_NOTES[note])
    if args.csv:
        print(f"wrote {printable(args.csv)}")
