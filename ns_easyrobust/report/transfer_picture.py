"""The picture of ``transfer``: a matrix of models, above the influence on each set of images."""

from __future__ import annotations

import math
from typing import IO, Any

from .canvas import COLOURS, GREY, open_canvas, wrap_text
from .presentable import presentable
from .transfer_table import HELD_OUT, TITLES, Place, TransferTable

_LEAST = 1e-16  # what no influence at all is drawn as
_LOWEST = -4  # exponent of the least share that has a colour of its own
_SHADES = {"noise": COLOURS[0], "permuted": COLOURS[1], "random": COLOURS[4]}
_MARKS = "os^DvPX*"  # of the models, again from the first behind the last


def transfer_picture(table: TransferTable, stream: IO[bytes]) -> None:
    """A column a kind of noise: above, whose noise does how much on which model; beneath, on which images."""
    kinds, rows = len(table.kinds), len(table.sources)
    names = max(len(name) for name in (*table.sources, *table.targets))
    above = 0.46 * rows + 0.075 * min(names, 24) + 0.75
    width, height = 2.0 + 0.08 * min(names, 24) + 2.9 * kinds, above + 3.6
    with open_canvas(stream, width, height) as figure:
        figure.set_layout_engine("constrained", w_pad=0.08, h_pad=0.08, wspace=0.03, hspace=0.06)
        upper, lower = figure.subplots(2, kinds, squeeze=False, height_ratios=[above, 2.9])
        for column, kind in enumerate(table.kinds):
            image = _draw_models(upper[column], table, kind, column == 0)
            _draw_images(lower[column], table, kind, column == 0)
        bar = figure.colorbar(image, ax=list(upper), shrink=0.9, pad=0.01, extend="min")
        bar.set_label("influence / its permutation's", fontsize=8.5)
        bar.set_ticks(range(_LOWEST, 1), labels=[f"{10.0**exponent:g}" for exponent in range(_LOWEST, 1)])
        bar.outline.set(edgecolor=GREY, linewidth=0.5)  # the arrow is white
        _draw_legend(figure, table)
        caption = (
            "Above: mse_probability on held-out images of the noise of the model at the left on the model beneath; "
            "in brackets its share of what its permutation does there, which is the colour. Below: each model's own "
            "noise on itself; bars: 95% intervals, over noises and images."
        )
        figure.supxlabel(wrap_text(caption, int(15 * width)), fontsize=8, color=GREY)


def _draw_models(axes: Any, table: TransferTable, kind: str, is_first: bool) -> Any:
    shares = []
    for source in table.sources:
        found = [table.relative(Place(kind, source, target, HELD_OUT)) for target in table.targets]
        shares.append([math.log10(max(share.mean, _LEAST)) if share else math.log10(_LEAST) for share in found])
    image = axes.imshow(shares, cmap="Blues", vmin=_LOWEST, vmax=0, aspect="auto")
    for row, source in enumerate(table.sources):
        for column, target in enumerate(table.targets):
            place = Place(kind, source, target, HELD_OUT)
            share = table.relative(place)
            text = f"{_short(table.influence(place).mean)}\n({_short(share.mean if share else 0.0)})"
            shade = "white" if shares[row][column] > -1.2 else "black"
            axes.text(column, row, text, fontsize=7.5, ha="center", va="center", color=shade)
    axes.set_title(TITLES[kind])
    axes.set_xticks(
        range(len(table.targets)), map(presentable, table.targets), rotation=35, ha="right", rotation_mode="anchor"
    )
    axes.set_xlabel("measured on")
    axes.set_yticks(range(len(table.sources)), map(presentable, table.sources) if is_first else [])
    if not is_first:
        axes.set_yticks([])
    else:
        axes.set_ylabel("noise of")
    axes.grid(visible=False)
    for spine in axes.spines.values():
        spine.set_visible(False)
    axes.tick_params(length=0)
    return image


def _short(value: float) -> str:
    """Two digits at most, as short as can be."""
    if value == 0 or value >= 0.0095:
        return (f"{value:.2f}" if value < 10 else f"{value:.0f}") if value else "0"
    return f"{value:.0e}".replace("e-0", "e-")


def _draw_legend(figure: Any, table: TransferTable) -> None:
    """Colours of the controls, and marks of the models."""
    from matplotlib.lines import Line2D

    controls = [control for control in _SHADES if any(table.has(place, control) for place in table.places)]
    kinds = [Line2D([], [], color=_SHADES[control], linewidth=5, label=control) for control in controls]
    models = [
        Line2D([], [], color=GREY, marker=_mark(row), linestyle="", markersize=5, label=presentable(source))
        for row, source in enumerate(table.sources)
    ]
    figure.legend(handles=[*kinds, *models], loc="outside upper center", ncols=len(kinds) + len(models))


def _mark(row: int) -> str:
    return _MARKS[row % len(_MARKS)]


def _draw_images(axes: Any, table: TransferTable, kind: str, is_first: bool) -> None:
    axes.set_yscale("log")
    count = len(table.sources)
    for number, images in enumerate(table.images):
        for row, source in enumerate(table.sources):
            own = Place(kind, source, source, images)
            for place, (control, shade) in enumerate(_SHADES.items()):
                if not table.has(own, control):
                    continue
                found = table.influence(own, control)
                mean = max(found.mean, _LEAST)
                ends = mean - max(found.low, mean / 100, _LEAST), max(found.high, _LEAST) - mean
                axes.errorbar(
                    number + 0.27 * (place - 1) + 0.24 * ((row + 0.5) / count - 0.5), mean,
                    [[max(0.0, end)] for end in ends], fmt=_mark(row), color=shade, markersize=4, elinewidth=0.9,
                    clip_on=False,
                )  # fmt: skip
    axes.set_xticks(range(len(table.images)), map(presentable, table.images))
    axes.set_xlim(-0.5, len(table.images) - 0.5)
    axes.grid(axis="x", visible=False)
    _set_ticks(axes)
    if is_first:
        axes.set_ylabel("influence on itself\n(mse_probability)")
    axes.set_xlabel("images")


def _set_ticks(axes: Any) -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    low, high = axes.get_ylim()
    axes.set_ylim(low, max(2.0, high))
    axes.yaxis.set_major_locator(LogLocator(numticks=8))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.0e}" if value < 0.001 else f"{value:g}"))
