"""The picture of ``watermark``: marked photographs, the change of confidence at each stage, the detector's scores."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any

from ..utils import np
from .canvas import COLOURS, GREY, open_canvas, show_image, wrap_text
from .patch_noise_rows import class_name
from .presentable import presentable
from .watermark_rows import CLAIM, WatermarkKinds, WatermarkRow

_SIDE = 1.9  # inches of a photograph
_LEAST = 1e-8  # what no change at all is drawn as
_COLUMNS = (
    ("image", "image"),
    ("marked", "marked, valid pixels"),
    ("change", "the change x 2, on grey"),
    ("jpeg", "marked, after JPEG 75"),
    ("emboss", "embossed, valid pixels"),
)


def watermark_picture(
    protocol: Mapping[str, Any],
    rows: Mapping[str, WatermarkRow],
    unmarked: Sequence[Mapping[str, Any]],
    photographs: Sequence[Mapping[str, Any]],
    parts: Path,
    stream: IO[bytes],
) -> None:
    """Photographs one beneath the other, above a dot for each image: confidence on the left, scores on the right.

    Args:
        parts: folder of the photographs' pixels.

    Raises:
        DataError: one of their files is missing.
    """
    kinds = WatermarkKinds
    stages = [row for row in rows.values() if row.inside]
    scored = [("unmarked", [score for line in unmarked for score in line["scores"]], _found(unmarked))]
    scored += [
        (row.kind, row.scores, f"{row.detected}/{row.n}") for row in [rows[kinds.OTHER], *stages] if row.scores
    ]  # fmt: skip
    names = [name for name, _, _ in scored] + [row.kind for row in stages if not row.scores]
    names.sort(key=[*(name for name, _, _ in scored[:2]), *(row.kind for row in stages)].index)
    below = 0.27 * len(names) + 1.3
    width, height = (_SIDE + 0.1) * len(_COLUMNS) + 0.5, (_SIDE + 0.36) * len(photographs) + 0.4 + below
    with open_canvas(stream, width, height) as figure:
        grid = figure.add_gridspec(
            len(photographs) or 1, len(_COLUMNS), left=0.035, right=0.995, top=1 - 0.32 / height,
            bottom=(below + 0.3) / height, wspace=0.05, hspace=0.2,
        )  # fmt: skip
        for number, line in enumerate(photographs):
            _draw_photograph(figure, grid, number, line, protocol, parts)
        bottom, tall = 0.85 / height, (below - 1.05) / height
        left, right = (figure.add_axes((start, bottom, 0.3, tall)) for start in (0.235, 0.605))
        _draw_confidence(left, names, stages)
        _draw_scores(right, names, scored, [line["threshold"] for line in unmarked])
        text = wrap_text(
            f"Dot: an image (n={stages[0].n} marked, {protocol['n']} unmarked); diamond: the largest. Dashed on the "
            f"left: {CLAIM:g}, the paper's. On the right: the threshold for {100 * protocol['false_positive_rate']:g}% "
            "false positives, and in how many images the mark is found. Orange names: the prediction changed.",
            int(15 * width),
        )
        figure.text(0.5, 0.06 / height, text, ha="center", va="bottom", fontsize=8.5, color=GREY)


def _found(unmarked: Sequence[Mapping[str, Any]]) -> str:
    return "/".join(str(sum(line[name] for line in unmarked)) for name in ("positives", "n"))


def _draw_photograph(
    figure: Any, grid: Any, number: int, line: Mapping[str, Any], protocol: Mapping[str, Any], parts: Path
) -> None:
    for column, (kind, title) in enumerate(_COLUMNS):
        axes = figure.add_subplot(grid[number, column])
        show_image(axes, parts / WatermarkKinds.part_name(number, kind))
        if number == 0:
            axes.set_title(title, fontsize=9, loc="center")
        if column == 0:
            axes.set_ylabel(presentable(line["photograph"]), fontsize=8.5, color=GREY)
        if kind in line["predictions"]:
            label, probability = line["predictions"][kind]
            same = label == line["predictions"]["image"][0]
            axes.set_xlabel(
                f"{class_name(protocol, label)}  {100 * probability:.2f}%", fontsize=9,
                color="black" if same else COLOURS[1], labelpad=3,
            )  # fmt: skip


def _draw_confidence(axes: Any, names: Sequence[str], stages: Sequence[WatermarkRow]) -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    axes.set_xscale("log")
    for row in stages:
        place, shade = names.index(row.kind), COLOURS[0 if max(row.confidence) <= CLAIM else 1]
        changes = [max(value, _LEAST) for value in row.confidence]
        _dots(axes, changes, place, shade)
        axes.plot(max(changes), place, "D", color=shade, markersize=5, markeredgecolor="black", markeredgewidth=0.6)
    axes.axvline(CLAIM, color="black", linewidth=0.9, linestyle="--")
    axes.xaxis.set_major_locator(LogLocator(base=100, numticks=10))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.0e}" if value < 0.01 else f"{value:g}"))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xlim(_LEAST / 2, 2)
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.set_xlabel("change of the assigned class's confidence")
    axes.tick_params(axis="y", length=0)


def _draw_scores(
    axes: Any, names: Sequence[str], scored: Sequence[tuple[str, Sequence[float], str]], thresholds: Sequence[float]
) -> None:
    for number, (name, scores, found) in enumerate(scored):
        place = names.index(name)
        _dots(axes, scores, place, GREY if number < 2 else COLOURS[2])
        axes.annotate(found, (1.015, place), xycoords=("axes fraction", "data"), va="center", fontsize=8.5)
    for threshold in thresholds:
        axes.axvline(threshold, color="black", linewidth=0.9, linestyle="--")
    axes.annotate("found", (1.015, 1.01), xycoords="axes fraction", va="bottom", fontsize=8.5, color=GREY)
    axes.set_yticks(range(len(names)), [])
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.set_xlabel("score of the correlation test, standard deviations")
    axes.tick_params(axis="y", length=0)


def _dots(axes: Any, values: Sequence[float], place: int, shade: str) -> None:
    jitter = [place + 0.26 * math.sin(7.1 * index) for index in range(len(values))]
    axes.plot(np.asarray(values), jitter, ".", color=shade, markersize=3.2, alpha=0.4, markeredgewidth=0)
