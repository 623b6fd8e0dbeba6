"""Figures 7(b) and 8 of arXiv:2403.10476: saliency maps of sources, targets and transformed images, and agreement."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from .figure_report import FigureReport
from .presentable import presentable
from .saliency_findings import saliency_findings
from .saliency_picture import saliency_picture
from .saliency_rows import (
    ALIKE,
    Lines,
    PredictionRow,
    Rows,
    SaliencyKinds,
    SaliencyRow,
    near_one,
    prediction_rows,
    saliency_rows,
    title_of,
)
from .sheet import Cell, Sheet, format_count
from .statistics import wilson_interval

_NONE = Cell("none", is_number=False)
_KINDS = (
    *((kind, "transformed") for kind in SaliencyKinds.CHANGED),
    (SaliencyKinds.REORDERED, "as large a change"),
    (SaliencyKinds.BLEND, "as large a change"),
    (SaliencyKinds.TARGET, "another image"),
)


def saliency_report(protocol: Mapping[str, Any], lines: Lines, parts: Path) -> FigureReport:
    """Tables, findings and picture.

    Args:
        protocol, lines: of the experiment ``saliency``.
        parts: folder of the shown images and maps.
    """
    rows, predictions, methods = saliency_rows(lines), prediction_rows(lines), list(protocol["methods"])
    shown = [line["names"] for line in lines if "shown" in line]
    return FigureReport(
        title="Saliency of transformed images",
        sheets=[
            ("Correlation of patches with the source's: median (least)", _sheet(methods, rows, _correlation)),
            (f"Pairs that correlate by less than {ALIKE:g}", _sheet(methods, rows, _apart)),
            ("SSIM with the source's map: median (least)", _sheet(methods, rows, _ssim)),
            ("Largest move of a patch, as a share of its map's largest number", _moves(methods, rows)),
            ("Images", _images(predictions)),
        ],
        notes=[*saliency_findings(methods, rows, predictions), _how(protocol, predictions)],
        rows=_csv(rows, predictions),
        draw=lambda stream: saliency_picture(methods, rows, shown, parts, stream),
    )


def _sheet(methods: Sequence[str], rows: Rows, cell: Any) -> Sheet:
    """Of each method and kind of images, with the source's map."""
    return Sheet(
        list(_KINDS),
        [
            (title_of(method), [cell(rows[method, SaliencyKinds.SOURCE, kind, "float32"]) for kind, _ in _KINDS])
            for method in methods
        ],
    )


def _correlation(row: SaliencyRow) -> Cell:
    if row.median is None or row.least is None:
        return _NONE
    return Cell(f"{near_one(row.median)} ({near_one(row.least)})")


def _apart(row: SaliencyRow) -> Cell:
    if not row.correlations:
        return _NONE
    low, high = wilson_interval(row.apart, len(row.correlations))
    return Cell(f"{row.apart} of {len(row.correlations)} [{low:.0f}, {high:.0f}]%")


def _ssim(row: SaliencyRow) -> Cell:
    return Cell(f"{near_one(row.median_ssim)} ({near_one(min(row.ssims))})")


def _moves(methods: Sequence[str], rows: Rows) -> Sheet:
    kinds = SaliencyKinds
    columns = [
        (kind, precision)
        for kind in (kinds.LEAST_SQUARES, kinds.VALID, kinds.ROUNDED, *kinds.EQUALLY_LARGE, kinds.NOISE)
        for precision in ("float32", "float64")
        if any((method, kinds.SOURCE, kind, precision) in rows for method in methods)
    ]

    def cell(method: str, kind: str, precision: str) -> Cell:
        found = rows[method, kinds.SOURCE, kind, precision].difference
        return _NONE if found is None else Cell(f"{found:.1e}")

    return Sheet(columns, [(title_of(method), [cell(method, *column) for column in columns]) for method in methods])


def _images(predictions: Mapping[str, PredictionRow]) -> Sheet:
    columns = [
        ("prediction unchanged", "% [95%]"), ("largest change", "of a probability"), ("from the target", "rms, pixels"),
        ("from the source", "rms, pixels"), ("pixels outside", "%"),
    ]  # fmt: skip
    return Sheet(columns, [(row.kind, _image_cells(row)) for row in predictions.values()])


def _image_cells(row: PredictionRow) -> list[Cell]:
    is_source = row.kind == SaliencyKinds.SOURCE
    return [
        Cell("", is_number=False) if is_source else Cell(row.share_unchanged),
        Cell("", is_number=False) if is_source else Cell(f"{row.confidence:.2g}"),
        Cell(f"{row.from_target.mean:.3f}"),
        Cell(f"{row.from_source.mean:.3f}"),
        Cell(f"{100 * row.outside:.1f}"),
    ]


def _how(protocol: Mapping[str, Any], predictions: Mapping[str, PredictionRow]) -> str:
    larger = f", {protocol['enlarge']} times as large" if protocol.get("enlarge", 1) != 1 else ""
    return (
        f"n={format_count(predictions[SaliencyKinds.VALID].n, 'pair')} of images of different predictions "
        f"({presentable(protocol['images_from'])}; {protocol['preprocessing']}), {presentable(protocol['model'])}"
        f"{larger}, patches of {protocol['patch']} pixels, {protocol['input_dim']} numbers each, nullspace of "
        f"dimension {protocol['nullity']} in pixel space. least squares: the source changed within the nullspace so as "
        "to be nearest to the target (Eq. 12), as floats, unclipped. valid pixels: nearest among images with pixels in "
        f"[0, 1], by Dykstra's projections (largest residual {predictions[SaliencyKinds.VALID].residual:.1e}). 8 "
        "bits: the latter, rounded. another order: the change to valid pixels, its elements in another order within "
        "patches among those that keep pixels valid. blend: the source and so much of the target that it changes as "
        f"much. rounding noise: the source's pixels times 1 + {protocol['rounding']:.0e} N(0, 1). Each map explains "
        "the model's own top-1 for its own image. Correlation: Pearson's, over the numbers of an image's patches, in 7 "
        "digits, rounded down here; none where a map is constant. SSIM: scikit-image's, of the maps on the image, each "
        "from 0 to 1. [ ]: 95%, Wilson's of counts, Student's t of means; pairs share images, which both leave out of "
        "account. float32 where not stated otherwise."
    )


def _csv(rows: Rows, predictions: Mapping[str, PredictionRow]) -> list[list[object]]:
    table: list[list[object]] = [
        ["method", "of", "and", "precision", "n", "defined", "median_correlation", "least_correlation",
         f"below_{ALIKE:g}", "mean_correlation", "low", "high", "median_ssim", "least_ssim", "largest_difference",
         "unchanged", "largest_probability_change", "rms_from_target", "rms_from_source"],
    ]  # fmt: skip

    def known(value: float | None) -> object:
        return "" if value is None or not math.isfinite(value) else value

    for row in rows.values():
        table.append(
            [row.method, row.of, row.and_, row.precision, row.n, len(row.correlations), known(row.median),
             known(row.least), row.apart, *(row.correlation or ("", "", "")), row.median_ssim, min(row.ssims),
             known(row.difference), "", "", "", ""]
        )  # fmt: skip
    for kind, found in predictions.items():
        table.append(
            ["", SaliencyKinds.SOURCE, kind, "float32", found.n, *[""] * 10, found.unchanged, found.confidence,
             found.from_target.mean, found.from_source.mean]
        )  # fmt: skip
    return table
