"""The picture of ``dynamics``: norm and influence of the noises, and accuracy relative to the start, by step."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import IO, TYPE_CHECKING, Any

from ..evaluation import ADVERSARIAL, OOD
from .canvas import GREY, colour, line_count, open_canvas, wrap_text
from .dynamics_course import TOTAL
from .seed_statistics import Interval, interval_of_mean
from .sheet import format_count

if TYPE_CHECKING:
    from .dynamics_course import Course

_WIDTH, _HEIGHT = 10.5, 6.2
_MARKERS = "osD^vPX<"
_FEWEST = 3  # seeds that have a band: of two it is nine times as wide as they are apart


def draw_dynamics(course: Course, stream: IO[bytes]) -> None:
    """Draw six panels: norm, influence, Adversarial, OOD and total over the start's, and total minus the baseline's.

    Lines are means over seeds, bands their 95% intervals.
    """
    caption = wrap_text(_caption(course), int(17 * _WIDTH))
    with open_canvas(stream, _WIDTH, _HEIGHT + 0.14 * line_count(caption)) as figure:
        figure.set_layout_engine("constrained", w_pad=0.08, h_pad=0.08, wspace=0.03)
        figure.supxlabel(caption, fontsize=8, color=GREY)
        panels = figure.subplots(2, 3).flat
        _draw_noises(next(panels), course, "norm", "L2 norm of the noise")
        _draw_influence(next(panels), course)
        for measure in (ADVERSARIAL, OOD, TOTAL):
            _draw_relative(next(panels), course, measure)
        _draw_gain(next(panels), course)
        handles = [_line(None, course, label) for label in course.labels]
        figure.legend(handles=handles, loc="outside upper center", ncols=min(len(handles), 5))


def _caption(course: Course) -> str:
    n = len(course.seeds)
    seeds = f"lines: means over {format_count(n, 'seed')}"
    if n >= _FEWEST:
        seeds += "; bands: their 95% intervals (Student's t), which leave out what other images would give"
    counts = sorted({n for _, _, n in course.columns})
    images = f"n={counts[0]}" if len(counts) == 1 else f"n={counts[0]} to {counts[-1]}"
    return f"{seeds}; accuracies on the same images at each step ({images})"


def _line(axes: Any, course: Course, label: str) -> Any:
    """The handle of a method in the legend."""
    from matplotlib.lines import Line2D

    return Line2D([], [], label=label, **_style(course, label))


def _style(course: Course, label: str) -> dict[str, Any]:
    index = course.labels.index(label)
    return {"color": colour(index), "marker": _MARKERS[index % len(_MARKERS)], "markersize": 4, "linewidth": 1.3}


def _plot(axes: Any, points: Mapping[int, Interval], style: dict[str, Any], band: bool) -> None:
    steps = list(points)
    axes.plot(steps, [points[step].mean for step in steps], **style)
    known = [step for step in steps if math.isfinite(points[step].low)]
    if band and known:
        ends = ([points[step].low for step in known], [points[step].high for step in known])
        axes.fill_between(known, *ends, color=style["color"], alpha=0.15, linewidth=0)


def _draw_noises(axes: Any, course: Course, number: str, title: str) -> None:
    for label in course.noisy():
        _plot(axes, course.noise(label, number), _style(course, label), len(course.seeds) >= _FEWEST)
    axes.set_ylim(bottom=0)
    _finish(axes, title, "norm")


def _draw_influence(axes: Any, course: Course) -> None:
    for label in course.noisy():
        style = _style(course, label)
        _plot(axes, course.noise(label, "held_out"), style, len(course.seeds) >= _FEWEST)
        dashed = style | {"marker": "", "linestyle": (0, (4, 2)), "linewidth": 0.9}
        _plot(axes, course.noise(label, "mse_probability"), dashed, band=False)
    for eps in {run["eps"] for label in course.noisy() for run in course.of(label)} - {None}:
        axes.axhline(eps, color="black", linewidth=0.9, linestyle=":")
        axes.annotate("eps", (1.01, eps), xycoords=("axes fraction", "data"), va="center", fontsize=8)
    axes.set_ylim(bottom=0)
    _finish(axes, "influence; dashed: in the search", "mse_probability, held out")


def _draw_relative(axes: Any, course: Course, measure: str) -> None:
    if measure in course.measures:
        for label in course.labels:
            found = {update: course.relative(label, update, measure) for update in (0, *course.updates)}
            _plot(
                axes,
                {step: interval_of_mean(list(own.values())) for step, own in found.items() if own},
                _style(course, label),
                len(course.seeds) >= _FEWEST,
            )
        axes.axhline(1, color=GREY, linewidth=0.8, zorder=1)
    else:
        _say(axes, f"no {measure} column was evaluated")
    _finish(axes, measure, "mean accuracy / start's")


def _draw_gain(axes: Any, course: Course) -> None:
    if course.baseline is None:
        _say(axes, "no method without noise")
    for label in course.labels if course.baseline is not None else ():
        if label != course.baseline:
            found = {update: course.gain(label, update, TOTAL) for update in course.updates}
            points = {0: Interval(0.0, 0.0, 0.0)} | {
                s: interval_of_mean(list(own.values())) for s, own in found.items()
            }
            _plot(axes, points, _style(course, label), len(course.seeds) >= _FEWEST)
    axes.axhline(0, color=GREY, linewidth=0.8, zorder=1)
    _finish(axes, f"total minus {course.baseline or 'none'}'s, same seed", "points of accuracy")


def _say(axes: Any, text: str) -> None:
    axes.annotate(text, (0.5, 0.5), xycoords="axes fraction", color=GREY, ha="center")


def _finish(axes: Any, title: str, unit: str) -> None:
    axes.set_title(title)
    axes.set_ylabel(unit)
    axes.set_xlabel("training step (updates)")
