"""The picture of feasible norms before and after training: a panel a kind of direction, a mark a run."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from ..errors import OptionError
from .canvas import GREY, colour, line_count, open_canvas, wrap_text
from .feasible_norms import NormChanges

_MOST_PANELS, _MOST_MARKS = 64, 4096  # some ten seconds


def feasible_norm_figure(changes: NormChanges, path: str | Path, caption: str = "") -> Path:
    """Draw each run's feasible norm (geometric mean over directions, log scale) and, as a line, the norm before.

    A row a method; hollow marks: some of the norms are larger than what was tested; a larger mark: the geometric mean
    over seeds. The line before is one for all rows but where each run has directions of its own.

    Args:
        caption: a line under the panels.

    Raises:
        OptionError: too many panels or marks to be drawn, or matplotlib is not installed.
        OutputError: ``path`` cannot be written.
    """
    marks = sum(len(changes.seeds(label)) for label in changes.labels) * len(changes.kinds)
    if len(changes.kinds) > _MOST_PANELS or marks > _MOST_MARKS:
        raise OptionError(
            f"feasible norm figure: expected at most {_MOST_PANELS} kinds and {_MOST_MARKS} marks, found "
            f"{len(changes.kinds)} and {marks}. Show fewer."
        )
    names = [wrap_text(label, 30) for label in changes.labels]
    grid_rows = -(-len(changes.kinds) // 4)  # both divisions round up
    grid_columns = -(-len(changes.kinds) // grid_rows)
    width = 0.07 * max(len(line) for name in names for line in name.splitlines()) + 0.4 + 2.5 * grid_columns
    marks_are = "line: before training; small marks: one a seed, hollow where censored; large marks: geometric mean"
    caption = wrap_text(f"{caption}\n{marks_are}".strip(), int(18 * width))
    rows_height = sum(max(0.24, 0.17 * line_count(name)) for name in names) + 0.3
    height = grid_rows * (rows_height + 0.8) + 0.14 * line_count(caption) + 0.1
    with open_canvas(path, width, height) as figure:
        figure.set_layout_engine("constrained", w_pad=0.08, h_pad=0.08, wspace=0.03)
        figure.supxlabel(caption, fontsize=8, color=GREY)
        for index, axes in enumerate(figure.subplots(grid_rows, grid_columns, sharey=True, squeeze=False).flat):
            if index >= len(changes.kinds):
                axes.set_axis_off()
                continue
            _draw_panel(axes, changes, changes.kinds[index])
            axes.set_yticks(range(len(names)), names)
            axes.set_ylim(len(names) - 0.5, -0.5)
    return Path(path)


def _draw_panel(axes: Any, changes: NormChanges, kind: str) -> None:
    axes.set_xscale("log")
    everything = []
    for row, label in enumerate(changes.labels):
        runs = changes.logs(label, kind)
        if not runs:
            axes.annotate(
                "no noise", (0.5, row), xycoords=("axes fraction", "data"), color=GREY, ha="center", va="center"
            )
            continue
        before = math.exp(math.fsum(own for own, _ in runs.values()) / len(runs))
        mean = math.exp(math.fsum(own for _, own in runs.values()) / len(runs))
        after = [math.exp(own) for _, own in runs.values()]
        everything += [before, *after]
        axes.plot([before, before], [row - 0.5, row + 0.5], color=GREY, linewidth=1.1, zorder=1)
        style = {"marker": "o", "linestyle": "", "color": colour(row), "clip_on": False}
        axes.plot(mean, row, **style, markersize=7.5, markeredgecolor="black", markeredgewidth=0.8, zorder=2)
        for run, norm in zip(runs, after, strict=True):
            seed = next(seed for seed in changes.seeds(label) if f"seed {seed}" == run)
            face = "white" if changes.censored(label, kind, seed) else colour(row)
            axes.plot(norm, row, **style, markersize=4, markerfacecolor=face, markeredgewidth=0.8, zorder=3)
    axes.set_title(wrap_text(kind, 30))
    axes.set_xlabel("feasible norm")
    axes.grid(axis="y", visible=False)
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)
    if everything:
        _set_ticks(axes, min(everything), max(everything))


def _set_ticks(axes: Any, least: float, most: float) -> None:
    """Plain numbers at a few places of an axis that may span a hundredth or many decades; at least a tenth is shown."""
    from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter, NullLocator

    padding = max(1.05, (most / least) ** 0.08)
    axes.set_xlim(least / padding, most * padding)
    many = most / least > 8
    axes.xaxis.set_major_locator(
        LogLocator(subs=(1.0, 3.0) if most / least < 1000 else (1.0,), numticks=6) if many else MaxNLocator(4)
    )
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
