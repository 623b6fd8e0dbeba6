"""Figures 7(b) and 8 of arXiv:2403.10476: saliency maps of sources, targets and transformed images, and agreement."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from .figure_report import FigureReport
from .presentable import presentable
from .saliency_picture import saliency_picture
from .saliency_rows import Lines, PredictionRow, SaliencyKinds, SaliencyRow, prediction_rows, saliency_rows
from .seed_statistics import Interval
from .sheet import Cell, Sheet, format_count
from .statistics import wilson_interval

Rows = Mapping[tuple[str, str, str, str], SaliencyRow]
_VISIBLE = 1e-2  # share of a map's largest value from which a change can be seen
_SAME = 0.999  # correlation of maps that an eye cannot tell apart
_SEEN_ALREADY = 0.5  # correlation of sources and targets from which on a map says little about its image


def saliency_report(protocol: Mapping[str, Any], lines: Lines, parts: Path) -> FigureReport:
    """Tables, findings and picture.

    Args:
        protocol, lines: of the experiment ``saliency``.
        parts: folder of the shown images and maps.
    """
    rows, predictions, methods = saliency_rows(lines), prediction_rows(lines), list(protocol["methods"])
    kinds = SaliencyKinds
    headings = [
        ("source, target", "the control"),
        *((f"source, {kind}", "transformed") for kind in kinds.CHANGED),
        ("target, 8 bits", "transformed"),
    ]
    pairs = [(kinds.SOURCE, kinds.TARGET), *((kinds.SOURCE, kind) for kind in kinds.CHANGED)]
    pairs.append((kinds.TARGET, kinds.ROUNDED))
    sheets = []
    for title, name in (("Correlation of patches", "correlation"), ("SSIM of maps", "ssim")):
        table = [
            (_title(method), [_cell(getattr(rows[method, pair[0], pair[1], "float32"], name)) for pair in pairs])
            for method in methods
        ]
        sheets.append((f"{title}, mean [95%]", Sheet(headings, table)))
    columns = [
        ("prediction unchanged", "% [95%]"), ("largest change", "of a probability"), ("from the target", "rms, pixels"),
        ("from the source", "rms, pixels"), ("pixels outside", "%"),
    ]  # fmt: skip
    sheets.append(
        ("Transformed images", Sheet(columns, [(row.kind, _prediction(row)) for row in predictions.values()]))
    )
    shown = [line["names"] for line in lines if "shown" in line]
    return FigureReport(
        title="Saliency of transformed images",
        sheets=sheets,
        notes=[*_findings(methods, rows, predictions), _how(protocol, predictions)],
        rows=_csv(rows, predictions),
        draw=lambda stream: saliency_picture(methods, rows, shown, parts, stream),
    )


def _title(method: str) -> str:
    return SaliencyKinds.TITLES[method].replace("\n", " ")


def _cell(found: Interval | None) -> Cell:
    return Cell("none", is_number=False) if found is None else Cell(_shown(found))


def _shown(found: Interval) -> str:
    """With as many digits as tell it from 1."""
    near = 1 - found.low
    digits = 3 if near > 5e-3 else 4 if near > 5e-4 or near < 5e-7 else 6
    return f"{found.mean:.{digits}f} [{found.low:.{digits}f}, {min(found.high, 1.0):.{digits}f}]"


def _prediction(row: PredictionRow) -> list[Cell]:
    return [
        Cell(_agreement(row)), Cell(f"{row.confidence:.2g}"), Cell(f"{row.from_target.mean:.3f}"),
        Cell(f"{row.from_source.mean:.3f}"), Cell(f"{100 * row.outside:.1f}"),
    ]  # fmt: skip


def _agreement(row: PredictionRow) -> str:
    low, high = wilson_interval(row.unchanged, row.n)
    return f"{100 * row.unchanged / row.n:.1f}% [{low:.1f}, {high:.1f}]"


def _findings(methods: Sequence[str], rows: Rows, predictions: Mapping[str, PredictionRow]) -> list[str]:
    kinds = SaliencyKinds

    def of(method: str, kind: str, precision: str = "float32", first: str = kinds.SOURCE) -> SaliencyRow:
        return rows[method, first, kind, precision]

    n = of(methods[0], kinds.TARGET).n
    return [
        _before_rounding(methods, rows, predictions[kinds.VALID].residual),
        *_unstable(methods, rows),
        "In 8 bits, maps of source and transformed image correlate by "
        f"{_listed({method: of(method, kinds.ROUNDED).correlation for method in methods})} (mean, n={n}); the least "
        f"correlation of a pair is {_least({method: of(method, kinds.ROUNDED) for method in methods})}. The prediction "
        f"stays on {_agreement(predictions[kinds.ROUNDED])} of the pairs, and no probability moves by more than "
        f"{predictions[kinds.ROUNDED].confidence:.1e}.",
        "The control: maps of source and target correlate by "
        f"{_listed({method: of(method, kinds.TARGET).correlation for method in methods})}. {_differs(methods, rows)}",
        "Transformed images lie "
        f"{predictions[kinds.ROUNDED].from_target.mean:.3f} from their targets and "
        f"{predictions[kinds.ROUNDED].from_source.mean:.3f} from their sources (8 bits, root mean square of pixels "
        "from 0 to 1), and have the sources' maps and not the targets': correlation with the target's map "
        f"{_listed({method: of(method, kinds.ROUNDED, first=kinds.TARGET).correlation for method in methods})}.",
        *_undefined(methods, rows),
    ]


def _before_rounding(methods: Sequence[str], rows: Rows, residual: float) -> str:
    kinds = SaliencyKinds
    least = {
        kind: min(min(rows[method, kinds.SOURCE, kind, "float32"].correlations, default=1.0) for method in methods)
        for kind in (kinds.LEAST_SQUARES, kinds.VALID)
    }
    text = "Before rounding to 8 bits, the farthest that a patch's number moves from source to transformed image, as a "
    text += f"share of its map's largest: {'; '.join(_moved(methods, rows, kind) for kind in least)}. "
    text += (
        f"The least correlation of a pair is {' and '.join(f'{_floor(value)} ({k})' for k, value in least.items())}, "
    )
    text += f"in float32 and over all methods. Valid pixels leave a residual of at most {residual:.1e}."
    if any(key[3] == "float64" for key in rows):
        return text
    return f"{text} The model does not run in float64, which would tell how much of it is rounding."


def _moved(methods: Sequence[str], rows: Rows, kind: str) -> str:
    """How far the worst patch's number moves, by the method where that is most, and by the others."""
    parts = []
    for precision in ("float32", "float64"):
        found = _differences(methods, rows, kind, precision)
        if not found:
            continue
        worst = max(found, key=found.__getitem__)
        others = [value for method, value in found.items() if method != worst]
        rest = f", {max(others):.1e} by the others" if others else ""
        parts.append(f"{found[worst]:.1e} by {_title(worst)}{rest} in {precision}")
    return f"{kind}, {', and '.join(parts)}"


