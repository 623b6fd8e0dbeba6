"""ImageNet-C: a task for each of its folders, and the records of them all."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..data import (
    ALEXNET_ERROR,
    IMAGENET_CLASSES,
    SEVERITIES,
    MissingImages,
    Subset,
    class_folders,
    holds_whole_images,
    list_folder,
    short_folders,
)
from .mce import mean_corruption_error
from .recorder import Recorder
from .suite import revision_of
from .task import EvaluationTask, Measurement, Outcome, task_for

_logger = logging.getLogger(__name__)
_ALL = len(ALEXNET_ERROR) * len(SEVERITIES)


def corruption_folders(root: Path) -> list[tuple[str, int]]:
    """Those of the 75 (corruption, severity) folders that are present; others are named in the log.

    Raises:
        MissingImages: none of them is.
    """
    present = [(name, s) for name in ALEXNET_ERROR for s in SEVERITIES if os.path.isdir(root / name / str(s))]
    others = [name for name in list_folder(root)[0] if name not in ALEXNET_ERROR]
    if not present:
        found = f"found {', '.join(others[:5])}" if others else "found none"
        raise MissingImages(
            f"{root}: expected folders <corruption>/<severity 1-5>/<class> of ImageNet-C's {len(ALEXNET_ERROR)} "
            f"corruptions, {found}. Move them there."
        )
    if others:
        _logger.info(
            "%s: left out, as none of ImageNet-C's %d corruptions: %s", root, len(ALEXNET_ERROR), ", ".join(others)
        )
    return present


def framed_as(root: Path) -> str:
    """The suite whose images those of ``root`` are framed like: val for whole photographs, else c."""
    return "val" if holds_whole_images(root) else "c"


def corruption_tasks(
    root: Path, outputs: int, transform: Any, batch_size: int, subset: Subset
) -> dict[tuple[str, int], EvaluationTask]:
    """A task for each (corruption, severity) folder that is present.

    Whole photographs are said in the protocol: a number on them is another than one on ImageNet-C's crops.
    """
    whole = {} if framed_as(root) == "c" else {"corrupted": "whole images"}
    tasks = {}
    for name, severity in corruption_folders(root):
        measurements = [Measurement("imagenet-c", {"corruption": name, "severity": severity})]
        folder = root / name / str(severity)
        task = task_for(folder, class_folders, outputs, transform, batch_size, subset, measurements)
        tasks[name, severity] = replace(task, protocol={**task.protocol, **whole})
    return tasks


def sum_up_corruptions(
    root: Path,
    outcomes: dict[tuple[str, int], Outcome],
    recorder: Recorder | None,
    protocol: dict[str, Any],
    outputs: int,
) -> tuple[float, float | None]:
    """Mean top-1 in percent over the folders, and mCE as a fraction, None where not all 75 folders are there.

    Both are recorded. But mCE, whose denominators are AlexNet's errors on ImageNet, means nothing for other classes:
    there it is returned, as EasyRobust does, and not recorded, and the mean is recorded of a part of the folders too,
    with their names. With ImageNet's 1000 outputs, nothing is recorded of a part.
    """
    mean = sum(outcome.top1 for outcome in outcomes.values()) / len(outcomes)
    n = sum(outcome.n for outcome in outcomes.values())
    is_imagenet, is_part = outputs == IMAGENET_CLASSES, len(outcomes) < _ALL
    if recorder is not None:
        recorder = recorder.for_suite(revision_of("imagenet-c"), draws=False, outputs=outputs)
        if not (is_imagenet and is_part):
            settings = {**protocol, "folders": _named(outcomes)} if is_part else protocol
            recorder.add_value("imagenet-c", "top1_mean", mean, n=n, protocol=settings)
    counts = {f"{name}/{severity}": outcome.n for (name, severity), outcome in outcomes.items()}
    if protocol["subset"] == "all" and (short := short_folders(root, counts)):
        _logger.warning(
            "%s: %s. The mean is of what is there: complete them, as corrupt does when run again", root, short
        )
    if is_part:
        _logger.warning("ImageNet-C: %d of %d folders%s", len(outcomes), _ALL, "; no mCE from a part" * is_imagenet)
        return mean, None
    mce = mean_corruption_error({folder: outcome.top1 for folder, outcome in outcomes.items()})
    if recorder is not None and is_imagenet:
        recorder.add_value("imagenet-c", "mce", 100 * mce, n=n, protocol=protocol)
    return mean, mce


def _named(folders: Iterable[tuple[str, int]]) -> str:
    """Some of the folders in words, such as "contrast fog 1-5, snow 3 (11 of 75)"."""
    present = set(folders)
    names: dict[str, list[str]] = {}
    for name in ALEXNET_ERROR:
        severities = [s for s in SEVERITIES if (name, s) in present]
        if severities:
            first, last = severities[0], severities[-1]
            is_run = 1 < len(severities) == last - first + 1
            names.setdefault(f"{first}-{last}" if is_run else " ".join(map(str, severities)), []).append(name)
    parts = (
        f"{'all' if len(own) == len(ALEXNET_ERROR) else ' '.join(own)} {severities}"
        for severities, own in names.items()
    )
    return f"{', '.join(parts)} ({len(present)} of {_ALL})"
