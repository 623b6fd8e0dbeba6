"""The numbers of ``saliency``, one row a method and two kinds of images."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any, ClassVar

from ..errors import DataError
from .seed_statistics import Interval, interval_of_mean
from .statistics import wilson_interval

Lines = Sequence[Mapping[str, Any]]
Rows = Mapping[tuple[str, str, str, str], "SaliencyRow"]
ALIKE = 0.999  # correlation of maps below which pairs are counted


class SaliencyKinds:
    """Kinds of images as lines call them, and methods as tables call them."""

    TITLES: ClassVar = {
        "attention": "attention",
        "rollout": "rollout",
        "grad-cam": "Grad-CAM",
        "attention-grad-cam": "attention\nGrad-CAM",
        "chefer": "LRP\n(Chefer)",
    }
    SOURCE, TARGET, TRANSFORMED = "source", "target", "transformed"
    SHOWN: ClassVar = (SOURCE, TARGET, TRANSFORMED)
    LEAST_SQUARES, VALID, ROUNDED = "least squares", "valid pixels", "8 bits"
    CHANGED: ClassVar = (LEAST_SQUARES, VALID, ROUNDED)
    REORDERED, BLEND = "another order", "blend"  # changes as large as that of valid pixels
    EQUALLY_LARGE: ClassVar = (REORDERED, BLEND)
    NOISE = "rounding noise"

    @staticmethod
    def part_name(number: int, kind: str, name: str) -> str:
        """File of a shown pair: of its pixels (``name`` image), or of a method's map."""
        return f"{number}-{kind}-{name}.png"


class SaliencyRow:
    """All pairs, of one method and two kinds of images.

    Attributes:
        method, of, and_, precision: which.
        n: number of pairs.
        by_pair: the correlation of each, in order; None where a map is constant.
        correlations: of those whose maps are both not constant.
        ssims: of all.
        difference: largest of a patch's number, as a share of the first map's largest; None where all maps are 0.
    """

    def __init__(self, lines: Lines) -> None:
        self.method, self.of, self.and_ = lines[0]["method"], lines[0]["of"], lines[0]["and"]
        self.precision = lines[0]["precision"]
        self.n = sum(line["n"] for line in lines)
        self.by_pair: list[float | None] = [value for line in lines for value in line["correlations"]]
        self.correlations = [value for value in self.by_pair if value is not None]
        self.ssims = [value for line in lines for value in line["ssims"]]
        differences = [line["largest_difference"] for line in lines if line["largest_difference"] is not None]
        self.difference: float | None = max(differences, default=None)

    @property
    def constant(self) -> int:
        """Pairs without a correlation."""
        return self.n - len(self.correlations)

    @property
    def median(self) -> float | None:
        """Of the correlations; None without any."""
        return median(self.correlations) if self.correlations else None

    @property
    def least(self) -> float | None:
        """Of the correlations; None without any."""
        return min(self.correlations, default=None)

    @property
    def median_ssim(self) -> float:
        return median(self.ssims)

    @property
    def apart(self) -> int:
        """Pairs whose maps correlate by less than :data:`ALIKE`."""
        return sum(value < ALIKE for value in self.correlations)

    @property
    def correlation(self) -> Interval | None:
        """Mean and Student's t interval; None of less than two pairs, which have none."""
        found = interval_of_mean(self.correlations) if self.correlations else None
        return found if found is not None and math.isfinite(found.low) else None


def title_of(method: str) -> str:
    """In one line."""
    return SaliencyKinds.TITLES[method].replace("\n", " ")


def near_one(value: float) -> str:
    """A correlation or SSIM with as many digits as tell it from 1, rounded down, so that it is not 1 unless it is."""
    digits = 3 if value < 0.99 else 4 if value < 0.9995 else 6
    return f"{math.floor(value * 10**digits + 1e-4) / 10**digits:.{digits}f}"


def nearer(row: SaliencyRow, other: SaliencyRow) -> tuple[int, int]:
    """In how many pairs ``row`` correlates by more than ``other``, and of how many, whose correlations both exist."""
    both = [
        (one, two)
        for one, two in zip(row.by_pair, other.by_pair, strict=True)
        if one is not None and two is not None
    ]  # fmt: skip
    return sum(one > two for one, two in both), len(both)


def saliency_rows(lines: Lines) -> dict[tuple[str, str, str, str], SaliencyRow]:
    """By method, both kinds of images and precision, in the order of the lines.

    Raises:
        DataError: no line is of a batch.
    """
    groups: dict[tuple[str, str, str, str], list[Mapping[str, Any]]] = {}
    for line in lines:
        if "method" in line:
            groups.setdefault((line["method"], line["of"], line["and"], line["precision"]), []).append(line)
    if not groups:
        raise DataError("saliency: expected lines of batches, found none. Run it to its end.")
    return {key: SaliencyRow(group) for key, group in groups.items()}


class PredictionRow:
    """What the model makes of one kind of images, and how far they lie from sources and targets, on all pairs.

    Attributes:
        kind: which.
        n: pairs.
        unchanged: of how many the prediction stays.
        confidence: largest change of a probability.
        from_target, from_source: root mean square of pixels from 0 to 1, mean over pairs.
        residual: the largest of those with valid pixels; 0 for others.
        outside: share of pixels outside of [0, 1].
    """

    def __init__(self, lines: Lines) -> None:
        self.kind = lines[0]["predicted"]
        self.n = sum(line["n"] for line in lines)
        self.unchanged = sum(line["unchanged"] for line in lines)
        self.confidence = max(line["largest_confidence"] for line in lines)
        self.from_target = interval_of_mean([value for line in lines for value in line["from_target"]])
        self.from_source = interval_of_mean([value for line in lines for value in line["from_source"]])
        self.outside = sum(line["n"] * line["outside"] for line in lines) / self.n
        self.residual = max((line.get("largest_residual", 0.0) for line in lines), default=0.0)

    @property
    def share_unchanged(self) -> str:
        """With Wilson's interval."""
        low, high = wilson_interval(self.unchanged, self.n)
        return f"{100 * self.unchanged / self.n:.1f}% [{low:.1f}, {high:.1f}]"


def prediction_rows(lines: Lines) -> dict[str, PredictionRow]:
    """By kind of images."""
    groups: dict[str, list[Mapping[str, Any]]] = {}
    for line in lines:
        if "predicted" in line:
            groups.setdefault(line["predicted"], []).append(line)
    return {kind: PredictionRow(group) for kind, group in groups.items()}
