"""What is measured of marked images: outputs, contrast and detection at each stage from least squares to a crop."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .. import nullspace, report
from ..utils import nn, np, torch, write_atomically
from .watermark_mark import Marker

if TYPE_CHECKING:
    Scores = Callable[[torch.Tensor], tuple[torch.Tensor, int]]


class Halves:
    """Unmarked images in two random halves; each is judged by the detector and the threshold of the other.

    Attributes:
        order: (n,) all images at random; their halves take turns in it.
    """

    def __init__(self, n: int, seed: int) -> None:
        self.order = torch.randperm(n, generator=torch.Generator().manual_seed(seed))
        self.half = torch.empty(n, dtype=torch.long)
        self.half[self.order] = torch.arange(n) % 2
        self.detectors: list[Any] = []
        self.thresholds: list[float] = []

    def require_rate(self, rate: float) -> None:
        """Raise the OptionError of :func:`~ns_easyrobust.nullspace.threshold_at` for half of the images."""
        nullspace.threshold_at(torch.zeros(len(self.order) // 2), rate)

    def calibrate(self, marker: Marker, images: torch.Tensor, rate: float) -> None:
        """Make the detector and threshold of each half of the ``images``."""
        for half in (0, 1):
            own = images[(self.half == half).to(images.device)]
            self.detectors.append(marker.detector(own))
            self.thresholds.append(nullspace.threshold_at(self.detectors[half](own), rate))

    def scores(self, chosen: torch.Tensor, images: torch.Tensor) -> tuple[torch.Tensor, int]:
        """Scores of what became of the images ``chosen``, each by the other half's detector, and how many are found."""
        scores, found = torch.zeros(len(images), dtype=torch.float64), 0
        for half in (0, 1):
            own = self.half[chosen] == half
            if bool(own.any()):
                scores[own] = self.detectors[1 - half](images[own.to(images.device)])
                found += int((scores[own] > self.thresholds[1 - half]).sum())
        return scores, found

    def unmarked_lines(self, images: torch.Tensor) -> list[dict[str, Any]]:
        """Of each half, the scores of its ``images``, the other's threshold, and how many exceed it."""
        lines = []
        for half in (0, 1):
            chosen = (self.half == half).nonzero()[:, 0]
            scores, found = self.scores(chosen, images[chosen.to(images.device)])
            lines.append(
                {
                    "unmarked": half, "n": len(chosen), "positives": found,
                    "threshold": self.thresholds[1 - half], "scores": _digits(scores, 4),
                }
            )  # fmt: skip
        return lines


def stages(
    images: torch.Tensor, marker: Marker, rounding: nullspace.LatticeRounding
) -> tuple[dict[str, tuple[torch.Tensor, torch.Tensor]], torch.Tensor]:
    """Marked images, and unmarked ones that went the same way, at each stage; and Dykstra's residuals (B,)."""
    from ..data import find_carrier

    kinds, pixels = report.WatermarkKinds, images.double()
    valid, residual = marker(images)
    least = nullspace.nearest_in_nullspace(marker.model, pixels, marker.targets(images), space=marker.space)
    found = {kinds.LEAST_SQUARES: (least, pixels)}
    for carrier, kind in kinds.CARRIERS.items():
        if kind == kinds.PNG:
            found[kinds.LATTICE] = (find_carrier(carrier)(rounding(pixels, valid)), pixels)
        through = find_carrier(carrier)
        found[kind] = (through(valid), through(pixels) if carrier in kinds.LOSSY else pixels)
    return found, residual


def marked_lines(
    model: nn.Module, images: torch.Tensor, marker: Marker, other: Marker, rounding: Any, scores: Scores
) -> list[dict[str, Any]]:
    """A line a stage, for marked images and for unmarked ones where they change, too."""
    kinds = report.WatermarkKinds
    clean = nullspace.pixel_logits(model, images)
    found, residual = stages(images, marker, rounding)
    lines: list[dict[str, Any]] = []
    for kind, (marked, unmarked) in found.items():
        line = {"kind": kind, **_changes(model, clean, marked.to(images.dtype))}
        contrast = nullspace.mark_contrast(images, marked - unmarked, marker.mask)
        line |= {name: _digits(value) for name, value in contrast._asdict().items()}
        if kind != kinds.LEAST_SQUARES:
            line |= _detected(scores, marked)
        if kind == kinds.VALID:
            line["residual"] = _digits(residual)
        lines.append(line)
    lossy = [kinds.CARRIERS[name] for name in kinds.LOSSY]
    for kind in lossy:
        arrived = found[kind][1]
        changes = _changes(model, clean, arrived.to(images.dtype))
        lines.append({"kind": kinds.unmarked(kind), **changes, **_detected(scores, arrived)})
    lines.append({"kind": kinds.OTHER, "n": len(images), **_detected(scores, other(images).images)})
    return [*lines, _shares(images, marker)]


def _changes(model: nn.Module, clean: torch.Tensor, pixels: torch.Tensor) -> dict[str, Any]:
    logits = nullspace.pixel_logits(model, pixels)
    change = nullspace.output_change(clean, logits)
    before, after = (each.cpu().double().softmax(-1) for each in (clean, logits))
    assigned = before.argmax(-1, keepdim=True)
    confidence = (after - before).gather(1, assigned)[:, 0].abs()
    return {
        "n": len(pixels), "unchanged": int(change.unchanged.sum()), "confidence": _digits(confidence),
        "logits": _digits(change.logits),
    }  # fmt: skip


def _detected(scores: Scores, pixels: torch.Tensor) -> dict[str, Any]:
    values, found = scores(pixels)
    return {"scores": _digits(values), "detected": found}


def _shares(images: torch.Tensor, marker: Marker) -> dict[str, Any]:
    """Of each image, the share of the energy of the wanted change that Eq. 12 keeps, in both styles."""
    line: dict[str, Any] = {"kind": report.WatermarkKinds.SHARES, "n": len(images)}
    for style in ("texture", "emboss"):
        wanted = marker.targets(images, style) - images.double()
        line[style] = _digits(nullspace.unseen_share(marker.space, wanted))
    return line


def _digits(values: torch.Tensor, digits: int = 3) -> list[float]:
    return [float(f"{value:.{digits}g}") for value in values.tolist()]


def shown_photographs(
    model: nn.Module, images: torch.Tensor, marker: Marker, folder: Path
) -> list[dict[str, list[float]]]:
    """Of each photograph, [class, probability] by kind; its pixels as the picture shows them go into ``folder``."""
    from PIL import Image

    from ..data import find_carrier

    marked = marker(images).images
    kinds: Mapping[str, torch.Tensor] = dict(
        zip(
            report.WatermarkKinds.SHOWN,
            (images.double(), marked, find_carrier("jpeg-75")(marked), marker(images, "emboss").images),
            strict=True,
        )
    )
    pixels = {**kinds, "change": (0.5 + 2 * (marked - images.double())).clamp(0, 1)}
    for kind, value in pixels.items():
        for number, pixel in enumerate((value * 255).round().cpu().numpy().astype(np.uint8)):
            save = partial(Image.fromarray(pixel.transpose(1, 2, 0)).save, format="PNG", optimize=True)
            write_atomically(folder / report.WatermarkKinds.part_name(number, kind), save)
    found: list[dict[str, list[float]]] = [{} for _ in images]
    for kind, value in kinds.items():
        probabilities = nullspace.pixel_logits(model, value.to(images.dtype)).double().softmax(-1)
        for line, best, label in zip(found, *(each.tolist() for each in probabilities.max(-1)), strict=True):
            line[kind] = [label, best]
    return found
