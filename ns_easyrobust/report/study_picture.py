"""The picture of a study: clean accuracy against mean robustness, one mark a method and seed."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ..errors import OptionError
from .canvas import COLOURS, GREY, colour, line_count, open_canvas, wrap_text
from .seed_statistics import over_seeds
from .study_comparison import StudyComparison
from .study_measures import Measure
from .study_series import Series, series_of

_MARKERS = "osD^vPX<"  # one more than the palette has colours: 56 pairs of both
_MOST_METHODS = len(_MARKERS) * len(COLOURS)
_LEGEND_LINES = 24  # of one column
_FEW = 10  # methods; more need more room


class _Marks(NamedTuple):
    """A method's (clean accuracy, mean robustness): of each run that has both, their mean, and its interval over seeds.

    ``arms`` are how far that reaches from the mean to both sides, for either number; None of a single run.
    """

    runs: list[tuple[float, float]]
    mean: tuple[float, float]
    arms: tuple[float, float] | None


def study_figure(study: StudyComparison, path: str | Path) -> Path:
    """Draw clean accuracy (x) against mean robustness (y) of each run, and with a larger mark each method's mean.

    Thin crosses are the means' intervals over seeds. Methods that differ in a number alone
    (:func:`~ns_easyrobust.report.study_series.series_of`) have one colour, their numbers beside the marks, and a line.
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
    groups = series_of(study.methods)
    if len(groups) > _MOST_METHODS:
        raise OptionError(f"study figure: expected at most {_MOST_METHODS} methods, found {len(groups)}. Show fewer.")
    marks = {label: found for label in study.methods if (found := _marks(study, label, robustness)) is not None}
    if not marks:
        raise OptionError(
            f"study figure: expected a run with {clean.title} and all of {study.robust_names}, found none. "
            "Benchmark the missing suites."
        )
    shown = {index: own for index, each in enumerate(groups) if (own := [x for x in each.members if x in marks])}
    names = {index: wrap_text(_name(study, groups[index], own), 30) or "unnamed" for index, own in shown.items()}
    legend_columns = -(-sum(map(line_count, names.values())) // _LEGEND_LINES)
    crowd = len(marks) > _FEW
    width, height = (6.8, 6.0) if crowd else (5.2, 4.4)
    caption = wrap_text(_caption(study, marks), int(18 * (width - 0.6 + 2.4 * legend_columns)))
    with open_canvas(path, width + 2.4 * legend_columns, height + 0.14 * line_count(caption)) as figure:
        figure.set_layout_engine("constrained", w_pad=0.08, h_pad=0.08)
        figure.supxlabel(caption, fontsize=8, color=GREY)
        axes = figure.subplots()
        if study.baseline in marks:
            x, y = marks[study.baseline].mean
            dashed = {"color": GREY, "linewidth": 0.9, "linestyle": (0, (4, 3)), "zorder": 1}
            axes.axvline(x, **dashed)
            axes.axhline(y, **dashed)
        for index, own in shown.items():
            style = {"color": colour(index), "marker": _MARKERS[index % len(_MARKERS)], "markeredgewidth": 0.8}
            _draw(axes, [marks[label] for label in own], style, names[index], crowd)
            for label in own:
                number = groups[index].members[label] + " (baseline)" * (label == study.baseline)
                if len(groups[index].members) > 1:
                    beside = {"textcoords": "offset points", "xytext": (6, 4), "fontsize": 7.5, "zorder": 4}
                    axes.annotate(number, marks[label].mean, **beside)
        axes.set_xlabel(f"clean accuracy ({clean.title}), %")
        axes.set_ylabel("mean robustness, %")
        axes.set_xlim(*_limits(list(marks.values()), 0))
        axes.set_ylim(*_limits(list(marks.values()), 1))
        figure.legend(loc="outside right upper", ncols=legend_columns, labelspacing=0.7)
    return Path(path)


def _name(study: StudyComparison, series: Series, own: Sequence[str]) -> str:
    """Of a series in the legend."""
    if len(series.members) > 1:
        return f"{series.name}: {', '.join(series.members[label] for label in own)}"
    return f"{series.name} (baseline)" if own[0] == study.baseline else series.name


def _marks(study: StudyComparison, label: str, robustness: Measure) -> _Marks | None:
    clean = next(measure for measure in study.measures if measure.column is study.clean)
    x, y = study.values(label, clean), study.values(label, robustness)
    runs = [(x[name], y[name]) for name in x if name in y]
    if not runs:
        return None
    mean_x, mean_y = (sum(values) / len(runs) for values in zip(*runs, strict=True))
    arms = [
        over_seeds({str(seed): value for seed, value in enumerate(values)}, {"zero": 0.0}, study.confidence)
        for values in zip(*runs, strict=True)
    ]
    ends = None if arms[0] is None or arms[1] is None else (arms[0].half_width, arms[1].half_width)
    return _Marks(runs, (mean_x, mean_y), ends)


def _draw(axes: Any, series: Sequence[_Marks], style: dict[str, Any], name: str, crowd: bool) -> None:
    """The marks of a series or of a single method; smaller ones of the seeds in a ``crowd``."""
    seeds = {"linestyle": "", "markersize": 3.2 if crowd else 4.5, "markeredgecolor": "none", "zorder": 2}
    for marks in series:
        if len(marks.runs) > 1:
            axes.plot(*zip(*marks.runs, strict=True), **style | seeds, alpha=0.4 if crowd else 0.55)
        if marks.arms is not None:
            (x, y), (across, up) = marks.mean, marks.arms
            axes.errorbar(x, y, up, across, fmt="none", ecolor=style["color"], elinewidth=0.7, alpha=0.6, zorder=2)
    means = {"markersize": 8.5 if crowd else 9.5, "markeredgecolor": "black", "zorder": 3, "linewidth": 0.9}
    name = f" {name}" if name.startswith("_") else name  # which a legend would leave out
    line = "-" if len(series) > 1 else ""
    axes.plot(*zip(*(marks.mean for marks in series), strict=True), **style | means, linestyle=line, label=name)


def _caption(study: StudyComparison, marks: dict[str, _Marks]) -> str:
    lines = [f"mean robustness: plain mean of {study.robust_names}"]
    if any(len(found.runs) > 1 for found in marks.values()):
        lines.append("small marks: one a seed; large marks: the mean over seeds")
        percent = f"{100 * study.confidence:g}%"
        lines.append(
            f"crosses: {percent} intervals of the mean over seeds alone (Student's t), cut at the edge; "
            "which images were drawn adds to them"
        )
    left_out = [label for label in study.methods if label not in marks]
    if left_out:
        lines.append(f"not shown, as columns are missing: {', '.join(left_out)}")
    return "\n".join(lines)


def _limits(marks: Sequence[_Marks], axis: int) -> tuple[float, float]:
    """Ends of an axis: around all marks, and as far around their intervals as leaves the marks half of it.

    At least two points, so that marks a hundredth of a point apart do not look far from each other.
    """
    values = [run[axis] for own in marks for run in own.runs]
    low, high = min(values), max(values)
    padding = max(0.08 * (high - low), 1 - (high - low) / 2)
    low, high = low - padding, high + padding
    ends = [own.mean[axis] + sign * own.arms[axis] for own in marks if own.arms is not None for sign in (-1, 1)]
    most = (high - low) / 2
    return max(low - most, min([low, *ends])), min(high + most, max([high, *ends]))