def _differences(methods: Sequence[str], rows: Rows, kind: str, precision: str) -> dict[str, float]:
    keys = {method: (method, SaliencyKinds.SOURCE, kind, precision) for method in methods}
    return {method: rows[key].difference or 0.0 for method, key in keys.items() if key in rows}


def _unstable(methods: Sequence[str], rows: Rows) -> list[str]:
    """Of methods by which rounding errors alone change maps: the same in float64, not in float32."""
    coarse, fine = (
        _differences(methods, rows, SaliencyKinds.LEAST_SQUARES, precision) for precision in ("float32", "float64")
    )
    found = []
    for method in fine:
        if coarse[method] > _VISIBLE > 1e3 * fine[method]:
            row = rows[method, SaliencyKinds.SOURCE, SaliencyKinds.LEAST_SQUARES, "float32"]
            few = sum(value < _SAME for value in row.correlations)
            found.append(
                f"So {_title(method)} is not stable: where the transformed image's embedding is the source's up to "
                f"rounding errors, its maps are the same in float64 (to {fine[method]:.1e}), but in float32 {few} of "
                f"{row.n} pairs correlate by less than {_SAME:g}, the least by {min(row.correlations):.3f}. It divides "
                "by sums that may be next to 0. That is the method's own, not the transformed image's."
            )
    return found


def _floor(value: float) -> str:
    """Rounded down, so that it is not 1 unless it is."""
    return f"{math.floor(value * 10**6 + 1e-4) / 10**6:.6f}"


