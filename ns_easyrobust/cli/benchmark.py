"""The verb ``benchmark``: a checkpoint through the evaluations, with EasyRobust's benchmark flags."""

from __future__ import annotations

import argparse
import logging
import os
import shutil
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from timm.data import resolve_data_config
from torch import nn

from ..attacks.patch_fool import PatchFoolConfig
from ..data.image_list import Subset
from ..errors import DataError, OptionError
from ..evaluation.protocols import PRESETS, Protocol
from ..evaluation.recorder import Recorder
from ..evaluation.records import describe_machine, latest, read_records
from ..evaluation.suite import GROUPS, SUITES, Attacks, Plan, run_suites
from ..report.views import Table
from ..training.options import add_checkpoint_arguments, add_machine_arguments, add_model_arguments, whole, within
from ..training.setup import checkpoint_model, pick_device
from ..utils.distributed import process_group, rank
from ..utils.files import one_line_for_os_errors

_logger = logging.getLogger(__name__)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """EasyRobust's flags of benchmark.py, which suites to run, and the attacks' settings."""
    add_model_arguments(parser)
    add_machine_arguments(parser)
    add_checkpoint_arguments(parser)
    parser.set_defaults(crop_pct=None, interpolation=None)  # the protocol's
    parser.add_argument("--data-dir", required=True, metavar="DIR", help="folder with imagenet-val/, imagenet-c/, ...")
    parser.add_argument("-b", "--batch-size", type=whole(1), default=64, metavar="N", help="default: 64")
    parser.add_argument(
        "--suite",
        nargs="+",
        default=["table2"],
        metavar="NAME",
        choices=(*GROUPS, *(name for name in SUITES if name not in GROUPS)),
        help=f"of {', '.join(SUITES)}, or a group: {', '.join(GROUPS)} (default: table2, the paper's columns)",
    )
    parser.add_argument("--adv", action="store_true", help="EasyRobust's flag: AutoAttack alone")
    parser.add_argument("--protocol", default="paper", choices=PRESETS, help=_told(PRESETS))
    parser.add_argument(
        "--subset",
        nargs="+",
        default=[],
        metavar="[SUITE=]PART",
        help="all, first:N, random:N, random:N:SEED or robustbench, for all suites or for one",
    )
    parser.add_argument(
        "--dtype", default="float32", choices=("float32", "bfloat16", "float16"), help="autocast where not float32"
    )
    parser.add_argument("--records", default="results.jsonl", metavar="FILE", help="results are added to this file")
    parser.add_argument("--again", action="store_true", help="measure anew what the file holds already")
    parser.add_argument("--label", metavar="NAME", help="the row's name in tables (default: the checkpoint's path)")
    group = parser.add_argument_group("attacks (radii in pixels of [0, 1])")
    radius: dict[str, Any] = {"type": within(0), "nargs": "+", "metavar": "E"}
    group.add_argument("--epsilon", default=[1 / 255], **radius, help="FGSM's (default: 1/255)")
    group.add_argument("--pgd-epsilon", default=[1 / 255], **radius, help="PGD's (default: 1/255)")
    group.add_argument("--pgd-steps", type=whole(1), default=10, metavar="N", help="default: 10")
    group.add_argument("--cw-radius", nargs="*", type=within(0), default=[], metavar="R", help="CW's L2 radii")
    group.add_argument("--autoattack-epsilon", type=within(0), metavar="E", help="default: 4/255 for Linf")
    group.add_argument("--autoattack-norm", default="Linf", choices=("Linf", "L2"))
    _add_patchfool_arguments(group)


def _add_patchfool_arguments(group: Any) -> None:
    group.add_argument(
        "--patchfool-mode",
        default="official",
        choices=("official", "exact"),
        help="as published, or each image by itself with a true projection (default: official)",
    )
    group.add_argument("--patchfool-loss", default="attention", choices=("attention", "ce"), help="default: attention")
    group.add_argument(
        "--patchfool-select",
        default="attention",
        choices=("attention", "saliency", "random"),
        help="how the patch is chosen (default: attention)",
    )
    group.add_argument("--patchfool-layer", type=whole(0), default=4, metavar="L", help="of that attention, from 0")
    group.add_argument("--patchfool-patches", type=whole(1), default=1, metavar="N", help="default: 1")
    group.add_argument("--patchfool-norm", default="none", choices=("none", "linf", "l2"), help="default: none")
    group.add_argument("--patchfool-epsilon", type=within(0), default=0.0, metavar="E", help="radius of that norm")
    group.add_argument("--patchfool-steps", type=whole(1), default=250, metavar="N", help="default: 250")


