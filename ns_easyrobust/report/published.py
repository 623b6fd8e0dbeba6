"""Numbers published by others, for comparison with measured ones. None was measured with this package."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ..evaluation import TABLE2

# The eleven columns of Table 2 of arXiv:2403.10476, by the names of their suites.
COLUMNS = TABLE2
_TABLE_3_COLUMNS = ("val", "fgsm", "damagenet", "a", "c", "v2", "r", "sketch", "stylized")  # Table 4 lacks the first
_EASYROBUST_COLUMNS = ("val", "v2", "c", "r", "a", "sketch", "stylized")  # in the order of its README

PAPER = "arXiv:2403.10476"
NOTES = (
    f"Published rows are copied from their sources, not measured here. {PAPER} reports its baselines other than "
    "ViT-S, ViT-B and DAT from their own papers.",
    "The authors' scripts (Liu-Hy/easyrobust at 4f80c12, main_v*.py) load ViT-S and ViT-B from files named as timm's "
    "augreg weights, which are trained with mean and std 0.5, behind ImageNet's mean and std; on these two baselines "
    "and what was finetuned from them, other numbers are to be expected with 0.5. Their code reads a tenth of each "
    "folder of ImageNet-C and holds no CW attack, so those columns' protocols are not known for certain.",
)


@dataclass(frozen=True)
class Published:
    """A row of a published table.

    Attributes:
        label: the row's name.
        source: the paper or file it is copied from.
        columns: top-1 accuracy in percent by name of :data:`COLUMNS`, except that "c" is the mCE in
            percent; columns that the source does not give are absent.
        average: as printed in the source; None if it prints none.
        notes: why its numbers are not comparable with the others', a sentence each.
    """

    label: str
    source: str
    columns: Mapping[str, float]
    average: float | None = None
    notes: tuple[str, ...] = ()


def row_notes(rows: Sequence[Published]) -> list[str]:
    """The rows' own notes, each once, with the names of the rows that it is about."""
    labels: dict[str, list[str]] = {}
    for row in rows:
        for note in row.notes:
            labels.setdefault(note, []).append(row.label)
    return [f"{', '.join(names)} (published): {note}" for note, names in labels.items()]


def average(columns: Mapping[str, float]) -> float | None:
    """Unweighted mean of the eleven :data:`COLUMNS`, with 100 - mCE for "c"; None if one is missing.

    This is how the paper averages ("We used 100 - mCE before taking the average over all settings", section 5.2).
    """
    if any(name not in columns for name in COLUMNS):
        return None
    return sum(100 - columns[name] if name == "c" else columns[name] for name in COLUMNS) / len(COLUMNS)


def _full(label: str, values: tuple[float, ...], printed_average: float) -> Published:
    return Published(label, f"{PAPER}, Table 2", dict(zip(COLUMNS, values, strict=True)), printed_average)


def _partial(label: str, *notes: str, **columns: float) -> Published:
    return Published(label, f"{PAPER}, Table 2", columns, notes=notes)


def _short(table: int, label: str, *values: float) -> Published:
    names = _TABLE_3_COLUMNS if table == 3 else _TABLE_3_COLUMNS[1:]
    return Published(label, f"{PAPER}, Table {table}", dict(zip(names, values, strict=True)))


def _easyrobust(label: str, source: str, *values: float) -> Published:
    return Published(label, source, dict(zip(_EASYROBUST_COLUMNS, values, strict=True)))


# What the sources of Table 2's baselines measured, as far as they were found. The numbers stay as printed.
_QIN = (
    "from Tables 1 and 2 of Qin et al. (NeurIPS 2022), whose ViT-B/16 is pretrained on ImageNet-1k and finetuned at "
    "384 pixels. C is 100 - the mean top-1 over 19 corruptions, not the mCE. They also give A, from 7.0 to 8.3 over "
    "these five, which the paper leaves out."
)
_MISPRINT = "C is a misprint: Qin et al. give a top-1 of 55.2, hence 44.80 and not 43.60."
_P_ROTATE = "negative patches by P-Rotate, with the uniform loss."
_P_INFILL = "negative patches by P-Infill, with the uniform loss."
_MIXUP = "the source of these numbers was not found."
_SAM = "C is 100 - a mean top-1 of 56.5, not the mCE, as far as we know."
_ROBUSTVIT = (
    "A and R are judged over all 1000 classes, as its code does (hila-chefer/RobustViT at df06c98, "
    "imagenet_eval_robustness.py), which gives lower numbers than over the 200 that these sets hold."
)

