"""The numbers of ``watermark``, one row a stage that a marked image goes through."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from ..errors import DataError
from .statistics import wilson_interval

Lines = Sequence[Mapping[str, Any]]
CLAIM = 1e-4  # the paper's change of the assigned class's confidence


class WatermarkKinds:
    """What becomes of marked images, as lines call it, and of unmarked ones on the same way."""

    LEAST_SQUARES = "least squares"  # Eq. 12; pixels may lie outside of [0, 1]
    VALID = "valid pixels, float file"
    LATTICE = "8-bit PNG, rounded in the nullspace"
    PNG = "8-bit PNG"
    CARRIERS: ClassVar = {
        "float": VALID, "png16": "16-bit PNG", "png": PNG, "jpeg-95": "JPEG 95", "jpeg-75": "JPEG 75",
        "jpeg-50": "JPEG 50", "resize-0.5": "half the size and back", "crop-0.9": "cropped to 90% and back",
    }  # fmt: skip
    LOSSY: ClassVar = ("jpeg-95", "jpeg-75", "jpeg-50", "resize-0.5", "crop-0.9")  # an unmarked image changes, too
    OTHER = "another mark"
    SHARES = "shares"  # of the energy that Eq. 12 keeps
    SHOWN: ClassVar = ("image", "marked", "jpeg", "emboss")

    @staticmethod
    def unmarked(kind: str) -> str:
        return f"{kind}, unmarked"

    @staticmethod
    def part_name(number: int, kind: str) -> str:
        """File of a photograph's pixels as the picture shows them."""
        return f"{number}-{kind}.png"


class WatermarkRow:
    """All images at one stage.

    Attributes:
        kind: which.
        n: number of images.
        unchanged: of how many the prediction stays.
        confidence, logits: of each image, change of the assigned class's probability, and largest change of a logit.
        inside, outside, relative, afar: contrast of the mark in each image; none where there is no mark.
        scores: of the detector on each image; none where its pixels are not valid.
        detected: in how many the mark was found.
    """

    def __init__(self, lines: Lines) -> None:
        self.kind = lines[0]["kind"]
        self.n = sum(line["n"] for line in lines)
        self.unchanged, self.detected = (sum(line.get(name, 0) for line in lines) for name in ("unchanged", "detected"))
        self.confidence, self.logits, self.scores, self.inside, self.outside, self.relative, self.afar = (
            [value for line in lines for value in line.get(name, ())]
            for name in ("confidence", "logits", "scores", "inside", "outside", "relative", "afar")
        )

    @property
    def within(self) -> int:
        """On how many images the confidence changes by at most the paper's number."""
        return sum(value <= CLAIM for value in self.confidence)

    def share(self, count: int) -> str:
        """A count of the images with Wilson's interval, in percent."""
        return share_of(count, self.n)


def share_of(count: int, n: int) -> str:
    """A count with Wilson's interval, in percent."""
    low, high = wilson_interval(count, n)
    return f"{100 * count / n:.1f}% [{low:.1f}, {high:.1f}]"


def watermark_rows(lines: Lines) -> dict[str, WatermarkRow]:
    """By kind, in the order of the lines.

    Raises:
        DataError: no line is of a batch.
    """
    groups: dict[str, list[Mapping[str, Any]]] = {}
    for line in lines:
        if "batch" in line and line["kind"] != WatermarkKinds.SHARES:
            groups.setdefault(line["kind"], []).append(line)
    if not groups:
        raise DataError("watermark: expected lines of batches, found none. Run the experiment anew.")
    return {kind: WatermarkRow(group) for kind, group in groups.items()}
