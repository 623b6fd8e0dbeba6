"""The picture of patch embeddings' spectra, and of what all-ones and random directions do to the logits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import IO, Any

from ..errors import OptionError
from .canvas import COLOURS, GREY, colour, line_count, open_canvas, wrap_text
from .presentable import presentable
from .sheet import format_count

_MOST_MODELS = 64
_LEAST = 1e-18  # a change of exactly 0 is drawn there
_STYLES = ("-", "--", ":", "-.")
_MARKS = (  # of a change of the logits: field, label, marker, colour, filled
    ("random", "random direction", "o", GREY, True),
    ("random_pixels", "random pixels", "s", GREY, False),
    ("equal", "all-ones, equal on all tokens", "^", COLOURS[4], False),
    ("tokens", "all-ones, another size on each token", "o", COLOURS[0], True),
    ("pixels", "pixels that make all-ones", "s", COLOURS[1], False),
)


def dimensions_picture(protocol: Mapping[str, Any], lines: Sequence[Mapping[str, Any]], stream: IO[bytes]) -> None:
    """Draw a line of singular values and a row of changes of the logits for each model.

    Raises:
        OptionError: more than 64 models, or matplotlib is not installed.
    """
    if len(lines) > _MOST_MODELS:
        raise OptionError(f"picture: expected at most {_MOST_MODELS} models, found {len(lines)}.")
    names = [wrap_text(name, 46) for name in row_names(lines)]
    caption = wrap_text(
        "Above: singular values of one patch's linear map W; the dot is the last of min(C*p*p, D), the tick in its "
        "colour this model's cut, up to which they count as zero. Below: largest change of a logit, in float64, over "
        f"{format_count(protocol['images'], 'image')} of random pixels, by noise of norm {protocol['norm']:g} on the "
        "tokens (squares: by the pixels that W turns into such noise, and by random ones of their norm). No error "
        "bars: nothing is averaged.",
        104,
    )
    rows = sum(map(line_count, names))
    below = 2.4 + 0.2 * rows
    with open_canvas(stream, 7.8, 3.4 + below) as figure:
        figure.set_layout_engine("constrained", w_pad=0.08, h_pad=0.08)
        halves = figure.subfigures(2, 1, height_ratios=(3.4, below))
        _draw_spectra(halves[0].subplots(), lines)
        _draw_changes(halves[1].subplots(), lines, names)
        halves[0].legend(loc="outside right center", fontsize=8)
        halves[1].legend(loc="outside upper left", fontsize=8, ncols=3, columnspacing=1.2, handletextpad=0.2)
        halves[1].supxlabel(caption, fontsize=8, color=GREY)


def row_names(lines: Sequence[Mapping[str, Any]]) -> list[str]:
    """The models, with the version of timm where there are several."""
    several = len({line["timm"] for line in lines}) > 1
    return [presentable(line["model"]) + (f" (timm {line['timm']})" if several else "") for line in lines]


def _draw_spectra(axes: Any, lines: Sequence[Mapping[str, Any]]) -> None:
    groups: dict[tuple[Any, ...], list[Mapping[str, Any]]] = {}
    for line in lines:  # random weights of one shape have the same spectrum but for a hair
        random = line["weights"] == "random"
        key = (random, line["input_dim"], line["embed_dim"], *(() if random else (line["model"],)))
        groups.setdefault(key, []).append(line)
    least = min(_floor(line) for line in lines)
    for index, (key, members) in enumerate(groups.items()):
        line = members[0]
        values = [max(value, least) for value in line["relative_singular_values"]]
        name = f"{line['input_dim']} to {line['embed_dim']}, " + ("random" if key[0] else presentable(line["model"]))
        name = wrap_text(f"{name} (x{len(members)})" if len(members) > 1 else name, 30)
        style = _STYLES[index // len(COLOURS) % len(_STYLES)]
        axes.plot(range(1, len(values) + 1), values, style, color=colour(index), linewidth=1.4, label=name)
        axes.plot(len(values), values[-1], "o", color=colour(index), markersize=3.5)
        axes.plot(len(values), line["rtol"], "_", color=colour(index), markersize=11, markeredgewidth=1.6)
    axes.plot([], [], "_", color=GREY, markersize=11, markeredgewidth=1.6, label="the cut, at the curve's end")
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter(_power)
    axes.set_ylim(least / 2, 1.6)
    axes.set_xlim(0, None)
    axes.set_title("Spectra of patch embeddings, C*p*p to D")
    axes.set_xlabel("index of the singular value, from the largest")
    axes.set_ylabel("singular value / largest")


def _power(value: float, _: object) -> str:
    return f"{value:g}" if value >= 1 else f"{value:.0e}".replace("e-0", "e-")


def _floor(line: Mapping[str, Any]) -> float:
    """The lower end of the axis: a little below the cut, or the least singular value above rounding."""
    return max(min(line["rtol"] / 3, line["relative_singular_values"][-1]), 1e-10)


def _draw_changes(axes: Any, lines: Sequence[Mapping[str, Any]], names: Sequence[str]) -> None:
    seen = set()
    for row, line in enumerate(lines):
        if line["check"] is None:
            axes.annotate(
                "not checked", (0.5, row), xycoords=("axes fraction", "data"), color=GREY, ha="center", va="center"
            )
            continue
        for field, label, marker, shade, filled in _MARKS:
            value = line["check"][field]
            if value is not None:
                axes.plot(
                    max(value, _LEAST), row, marker, color=shade, markersize=5 if filled else 6.5,
                    markerfacecolor=shade if filled else "none", label=None if field in seen else label, clip_on=False,
                )  # fmt: skip
                seen.add(field)
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter(_power)
    axes.set_title("Do logits see the all-ones direction?")
    axes.set_xlabel("largest change of a logit")
    axes.set_yticks(range(len(names)), names, fontsize=8)
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.tick_params(axis="y", length=0)
