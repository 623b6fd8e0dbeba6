"""Figure 2 of arXiv:2403.10476: how outputs change under noise of the patch embedding's nullspace, beside controls."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from .figure_report import FigureReport
from .patch_noise_picture import patch_noise_picture
from .patch_noise_rows import Lines, PatchNoiseKinds, PatchNoiseRow, class_name, patch_noise_rows
from .presentable import presentable
from .seed_statistics import interval_of_mean
from .sheet import Cell, Sheet


def patch_noise_report(protocol: Mapping[str, Any], lines: Lines, parts: Path) -> FigureReport:
    """Tables, findings and picture.

    Args:
        protocol, lines: of the experiment ``patch-noise``.
        parts: folder of its photographs.
    """
    rows = patch_noise_rows(lines)
    photographs = [line for line in lines if "photograph" in line]
    headings = [
        ("rms of noise", "pixels 0 to 1"), ("pixels outside", "%"), ("prediction unchanged", "% [95%]"),
        ("mse_probability", "mean [95%]"), ("largest change", "of a probability"), ("largest change", "of a logit"),
    ]  # fmt: skip
    sheets = [("On the images", Sheet(headings, [(row.name, _cells(row)) for row in rows.values()]))]
    if photographs:
        kinds = list(photographs[0]["predictions"])
        shown = [
            (presentable(line["photograph"]), [_prediction(protocol, line["predictions"][kind]) for kind in kinds])
            for line in photographs
        ]
        headings = [(PatchNoiseKinds.shown_name(kind), "class, probability") for kind in kinds]
        sheets.append(("Photographs of the picture", Sheet(headings, shown)))
    return FigureReport(
        title="Noise in the patch embedding's nullspace",
        sheets=sheets,
        notes=[*_findings(protocol, rows), _how(protocol)],
        rows=_csv(rows, photographs),
        draw=lambda stream: patch_noise_picture(protocol, list(rows.values()), photographs, parts, stream),
    )


def _cells(row: PatchNoiseRow) -> list[Cell]:
    mean, low, high = interval_of_mean(row.distances)
    return [
        Cell(f"{row.rms:.3f}"),
        Cell(f"{100 * row.outside:.1f}"),
        Cell(row.agreement),
        Cell(f"{mean:.2g} [{max(low, 0.0):.2g}, {high:.2g}]"),
        Cell(f"{row.confidence:.2g}"),
        Cell(f"{row.logit:.2g}"),
    ]


def _prediction(protocol: Mapping[str, Any], found: Sequence[float]) -> Cell:
    return Cell(f"{class_name(protocol, found[0])}, {100 * found[1]:.2f}%", is_number=False)


def _findings(protocol: Mapping[str, Any], rows: Mapping[tuple[str, str], PatchNoiseRow]) -> list[str]:
    kinds = PatchNoiseKinds
    sample, valid, rounded, clipped = (
        rows[kind, "float32"] for kind in (kinds.SAMPLE, kinds.VALID, kinds.ROUNDED, kinds.CLIPPED)
    )
    permuted = [rows[kind, "float32"] for kind in (kinds.SAMPLE_PERMUTED, kinds.VALID_PERMUTED)]
    notes = [
        f"Noise of the nullspace changes nothing but rounding errors: under a sample of Eq. 2 of rms {sample.rms:.2f} "
        f"the prediction stays on {sample.unchanged} of {sample.n} images (agreement {sample.agreement}), and no "
        f"probability moves by more than {sample.confidence:.1e}; under large noise that keeps pixels valid, of rms "
        f"{valid.rms:.2f}, on {valid.unchanged} of {valid.n}, by at most {valid.confidence:.1e}. {_rounding(rows)}",
        "It is the direction that matters, not the size: the same numbers in another order within each patch leave the "
        f"prediction on {permuted[0].agreement} of the images (sample) and {permuted[1].agreement} (large, "
        "valid).",
        f"An image with a sample of Eq. 2 added is not a valid picture: {100 * sample.outside:.0f}% of its pixels lie "
        "outside of [0, 1]. Clipped, as any picture of it is, it leaves the nullspace: the prediction stays on "
        f"{clipped.agreement}. The paper's Figure 2 does not speak of this; noise that keeps pixels valid needs no "
        "clipping.",
        f"In a file of 8 bits a channel the exactness is lost: the largest change of a probability is "
        f"{rounded.confidence:.1e} in place of {valid.confidence:.1e}, of a logit {rounded.logit:.1e} in place of "
        f"{valid.logit:.1e} (logits reach {valid.clean_logit:.1f}). The prediction stays on {rounded.agreement}.",
    ]
    return notes


def _rounding(rows: Mapping[tuple[str, str], PatchNoiseRow]) -> str:
    exact = [
        f"{rows[kind, 'float64'].confidence:.1e} ({PatchNoiseKinds.shown_name(kind)})"
        for kind in (PatchNoiseKinds.SAMPLE, PatchNoiseKinds.VALID)
        if (kind, "float64") in rows
    ]
    if not exact:
        return "The model does not run in float64, which would tell how much of it is rounding."
    return f"That is what float32 leaves of it: {' and '.join(exact)} in float64."


def _how(protocol: Mapping[str, Any]) -> str:
    names = protocol["class_names"]
    return (
        f"n={protocol['n']} images ({protocol['images_from']}; {protocol['preprocessing']}), {protocol['model']}, "
        f"patches of {protocol['patch']} pixels, {protocol['input_dim']} numbers each, nullspace of dimension "
        f"{protocol['nullity']} in pixel space. sample: Eq. 2, coefficients N(0, 1), rms {protocol['rms']:g}; given to "
        "the model as floats, unclipped. large, valid: driven to the box's corners within the nullspace; pixels stay "
        "in [0, 1], and others may be larger. sample, permuted: elements in a random order within each patch. large, "
        "valid, permuted: in a random order among those that keep pixels in [0, 1], so that nothing is clipped. "
        "Intervals: 95%, over images; Wilson's of shares, Student's t of means. float32 where not stated otherwise."
        + ("" if names else " Classes are numbers: no names were given.")
    )


def _csv(rows: Mapping[tuple[str, str], PatchNoiseRow], photographs: Lines) -> list[list[object]]:
    table: list[list[object]] = [
        ["where", "kind", "precision", "n", "rms", "share_outside", "unchanged", "mse_probability", "low", "high",
         "largest_probability_change", "largest_logit_change", "class", "probability"],
    ]  # fmt: skip
    for row in rows.values():
        table.append(
            ["images", PatchNoiseKinds.shown_name(row.kind), row.precision, row.n, row.rms, row.outside, row.unchanged,
             *interval_of_mean(row.distances), row.confidence, row.logit, "", ""]
        )  # fmt: skip
    for line in photographs:
        for kind, (label, probability) in line["predictions"].items():
            name = PatchNoiseKinds.shown_name(kind)
            table.append([line["photograph"], name, "float32", 1, *[""] * 8, int(label), probability])
    return table
