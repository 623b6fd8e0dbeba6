"""ImageNet-C: its folders, and the mean corruption error (Hendrycks and Dietterich 2019)."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from ..data import image_list as images
from ..data.benchmarks import ALEXNET_ERROR, SEVERITIES
from ..data.image_list import Subset
from ..errors import DataError
from . import trials
from .parts import part_of
from .recorder import Recorder
from .task import Outcome, Part

_logger = logging.getLogger(__name__)


def corruption_folders(root: Path) -> list[tuple[str, int]]:
    """The (corruption, severity) folders that are there, of 75.

    Raises:
        DataError: not one of them is.
    """
    present = [(name, s) for name in ALEXNET_ERROR for s in SEVERITIES if (root / name / str(s)).is_dir()]
    if not present:
        raise DataError(f"{root}: expected folders <corruption>/<severity 1-5>/<class>, found none.")
    return present


def corruption_parts(
    root: Path, outputs: int, transform: Any, batch_size: int, subset: Subset
) -> dict[tuple[str, int], Part]:
    """A part for each (corruption, severity) folder that is there."""
    return {
        (name, severity): part_of(
            root / name / str(severity),
            images.class_folders,
            outputs,
            transform,
            batch_size,
            subset,
            [trials.clean("imagenet-c", corruption=name, severity=severity)],
        )
        for name, severity in corruption_folders(root)
    }


def mean_corruption_error(accuracy: dict[str, float]) -> float:
    """mCE as a fraction from each corruption's mean accuracy in percent (all fifteen)."""
    errors = [(100 - accuracy[name]) / (100 * alexnet) for name, alexnet in ALEXNET_ERROR.items()]
    return sum(errors) / len(errors)


def sum_up_corruptions(
    outcomes: dict[tuple[str, int], Outcome], recorder: Recorder | None, protocol: dict[str, Any]
) -> tuple[float, float | None]:
    """Mean top-1 in percent over corruptions, and mCE as a fraction, None unless all 75 are there; both recorded."""
    accuracy: dict[str, float] = {}
    for name in dict.fromkeys(name for name, _ in outcomes):
        tops = [outcome.top1 for (other, _), outcome in outcomes.items() if other == name]
        accuracy[name] = sum(tops) / len(tops)
    mean, n = sum(accuracy.values()) / len(accuracy), sum(outcome.n for outcome in outcomes.values())
    if len(outcomes) < len(ALEXNET_ERROR) * len(SEVERITIES):
        _logger.warning("ImageNet-C: %d of 75 folders; no mCE from a part", len(outcomes))
        return mean, None
    mce = mean_corruption_error(accuracy)
    if recorder is not None:
        recorder.add_value("imagenet-c", "top1_mean", mean, n=n, protocol=protocol)
        recorder.add_value("imagenet-c", "mce", 100 * mce, n=n, protocol=protocol)
    return mean, mce
