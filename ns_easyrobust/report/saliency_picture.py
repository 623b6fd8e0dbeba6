"""The picture of ``saliency``: maps of a few pairs side by side, and the disagreement on all of them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import IO, Any

from ..errors import DataError
from ..utils import np
from .canvas import COLOURS, GREY, open_canvas, wrap_text
from .presentable import presentable
from .saliency_rows import Rows, SaliencyKinds

_SIDE = 1.05  # inches of an image
_MAP = "inferno"  # even in lightness, also to the colour-blind
_HEAT = 0.62  # share of the map's colour where it lies over an image
_FINEST = 1e-7  # 1 - correlation of lines, which have seven digits
_SERIES = (
    (SaliencyKinds.LEAST_SQUARES, "least squares", COLOURS[0], "o"),
    (SaliencyKinds.VALID, "valid pixels", COLOURS[2], "^"),
    (SaliencyKinds.ROUNDED, "8 bits", COLOURS[3], "D"),
    (SaliencyKinds.REORDERED, "another order", COLOURS[4], "v"),
    (SaliencyKinds.BLEND, "blend", COLOURS[5], "P"),
    (SaliencyKinds.TARGET, "target", COLOURS[1], "s"),
    (SaliencyKinds.NOISE, "rounding noise", GREY, "x"),
)


def heat_overlay(image: np.ndarray, heat: np.ndarray) -> np.ndarray:
    """A map's colours over the image in grey.

    Args:
        image: (H, W, 3) of 8 bits.
        heat: (H, W) of 8 bits.

    Returns:
        (H, W, 3) of 8 bits.
    """
    from matplotlib import colormaps

    grey = np.asarray(image, float).mean(-1, keepdims=True)
    colours = 255 * colormaps[_MAP](np.asarray(heat, float) / 255)[..., :3]
    return np.round((1 - _HEAT) * grey + _HEAT * colours).astype(np.uint8)


def saliency_picture(
    methods: Sequence[str],
    rows: Rows,
    shown: Sequence[Sequence[str]],
    parts: Path,
    stream: IO[bytes],
) -> None:
    """Rows of source, target and transformed image, a column a method; below, correlation with the source.

    Args:
        shown: (source, target) names of each pair that is shown.
        parts: folder of their images and maps.

    Raises:
        DataError: one of the files is missing.
    """
    columns, kinds = ("image", *methods), SaliencyKinds.SHOWN
    top, below, gap = 0.5, 3.75, 0.16
    maps_height = len(shown) * (len(kinds) * (_SIDE + 0.04) + gap)
    width, height = max((_SIDE + 0.04) * len(columns) + 1.0, 6.5), top + maps_height + below
    with open_canvas(stream, width, height) as figure:
        step, side = (_SIDE + 0.04), _SIDE
        for pair, names in enumerate(shown):
            for line, kind in enumerate(kinds):
                bottom = height - top - pair * (len(kinds) * step + gap) - (line + 1) * step
                pixels = _read(parts / SaliencyKinds.part_name(pair, kind, "image"), "RGB")
                for column, name in enumerate(columns):
                    left = width - 0.08 - (len(columns) - column) * step
                    axes = figure.add_axes((left / width, bottom / height, side / width, side / height))
                    file = parts / SaliencyKinds.part_name(pair, kind, name)
                    axes.imshow(pixels if name == "image" else heat_overlay(pixels, _read(file, "L")))
                    axes.set_axis_off()
                    if pair == line == 0:
                        axes.set_title(SaliencyKinds.TITLES.get(name, name), fontsize=9, loc="center", pad=4)
                text = kind if line == 2 else f"{kind}\n{_short(names[line])}"
                where = (width - 0.16 - len(columns) * step) / width
                figure.text(where, (bottom + side / 2) / height, text, ha="right", va="center", fontsize=8.5)
        n = max(row.n for row in rows.values())
        _draw_agreement(figure, methods, rows, width, height)
        text = wrap_text(
            "Top: maps over the image in grey, each from its least (dark) to its greatest (bright) value; transformed: "
            f"the image of 8 bits. Bottom: median of {n} pairs, lines from the least to the greatest; lower: more "
            "alike, at the dotted line as far as float32 tells. another order, blend: changes of the source as large "
            "as that to valid pixels. Each map explains the prediction for its own image.",
            int(15.5 * width),
        )
        figure.text(0.5, 0.06 / height, text, ha="center", va="bottom", fontsize=8, color=GREY)


def _short(name: str) -> str:
    name = presentable(name)
    return name if len(name) <= 14 else f"{name[:11]}..."


def _read(path: Path, mode: str) -> np.ndarray:
    from PIL import Image

    try:
        with Image.open(path) as image:
            return np.asarray(image.convert(mode))
    except OSError as error:
        raise DataError(f"{path}: expected an image of the experiment, found none ({error}). Run it anew.") from error


def _draw_agreement(figure: Any, methods: Sequence[str], rows: Rows, width: float, height: float) -> None:
    """1 - correlation of each kind of images with the source, by method."""
    axes = figure.add_axes((0.75 / width, 1.1 / height, (width - 0.85) / width, 1.9 / height))
    for series, (kind, label, shade, marker) in enumerate(_SERIES):
        places, middles, spans = [], [], []
        for place, method in enumerate(methods):
            values = rows[method, SaliencyKinds.SOURCE, kind, "float32"].correlations
            if values:
                least, middle, most = (max(1 - value, _FINEST) for value in (max(values), median(values), min(values)))
                places.append(place + (series - (len(_SERIES) - 1) / 2) * 0.115)
                middles.append(middle)
                spans.append((middle - least, most - middle))
        axes.errorbar(
            places, middles, np.array(spans).reshape(-1, 2).T, fmt=marker, color=shade, markersize=5, linewidth=1.2,
            capsize=2, label=label,
        )  # fmt: skip
    axes.set_yscale("log")
    axes.set_ylim(_FINEST / 2.5, 4)
    axes.axhline(_FINEST, color=GREY, linewidth=0.8, linestyle=":")
    axes.set_xticks(range(len(methods)), [SaliencyKinds.TITLES[method] for method in methods], fontsize=8.5)
    axes.tick_params(axis="x", length=0)
    axes.set_xlim(-0.5, len(methods) - 0.5)
    for place in range(1, len(methods)):
        axes.axvline(place - 0.5, color=GREY, linewidth=0.5, alpha=0.5)
    axes.grid(visible=False, axis="x")
    axes.set_ylabel("1 - correlation of patches", fontsize=8.5)
    axes.set_title("how far maps are from the source's", fontsize=9)
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(
        handles, labels, ncols=len(_SERIES), loc="lower center", bbox_to_anchor=(0.5, 3.26 / height), fontsize=8,
        handletextpad=0.1, columnspacing=0.9, frameon=False,
    )  # fmt: skip
