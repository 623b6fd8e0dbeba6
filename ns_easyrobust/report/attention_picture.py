"""The picture of Proposition 1's conditions: a column a model, a row a condition, layers from left to right."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import IO, Any

from ..utils import np
from .canvas import GREY, colour, line_count, open_canvas, wrap_text

_RATIOS = (("keys", "all K (condition 3)", "^"), ("common", "all Q, K, V", "o"), ("same", "all Q, V", "s"))
Line = Mapping[str, Any]


def attention_figure(stream: IO[bytes], layers: Mapping[str, Sequence[Line]], caption: str) -> None:
    """Draw symmetric shares, cosines of V in K, smallest singular values and changes of the heads' outputs.

    Args:
        layers: by model, its layers' lines as the experiment ``attention`` has them.
        caption: under the panels.
    """
    width = max(8.0, 4.2 * len(layers))
    caption = wrap_text(caption, int(16 * width))
    with open_canvas(stream, width, 11 + 0.14 * line_count(caption)) as figure:
        figure.set_layout_engine("constrained", w_pad=0.06, h_pad=0.06, hspace=0.03)
        figure.supxlabel(caption, fontsize=8, color=GREY)
        panels = figure.subplots(4, len(layers), squeeze=False, sharey="row")
        for column, (name, lines) in enumerate(layers.items()):
            first = column == 0
            _share_panel(panels[0, column], lines, first)
            panels[0, column].set_title(wrap_text(name, 34))
            _cosine_panel(panels[1, column], lines, first)
            _ratio_panel(panels[2, column], lines, first)
            _change_panel(panels[3, column], lines, first)


def _band(axes: Any, lines: Sequence[Line], name: str, label: str, shade: str) -> None:
    ends = [np.quantile(_listed(line["control"][name]), (0.025, 0.975)) for line in lines if name in line["control"]]
    if not ends:
        return
    low, high = (np.array([pair[end] for pair in ends]) for end in (0, 1))
    at = np.array([line["layer"] for line in lines], float)
    edges = np.append(at - 0.5, at[-1] + 0.5)
    axes.stairs(high, edges, baseline=low, fill=True, color=shade, alpha=0.25, label=label, linewidth=0)


def _listed(value: Any) -> list[float]:
    return value if isinstance(value, list) else [value]


def _dots(axes: Any, lines: Sequence[Line], name: str, label: str, index: int, marker: str, shift: float = 0.0) -> None:
    places = [(line["layer"] + shift, value) for line in lines for value in _listed(line[name])]
    style = {"linestyle": "", "marker": marker, "markersize": 4.5, "markeredgewidth": 0.5, "markeredgecolor": "white"}
    axes.plot(*zip(*places, strict=True), color=colour(index), label=label, **style)


def _finish(axes: Any, lines: Sequence[Line], first: bool, ylabel: str, columns: int = 1, where: str = "best") -> None:
    axes.set_xticks([line["layer"] for line in lines])
    axes.set_xlim(lines[0]["layer"] - 0.6, lines[-1]["layer"] + 0.6)
    axes.set_xlabel("layer")
    axes.grid(axis="x", visible=False)
    if first:
        axes.set_ylabel(ylabel)
        axes.legend(loc=where, ncols=columns, handletextpad=0.4, columnspacing=1.0)


def _share_panel(axes: Any, lines: Sequence[Line], first: bool) -> None:
    _band(axes, lines, "share", "random", GREY)
    axes.axhline(1, color="black", linewidth=1, linestyle="--", label="condition 1: symmetric")
    _dots(axes, lines, "share", "a head", 0, "o")
    axes.set_ylim(0, 1.38)
    axes.set_yticks((0, 0.25, 0.5, 0.75, 1))
    _finish(axes, lines, first, "symmetric share of Q K'", 3, "upper left")


def _cosine_panel(axes: Any, lines: Sequence[Line], first: bool) -> None:
    for name, shade in (("inside_most", colour(4)), ("inside", colour(0)), ("inside_least", colour(2))):
        _band(axes, lines, name, "", shade)
    axes.axhline(1, color="black", linewidth=1, linestyle="--", label="condition 2: all cosines 1")
    _dots(axes, lines, "inside_most", "largest", 4, "^", -0.15)
    _dots(axes, lines, "inside", "root mean square", 0, "o")
    _dots(axes, lines, "inside_least", "smallest", 2, "v", 0.15)
    axes.set_ylim(-0.03, 1.5)
    axes.set_yticks((0, 0.25, 0.5, 0.75, 1))
    _finish(axes, lines, first, "cosines between V and K", 2, "upper left")


def _ratio_panel(axes: Any, lines: Sequence[Line], first: bool) -> None:
    axes.set_yscale("log")
    for index, (name, label, marker) in zip((1, 0, 2), _RATIOS, strict=True):
        _band(axes, lines, name, "", colour(index))
        _dots(axes, lines, name, label, index, marker, 0.0)
    steps = np.array([line["layer"] for line in lines], float)
    most = [max(line[f"{name}_tolerance"] for name, _, _ in _RATIOS) for line in lines]
    axes.stairs(most, np.append(steps - 0.5, steps[-1] + 0.5), color="black", linestyle="--", linewidth=1, label="0 but for rounding", baseline=None)  # fmt: skip
    _finish(axes, lines, first, "smallest / largest singular value", 2)


def _change_panel(axes: Any, lines: Sequence[Line], first: bool) -> None:
    axes.set_xscale("log")
    axes.set_yscale("log")
    for index, kind in ((1, "random"), (0, "least")):
        by_size: dict[float, list[float]] = {}
        for change in (change for line in lines for change in line["changes"] if change["noise"] == "same"):
            value = change["least"][0] if kind == "least" else np.mean(change["random"])
            by_size.setdefault(change["size"], []).append(float(value))
        sizes = sorted(by_size)
        axes.fill_between(
            sizes, [min(by_size[size]) for size in sizes], [max(by_size[size]) for size in sizes],
            color=colour(index), alpha=0.2, linewidth=0,
        )  # fmt: skip
        medians = [float(np.median(by_size[size])) for size in sizes]
        label = "random w" if kind == "random" else "w that heads see least"
        axes.plot(sizes, medians, color=colour(index), marker="o", markersize=3.5, label=label)
    axes.set_xlabel("noise / normalised token (ratio of norms)")
    if first:
        axes.set_ylabel("relative change of heads")
        axes.legend(loc="upper left")