TABLE_2 = (
    _full("ViT-S", (74.19, 0.68, 4.63, 13.79, 29.82, 16.35, 71.13, 62.51, 34.67, 14.26, 12.15), 26.54),
    _full("ViT-S + NS", (77.47, 19.10, 9.37, 25.95, 32.43, 20.77, 55.98, 66.5, 41.61, 25.67, 16.02), 34.45),
    _full("ViT-B", (77.68, 15.92, 12.54, 25.65, 38.69, 23.88, 62.16, 66.05, 41.63, 16.31, 17.97), 34.01),
    _partial("ViT-B + MixUp", _MIXUP, val=77.80, a=12.20, c=61.80, r=34.90),
    _partial("ViT-B + RandAugment", _QIN, _MISPRINT, val=79.10, c=43.60, r=23.00),
    _partial("ViT-B + PR", _QIN, _P_ROTATE, val=78.20, c=47.60, r=21.40),
    _partial("ViT-B + RandAugment + PR", _QIN, _P_ROTATE, val=79.30, c=43.60, r=23.80),
    _partial("ViT-B + AugMix", _QIN, val=78.80, c=42.20, r=24.90),
    _partial("ViT-B + AugMix + PR", _QIN, _P_INFILL, val=79.30, c=41.60, r=25.70),
    _partial("ViT-B + SAM", _SAM, val=79.90, c=43.50, v2=67.50, r=26.40),
    _partial("RobustViT-B", _ROBUSTVIT, val=80.40, a=23.00, v2=69.80, r=35.40, sketch=35.80),
    _full("ViT-B + NS", (81.42, 23.52, 14.23, 36.50, 40.44, 24.55, 47.82, 70.25, 44.85, 26.35, 19.02), 39.39),
    _full("ViT-B + DAT", (81.47, 22.64, 23.59, 48.80, 43.31, 23.83, 45.95, 70.24, 48.68, 36.94, 23.99), 43.41),
    _full("ViT-B + DAT + NS", (81.33, 24.14, 23.61, 48.98, 43.67, 24.22, 45.91, 70.14, 48.48, 37.25, 23.87), 43.61),
)
TABLE_3 = (
    _short(3, "ViT-S", 74.19, 13.79, 29.82, 16.35, 71.13, 62.51, 34.67, 14.26, 12.15),
    _short(3, "ViT-S, Madry", 70.53, 39.37, 49.91, 9.37, 81.74, 58.88, 39.04, 21.36, 10.76),
    _short(3, "ViT-S, TRADES", 74.02, 38.85, 36.28, 16.53, 73.11, 63.37, 40.86, 26.43, 13.22),
    _short(3, "ViT-S, ours", 77.47, 25.95, 32.43, 20.77, 55.98, 66.5, 41.61, 25.67, 16.02),
)
# The caption names no model; the row of nullspace at 0.03 equals that of ViT-S + NS in Table 2.
TABLE_4 = (
    _short(4, "ViT-S, nullspace, eps=0.01", 26.04, 33.65, 20.45, 56.26, 66.47, 41.4, 23.34, 15.85),
    _short(4, "ViT-S, random, eps=0.01", 21.54, 28.81, 17.07, 55.13, 61.98, 34.97, 14.43, 12.14),
    _short(4, "ViT-S, nullspace, eps=0.03", 25.95, 32.43, 20.77, 55.98, 66.5, 41.61, 25.67, 16.02),
    _short(4, "ViT-S, random, eps=0.03", 23.18, 29.61, 16.91, 54.68, 62.2, 35.05, 14.77, 12.34),
    _short(4, "ViT-S, nullspace, eps=0.1", 25.38, 33.09, 20.16, 56.41, 66.47, 40.42, 22.66, 15.78),
    _short(4, "ViT-S, random, eps=0.1", 23.93, 30.56, 16.47, 54.52, 62.48, 34.66, 14.99, 12.35),
)
EASYROBUST = (
    _easyrobust(
        "ViT-B + DAT, trained by EasyRobust",
        "alibaba/easyrobust, README.md",
        *(81.38, 69.99, 45.59, 49.64, 24.61, 36.46, 24.84),
    ),
    _easyrobust(
        "ViT-B + DAT, its authors' weights",
        "alibaba/easyrobust, dat/README.md",
        *(81.46, 70.83, 44.65, 47.34, 30.15, 34.77, 23.13),
    ),
)
PUBLISHED_TABLES = {"table2": TABLE_2, "table3": TABLE_3, "table4": TABLE_4, "easyrobust": EASYROBUST}
ROWS = (*TABLE_2, *TABLE_3, *TABLE_4, *EASYROBUST)
