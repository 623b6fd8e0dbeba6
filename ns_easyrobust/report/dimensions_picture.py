"""The picture of patch embeddings' spectra, and of what all-ones and random directions do to the logits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import IO, Any

from ..errors import OptionError
from .canvas import COLOURS, GREY, colour, open_canvas, wrap_text

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
    names = [wrap_text(line["model"], 34) for line in lines]
    rows = sum(name.count("\n") + 1 for name in names)
    caption = wrap_text(
        "Left: singular values of one patch's linear map W, dashed line: the largest cut below which they count as "
        f"zero. Right: largest change of a logit over n={protocol['images']} images of random pixels, in float64, by "
        f"noise of norm {protocol['norm']:g} on the tokens (of pixels: that which W turns into it). No bars: nothing is "
        "averaged.",
        150,
    )
    with open_canvas(stream, 11, max(4.6, 1.9 + 0.2 * rows)) as figure:
        figure.set_layout_engine("constrained", w_pad=0.08, h_pad=0.08, wspace=0.03)
        figure.supxlabel(caption, fontsize=8, color=GREY)
        left, right = figure.subplots(1, 2, width_ratios=(1, 1))
        _draw_spectra(left, lines)
        _draw_changes(right, lines, names)


def _draw_spectra(axes: Any, lines: Sequence[Mapping[str, Any]]) -> None:
    groups: dict[tuple[Any, ...], list[Mapping[str, Any]]] = {}
    for line in lines:
        random = line["weights"] == "random"
        key = (random, line["input_dim"], line["embed_dim"], *(() if random else (line["model"],)))
        groups.setdefault(key, []).append(line)
    least = min(_floor(line) for line in lines)
    for index, (key, members) in enumerate(groups.items()):
        line = members[0]
        values = [max(value, least) for value in line["relative_singular_values"]]
        name = f"{line['input_dim']} to {line['embed_dim']}, random" if key[0] else line["model"]
        name = wrap_text(f"{name} (x{len(members)})" if len(members) > 1 else name, 40)
        style = _STYLES[index // len(COLOURS) % len(_STYLES)]
        axes.plot(range(1, len(values) + 1), values, style, color=colour(index), linewidth=1.4, label=name)
        axes.plot(len(values), values[-1], "o", color=colour(index), markersize=3.5)
    cut = max(line["rtol"] for line in lines)
    axes.axhline(cut, color=GREY, linewidth=1, linestyle=(0, (6, 4)))
    axes.annotate(f"cut, {cut:.1e}", (1, cut), xycoords=("axes fraction", "data"), ha="right", va="bottom", fontsize=8)
    axes.set_yscale("log")
    axes.set_ylim(least / 2, 1.6)
    axes.set_xlim(0, None)
    axes.set_title("Spectra of patch embeddings")
    axes.set_xlabel("index of the singular value, from the largest; the dot is the last of min(C*p*p, D)")
    axes.set_ylabel("singular value / largest")
    axes.legend(loc="lower left", bbox_to_anchor=(0, 0.06), fontsize=7, ncols=1 if len(groups) < 13 else 2)


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
    axes.set_title("Do logits see the all-ones direction?")
    axes.set_xlabel("largest change of a logit")
    axes.set_yticks(range(len(names)), names, fontsize=7.5)
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.tick_params(axis="y", length=0)
    axes.legend(loc="lower center", bbox_to_anchor=(0.45, 1.06), ncols=2, fontsize=7.5)
