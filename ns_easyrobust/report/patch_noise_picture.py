"""The picture of ``patch-noise``: photographs with their noises, and the change of the outputs on all images."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any

from .canvas import COLOURS, GREY, open_canvas, show_image, wrap_text
from .patch_noise_rows import PatchNoiseKinds, PatchNoiseRow, class_name
from .presentable import presentable

_LEAST = 1e-17  # what no change at all is drawn as
_SIDE = 1.62  # inches of a photograph
_COLUMNS = (
    ("image", "image"),
    ("noise", f"sample of Eq. 2\n(grey + noise x {PatchNoiseKinds.NOISE_SCALE:g})"),
    (PatchNoiseKinds.SAMPLE, "image + sample\n(clipped to be shown)"),
    (PatchNoiseKinds.VALID, "image + large noise,\npixels valid"),
    (PatchNoiseKinds.VALID_PERMUTED, "the same noise,\nanother order"),
)


def patch_noise_picture(
    protocol: Mapping[str, Any],
    rows: Sequence[PatchNoiseRow],
    photographs: Sequence[Mapping[str, Any]],
    parts: Path,
    stream: IO[bytes],
) -> None:
    """Photographs one beneath the other, above a dot for each image and kind of noise.

    Args:
        parts: folder of the photographs' pixels.

    Raises:
        DataError: one of their files is missing.
    """
    top, below = (_SIDE + 0.42) * len(photographs) + 0.5, 0.3 * len(rows) + 1.35
    width, height = (_SIDE + 0.12) * len(_COLUMNS) + 0.5, top + below
    with open_canvas(stream, width, height) as figure:
        grid = figure.add_gridspec(
            len(photographs) or 1, len(_COLUMNS), left=0.045, right=0.99, top=1 - 0.47 / height,
            bottom=(below + 0.3) / height, wspace=0.06, hspace=0.25,
        )  # fmt: skip
        for number, line in enumerate(photographs):
            for column, (kind, title) in enumerate(_COLUMNS):
                axes = figure.add_subplot(grid[number, column])
                show_image(axes, parts / PatchNoiseKinds.part_name(number, kind))
                if number == 0:
                    axes.set_title(title, fontsize=8.5, loc="center")
                if column == 0:
                    axes.set_ylabel(presentable(line["photograph"]), fontsize=8, color=GREY)
                if kind in line["predictions"]:
                    label, probability = line["predictions"][kind]
                    same = label == line["predictions"]["image"][0]
                    axes.set_xlabel(
                        f"{class_name(protocol, label)}  {100 * probability:.2f}%",
                        fontsize=8.5, color="black" if same else COLOURS[1], labelpad=3,
                    )  # fmt: skip
        axes = figure.add_axes((0.25, 0.72 / height, 0.57, (below - 1.0) / height))
        _draw_changes(axes, rows)
        text = wrap_text(
            f"Dot: an image (n={rows[0].n}), diamond: the largest; blue: noise in the nullspace, orange: not in it. "
            "Orange names: the prediction changed.",
            int(16 * width),
        )
        figure.text(0.5, 0.08 / height, text, ha="center", va="bottom", fontsize=8, color=GREY)


def _draw_changes(axes: Any, rows: Sequence[PatchNoiseRow]) -> None:
    """A row a kind; what leaves the nullspace is orange, what stays in it blue."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    inside = (PatchNoiseKinds.SAMPLE, PatchNoiseKinds.VALID)
    axes.set_xscale("log")
    for place, row in enumerate(rows):
        shade = COLOURS[0] if row.kind in inside else COLOURS[1]
        changes = [max(math.sqrt(distance), _LEAST) for distance in row.distances]
        jitter = [place + 0.22 * math.sin(7.1 * index) for index in range(len(changes))]
        axes.plot(changes, jitter, ".", color=shade, markersize=3.5, alpha=0.45, markeredgewidth=0)
        axes.plot(max(changes), place, "D", color=shade, markersize=5, markeredgecolor="black", markeredgewidth=0.6)
        axes.annotate(
            f"{row.unchanged}/{row.n} unchanged", (1.015, place), xycoords=("axes fraction", "data"), va="center",
            fontsize=8.5,
        )  # fmt: skip
    axes.xaxis.set_major_locator(LogLocator(numticks=10))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.0e}" if value < 0.01 else f"{value:g}"))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_yticks(range(len(rows)), [row.name for row in rows])
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.set_xlim(right=2)
    axes.set_xlabel("change of the softmax output, L2 distance (at most 1.41)")
    axes.tick_params(axis="y", length=0)
