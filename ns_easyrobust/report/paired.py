"""Two records compared image by image, from the kept bits."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np

from ..errors import DataError
from ..evaluation.per_image import images_digest, load_right
from ..evaluation.records import Record
from .statistics import bootstrap_difference, bootstrap_sum, mcnemar

_logger = logging.getLogger(__name__)
DRAWS = 2000  # of a combination over many images; a single accuracy, cheaper by far, takes 10,000


@dataclass(frozen=True)
class Difference:
    """One number minus a baseline's.

    Attributes:
        delta: in the unit of both.
        low, high: paired bootstrap interval; None where the bits of both on equal images are not at hand.
        p: McNemar's, of an accuracy; None as above, and for combinations.
    """

    delta: float
    low: float | None = None
    high: float | None = None
    p: float | None = None


def right_of(record: Record) -> np.ndarray:
    """(n,) booleans in the order of the sorted paths: equal :attr:`Record.images` line up.

    Raises:
        DataError: no bits were kept, their file is gone or damaged, or it is another record's.
    """
    if record.right_path is None or record.images is None:
        raise DataError(f"{record.label}, {record.suite}: expected per-image bits, found none. Measure it again.")
    right, digest = _sorted_right(record.right_path)
    if digest != record.images or int(right.sum()) != record.correct:
        raise DataError(
            f"{record.right_path}: expected the {record.correct} right images of {record.label}, {record.suite}, "
            f"found other ones ({int(right.sum())} right). Measure it again."
        )
    return right


@lru_cache(maxsize=2048)  # a file's name holds the hash of its content
def _sorted_right(path: Path) -> tuple[np.ndarray, str]:
    paths, right = load_right(path)
    order = sorted(range(len(paths)), key=paths.__getitem__)
    return right[order], images_digest(paths)


def other_task(one: Record, other: Record) -> bool:
    """Whether labels, allowed answers or files are known to differ, behind equal names."""
    return one.task is not None and other.task is not None and one.task != other.task


def _pair(record: Record, base: Record) -> tuple[np.ndarray, np.ndarray] | None:
    """Both records' bits, aligned; None, logged where a file is the reason, if they are not comparable."""
    if record.correct is None or base.correct is None or record.images is None or record.images != base.images:
        return None
    if record.right is None or base.right is None or other_task(record, base):
        return None
    try:
        return right_of(record), right_of(base)
    except DataError as error:
        _logger.warning("no paired comparison: %s", error)
        return None


def difference(record: Record, base: Record, confidence: float = 0.95) -> Difference:
    """``record`` minus ``base``, with interval and p where the bits of both on equal images are at hand."""
    delta = record.value - base.value
    pair = _pair(record, base)
    if pair is None:
        return Difference(delta)
    right, base_right = pair
    only, only_base = int((right & ~base_right).sum()), int((base_right & ~right).sum())
    low, high = bootstrap_difference(only, only_base, len(right), confidence=confidence)
    return Difference(delta, low, high, mcnemar(only, only_base))


def combined_interval(
    terms: Iterable[tuple[float, Record, Record]], confidence: float = 0.95, draws: int = DRAWS
) -> tuple[float, float] | None:
    """Paired bootstrap interval of the sum of weight * (accuracy of record - of base), in points.

    Terms over one set of images (clean, FGSM, the 75 folders of ImageNet-C, which hold
    the same photographs) are resampled together, an image with all its verdicts; sets that differ are
    resampled independently, also where one is a part of the other.

    Args:
        terms: (weight, record, base), both of metric top1.

    Returns:
        Both ends, or None where a term's bits on equal images are not at hand.
    """
    groups: dict[str, np.ndarray] = {}
    for weight, record, base in terms:
        pair = _pair(record, base)
        if pair is None or record.images is None:
            return None
        values = 100 * weight * (pair[0].astype(float) - pair[1])
        groups[record.images] = groups.get(record.images, 0.0) + values
    return bootstrap_sum(list(groups.values()), confidence=confidence, draws=draws)
