"""The report of ``watermark``: what each stage of marked images changes, how well the mark shows, and is found."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..utils import np
from .figure_report import FigureReport
from .patch_noise_rows import class_name
from .presentable import presentable
from .seed_statistics import interval_of_mean
from .sheet import Cell, Sheet
from .watermark_picture import watermark_picture
from .watermark_rows import CLAIM, Lines, WatermarkKinds, WatermarkRow, share_of, watermark_rows


def watermark_report(protocol: Mapping[str, Any], lines: Lines, parts: Path) -> FigureReport:
    """Tables, findings and picture.

    Args:
        protocol, lines: of the experiment ``watermark``.
        parts: folder of its photographs.
    """
    rows = watermark_rows(lines)
    unmarked = [line for line in lines if "unmarked" in line]
    photographs = [line for line in lines if "photograph" in line]
    measured = [row for row in rows.values() if row.confidence]
    outputs = [
        ("prediction unchanged", "% [95%]"), ("confidence within 1e-4", "% [95%]"),
        ("change of confidence", "mean [95%]"), ("largest", "confidence"), ("change of logits", "mean [95%]"),
        ("largest", "logit"),
    ]  # fmt: skip
    shows = [
        ("under the mark", "rms [95%]"), ("elsewhere", "rms"), ("by the image's own", "contrast"), ("from afar", "rms"),
        ("found", "% [95%]"), ("score", "mean [95%]"),
    ]  # fmt: skip
    sheets = [
        ("What the model sees", Sheet(outputs, [(row.kind, _output_cells(row)) for row in measured])),
        ("How the mark shows, and is found", Sheet(shows, [(row.kind, _mark_cells(row)) for row in rows.values()])),
    ]
    if photographs:
        kinds = {"image": "image", "marked": "marked", "jpeg": "JPEG 75", "emboss": "embossed"}
        shown = [
            (presentable(line["photograph"]), [_prediction(protocol, line["predictions"][kind]) for kind in kinds])
            for line in photographs
        ]
        sheets.append(
            ("Photographs of the picture", Sheet([(name, "class, probability") for name in kinds.values()], shown))
        )
    return FigureReport(
        title="Watermarks in the patch embedding's nullspace",
        sheets=sheets,
        notes=[*_findings(protocol, rows, lines), *_detection(protocol, rows, unmarked), _how(protocol)],
        rows=_csv(rows, unmarked, photographs),
        draw=lambda stream: watermark_picture(protocol, rows, unmarked, photographs, parts, stream),
    )


def _mean(values: Sequence[float], digits: int = 2) -> str:
    mean, low, high = interval_of_mean(values)
    return f"{mean:.{digits}g} [{max(low, 0.0):.{digits}g}, {high:.{digits}g}]"


def _output_cells(row: WatermarkRow) -> list[Cell]:
    return [
        Cell(row.share(row.unchanged)),
        Cell(row.share(row.within)),
        Cell(_mean(row.confidence)),
        Cell(f"{max(row.confidence):.2g}"),
        Cell(_mean(row.logits)),
        Cell(f"{max(row.logits):.2g}"),
    ]


def _mark_cells(row: WatermarkRow) -> list[Cell]:
    cells = [Cell("", is_number=False)] * 4
    if row.inside:
        afar, relative, outside = (float(np.mean(values)) for values in (row.afar, row.relative, row.outside))
        cells = [
            Cell(_mean(row.inside, 3)), Cell(f"{outside:.3f}"), Cell(f"{relative:.2f}"), Cell(f"{afar:.4f}"),
        ]  # fmt: skip
    if not row.scores:
        return [*cells, *[Cell("", is_number=False)] * 2]
    mean, low, high = interval_of_mean(row.scores)
    return [*cells, Cell(row.share(row.detected)), Cell(f"{mean:.2f} [{low:.2f}, {high:.2f}]")]


def _prediction(protocol: Mapping[str, Any], found: Sequence[float]) -> Cell:
    return Cell(f"{class_name(protocol, found[0])}, {100 * found[1]:.2f}%", is_number=False)


def _findings(protocol: Mapping[str, Any], rows: Mapping[str, WatermarkRow], lines: Lines) -> list[str]:
    kinds = WatermarkKinds
    least, valid, deep, lattice, plain = (
        rows[kind] for kind in (kinds.LEAST_SQUARES, kinds.VALID, kinds.CARRIERS["png16"], kinds.LATTICE, kinds.PNG)
    )
    shares = [line for line in lines if line.get("kind") == kinds.SHARES]
    texture, emboss = ([value for line in shares for value in line[style]] for style in ("texture", "emboss"))
    residuals = [value for line in lines for value in line.get("residual", ())]
    jpeg = rows["JPEG 75"]
    own = rows[kinds.unmarked("JPEG 75")]
    jpeg_alone = f"JPEG alone, without a mark, keeps {own.share(own.unchanged)} and moves it by {_mean(own.confidence)}"
    return [
        "What Eq. 12 can draw: of the energy of a mark that is blended into the image the nullspace keeps "
        f"{_percent(emboss)}; of one filled with the nullspace's most visible texture, {_percent(texture)} "
        f"(n={len(emboss)} images; the nullspace has {100 * protocol['nullity'] / protocol['input_dim']:.0f}% of all "
        f"directions). This run's marks are of style {protocol['style']}.",
        "The paper's claim is that every prediction stays, and the assigned class's confidence within 1e-4. In floats, "
        f"least squares keeps {least.unchanged} of {least.n} predictions, and the confidence moves by at most "
        f"{max(least.confidence):.1e}; with pixels in [0, 1], {valid.unchanged} of {valid.n} and "
        f"{max(valid.confidence):.1e}; in a 16-bit PNG, {deep.unchanged} of {deep.n} and {max(deep.confidence):.1e}. "
        f"Dykstra's residual, relative to what the embedding sees of a patch, is {_mean(residuals)}, at most "
        f"{max(residuals):.1e}.",
        f"In 8 bits, rounded pixel by pixel, {plain.unchanged} of {plain.n} predictions stay; the confidence stays "
        f"within {CLAIM:g} on {plain.share(plain.within)} of the images, and moves by up to "
        f"{max(plain.confidence):.1e}. Rounded within the nullspace's lattice {lattice.unchanged} of {lattice.n} stay; "
        f"the confidence stays within on {lattice.share(lattice.within)}, moves by up to "
        f"{max(lattice.confidence):.1e}, and by {_ratio(plain.confidence, lattice.confidence)} on average.",
        f"As JPEG of quality 75 {jpeg.share(jpeg.unchanged)} of the predictions stay, and the confidence moves by "
        f"{_mean(jpeg.confidence)}; {jpeg_alone}.",
    ]


def _ratio(plain: Sequence[float], lattice: Sequence[float]) -> str:
    """How many times less, or more, the means of the second are than those of the first."""
    before, after = (max(float(np.mean(values)), 1e-12) for values in (plain, lattice))
    return f"{before / after:.1f} times less" if before >= after else f"{after / before:.1f} times more"


def _percent(values: Sequence[float]) -> str:
    mean, low, high = (100 * value for value in interval_of_mean(values))
    return f"{mean:.2g}% [{max(low, 0.0):.2g}, {min(high, 100.0):.2g}]"


def _detection(protocol: Mapping[str, Any], rows: Mapping[str, WatermarkRow], unmarked: Lines) -> list[str]:
    kinds = WatermarkKinds
    n, positives = (sum(line[name] for line in unmarked) for name in ("n", "positives"))
    found = ", ".join(
        f"{rows[kind].share(rows[kind].detected)} ({kind})" for kind in (kinds.VALID, kinds.LATTICE)
    )  # fmt: skip
    lossy = "; ".join(
        f"{kind}: {rows[kind].share(rows[kind].detected)}, unmarked {row.share(row.detected)}"
        for kind in (kinds.CARRIERS[name] for name in kinds.LOSSY)
        if (row := rows.get(kinds.unmarked(kind)))
    )
    thresholds = ", ".join(f"{line['threshold']:.2f}" for line in unmarked)
    other = rows[kinds.OTHER]
    return [
        f"A blind correlation test finds the mark in {found}. At a nominal false-positive rate of "
        f"{100 * protocol['false_positive_rate']:g}% it finds one in {positives} of {n} unmarked images, "
        f"{share_of(positives, n)} (thresholds {thresholds} standard deviations: each third of the images is judged by "
        "a detector that knows the second and a threshold from the third).",
        f"Another mark, {presentable(protocol['other_text'])!r}, is taken for this one in "
        f"{other.share(other.detected)} of the images that bear it.",
        f"After what loses detail it is found in these shares: {lossy}.",
    ]


def _how(protocol: Mapping[str, Any]) -> str:
    return (
        f"n={protocol['marked_n']} marked images of {protocol['n']} unmarked ones ({protocol['images_from']}; "
        f"{protocol['preprocessing']}), {protocol['model']}"
        f"{', averaging images ' + str(protocol['enlarge']) + ' times as large' if 'enlarge' in protocol else ''}, "
        f"patches of {protocol['patch']} pixels, {protocol['input_dim']} numbers each, nullspace of dimension "
        f"{protocol['nullity']}. Mark: {presentable(protocol['mark'])}, style {protocol['style']}, strength "
        f"{protocol['strength']:g}, covering {100 * protocol['covered']:.0f}% of the image. Change of confidence: of "
        "the class that the image without a mark is assigned. Rows with unmarked: images without a mark that went the "
        "same way. Contrast: rms of what the mark changed, in pixels from 0 to 1, against unmarked images that went "
        "the same way; by the image's own: what is left of it after a blur of 2 pixels is taken off; from afar: after "
        "a blur of 1 pixel. Intervals: 95%, over images; Wilson's of shares, Student's t of means. Files are real "
        "bytes, written and read again."
    )


def _csv(rows: Mapping[str, WatermarkRow], unmarked: Lines, photographs: Lines) -> list[list[object]]:
    means = ("confidence", "logits", "inside", "outside", "relative", "afar", "scores")
    table: list[list[object]] = [
        ["where", "stage", "n", "unchanged", "within_1e-4", "detected",
         *(f"{name}{end}" for name in means for end in ("", "_low", "_high", "_largest")), "class", "probability"]
    ]  # fmt: skip
    for row in rows.values():
        values = [getattr(row, name) for name in means]
        table.append(
            ["images", row.kind, row.n, *((row.unchanged, row.within) if row.confidence else ("", "")),
             row.detected if row.scores else "",
             *(cell for own in values for cell in ((*interval_of_mean(own), max(own)) if own else [""] * 4)), "", ""]
        )  # fmt: skip
    blank = [""] * 4 * (len(means) - 1)  # of all but the scores
    for line in unmarked:
        scores = line["scores"]
        table.append(
            ["images", f"unmarked, third {line['unmarked'] + 1}", line["n"], "", "", line["positives"], *blank,
             *interval_of_mean(scores), max(scores), "", ""]
        )  # fmt: skip
    for line in photographs:
        for kind, (label, probability) in line["predictions"].items():
            table.append([line["photograph"], kind, 1, *[""] * (len(table[0]) - 5), int(label), probability])
    return table
