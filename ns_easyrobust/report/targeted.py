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
from .targeted_rows import LOOKS, UNCHANGED, Lines, TargetedRow, nullity_share, targeted_rows

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


def _range(draws: Sequence[float], form: str = ".2f") -> str:
    """In percent, mean and extremes."""
    return f"{100 * sum(draws) / len(draws):{form}} [{100 * min(draws):{form}}, {100 * max(draws):{form}}]"


def _room(protocol: Mapping[str, Any], rows: Rows, factors: Sequence[int]) -> Sheet:
    headings = [
        ("dimensions that are nullspace", "%"), ("energy of target - source in it", "% [95%]"),
        ("random weights, same pooling", f"% [range of {len(rows[factors[0], UNCHANGED].draws())} draws]"),
        ("hidden by the pooling alone", "% [95%]"),
        ("root mean square", "target to source"), ("SSIM", "target to source"),
        ("SSIM from afar", "target to source"), ("largest residual", "of valid pixels"),
    ]  # fmt: skip
    found = []
    for factor in factors:
        row = rows[factor, UNCHANGED]
        cells = [
            f"{100 * nullity_share(protocol, factor):.1f}", _percent(row.mean("unseen_share")),
            _range(row.draws()), _percent(row.mean("within_share")),
            *(_mean(row.mean(f"{look}_target")) for look in LOOKS), f"{max(row.values('residual')):.1e}",
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
    valid = [rows[factor, kinds.VALID] for factor in factors]
    look = ", ".join(
        f"{' / '.join(str(row.nearer(look)) for look in LOOKS)} at {patch * row.factor} px" for row in valid
    )
    most = max(row.nearer(look) for row in valid for look in LOOKS)
    likeness = "; ".join(
        f"{patch * row.factor} px: {_mean(row.mean('ssim_target'))} to the target, {_mean(row.mean('ssim_source'))} to "
        f"the source (the source's own to the target: {_mean(rows[row.factor, UNCHANGED].mean('ssim_target'))})"
        for row in valid
    )
    changes = "; ".join(
        f"{kind}: "
        + ", ".join(f"{max(rows[factor, kind].values('confidence')):.1e} at {patch * factor} px" for factor in factors)
        for kind in (*kinds.ALL, kinds.LATTICE)
    )
    fewest = min((row for row in rows.values() if row.kind != UNCHANGED), key=lambda row: row.unchanged)
    return [
        _room_found(protocol, [rows[factor, UNCHANGED] for factor in factors]),
        "Is the transformed image nearer the target than the source? With valid pixels, by root mean square / SSIM / "
        f"SSIM from afar: on {look}, of {valid[0].n} pairs each; the most is {valid[0].share(most)}.",
        f"Its SSIM, with valid pixels, is at {likeness}. From afar, at {patch * last} px: "
        f"{_mean(valid[-1].mean('afar_target'))} to the target, {_mean(valid[-1].mean('afar_source'))} to the source "
        f"(the source's own to the target: {_mean(rows[last, UNCHANGED].mean('afar_target'))}).",
        "The outputs, without backpropagation: of every size and kind, the prediction is unchanged on "
        f"{fewest.share(fewest.unchanged)} pairs at least. The largest change of the confidence of the source's class, "
        f"of {valid[0].n} pairs: {changes}.",
    ]


def _room_found(protocol: Mapping[str, Any], found: Sequence[TargetedRow]) -> str:
    """What lies in the nullspace, and how much of it is the pooling's, the dimensions' and the weights' doing."""
    sides = {row.factor: f"{protocol['patch'] * row.factor} px" for row in found}
    sizes = "; ".join(
        f"{100 * row.mean('unseen_share').mean:.1f}% at {sides[row.factor]} (random weights "
        f"{_range(row.draws(), '.1f')}; pooling alone {100 * row.mean('within_share').mean:.1f}%; of the dimensions "
        f"{100 * nullity_share(protocol, row.factor):.1f}%)"
        for row in found
    )
    places: dict[str, list[str]] = {}
    for row in found:
        share, draws = row.mean("unseen_share").mean, row.draws()
        place = "below" if share < min(draws) else "above" if share > max(draws) else "within the range of"
        places.setdefault(place, []).append(sides[row.factor])
    compared = ", ".join(f"{place} all {len(draws)} at {', '.join(names)}" for place, names in places.items())
    return (
        "How far a transformed image can go is the share of the target's difference that lies in the nullspace. Of the "
        f"energy of target - source there is in it {sizes}. Against random weights behind the same pooling, in "
        f"brackets the range of their {len(draws)} draws, these are {compared}."
    )


def _how(protocol: Mapping[str, Any], rows: Rows) -> str:
    first = next(iter(rows.values()))
    pooling = (
        "Larger patches are those of the same model behind average pooling of squares, for images as many times as "
        "large: their embedding sees nothing within a square, and was not made for that size. "
        if any(factor > 1 for factor, _ in rows)
        else ""
    )
    return (
        f"n={first.n} pairs a size: {protocol['images_from']}, each a source, its target a random one of another "
        f"predicted class ({protocol['preprocessing']}; larger images likewise); {protocol['model']}, patches of "
        f"{protocol['patch']} pixels, rank {protocol['rank']} of {protocol['input_dim']} numbers. {pooling}least "
        "squares: Eq. 12, pixels not clipped. valid pixels: of those in 0 to 1, nearest to the target. 8 "
        "bits: each pixel rounded. 8 bits, lattice: rounded so that the embedding sees little of it. SSIM: "
        "scikit-image's, uniform windows of 7 x 7 pixels of the images as they are and sample covariances (its "
        "default; Wang et al. weigh by a Gaussian). from afar: averaged over 4 x 4 of the model's own pixels. random "
        "weights: N(0, 1), of the embedding's shape, the same draws at all sizes; without the pooling they would leave "
        "the share of the dimensions, on average over draws. Intervals: 95%, over pairs; Wilson's of counts, Student's "
        "t of means; a target may be shared by pairs."
    )


def _csv(protocol: Mapping[str, Any], rows: Rows) -> list[list[object]]:
    names = (
        "rms_target", "rms_source", "ssim_target", "ssim_source", "afar_target", "afar_source", "unchanged",
        "confidence", "logit", "clean_confidence", "outside", "unseen_share", "within_share", "residual",
    )  # fmt: skip
    table: list[list[object]] = [["patch", "nullspace_share", "kind", "pair or draw", *names]]
    for (factor, kind), row in rows.items():
        first = [protocol["patch"] * factor, nullity_share(protocol, factor)]
        columns = [row.values(name) if name in row.names else [""] * row.n for name in names]
        table += [[*first, kind, number + 1, *values] for number, values in enumerate(zip(*columns, strict=True))]
        if kind == UNCHANGED:
            for number, share in enumerate(row.draws()):
                values = [share if name == "unseen_share" else "" for name in names]
                table.append([*first, "random weights", number + 1, *values])
    return table
