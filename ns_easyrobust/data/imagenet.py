"""ImageNet's class and image lists, from ``imagenet.json``, which names the source of each."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

CLASSES = 1000
OBJECTNET_FOLDERS = 313  # folders in ObjectNet/images; 113 of them hold ImageNet classes


@cache
def _lists() -> dict[str, Any]:
    return json.loads(Path(__file__).with_suffix(".json").read_text(encoding="utf-8"))


@cache
def wnids() -> tuple[str, ...]:
    """The 1000 WordNet ids, sorted: an id's position is its class index."""
    return tuple(f"n{number:08d}" for number in _lists()["classes"])


@cache
def wnid_index() -> dict[str, int]:
    """WordNet id -> class index."""
    return {wnid: index for index, wnid in enumerate(wnids())}


@cache
def imagenet_a_classes() -> tuple[int, ...]:
    """The 200 class indices of ImageNet-A, ascending."""
    return tuple(_lists()["imagenet_a"])


@cache
def imagenet_r_classes() -> tuple[int, ...]:
    """The 200 class indices of ImageNet-R, ascending."""
    return tuple(_lists()["imagenet_r"])


@cache
def objectnet_classes() -> dict[int, int]:
    """ImageNet class index -> position of the ObjectNet folder among all 313, sorted."""
    return dict(zip(_lists()["objectnet_classes"], _lists()["objectnet_folders"], strict=True))


@cache
def robustbench_ids() -> tuple[str, ...]:
    """RobustBench's 5000 validation images as 'wnid/file.JPEG', in the order of its list."""
    numbers, classes = _lists()["robustbench_images"], _lists()["robustbench_classes"]
    return tuple(
        f"{wnids()[index]}/ILSVRC2012_val_{number:08d}.JPEG" for number, index in zip(numbers, classes, strict=True)
    )
