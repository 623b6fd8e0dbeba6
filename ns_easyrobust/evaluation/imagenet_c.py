"""ImageNet-C: a task for each of its folders, and the records of them all."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import Any

from ..data import ALEXNET_ERROR, SEVERITIES, Subset, class_folders
from ..errors import DataError
from .mce import mean_corruption_error
from .recorder import Recorder
from .suite import revision_of
from .task import EvaluationTask, Measurement, Outcome, task_for

_logger = logging.getLogger(__name__)


def corruption_folders(root: Path) -> list[tuple[str, int]]:
    """Those of the 75 (corruption, severity) folders that are present.

    Raises:
        DataError: none of them is.
    """
    present = [(name, s) for name in ALEXNET_ERROR for s in SEVERITIES if os.path.isdir(root / name / str(s))]
    if not present:
        raise DataError(f"{root}: expected folders <corruption>/<severity 1-5>/<class>, found none.")
    return present


def corruption_tasks(
    root: Path, outputs: int, transform: Any, batch_size: int, subset: Subset
) -> dict[tuple[str, int], EvaluationTask]:
    """A task for each (corruption, severity) folder that is present."""
    return {
        (name, severity): task_for(
            root / name / str(severity),
            class_folders,
            outputs,
            transform,
            batch_size,
            subset,
            [Measurement("imagenet-c", {"corruption": name, "severity": severity})],
        )
        for name, severity in corruption_folders(root)
    }


def sum_up_corruptions(
    outcomes: dict[tuple[str, int], Outcome], recorder: Recorder | None, protocol: dict[str, Any]
) -> tuple[float, float | None]:
    """Mean top-1 in percent over corruptions, and mCE as a fraction.

    Without all 75 folders, mCE is None and neither is recorded.
    """
    by_corruption = [
        [outcome.top1 for (other, _), outcome in outcomes.items() if other == name]
        for name in dict.fromkeys(name for name, _ in outcomes)
    ]
    mean = sum(sum(top1) / len(top1) for top1 in by_corruption) / len(by_corruption)
    n = sum(outcome.n for outcome in outcomes.values())
    if len(outcomes) < len(ALEXNET_ERROR) * len(SEVERITIES):
        _logger.warning("ImageNet-C: %d of 75 folders; no mCE from a part", len(outcomes))
        return mean, None
    mce = mean_corruption_error({folder: outcome.top1 for folder, outcome in outcomes.items()})
    if recorder is not None:
        recorder = recorder.for_suite(revision_of("imagenet-c"), draws=False)
        recorder.add_value("imagenet-c", "top1_mean", mean, n=n, protocol=protocol)
        recorder.add_value("imagenet-c", "mce", 100 * mce, n=n, protocol=protocol)
    return mean, mce
