"""The picture of ``fingerprint``: likenesses by what was done to a model, and a model's likeness under hidden noise."""

from __future__ import annotations

from typing import IO, Any

from .canvas import COLOURS, GREY, open_canvas, wrap_text
from .fingerprint_numbers import METRICS, ON_IMAGES, ROWS, WEIGHTED, FingerprintNumbers
from .presentable import presentable

_TITLES = {
    ROWS: "S / k of row spaces", WEIGHTED: "likeness, weighted", ON_IMAGES: "likeness, weighted, on images"
}  # fmt: skip
_SHADES = {ROWS: (COLOURS[0], "o"), WEIGHTED: (COLOURS[2], "s"), ON_IMAGES: (COLOURS[4], "D")}
_GROUPS = {"derived": COLOURS[0], "independent": COLOURS[1], "own symmetric copies": COLOURS[2]}


def fingerprint_picture(numbers: FingerprintNumbers, stream: IO[bytes]) -> None:
    """Above: a row a kind, a mark a pair, for each way of comparing. Below: a panel for each attacked model."""
    kinds, attacks = len(numbers.kinds) + 2, list(numbers.attacks)
    above = 0.27 * kinds + 0.6
    height = above + 0.9 + (2.7 if attacks else 0)
    with open_canvas(stream, 9.0, height) as figure:
        figure.set_layout_engine("constrained", w_pad=0.08, h_pad=0.06, hspace=0.04)
        parts = figure.subfigures(2, 1, height_ratios=[above, 2.7]) if attacks else [figure]
        for axes, metric in zip(parts[0].subplots(1, 3, sharey=True), METRICS, strict=True):
            _draw_kinds(axes, numbers, metric)
        _draw_legend(figure)
        if attacks:
            panels = parts[1].subplots(1, max(len(attacks), 2), sharey=True, squeeze=False)[0]
            for axes, name in zip(panels, attacks, strict=False):
                _draw_attack(axes, numbers, name)
            panels[0].set_ylabel("likeness; share of images")
            for axes in panels[len(attacks) :]:
                axes.remove()
            handles, labels = panels[0].get_legend_handles_labels()
            parts[1].legend(handles, labels, loc="outside right center")
        caption = (
            f"Above: a mark a pair ({len(numbers.claimed)} claimed models, {len(numbers.independent)} independent "
            "ones); dashed: the independent model that is most like a claimed one; dotted: uniformly random subspaces "
            "(Haar)."
            + (
                " Below: noise of the patch embedding in directions that images hardly have; dashed: as above, of that "
                f"model. Bars: Wilson's 95% intervals, n={numbers.attacks[attacks[0]][0]['n']} images."
                if attacks
                else ""
            )
        )
        figure.supxlabel(wrap_text(caption, 130), fontsize=8, color=GREY)


def _draw_kinds(axes: Any, numbers: FingerprintNumbers, metric: int) -> None:
    order = sorted(numbers.kinds, key=lambda kind: -min(test.likeness for test in numbers.tested(kind, WEIGHTED)))
    rows = [(presentable(kind), "derived", [test.likeness for test in numbers.tested(kind, metric)]) for kind in order]
    rows.append(("own symmetric copies", "own symmetric copies", numbers.copies(metric)))
    rows.append(("independent", "independent", numbers.independent_likenesses(metric)))
    for place, (_, group, values) in enumerate(rows):
        offsets = [0.5 * ((index * 0.618034) % 1 - 0.5) for index in range(len(values))]
        axes.plot(
            values, [place + offset for offset in offsets], "o", color=_GROUPS[group], markersize=3.4, alpha=0.55,
            markeredgewidth=0, clip_on=False,
        )  # fmt: skip
    threshold = max(value for claimed in numbers.claimed for value in numbers.null(claimed, metric))
    axes.axvline(threshold, color=COLOURS[1], linestyle="--", linewidth=1)
    if metric == ROWS:
        for mean in {numbers.haar(*pair).mean for pair in numbers.independent_pairs}:  # one, if all k are equal
            axes.axvline(mean, color=GREY, linestyle=":", linewidth=1.4)
    axes.set_yticks(range(len(rows)), [name for name, _, _ in rows])
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.set_xlim(right=1.005)
    axes.set_xlabel(_TITLES[metric])
    axes.grid(axis="y", visible=False)


def _draw_legend(figure: Any) -> None:
    from matplotlib.lines import Line2D

    handles = [
        Line2D([], [], color=shade, marker="o", linestyle="", markersize=5, label=name)
        for name, shade in _GROUPS.items()
    ]
    handles += [
        Line2D([], [], color=COLOURS[1], linestyle="--", linewidth=1, label="most alike independent model"),
        Line2D([], [], color=GREY, linestyle=":", linewidth=1.4, label="Haar"),
    ]
    figure.legend(handles=handles, loc="outside upper center", ncols=len(handles))


def _draw_attack(axes: Any, numbers: FingerprintNumbers, name: str) -> None:
    from .statistics import wilson_interval

    steps = numbers.attacks[name][1:]
    clean = numbers.attacks[name][0]
    strengths = [100 * step["strength"] for step in steps]
    for metric, (shade, mark) in _SHADES.items():
        axes.plot(
            strengths, [step["likeness"][metric] for step in steps], mark + "-", color=shade, markersize=4,
            label=METRICS[metric],
        )  # fmt: skip
        axes.axhline(max(numbers.null(name, metric)), color=shade, linestyle="--", linewidth=0.9)
    for key, shade, label in (("unchanged", COLOURS[6], "same prediction"), ("right", COLOURS[3], "accuracy")):
        if steps[0][key] is None:
            continue
        shares = [step[key] / step["n"] for step in steps]
        ends = [wilson_interval(step[key], step["n"]) for step in steps]
        bars = [[share - low / 100 for share, (low, _) in zip(shares, ends, strict=True)],
                [high / 100 - share for share, (_, high) in zip(shares, ends, strict=True)]]  # fmt: skip
        axes.errorbar(strengths, shares, bars, fmt="^:", color=shade, markersize=4, elinewidth=0.9, label=label)
    if clean["right"] is not None:
        axes.axhline(clean["right"] / clean["n"], color=COLOURS[3], linewidth=0.7)
    axes.set_xscale("log")
    axes.set_ylim(0, 1.03)
    axes.set_xlabel("change of the embedding, % of its rms")
    axes.set_title(presentable(name))
