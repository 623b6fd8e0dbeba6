"""Appendix F and Figure 7a of arXiv:2403.10476: images changed to look like others, while the model sees no change."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from .. import nullspace
from .figure_report import FigureReport
from .patch_noise_rows import class_name
from .presentable import presentable
from .seed_statistics import Interval
from .sheet import Cell, Sheet
from .targeted_picture import targeted_picture
from .targeted_rows import LOOKS, UNCHANGED, Lines, TargetedRow, targeted_rows

Rows = Mapping[tuple[int, str], TargetedRow]


def targeted_report(protocol: Mapping[str, Any], lines: Lines, parts: Path) -> FigureReport:
    """Tables, findings and picture.

    Args:
        protocol, lines: of the experiment ``targeted``.
        parts: folder of its triplets.
    """
    rows = targeted_rows(lines)
    shown = [line for line in lines if "shown" in line]
    factors = list(dict.fromkeys(factor for factor, _ in rows))
    changed = [row for row in rows.values() if row.kind != UNCHANGED]
    sheets = [
        ("Room: what of the target's difference the patch embedding does not see", _room(protocol, rows, factors)),
        ("Look", _look(protocol, changed)),
        ("Outputs, against those for the source", _outputs(protocol, changed)),
    ]
    if shown:
        sheets.append(("Triplets of the picture", _triplets(protocol, shown)))
    return FigureReport(
        title="Images that look like others, and are read as before",
        sheets=sheets,
        notes=[*_findings(protocol, rows, factors), _how(protocol, rows)],
        rows=_csv(protocol, rows),
        draw=lambda stream: targeted_picture(protocol, rows, shown, parts, stream),
    )


def _name(protocol: Mapping[str, Any], row: TargetedRow) -> str:
    return f"{protocol['patch'] * row.factor} px, {row.kind}"


def _mean(found: Interval, form: str = ".3f") -> str:
    if not math.isfinite(found.low):
        return f"{found.mean:{form}}"
    return f"{found.mean:{form}} [{found.low:{form}}, {found.high:{form}}]"


def _percent(found: Interval) -> str:
    return _mean(Interval(*(100 * end for end in found)), ".2f")


def nullity_share(protocol: Mapping[str, Any], factor: int) -> float:
    """Of a patch's numbers: 1 - rank / (C p^2)."""
    return 1 - protocol["rank"] / (protocol["input_dim"] * factor**2)


def _room(protocol: Mapping[str, Any], rows: Rows, factors: Sequence[int]) -> Sheet:
    headings = [
        ("dimensions that are nullspace", "%"), ("energy of target - source in it", "% [95%]"),
        ("of a random embedding", "% [95%]"), ("root mean square", "target to source"), ("SSIM", "target to source"),
        ("SSIM from afar", "target to source"), ("largest residual", "of valid pixels"),
    ]  # fmt: skip
    found = []
    for factor in factors:
        row = rows[factor, UNCHANGED]
        cells = [
            f"{100 * nullity_share(protocol, factor):.1f}", _percent(row.mean("unseen_share")),
            _percent(row.mean("random_share")), *(_mean(row.mean(f"{look}_target")) for look in LOOKS),
            f"{max(row.values('residual')):.1e}",
        ]  # fmt: skip
        found.append((f"patches of {protocol['patch'] * factor} px", [Cell(text) for text in cells]))
    return Sheet(headings, found)


def _look(protocol: Mapping[str, Any], rows: Sequence[TargetedRow]) -> Sheet:
    headings = [
        ("root mean square", "to target"), ("root mean square", "to source"), ("PSNR", "to target, dB"),
        ("PSNR", "to source, dB"), ("SSIM", "to target"), ("SSIM", "to source"), ("SSIM from afar", "to target"),
        ("SSIM from afar", "to source"), ("nearer the target", "by rms / SSIM / from afar"),
    ]  # fmt: skip
    found = []
    for row in rows:
        cells = [_mean(row.mean(f"rms_{end}")) for end in ("target", "source")]
        cells += [f"{_psnr(row, end):.1f}" for end in ("target", "source")]
        cells += [_mean(row.mean(f"{look}_{end}")) for look in ("ssim", "afar") for end in ("target", "source")]
        cells.append(" / ".join(str(row.nearer(look)) for look in LOOKS) + f" of {row.n}")
        found.append((_name(protocol, row), [Cell(text) for text in cells]))
    return Sheet(headings, found)


def _psnr(row: TargetedRow, end: str) -> float:
    """Mean over pairs, in dB, of pixels from 0 to 1; infinite for equal images."""
    values = [-20 * math.log10(value) if value > 0 else math.inf for value in row.values(f"rms_{end}")]
    return sum(values) / len(values)


