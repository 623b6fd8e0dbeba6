"""The verb ``benchmark``: a checkpoint through the evaluations, with EasyRobust's benchmark flags."""

from __future__ import annotations

import argparse
import os
import shutil
from pathlib import Path

from .data import Preprocessing
from .distributed import process_group, rank
from .errors import DataError, OptionError
from .evaluate import SUITES, run_suites
from .files import one_line_for_os_errors
from .judging import Recorder
from .options import add_checkpoint_arguments, add_machine_arguments, add_model_arguments, whole, within
from .prepare import checkpoint_model, pick_device
from .records import describe_machine, latest, read_records
from .tables import Table


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """EasyRobust's flags of benchmark.py, and which suites to run."""
    add_model_arguments(parser)
    add_machine_arguments(parser)
    add_checkpoint_arguments(parser)
    parser.add_argument("--data-dir", required=True, metavar="DIR", help="folder with imagenet-val/, imagenet-c/")
    parser.add_argument("-b", "--batch-size", type=whole(1), default=64, metavar="N", help="default: 64")
    parser.add_argument("--suite", nargs="+", default=list(SUITES), choices=SUITES, help="default: all")
    parser.add_argument(
        "--epsilon", nargs="+", type=within(0), default=[1 / 255], metavar="E", help="FGSM's radii (default: 1/255)"
    )
    parser.add_argument("--cw-radius", nargs="*", type=within(0), default=[], metavar="R", help="CW's L2 radii")
    parser.add_argument("--records", default="results.jsonl", metavar="FILE", help="results are added to this file")
    parser.add_argument("--label", metavar="NAME", help="the row's name in tables (default: the checkpoint's path)")


def run(args: argparse.Namespace) -> None:
    """Evaluate, append records, print this checkpoint's table."""
    with process_group(pick_device(args.device)) as device:
        model, checkpoint = checkpoint_model(args, device)
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
                "checkpoint_sha256": checkpoint.sha256(),
                "weights": model.weights_name,
                "ema": args.use_ema,
                "seed": args.seed,
                "machine": describe_machine(device),
            },
            protocol={
                "mean": model.mean,
                "std": model.std,
                "normalization_from": model.normalization_origin,
                "dtype": "float32",
            },
        )
        ran = run_suites(
            model,
            args.data_dir,
            args.suite,
            batch_size=args.batch_size,
            transform=Preprocessing(args.input_size, args.crop_pct, args.interpolation).transform(),
            epsilons=args.epsilon,
            radii=args.cw_radius,
            records=recorder,
            workers=args.workers,
            seed=args.seed,
        )
        if not ran:
            raise DataError(
                f"{args.data_dir}: expected the folders of --suite {' '.join(args.suite)}, found none. "
                "Nothing was evaluated; check --data_dir."
            )
        if rank() == 0:
            mine = [record for record in latest(read_records(path)) if record.label == label]
            print(Table(mine).to_text(width=shutil.get_terminal_size((120, 24)).columns))
