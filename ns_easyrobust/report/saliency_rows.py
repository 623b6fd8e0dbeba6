"""The numbers of ``saliency``, one row a method and two kinds of images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from ..errors import DataError
from .seed_statistics import Interval, interval_of_mean

Lines = Sequence[Mapping[str, Any]]


class SaliencyKinds:
    """Methods and kinds of images, as lines call them."""

    METHODS: ClassVar = ("attention", "rollout", "grad-cam", "attention-grad-cam", "chefer")
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

    @staticmethod
    def part_name(number: int, kind: str, name: str) -> str:
        """File of a shown pair: of its pixels (``name`` image), or of a method's map."""
        return f"{number}-{kind}-{name}.png"


class SaliencyRow:
    """All pairs, of one method and two kinds of images.

    Attributes:
        method, of, and_, precision: which.
        n: number of pairs.
        correlations: of those whose maps are both not constant.
        ssims: of all.
        difference: largest of a patch's number, as a share of the first map's largest; None where all maps are 0.
    """

    def __init__(self, lines: Lines) -> None:
        self.method, self.of, self.and_ = lines[0]["method"], lines[0]["of"], lines[0]["and"]
        self.precision = lines[0]["precision"]
        self.n = sum(line["n"] for line in lines)
        self.correlations = [value for line in lines for value in line["correlations"] if value is not None]
        self.ssims = [value for line in lines for value in line["ssims"]]
        differences = [line["largest_difference"] for line in lines if line["largest_difference"] is not None]
        self.difference: float | None = max(differences, default=None)

    @property
    def constant(self) -> int:
        """Pairs without a correlation."""
        return self.n - len(self.correlations)

    @property
    def correlation(self) -> Interval | None:
        return interval_of_mean(self.correlations) if self.correlations else None

    @property
    def ssim(self) -> Interval:
        return interval_of_mean(self.ssims)


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
    """What the model makes of one kind of transformed images, on all pairs.

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


def prediction_rows(lines: Lines) -> dict[str, PredictionRow]:
    """By kind of transformed images."""
    groups: dict[str, list[Mapping[str, Any]]] = {}
    for line in lines:
        if "predicted" in line:
            groups.setdefault(line["predicted"], []).append(line)
    return {kind: PredictionRow(group) for kind, group in groups.items()}
