"""The evaluation of one checkpoint that the flags of ``benchmark`` ask for."""

from __future__ import annotations

import argparse
import logging
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import torch

from .checkpoint_flags import checkpoint_model
from .recorder import Recorder
from .records import describe_machine
from .suite import Protocol
from .suite_run import EvaluationPlan, SuitesRun, run_suites

if TYPE_CHECKING:
    from torch import nn

_logger = logging.getLogger(__name__)


class CheckpointRun(NamedTuple):
    """What was evaluated.

    Attributes:
        label: of the records.
        done: which suites were run.
        outputs: of the model; None where it does not say.
    """

    label: str
    done: SuitesRun
    outputs: int | None


def evaluate_checkpoint(args: argparse.Namespace, path: Path, device: torch.device) -> CheckpointRun:
    """Evaluate the checkpoint of ``args``, the parsed flags of ``benchmark``, and append its records to ``path``.

    Raises:
        UserError: a checkpoint, folder or flag is not what it should be.
    """
    model, checkpoint = checkpoint_model(args, device)
    label = args.label or f"{checkpoint.source}{' (EMA)' if args.use_ema else ''}"
    recorder = Recorder(
        path,
        common={
            "label": label,
            "model": args.model,
            "checkpoint": checkpoint.source,
            "checkpoint_sha256": checkpoint.sha256(),
            "weights": model.weights_name,
            "ema": args.use_ema,
            "machine": describe_machine(device),
        },
        protocol={
            "mean": model.mean,
            "std": model.std,
            "normalization_from": model.normalization_origin,
            **({"model_kwargs": args.model_kwargs} if args.model_kwargs else {}),
        },
        remeasure=args.again,
    )
    plan = EvaluationPlan(
        None if args.data_dir is None else Path(args.data_dir),
        args.chosen,
        _protocol(args, model[1]),
        args.attacks,
        args.subsets,
        batch_size=args.batch_size,
        folders=args.folders,
    )
    for suite in args.chosen:
        _logger.info("%s: %s: %s", suite, plan.folder(suite), plan.preprocessing(suite))
    dtype = getattr(torch, args.dtype)
    done = run_suites(model, plan, records=recorder, workers=args.workers, seed=args.seed, dtype=dtype)
    return CheckpointRun(label, done, model.num_classes)


def _protocol(args: argparse.Namespace, model: nn.Module) -> Protocol:
    from timm.data import resolve_data_config

    config = resolve_data_config({}, model=model)
    return Protocol(
        args.protocol,
        args.input_size,
        args.crop_pct,
        args.interpolation,
        own_crop_pct=config["crop_pct"],
        own_interpolation=config["interpolation"],
    )