def _outputs(protocol: Mapping[str, Any], rows: Sequence[TargetedRow]) -> Sheet:
    headings = [
        ("prediction unchanged", "[95%]"), ("change of the class's confidence", "mean [95%]"),
        ("change of the class's confidence", "largest"), ("largest change of a logit", "mean [95%]"),
        ("largest change of a logit", "largest"), ("pixels outside of 0 to 1", "%"),
    ]  # fmt: skip
    found = []
    for row in rows:
        cells = [
            row.share(row.unchanged), _mean(row.mean("confidence"), ".1e"), f"{max(row.values('confidence')):.1e}",
            _mean(row.mean("logit"), ".1e"), f"{max(row.values('logit')):.1e}",
            f"{100 * row.mean('outside').mean:.1f}",
        ]  # fmt: skip
        found.append((_name(protocol, row), [Cell(text) for text in cells]))
    return Sheet(headings, found)


def _triplets(protocol: Mapping[str, Any], shown: Lines) -> Sheet:
    kinds = list(shown[0]["predictions"])
    found = []
    for line in sorted(shown, key=lambda line: (line["shown"], line["factor"])):
        source, target = map(presentable, line["names"])
        cells = [
            Cell(f"{class_name(protocol, label)}, {100 * best:.3f}%", is_number=False)
            for label, best in (line["predictions"][kind] for kind in kinds)
        ]
        found.append((f"{source} to {target}, {protocol['patch'] * line['factor']} px", cells))
    return Sheet([(kind, "class, probability") for kind in kinds], found)


def _findings(protocol: Mapping[str, Any], rows: Rows, factors: Sequence[int]) -> list[str]:
    kinds = nullspace.TransformedKinds
    patch, last = protocol["patch"], factors[-1]
    sizes = ", ".join(
        f"{100 * rows[factor, UNCHANGED].mean('unseen_share').mean:.1f}% at {patch * factor} px (random: "
        f"{100 * rows[factor, UNCHANGED].mean('random_share').mean:.0f}%)"
        for factor in factors
    )
    look = "; ".join(
        f"{patch * factor} px: by root mean square on {row.share(row.nearer('rms'))}, by SSIM on "
        f"{row.share(row.nearer('ssim'))}, by SSIM from afar on {row.share(row.nearer('afar'))}"
        for factor in factors
        for row in [rows[factor, kinds.VALID]]
    )
    valid, plain = rows[last, kinds.VALID], rows[last, UNCHANGED]
    changes = "; ".join(
        f"{patch * factor} px: "
        + ", ".join(
            f"{max(rows[factor, kind].values('confidence')):.1e} ({kind}; prediction unchanged on "
            f"{rows[factor, kind].share(rows[factor, kind].unchanged)})"
            for kind in (*kinds.ALL, kinds.LATTICE)
        )
        for factor in factors
    )
    return [
        "How far a transformed image can go is the share of the target's difference that lies in the nullspace. An "
        "untrained embedding leaves there what the dimensions promise; a trained one sees more of what images consist "
        f"of: of the energy of target - source there is in the nullspace {sizes}.",
        f"Is the transformed image nearer the target than the source? With valid pixels, {look}.",
        f"At {patch * last} px its SSIM to the target is {_mean(valid.mean('ssim_target'))} and to the source "
        f"{_mean(valid.mean('ssim_source'))}, where the source's own to the target is "
        f"{_mean(plain.mean('ssim_target'))}; from afar {_mean(valid.mean('afar_target'))} and "
        f"{_mean(valid.mean('afar_source'))}, where it is {_mean(plain.mean('afar_target'))}.",
        "The outputs do stay, and need no backpropagation. Largest change of the confidence of the source's class, at "
        f"{changes}.",
    ]


def _how(protocol: Mapping[str, Any], rows: Rows) -> str:
    first = next(iter(rows.values()))
    return (
        f"n={first.n} pairs a size: {protocol['images_from']}, each a source, its target a random one of another "
        f"predicted class ({protocol['preprocessing']}; larger images likewise); {protocol['model']}, patches of "
        f"{protocol['patch']} pixels, rank {protocol['rank']} of {protocol['input_dim']} numbers. Larger patches are "
        "those of the same model behind average pooling of squares, for images as many times as large: their "
        "embedding sees nothing within a square, and was not trained for that size. least squares: Eq. 12, pixels not "
        "clipped. valid pixels: nearest to the target in 0 to 1, by accelerated Dykstra. 8 bits: each pixel rounded. 8 "
        "bits, lattice: rounded so that the embedding sees little of it. from afar: averaged over 4 x 4 of the model's "
        "own pixels. random embedding: weights N(0, 1) of the same shape. Intervals: 95%, over pairs; Wilson's of "
        "counts, Student's t of means; a target may be shared by pairs."
    )


def _csv(protocol: Mapping[str, Any], rows: Rows) -> list[list[object]]:
    names = (
        "rms_target", "rms_source", "ssim_target", "ssim_source", "afar_target", "afar_source", "unchanged",
        "confidence", "logit", "clean_confidence", "outside", "unseen_share", "random_share", "residual",
    )  # fmt: skip
    table: list[list[object]] = [["patch", "nullspace_share", "kind", "pair", *names]]
    for (factor, kind), row in rows.items():
        columns = [row.values(name) if name in row.names else [""] * row.n for name in names]
        for number, values in enumerate(zip(*columns, strict=True)):
            share = nullity_share(protocol, factor)
            table.append([protocol["patch"] * factor, share, kind, number + 1, *values])
    return table
