"""The picture of ``dynamics``: norm and influence of the noises, and accuracy relative to the start, by step."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
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
_FEWEST = 3  # seeds that have a bar: of two it is nine times as long as they are apart
_ASIDE = 0.6  # how much of the distance between two steps the methods take side by side


def draw_dynamics(course: Course, stream: IO[bytes]) -> None:
    """Draw six panels: norm, influence, Adversarial, OOD and total over the start's, and total minus the baseline's.

    Lines are means over seeds, bars their 95% intervals; those of the methods are set side by side.
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
        seeds += "; bars, side by side: 95% intervals (Student's t) over seeds, not over images"
    counts = sorted({n for _, _, n in course.columns})
    images = f"n={counts[0]}" if len(counts) == 1 else f"n={counts[0]} to {counts[-1]}"
    return f"{seeds}; the same images at each step ({images})"


def _line(axes: Any, course: Course, label: str) -> Any:
    """The handle of a method in the legend."""
    from matplotlib.lines import Line2D

    return Line2D([], [], label=label, **_style(course, label))


def _style(course: Course, label: str) -> dict[str, Any]:
    index = course.labels.index(label)
    return {"color": colour(index), "marker": _MARKERS[index % len(_MARKERS)], "markersize": 4, "linewidth": 1.3}


def _plot(axes: Any, points: Mapping[int, Interval], course: Course, label: str) -> None:
    style, steps = _style(course, label), list(points)
    shift = _shift(steps, course, label)
    places = [step + shift for step in steps]
    axes.plot(places, [point.mean for point in points.values()], **style)
    if len(course.seeds) >= _FEWEST:
        for place, point in zip(places, points.values(), strict=True):
            axes.plot([place, place], point[1:], color=style["color"], linewidth=0.9, alpha=0.7)


def _shift(steps: Sequence[int], course: Course, label: str) -> float:
    """How far a method's points are moved sideways, in updates, so that no bar hides another; 0 where there is none."""
    count = len(course.labels)
    if len(course.seeds) < _FEWEST or len(steps) < 2:
        return 0.0
    nearest = min(after - before for before, after in itertools.pairwise(steps))
    width = min(nearest * _ASIDE / count, 0.012 * (steps[-1] - steps[0]))
    return (course.labels.index(label) - (count - 1) / 2) * width


def _draw_noises(axes: Any, course: Course, number: str, title: str) -> None:
    for label in course.noisy():
        _plot(axes, course.noise(label, number), course, label)
    axes.set_ylim(bottom=0)
    _finish(axes, title, "norm")


def _draw_influence(axes: Any, course: Course) -> None:
    for label in course.noisy():
        _plot(axes, course.noise(label, "held_out"), course, label)
        if course.is_searched(label):
            means = {step: found.mean for step, found in course.noise(label, "mse_probability").items()}
            dashed = _style(course, label) | {"marker": "", "linestyle": (0, (4, 2)), "linewidth": 0.9}
            axes.plot(list(means), list(means.values()), **dashed)
    all_eps = {eps for label in course.noisy() for run in course.of(label) for eps in run["eps"]} - {None}
    for eps in all_eps if len(all_eps) < 3 else ():  # one that grows is no line
        axes.axhline(eps, color="black", linewidth=0.9, linestyle=":")
        axes.annotate("eps", (1.01, eps), xycoords=("axes fraction", "data"), va="center", fontsize=8)
    axes.set_ylim(bottom=0)
    _finish(axes, "influence; dashed: in the search", "mse_probability, held out")


def _draw_relative(axes: Any, course: Course, measure: str) -> None:
    if measure in course.measures:
        for label in course.labels:
            found = {update: course.relative(label, update, measure) for update in (0, *course.updates)}
            points = {step: interval_of_mean(list(own.values())) for step, own in found.items() if own}
            _plot(axes, points, course, label)
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
            _plot(axes, points, course, label)
    axes.axhline(0, color=GREY, linewidth=0.8, zorder=1)
    _finish(axes, f"total minus {course.baseline or 'none'}'s, same seed", "points of accuracy")


def _say(axes: Any, text: str) -> None:
    axes.annotate(text, (0.5, 0.5), xycoords="axes fraction", color=GREY, ha="center")


def _finish(axes: Any, title: str, unit: str) -> None:
    axes.set_title(title)
    axes.set_ylabel(unit)
    axes.set_xlabel("training step (updates)")
