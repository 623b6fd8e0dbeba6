"""The picture of ``transfer``: a matrix of models, above the influence on each set of images."""

from __future__ import annotations

import math
from typing import IO, Any

from .canvas import COLOURS, GREY, open_canvas, wrap_text
from .presentable import presentable
from .transfer_table import HELD_OUT, TITLES, Place, TransferTable

_LEAST = 1e-16  # what no influence at all is drawn as
_MARKS = {"noise": ("o", COLOURS[0]), "permuted": ("s", COLOURS[1]), "random": ("^", COLOURS[4])}


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
        bar = figure.colorbar(image, ax=list(upper), shrink=0.9, pad=0.01)
        bar.set_label("influence / its permutation's", fontsize=8.5)
        bar.set_ticks([0, -1, -2, -3, -4], labels=["1", "0.1", "0.01", "0.001", "0.0001"])
        bar.outline.set_visible(False)
        handles, labels = lower[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside upper center", ncols=len(labels))
        caption = (
            "Above: mse_probability on held-out images of the noise of the model at the left on the model beneath; "
            "in brackets its share of what its permutation does there, which is the colour. Below: each model's own "
            "noise on itself, one mark a model; bars: 95% intervals, the wider of those over noises and over images."
        )
        figure.supxlabel(wrap_text(caption, int(15 * width)), fontsize=8, color=GREY)


def _draw_models(axes: Any, table: TransferTable, kind: str, is_first: bool) -> Any:
    shares = []
    for source in table.sources:
        places = [Place(kind, source, target, HELD_OUT) for target in table.targets]
        means = [(table.influence(place).mean, table.influence(place, "permuted").mean) for place in places]
        shares.append([math.log10(max(own, _LEAST) / max(base, _LEAST)) for own, base in means])
    image = axes.imshow(shares, cmap="Blues", vmin=-4, vmax=0, aspect="auto")
    for row, source in enumerate(table.sources):
        for column, target in enumerate(table.targets):
            found = table.influence(Place(kind, source, target, HELD_OUT))
            axes.text(
                column, row, f"{_short(found.mean)}\n({_short(10 ** shares[row][column])})", fontsize=7.5,
                ha="center", va="center", color="white" if shares[row][column] > -1.2 else "black",
            )  # fmt: skip
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


def _draw_images(axes: Any, table: TransferTable, kind: str, is_first: bool) -> None:
    axes.set_yscale("log")
    count = len(table.sources)
    for place, (control, (mark, shade)) in enumerate(_MARKS.items()):
        across, means, below, over = [], [], [], []
        for number, images in enumerate(table.images):
            for row, source in enumerate(table.sources):
                own = Place(kind, source, source, images)
                if not table.has(own, control):
                    continue
                found = table.influence(own, control)
                across.append(number + 0.25 * (place - 1) + 0.2 * ((row + 0.5) / count - 0.5))
                means.append(max(found.mean, _LEAST))
                below.append(means[-1] - max(found.low, means[-1] / 100, _LEAST))
                over.append(max(found.high, _LEAST) - means[-1])
        if means:
            axes.errorbar(
                across, means, [[max(0.0, end) for end in below], over], fmt=mark, color=shade, markersize=4,
                elinewidth=0.9, label=control, clip_on=False,
            )  # fmt: skip
    axes.set_xticks(range(len(table.images)), map(presentable, table.images))
    axes.set_xlim(-0.5, len(table.images) - 0.5)
    axes.grid(axis="x", visible=False)
    _set_ticks(axes)
    if is_first:
        axes.set_ylabel("influence on itself, mse_probability")
    axes.set_xlabel("images")


def _set_ticks(axes: Any) -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    low, high = axes.get_ylim()
    axes.set_ylim(low, max(2.0, high))
    axes.yaxis.set_major_locator(LogLocator(numticks=8))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.0e}" if value < 0.001 else f"{value:g}"))
