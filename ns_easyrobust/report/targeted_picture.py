"""The picture of ``targeted``: triplets at each size, and over all pairs the room, the look and the outputs."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any

from .. import nullspace
from .canvas import COLOURS, GREY, open_canvas, show_image, wrap_text
from .patch_noise_rows import class_name
from .presentable import presentable
from .targeted_rows import UNCHANGED, Lines, TargetedRow, nullity_share, shown_triplet_name

_LEAST = 1e-9  # what no change at all is drawn as
_SIDE = 1.5  # inches of an image
_PANELS = 2.55  # inches of their height


def targeted_picture(
    protocol: Mapping[str, Any],
    rows: Mapping[tuple[int, str], TargetedRow],
    shown: Lines,
    parts: Path,
    stream: IO[bytes],
) -> None:
    """Triplets one beneath the other, above three panels.

    Args:
        parts: folder of the small copies.

    Raises:
        DataError: one of them is missing.
    """
    factors = list(dict.fromkeys(factor for factor, _ in rows))
    pairs = sorted({line["shown"] for line in shown})
    columns = 2 + len(factors)
    width = max(9.2, (_SIDE + 0.1) * columns + 0.3)
    top, below = (_SIDE + 0.5) * len(pairs) + 0.55, _PANELS + 1.8
    height = top + below
    with open_canvas(stream, width, height) as figure:
        if pairs:
            grid = figure.add_gridspec(
                len(pairs), columns, left=0.03, right=0.99, top=1 - 0.5 / height, bottom=(below - 0.05) / height,
                wspace=0.06, hspace=0.3,
            )  # fmt: skip
            for place, number in enumerate(pairs):
                lines = {line["factor"]: line for line in shown if line["shown"] == number}
                for column in range(columns):
                    axes = figure.add_subplot(grid[place, column])
                    _draw_image(axes, protocol, lines, factors, column, parts)
                    if place == 0:
                        axes.set_title(_title(protocol, factors, column), fontsize=8.5, loc="center")
        panels = figure.add_gridspec(
            1, 3, left=0.075, right=0.985, top=(_PANELS + 0.82) / height, bottom=0.98 / height, wspace=0.32,
            width_ratios=(1, 1, 1.25),
        )  # fmt: skip
        names = [f"{protocol['patch'] * factor} px" for factor in factors]
        _draw_room(figure.add_subplot(panels[0]), protocol, rows, factors, names)
        _draw_look(figure.add_subplot(panels[1]), rows, factors, names)
        _draw_outputs(figure.add_subplot(panels[2]), rows, factors, names)
        n = next(iter(rows.values())).n
        text = wrap_text(
            f"Transformed: files of 8 bits, rounded within the nullspace; shown at most 224 pixels wide. n={n} pairs a "
            "size; bars: 95% of the mean over pairs (Student's t), of random W the range of its draws, behind the same "
            "pooling. Right: a dot a pair, a black edge for the largest. Orange names: another prediction than the "
            "source's.",
            int(15.5 * width),
        )
        figure.text(0.5, 0.06 / height, text, ha="center", va="bottom", fontsize=8, color=GREY)


def _title(protocol: Mapping[str, Any], factors: Sequence[int], column: int) -> str:
    if column < 2:
        return ("source", "target")[column]
    factor = factors[column - 2]
    share = nullity_share(protocol, factor)
    return f"transformed, {protocol['patch'] * factor} px\n(nullspace {100 * share:.0f}%)"


def _draw_image(
    axes: Any, protocol: Mapping[str, Any], lines: Mapping[int, Mapping[str, Any]], factors: Sequence[int],
    column: int, parts: Path,
) -> None:  # fmt: skip
    """The source and the target as large as the largest transformed one, then a transformed one a size."""
    factor = factors[-1] if column < 2 else factors[column - 2]
    which = ("source", "target", "transformed")[min(column, 2)]
    line = lines[factor]
    show_image(axes, parts / shown_triplet_name(line["shown"], factor, which))
    label, best = line["predictions"][nullspace.TransformedKinds.LATTICE if column > 1 else which]
    same = label == line["predictions"]["source"][0]
    text = f"{class_name(protocol, label)}  {100 * best:.2f}%"
    if column < 2:
        text += f"\n({presentable(line['names'][column])})"
    else:
        text += f"\n(source {100 * line['predictions']['source'][1]:.2f}%)"
    axes.set_xlabel(text, fontsize=8, color="black" if same else COLOURS[1], labelpad=3)


def _curve(axes: Any, rows: Sequence[TargetedRow], name: str, shade: str, mark: str, label: str, **style: Any) -> None:
    found = [row.mean(name) for row in rows]
    bars = [
        [each.mean - each.low if math.isfinite(each.low) else 0 for each in found],
        [each.high - each.mean if math.isfinite(each.high) else 0 for each in found],
    ]
    means = [each.mean for each in found]
    axes.errorbar(range(len(rows)), means, bars, color=shade, marker=mark, markersize=4.5, label=label, **style)


def _ticks(axes: Any, names: Sequence[str]) -> None:
    axes.set_xticks(range(len(names)), names)
    axes.set_xlim(-0.4, len(names) - 0.6)
    axes.set_xlabel("side of a patch")


def _draw_room(
    axes: Any, protocol: Mapping[str, Any], rows: Mapping[tuple[int, str], TargetedRow], factors: Sequence[int],
    names: Sequence[str],
) -> None:  # fmt: skip
    found = [rows[factor, UNCHANGED] for factor in factors]
    shares = [nullity_share(protocol, factor) for factor in factors]
    axes.plot(range(len(factors)), shares, color=GREY, linestyle=":", marker="", linewidth=2.2, label="of dimensions")
    draws = [row.draws() for row in found]
    means = [sum(each) / len(each) for each in draws]
    bars = [
        [mean - min(each) for mean, each in zip(means, draws, strict=True)],
        [max(each) - mean for mean, each in zip(means, draws, strict=True)],
    ]
    axes.errorbar(
        range(len(found)), means, bars, color=COLOURS[1], marker="s", markersize=4.5, linestyle="--",
        label="of t - x, random W",
    )  # fmt: skip
    _curve(axes, found, "unseen_share", COLOURS[0], "o", "of t - x, this W")
    if pooled := [place for place, row in enumerate(found) if row.factor > 1]:
        hidden = [found[place].mean("within_share").mean for place in pooled]
        axes.plot(
            pooled,
            hidden,
            color=COLOURS[2],
            marker="^",
            markersize=4.5,
            linestyle="-.",
            label="of t - x, pooling alone",
        )
    axes.set_yscale("log")
    marks = [0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1]
    least = axes.get_ylim()[0]
    axes.set_ylim(least, 1.1)
    axes.set_yticks([mark for mark in marks if mark > least], [f"{100 * mark:g}%" for mark in marks if mark > least])
    axes.minorticks_off()
    axes.set_ylabel("share in the nullspace")
    axes.set_title("Room: target t, source x")
    axes.legend(loc="best", fontsize=7.5)
    _ticks(axes, names)


def _draw_look(
    axes: Any, rows: Mapping[tuple[int, str], TargetedRow], factors: Sequence[int], names: Sequence[str]
) -> None:
    valid = [rows[factor, nullspace.TransformedKinds.VALID] for factor in factors]
    plain = [rows[factor, UNCHANGED] for factor in factors]
    for look, style in (("ssim", "-"), ("afar", "--")):
        named = look == "ssim"
        _curve(axes, valid, f"{look}_source", COLOURS[0], "o", "z to source" if named else "", linestyle=style)
        _curve(axes, valid, f"{look}_target", COLOURS[1], "s", "z to target" if named else "", linestyle=style)
        _curve(axes, plain, f"{look}_target", GREY, "x", "source to target" if named else "", linestyle=style)
    axes.plot([], [], color="black", linestyle="--", label="from afar")
    axes.set_ylim(min(0.0, axes.get_ylim()[0]), 1.5)
    axes.set_yticks([0, 0.2, 0.4, 0.6, 0.8, 1])
    axes.set_ylabel("SSIM")
    axes.set_title("Look of z, valid pixels")
    axes.legend(loc="upper center", ncol=2, fontsize=7.5, handlelength=1.7, columnspacing=0.8)
    _ticks(axes, names)


def _draw_outputs(
    axes: Any, rows: Mapping[tuple[int, str], TargetedRow], factors: Sequence[int], names: Sequence[str]
) -> None:
    kinds = (*nullspace.TransformedKinds.ALL, nullspace.TransformedKinds.LATTICE)
    shades = dict(zip(kinds, (COLOURS[0], COLOURS[5], COLOURS[1], COLOURS[2]), strict=True))
    for place, factor in enumerate(factors):
        for index, kind in enumerate(kinds):
            values = [max(value, _LEAST) for value in rows[factor, kind].values("confidence")]
            centre = place + 0.2 * (index - 1.5)
            spots = [centre + 0.06 * math.sin(7.1 * number) for number in range(len(values))]
            label = kind if place == 0 else None
            axes.plot(spots, values, ".", color=shades[kind], markersize=3.5, alpha=0.6, markeredgewidth=0, label=label)
            axes.plot(
                centre, max(values), "D", color=shades[kind], markersize=4.5, markeredgecolor="black",
                markeredgewidth=0.6,
            )  # fmt: skip
    axes.set_yscale("log")
    low, high = axes.get_ylim()
    axes.set_ylim(low, high * (high / low) ** 0.28)
    axes.set_ylabel("change of the class's confidence")
    axes.set_title("Outputs")
    axes.legend(loc="upper center", ncol=2, fontsize=7.5, markerscale=2.2, columnspacing=0.8, handletextpad=0.2)
    _ticks(axes, names)
