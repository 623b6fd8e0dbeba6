"""The numbers of ``patch-noise``, one row a kind of noise."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from ..errors import DataError
from .presentable import presentable
from .statistics import wilson_interval

Lines = Sequence[Mapping[str, Any]]


class PatchNoiseKinds:
    """The kinds of noisy images, as lines call them."""

    SAMPLE = "sample"
    CLIPPED = "sample, clipped"
    SAMPLE_PERMUTED = "sample, permuted"
    VALID = "largest valid"
    ROUNDED = "largest valid, 8 bits"
    VALID_PERMUTED = "largest valid, permuted"
    SHOWN: ClassVar = (SAMPLE, VALID, VALID_PERMUTED)
    NOISE_SCALE = 0.5  # of a sample, shown on grey

    @staticmethod
    def shown_name(kind: str) -> str:
        """In tables and pictures: nothing proves that what was found is the largest there is."""
        return kind.replace(PatchNoiseKinds.VALID, "large, valid")

    @staticmethod
    def part_name(number: int, kind: str) -> str:
        """File of a photograph's pixels as the picture shows them."""
        return f"{number}-{kind.replace(',', '').replace(' ', '-')}.png"


class PatchNoiseRow:
    """All images of one kind and precision.

    Attributes:
        kind, precision: which.
        n: number of images.
        unchanged: of how many the prediction stays.
        distances: squared L2 distance between softmax outputs of each image.
        confidence, logit, clean_logit: largest change of a probability and of a logit, and largest logit without noise.
        rms: of the noise, in pixels from 0 to 1.
        outside: share of pixels outside of [0, 1].
    """

    def __init__(self, lines: Lines) -> None:
        self.kind, self.precision = lines[0]["kind"], lines[0]["precision"]
        self.n = sum(line["n"] for line in lines)
        self.unchanged = sum(line["unchanged"] for line in lines)
        self.distances = [value for line in lines for value in line["distances"]]
        self.confidence, self.logit, self.clean_logit = (
            max(line[name] for line in lines) for name in ("largest_confidence", "largest_logit", "largest_clean_logit")
        )
        self.rms = math.sqrt(sum(line["n"] * line["mean_square"] for line in lines) / self.n)
        self.outside = sum(line["n"] * line["outside"] for line in lines) / self.n

    @property
    def name(self) -> str:
        name = PatchNoiseKinds.shown_name(self.kind)
        return name if self.precision == "float32" else f"{name}, {self.precision}"

    @property
    def agreement(self) -> str:
        """With Wilson's interval, in percent."""
        low, high = wilson_interval(self.unchanged, self.n)
        return f"{100 * self.unchanged / self.n:.1f}% [{low:.1f}, {high:.1f}]"


def patch_noise_rows(lines: Lines) -> dict[tuple[str, str], PatchNoiseRow]:
    """By kind and precision, in the order of the lines, float32 first.

    Raises:
        DataError: no line is of a batch.
    """
    groups: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for line in lines:
        if "batch" in line:
            groups.setdefault((line["kind"], line["precision"]), []).append(line)
    if not groups:
        raise DataError("patch-noise: expected lines of batches, found none. Run the experiment anew.")
    return {key: PatchNoiseRow(groups[key]) for key in sorted(groups, key=lambda key: key[1])}


def class_name(protocol: Mapping[str, Any], label: float) -> str:
    """Of a class of the model."""
    names = protocol["class_names"]
    return presentable(names[int(label)]) if names else f"class {int(label)}"
