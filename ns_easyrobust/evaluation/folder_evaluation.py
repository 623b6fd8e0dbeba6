"""What the evaluations of :mod:`~ns_easyrobust.evaluation.easyrobust_api` have in common: a folder in, top-1 out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypedDict

import torch
from torch import nn
from torchvision import transforms

from ..data import Loader, Preprocessing, Subset
from .judging import judge
from .recorder import Recorder
from .suite import sampled_subset
from .task import (
    EvaluationTask,
    Measurement,
    Outcome,
    number_of_outputs,
    task_for,
    transform_for,
    warn_if_missing,
)


class EvaluateOptions(TypedDict, total=False):
    """The keywords that all evaluations share."""

    records: Recorder | None
    workers: int
    seed: int
    subset: str | Subset | None
    dtype: torch.dtype


DefaultTransform = Callable[[int], Any]  # from the model's image size


def photographs(size: int) -> Any:
    """Shorter side to ``size`` / 0.875 bicubic, then centre crop."""
    return Preprocessing(size).transform()


def as_they_are(size: int) -> Any:
    """For sets made at 224 pixels: unchanged at that size, else shorter side to ``size`` bicubic, then centre crop."""
    return transforms.ToTensor() if size == 224 else Preprocessing(size, 1.0).transform()


def patchfool_images(size: int) -> Any:
    """As PatchFool's published code: shorter side to ``size`` bilinear, then centre crop."""
    return Preprocessing(size, 1.0, "bilinear").transform()


def evaluate_folder(
    model: nn.Module,
    data_dir: str | Path,
    batch_size: int,
    transform: Any,
    dist: bool,
    load: Loader,
    measurement: Measurement,
    how: EvaluateOptions,
    *,
    default: DefaultTransform = photographs,
    sampled: bool = False,
) -> float | None:
    """Top-1 in percent of one measurement on the images in ``data_dir``; None if that does not exist.

    Args:
        default: makes the transform if none is given.
        sampled: by default, evaluate a :func:`~ns_easyrobust.evaluation.suite.sampled_subset`.
    """
    root, how = Path(data_dir), require_known(how)
    if not warn_if_missing(root):
        return None
    transform = transform_for(model, transform, default)
    outputs = number_of_outputs(model, root, transform)
    given = how.get("subset")
    subset = sampled_subset(load(root, outputs, None)) if sampled and not given else Subset.parse(str(given or "all"))
    task = task_for(root, load, outputs, transform, batch_size, subset, [measurement])
    return judge_tasks(model, [task], dist, how)[0][0].top1


def require_known(how: EvaluateOptions) -> EvaluateOptions:
    """``how`` itself; TypeError for an unknown keyword, which Python does not check behind ``**``."""
    unknown = set(how) - set(EvaluateOptions.__annotations__)
    if unknown:
        raise TypeError(
            f"unexpected keyword {min(unknown)!r}: expected of {', '.join(EvaluateOptions.__annotations__)}"
        )
    return how


def judge_tasks(
    model: nn.Module, tasks: Sequence[EvaluationTask], dist: bool, how: EvaluateOptions
) -> list[list[Outcome]]:
    return judge(
        model,
        tasks,
        share=dist,
        workers=how.get("workers", 4),
        seed=how.get("seed", 0),
        dtype=how.get("dtype", torch.float32),
        recorder=how.get("records"),
    )
