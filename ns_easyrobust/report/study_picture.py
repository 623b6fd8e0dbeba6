"""The picture of a study: clean accuracy against mean robustness, one mark a method and seed."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

from ..errors import OptionError
from .canvas import COLOURS, GREY, colour, line_count, open_canvas, wrap_text
from .study_comparison import Measure, StudyComparison

_MARKERS = "osD^vPX<"  # one more than the palette has colours: 56 pairs of both
_MOST_METHODS = len(_MARKERS) * len(COLOURS)
_LEGEND_LINES = 24  # of one column


class _Marks(NamedTuple):
    """A method's (clean accuracy, mean robustness) of each run that has both, and their mean."""

    runs: list[tuple[float, float]]
    mean: tuple[float, float]


def study_figure(study: StudyComparison, path: str | Path) -> Path:
    """Draw clean accuracy (x) against mean robustness (y) of each run, and with a larger mark each method's mean.

    Robustness is :attr:`StudyComparison.robustness`; the picture names its columns. Dashed lines cross at the
    baseline's mean. Methods of which no run has all columns are named as left out.

    Args:
        study: as for the table.
        path: the PNG file.

    Raises:
        OptionError: no clean column or no other one, no run with all of them, too many methods to be told apart, or
            matplotlib is not installed.
        OutputError: ``path`` cannot be written.
    """
    clean, robustness = study.clean, study.robustness
    if clean is None or robustness is None:
        missing = "clean" if clean is None else "other"
        raise OptionError(
            f"study figure: expected a clean accuracy and another one in percent, found no {missing} column. "
            "Benchmark val and at least one more suite."
        )
    if len(study.methods) > _MOST_METHODS:
        raise OptionError(
            f"study figure: expected at most {_MOST_METHODS} methods, found {len(study.methods)}. Show fewer."
        )
    marks = {label: found for label in study.methods if (found := _marks(study, label, robustness)) is not None}
    if not marks:
        raise OptionError(
            f"study figure: expected a run with {clean.title} and all of {study.robust_names}, found none. "
            "Benchmark the missing suites."
        )
    names = {
        label: wrap_text(f"{label} (baseline)" if label == study.baseline else label, 30) or "unnamed"
        for label in marks
    }
    legend_columns = -(-sum(map(line_count, names.values())) // _LEGEND_LINES)
    caption = wrap_text(_caption(study, marks), int(18 * (4.6 + 2.4 * legend_columns)))
    height = 4.4 + 0.14 * line_count(caption)
    with open_canvas(path, 5.2 + 2.4 * legend_columns, height) as figure:
        figure.set_layout_engine("constrained", w_pad=0.08, h_pad=0.08)
        figure.supxlabel(caption, fontsize=8, color=GREY)
        axes = figure.subplots()
        if study.baseline in marks:
            x, y = marks[study.baseline].mean
            dashed = {"color": GREY, "linewidth": 0.9, "linestyle": (0, (4, 3)), "zorder": 1}
            axes.axvline(x, **dashed)
            axes.axhline(y, **dashed)
        for index, label in enumerate(study.methods):
            if label in marks:
                _draw(axes, marks[label], colour(index), _MARKERS[index % len(_MARKERS)], names[label])
        axes.set_xlabel(f"clean accuracy ({clean.title}), %")
        axes.set_ylabel("mean robustness, %")
        axes.margins(0.08)
        axes.set_xlim(*_widened(*axes.get_xlim()))
        axes.set_ylim(*_widened(*axes.get_ylim()))
        figure.legend(loc="outside right upper", ncols=legend_columns, labelspacing=0.7)
    return Path(path)


def _marks(study: StudyComparison, label: str, robustness: Measure) -> _Marks | None:
    clean = next(measure for measure in study.measures if measure.column is study.clean)
    x, y = study.values(label, clean), study.values(label, robustness)
    runs = [(x[name], y[name]) for name in x if name in y]
    if not runs:
        return None
    mean_x, mean_y = (sum(values) / len(runs) for values in zip(*runs, strict=True))
    return _Marks(runs, (mean_x, mean_y))


def _draw(axes: Any, marks: _Marks, method_colour: str, marker: str, name: str) -> None:
    style = {"marker": marker, "linestyle": "", "color": method_colour, "markeredgewidth": 0.8}
    if len(marks.runs) > 1:
        axes.plot(*zip(*marks.runs, strict=True), **style, markersize=4.5, markeredgecolor="none", alpha=0.55, zorder=2)
    name = f" {name}" if name.startswith("_") else name  # which a legend would leave out
    axes.plot(*marks.mean, **style, markersize=9.5, markeredgecolor="black", zorder=3, label=name)


def _caption(study: StudyComparison, marks: dict[str, _Marks]) -> str:
    lines = [f"mean robustness: plain mean of {study.robust_names}"]
    if any(len(found.runs) > 1 for found in marks.values()):
        lines.append("small marks: one a seed; large marks: the mean over seeds")
    left_out = [label for label in study.methods if label not in marks]
    if left_out:
        lines.append(f"not shown, as columns are missing: {', '.join(left_out)}")
    return "\n".join(lines)


def _widened(low: float, high: float) -> tuple[float, float]:
    """At least two points wide, so that marks a hundredth of a point apart do not look far from each other."""
    padding = max(0.0, 2 - (high - low)) / 2
    return low - padding, high + padding
