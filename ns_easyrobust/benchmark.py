"""The verb ``benchmark``: a checkpoint through the evaluations, with EasyRobust's benchmark flags."""

from __future__ import annotations

import argparse
import os
import shutil
from pathlib import Path

from .checkpoints import load_model, read_checkpoint
from .data import INTERPOLATIONS, Preprocessing
from .distributed import process_group, rank
from .errors import OptionError
from .evaluate import SUITES, Recorder, run_suites
from .files import one_line_for_os_errors, sha256_of
from .options import add_machine_arguments, add_model_arguments
from .records import describe_machine, latest, read_records
from .report import Table
from .train import pick_device

_INTERPOLATION_NUMBERS = {"2": "bilinear", "3": "bicubic"}  # EasyRobust passes PIL's numbers


def _interpolation(text: str) -> str:
    name = _INTERPOLATION_NUMBERS.get(text, text)
    if name not in INTERPOLATIONS:
        raise argparse.ArgumentTypeError(f"expected one of {', '.join(INTERPOLATIONS)}, found {text!r}")
    return name


def _fraction(text: str) -> float:
    """A radius such as 0.0039 or 1/255."""
    top, _, bottom = text.partition("/")
    try:
        return float(top) / float(bottom or 1)
    except (ValueError, ZeroDivisionError):
        raise argparse.ArgumentTypeError(f"expected a number or a fraction such as 1/255, found {text!r}") from None


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """EasyRobust's flags of benchmark.py, and which suites to run."""
    add_model_arguments(parser)
    add_machine_arguments(parser)
    parser.add_argument("--ckpt-path", required=True, metavar="FILE_OR_URL", help="checkpoint, any form")
    parser.add_argument("--use-ema", action="store_true", help="take the checkpoint's moving average")
    parser.add_argument("--data-dir", required=True, metavar="DIR", help="folder with imagenet-val/, imagenet-c/")
    parser.add_argument("-b", "--batch-size", type=int, default=64, metavar="N", help="default: 64")
    parser.add_argument("--input-size", type=int, default=224, metavar="N", help="image side (default: 224)")
    parser.add_argument("--crop-pct", type=float, default=0.875, metavar="F", help="centre crop (default: 0.875)")
    parser.add_argument("--interpolation", type=_interpolation, default="bicubic", metavar="NAME")
    parser.add_argument("--suite", nargs="+", default=list(SUITES), choices=SUITES, help="default: all")
    parser.add_argument(
        "--epsilon", nargs="+", type=_fraction, default=[1 / 255], metavar="E", help="FGSM's radii (default: 1/255)"
    )
    parser.add_argument("--cw-radius", nargs="*", type=_fraction, default=[], metavar="R", help="CW's L2 radii")
    parser.add_argument("--records", default="results.jsonl", metavar="FILE", help="results are added to this file")
    parser.add_argument("--label", metavar="NAME", help="the row's name in tables (default: the checkpoint's path)")


def run(args: argparse.Namespace) -> None:
    """Evaluate, append records, print this checkpoint's table."""
    with process_group(pick_device(args.device)) as device:
        checkpoint = read_checkpoint(args.ckpt_path)
        model = load_model(
            args.model,
            args.ckpt_path,
            ema=args.use_ema,
            num_classes=args.num_classes,
            mean=args.mean,
            std=args.std,
        ).to(device)
        path = Path(args.records)
        with one_line_for_os_errors(path):
            path.parent.mkdir(parents=True, exist_ok=True)
        if path.exists() and not os.access(path, os.W_OK):
            raise OptionError(f"--records {path}: expected a file that can be written, found a read-only one.")
        label = args.label or f"{args.ckpt_path}{' (EMA)' if args.use_ema else ''}"
        recorder = Recorder(
            path,
            common={
                "label": label,
                "model": args.model,
                "checkpoint": args.ckpt_path,
                "checkpoint_sha256": sha256_of(checkpoint.path),
                "weights": model.weights_name,
                "ema": args.use_ema,
                "seed": 0,
                "machine": describe_machine(device),
            },
            protocol={
                "mean": model.mean,
                "std": model.std,
                "normalization_from": model.normalization_origin,
                "dtype": "float32",
            },
        )
        run_suites(
            model,
            args.data_dir,
            args.suite,
            batch_size=args.batch_size,
            transform=Preprocessing(args.input_size, args.crop_pct, args.interpolation).transform(),
            epsilons=args.epsilon,
            radii=args.cw_radius,
            records=recorder,
            workers=args.workers,
        )
        if rank() == 0 and path.exists():
            print(
                Table([record for record in latest(read_records(path)) if record.label == label]).to_text(
                    width=shutil.get_terminal_size((120, 24)).columns
                )
            )
