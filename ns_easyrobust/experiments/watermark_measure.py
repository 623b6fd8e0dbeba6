"""What is measured of marked images: outputs, contrast and detection at each stage from least squares to a crop."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .. import nullspace, report
from ..utils import nn, np, torch, write_atomically
from .watermark_judges import Thirds
from .watermark_mark import Marker

if TYPE_CHECKING:
    Scores = Callable[[torch.Tensor], tuple[torch.Tensor, int]]

_BATCH = 64


def unmarked_lines(thirds: Thirds, images: torch.Tensor) -> list[dict[str, Any]]:
    """A line a third of the unmarked ``images`` (n, C, H, W): scores, its judge's threshold, how many exceed it."""
    lines = []
    for part, judge in enumerate(thirds.judges):
        values, found = [], 0
        for chosen in (thirds.part == part).nonzero()[:, 0].split(_BATCH):
            scores, positives = thirds.scores(chosen, images[chosen.to(images.device)])
            values += _digits(scores, 4)
            found += positives
        lines.append(
            {"unmarked": part, "n": len(values), "positives": found, "threshold": judge.threshold, "scores": values}
        )
    return lines


def stages(
    images: torch.Tensor, marker: Marker, rounding: nullspace.SquareRounding
) -> tuple[dict[str, tuple[torch.Tensor, torch.Tensor]], torch.Tensor]:
    """What becomes of marked images, and of unmarked ones that go the same way.

    Args:
        images: (B, 3, H, W) in [0, 1].
        rounding: of the marker's model.

    Returns:
        By kind of :class:`~ns_easyrobust.report.WatermarkKinds`, marked and unmarked images (B, 3, H, W), float64 in
        [0, 1] but for those of least squares; and Dykstra's residuals (B,), relative to what the model sees.
    """
    from ..data import find_carrier

    kinds, pixels = report.WatermarkKinds, images.double()
    valid, residual = marker(images)
    least = nullspace.nearest_in_nullspace(marker.model, pixels, marker.targets(images), space=marker.space)
    found = {kinds.LEAST_SQUARES: (least, pixels)}
    for carrier, kind in kinds.CARRIERS.items():
        through = find_carrier(carrier)
        if kind == kinds.PNG:
            found[kinds.LATTICE] = (through(rounding(pixels, valid)), pixels)
        found[kind] = (through(valid), through(pixels) if carrier in kinds.LOSSY else pixels)
    return found, residual


def marked_lines(
    model: nn.Module,
    images: torch.Tensor,
    marker: Marker,
    other: Marker,
    rounding: nullspace.SquareRounding,
    scores: Scores,
) -> list[dict[str, Any]]:
    """A line a stage, for marked images and, where unmarked ones change too, for those.

    Args:
        model: that the mark is hidden from.
        images: (B, 3, H, W) in [0, 1], unmarked.
        marker, other: of the mark that is looked for, and of one that is not.
        rounding: of ``model``.
        scores: of what became of ``images``, and in how many the mark is found.

    Returns:
        Lines of plain values: ``kind``, ``n``, and a list of B numbers for each quantity; the last one has the shares
        of energy that Eq. 12 keeps.
    """
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
    for name in kinds.LOSSY:
        arrived = found[kinds.CARRIERS[name]][1]
        changes = _changes(model, clean, arrived.to(images.dtype))
        lines.append({"kind": kinds.unmarked(kinds.CARRIERS[name]), **changes, **_detected(scores, arrived)})
    lines.append({"kind": kinds.OTHER, "n": len(images), **_detected(scores, other(images).images)})
    return [*lines, _shares(images, marker)]


def _changes(model: nn.Module, clean: torch.Tensor, pixels: torch.Tensor) -> dict[str, Any]:
    """Of images (B, 3, H, W) whose unmarked logits are ``clean`` (B, classes), what became of the outputs.

    How many predictions stayed, and of each image the change of the probability, in [0, 1], of the class that it was
    assigned without a mark, and the largest change of a logit.
    """
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