def _told(presets: dict[str, str]) -> str:
    return "; ".join(f"{name}: {words}" for name, words in presets.items()) + " (default: paper)"


def _suites(names: list[str]) -> list[str]:
    return list(dict.fromkeys(suite for name in names for suite in GROUPS.get(name, (name,))))


def _subsets(texts: list[str]) -> dict[str, Subset]:
    """``--subset``'s values by suite; "" is for all."""
    subsets = {}
    for text in texts:
        suite, equals, part = text.rpartition("=")
        if equals and suite not in SUITES:
            raise OptionError(f"--subset {text}: expected one of {', '.join(SUITES)} before '=', found {suite!r}.")
        subsets[suite] = Subset.parse(part)
        if subsets[suite].kind == "first":
            _logger.warning("--subset %s: the first folders' images, so of few classes; random:N draws from all", text)
    return subsets


def _protocol(args: argparse.Namespace, model: nn.Module) -> Protocol:
    config = resolve_data_config({}, model=model)
    return Protocol(
        args.protocol,
        args.input_size,
        args.crop_pct,
        args.interpolation,
        own_crop_pct=config["crop_pct"],
        own_interpolation=config["interpolation"],
    )


def _attacks(args: argparse.Namespace) -> Attacks:
    return Attacks(
        fgsm=args.epsilon,
        cw_radii=args.cw_radius,
        pgd=args.pgd_epsilon,
        pgd_steps=args.pgd_steps,
        patchfool=PatchFoolConfig(
            mode=args.patchfool_mode,
            loss=args.patchfool_loss,
            select=args.patchfool_select,
            layer=args.patchfool_layer,
            patches=args.patchfool_patches,
            norm=args.patchfool_norm,
            epsilon=args.patchfool_epsilon,
            steps=args.patchfool_steps,
        ),
        autoattack=_autoattack_radius(args),
        autoattack_norm=args.autoattack_norm,
    )


def _autoattack_radius(args: argparse.Namespace) -> float:
    radius: float | None = args.autoattack_epsilon
    if radius is None and args.autoattack_norm != "Linf":
        raise OptionError("--autoattack-norm L2: expected --autoattack-epsilon, the L2 radius, beside it; found none.")
    return 4 / 255 if radius is None else radius


def _results_file(args: argparse.Namespace) -> Path:
    path = Path(args.records)
    with one_line_for_os_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    if path.exists() and not os.access(path, os.W_OK):
        raise OptionError(f"--records {path}: expected a file that can be written, found a read-only one.")
    if path.exists():
        read_records(path)  # a file of something else is refused before hours are spent
    return path


def run(args: argparse.Namespace) -> None:
    """Evaluate, append records, print this checkpoint's table."""
    if not Path(args.data_dir).is_dir():
        raise DataError(
            f"--data-dir {args.data_dir}: expected a folder with imagenet-val/ and others, found none. "
            "Nothing was evaluated."
        )
    suites = _suites(["autoattack"] if args.adv else args.suite)
    subsets, attacks, path = _subsets(args.subset), _attacks(args), _results_file(args)
    # Ranks that deal slow attacks among them may wait for each other for hours.
    with process_group(pick_device(args.device), timedelta(days=7)) as device:
        model, checkpoint = checkpoint_model(args, device)
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
                "machine": describe_machine(device),
            },
            protocol={
                "mean": model.mean,
                "std": model.std,
                "normalization_from": model.normalization_origin,
            },
            again=args.again,
        )
        plan = Plan(
            Path(args.data_dir), suites, _protocol(args, model[1]), attacks, subsets, batch_size=args.batch_size
        )
        for suite in suites:
            _logger.info("%s: %s: %s", suite, plan.folder(suite), plan.protocol.preprocessing(suite))
        ran = run_suites(
            model, plan, records=recorder, workers=args.workers, seed=args.seed, dtype=getattr(torch, args.dtype)
        )
        if not ran:
            raise DataError(
                f"{args.data_dir}: expected the folders of --suite {' '.join(suites)}, found none. "
                "Nothing was evaluated; check --data-dir (ns-easyrobust doctor says what is there)."
            )
        if rank() == 0:
            mine = [record for record in latest(read_records(path)) if record.label == label]
            print(Table(mine).to_text(width=shutil.get_terminal_size((120, 24)).columns))