def _listed(found: Mapping[str, Interval | None]) -> str:
    return ", ".join(
        f"{_title(method)} {'none' if value is None else _shown(value)}" for method, value in found.items()
    )


def _least(found: Mapping[str, SaliencyRow]) -> str:
    least = {method: min(row.correlations) for method, row in found.items() if row.correlations}
    method = min(least, key=least.__getitem__)
    return f"{least[method]:.4f} ({_title(method)})"


def _differs(methods: Sequence[str], rows: Rows) -> str:
    """Whether the targets' maps are others, as the paper says."""
    kinds = SaliencyKinds
    alike: list[str] = []
    apart: list[str] = []
    means: dict[str, float] = {}
    for method in methods:
        control = rows[method, kinds.SOURCE, kinds.TARGET, "float32"].correlation
        rounded = rows[method, kinds.SOURCE, kinds.ROUNDED, "float32"].correlation
        if control is None or rounded is None:
            continue
        means[method] = control.mean
        (apart if control.high < rounded.low else alike).append(_title(method))
    text = f"By {', '.join(apart)}, that is less than source and transformed image do even in 8 bits." if apart else ""
    if alike:
        text += f" By {', '.join(alike)}, it is not less than that of source and transformed image in 8 bits."
    high = [_title(method) for method, mean in means.items() if mean > _SEEN_ALREADY]
    if high:
        text += (
            f" But by {' and '.join(high)} any two images have much of their maps in common (mean correlation above "
            f"{_SEEN_ALREADY:g}), so that equal maps say less there."
        )
    return text.strip()


def _undefined(methods: Sequence[str], rows: Rows) -> list[str]:
    counts = {
        method: max(row.constant for key, row in rows.items() if key[0] == method and key[3] == "float32")
        for method in methods
    }
    if not any(counts.values()):
        return []
    listed = ", ".join(f"{_title(method)} {count}" for method, count in counts.items() if count)
    return [
        "Some maps are constant, mostly all 0 after a relu, and have no correlation; they are left out of it (pairs, "
        f"at most: {listed}), not of SSIM."
    ]


def _how(protocol: Mapping[str, Any], predictions: Mapping[str, PredictionRow]) -> str:
    larger = f", {protocol['enlarge']} times as large" if protocol.get("enlarge", 1) != 1 else ""
    return (
        f"n={format_count(predictions[SaliencyKinds.VALID].n, 'pair')} of images of different predictions "
        f"({presentable(protocol['images_from'])}; {protocol['preprocessing']}), {presentable(protocol['model'])}"
        f"{larger}, patches of {protocol['patch']} pixels, {protocol['input_dim']} numbers each, nullspace of "
        f"dimension {protocol['nullity']} in pixel space. least squares: the source changed within the nullspace so as "
        "to be nearest to the target (Eq. 12), as floats, unclipped. valid pixels: nearest among images with pixels in "
        f"[0, 1], by Dykstra's projections (largest residual {predictions[SaliencyKinds.VALID].residual:.1e}). 8 bits: "
        "the latter, rounded. Each map explains the model's own top-1 for its own image. Correlation: Pearson's, over "
        "the numbers of an image's patches; SSIM: scikit-image's, of the maps on the image, each from 0 to 1. Pairs "
        "share images, which the intervals (Student's t) leave out of account. float32 where not stated otherwise."
    )


def _csv(rows: Rows, predictions: Mapping[str, PredictionRow]) -> list[list[object]]:
    table: list[list[object]] = [
        ["method", "of", "and", "precision", "n", "correlation", "low", "high", "least_correlation", "without",
         "ssim", "low", "high", "least_ssim", "largest_difference", "unchanged", "largest_probability_change"],
    ]  # fmt: skip
    for row in rows.values():
        correlation = row.correlation or ("", "", "")
        table.append(
            [row.method, row.of, row.and_, row.precision, row.n, *correlation, min(row.correlations, default=""),
             row.constant, *row.ssim, min(row.ssims), "" if row.difference is None else row.difference, "", ""]
        )  # fmt: skip
    for kind, found in predictions.items():
        table.append(["", "source", kind, "float32", found.n, *[""] * 10, found.unchanged, found.confidence])
    return table
