"""The picture of Proposition 1's conditions: a column a model, a row a condition, layers from left to right."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import IO, Any

from ..utils import np
from .attention_findings import Line, mean_change
from .canvas import GREY, colour, line_count, open_canvas, wrap_text

_RATIOS = (  # name, label, palette, marker, whether it is open, shift in layers
    ("keys", "all K: is 0 under\ncondition 3", 1, "^", False, 0.0),
    ("common", "all Q, K, V", 0, "o", True, -0.2),
    ("same", "all Q, V", 2, "s", False, 0.2),
)


def attention_figure(stream: IO[bytes], layers: Mapping[str, Sequence[Line]], caption: str) -> None:
    """Draw symmetric shares, cosines of V in K, smallest singular values and changes of the heads' outputs.

    Args:
        layers: by model, its layers' lines as the experiment ``attention`` has them.
        caption: under the panels.
    """
    width = 2.0 + 3.2 * len(layers)
    caption = wrap_text(caption, int(15 * width))
    with open_canvas(stream, width, 10.5 + 0.14 * line_count(caption)) as figure:
        figure.set_layout_engine("constrained", w_pad=0.06, h_pad=0.06, hspace=0.03)
        figure.supxlabel(caption, fontsize=8, color=GREY)
        grid = figure.add_gridspec(4, len(layers) + 1, width_ratios=[*[3.2] * len(layers), 1.6])
        for row, draw in enumerate((_draw_shares, _draw_cosines, _draw_ratios, _draw_changes)):
            left = None
            for column, (name, lines) in enumerate(layers.items()):
                axes = figure.add_subplot(grid[row, column], sharey=left)
                draw(axes, lines)
                if left is not None:
                    axes.tick_params(labelleft=False)
                    axes.set_ylabel("")
                if row == 0:
                    axes.set_title(wrap_text(name, 34))
                left = axes if left is None else left
            beside = figure.add_subplot(grid[row, -1])
            beside.set_axis_off()
            if left is not None:
                beside.legend(*left.get_legend_handles_labels(), loc="center left", borderpad=0, handletextpad=0.6)


def _band(axes: Any, lines: Sequence[Line], name: str, label: str, shade: str) -> None:
    """The random ones', of all layers."""
    layers = [float(line["layer"]) for line in lines]
    pooled = [value for line in lines for value in line["control"][name]]
    low, high = np.quantile(pooled, (0.025, 0.975))
    edges = [layers[0] - 0.5, *(layer + 0.5 for layer in layers)]
    axes.stairs([high] * len(lines), edges, baseline=low, fill=True, color=shade, alpha=0.3, label=label, linewidth=0)


def _bars(axes: Any, lines: Sequence[Line], name: str, label: str, index: int, is_open: bool, shift: float) -> None:
    """The random ones' of each layer, as the gain matters: a bar over or under the layer's own marker."""
    for line in lines:
        control = line["control"][name]
        style = {"facecolor": "white" if is_open else colour(index), "edgecolor": colour(index), "linewidth": 1.4}
        axes.bar(line["layer"] + shift, max(control) - min(control), 0.36, min(control), label=label, **style)
        label = ""  # once in the legend


def _listed(value: Any) -> list[float]:
    return value if isinstance(value, list) else [value]


def _dots(axes: Any, lines: Sequence[Line], name: str, label: str, index: int, marker: str, **more: Any) -> None:
    shift = more.pop("shift", 0.0)
    places = [(line["layer"] + shift, value) for line in lines for value in _listed(line[name])]
    style = {"linestyle": "", "marker": marker, "markersize": 4.5, "markeredgewidth": 0.5, "markeredgecolor": "white"}
    style |= more
    axes.plot(*zip(*places, strict=True), color=colour(index), label=label, **style)


def _finish(axes: Any, lines: Sequence[Line], ylabel: str) -> None:
    axes.set_xticks([line["layer"] for line in lines])
    axes.set_xlim(lines[0]["layer"] - 0.6, lines[-1]["layer"] + 0.6)
    axes.set_xlabel("layer")
    axes.set_ylabel(ylabel)
    axes.grid(axis="x", visible=False)


def _plain(axis: Any) -> None:
    """Decades as plain numbers: the style parses no formulas."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    axis.set_major_locator(LogLocator(numticks=8))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_formatter(NullFormatter())


def _draw_shares(axes: Any, lines: Sequence[Line]) -> None:
    axes.axhline(1, color="black", linewidth=1, linestyle="--", label="condition 1:\nall symmetric")
    _dots(axes, lines, "share", "a head", 0, "o")
    _band(axes, lines, "share", "random", GREY)
    axes.set_ylim(0, 1.05)
    _finish(axes, lines, "symmetric share of Q K'")


def _draw_cosines(axes: Any, lines: Sequence[Line]) -> None:
    axes.axhline(1, color="black", linewidth=1, linestyle="--", label="condition 2:\nall cosines 1")
    for name, label, index, marker in (
        ("inside_most", "largest of a head", 1, "^"),
        ("inside", "root mean square", 0, "o"),
        ("inside_least", "smallest", 2, "v"),
    ):
        _band(axes, lines, name, "", colour(index))
        _dots(axes, lines, name, label, index, marker)
    axes.fill_between([], [], [], color=GREY, alpha=0.3, linewidth=0, label="bands: random")
    axes.set_ylim(-0.04, 1.05)
    _finish(axes, lines, "cosines between V and K")


def _draw_ratios(axes: Any, lines: Sequence[Line]) -> None:
    axes.set_yscale("log")
    for name, label, index, marker, is_open, shift in _RATIOS:
        short = label.partition(":")[0]
        if name == "keys":
            _band(axes, lines, name, f"random: {short}", colour(index))
        else:
            _bars(axes, lines, name, f"random: {short}", index, is_open, shift)
        edge = {"markerfacecolor": "white", "markeredgecolor": colour(index), "markeredgewidth": 1.2} if is_open else {}
        _dots(axes, lines, name, label, index, marker, shift=shift, **edge)
    layers = [float(line["layer"]) for line in lines]
    edges = [layers[0] - 0.5, *(layer + 0.5 for layer in layers)]
    most = [max(line[f"{name}_tolerance"] for name, *_ in _RATIOS) for line in lines]
    style = {"color": "black", "linestyle": "--", "linewidth": 1}
    axes.stairs(most, edges, baseline=None, label="below: may be 0\nbut for rounding", **style)
    _finish(axes, lines, "smallest / largest singular value")
    _plain(axes.yaxis)


def _draw_changes(axes: Any, lines: Sequence[Line]) -> None:
    axes.set_xscale("log")
    axes.set_yscale("log")
    for index, kind, label in ((1, "random", "random w"), (0, "least", "w that heads\nsee least")):
        by_size: dict[float, list[float]] = {}
        for change in (change for line in lines for change in line["changes"] if change["noise"] == "same"):
            by_size.setdefault(change["size"], []).append(mean_change(change, kind))
        sizes = sorted(by_size)
        low, middle, high = ([float(of(by_size[size])) for size in sizes] for of in (min, np.median, max))
        axes.fill_between(sizes, low, high, color=colour(index), alpha=0.2, linewidth=0)
        axes.plot(sizes, middle, color=colour(index), marker="o", markersize=3.5, label=label)
    axes.set_xlabel("norm of the noise / of a normalised token")
    axes.set_ylabel("relative change of the heads")
    _plain(axes.xaxis)
    _plain(axes.yaxis)
