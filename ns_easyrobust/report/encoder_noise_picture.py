"""Figure 3 of arXiv:2403.10476: learned noise (solid), its permutation (dashed) and that within tokens."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import IO, Any

from .canvas import GREY, colour, open_canvas, wrap_text
from .encoder_noise_points import StrengthPoint, ends_of
from .seed_statistics import Interval

_STYLES = {
    "learned": ("learned", "-", "o", 0),
    "permuted": ("permuted", "--", "s", 1),
    "within": ("permuted within tokens", ":", "^", 2),
}


def encoder_noise_figure(stream: IO[bytes], points: Sequence[StrengthPoint], caption: str) -> None:
    """Agreement, mse_probability, norm, and how near to stationary the noises are, each against lambda.

    Raises:
        OptionError: matplotlib is not installed.
    """
    with open_canvas(stream, 7.6, 6.2) as figure:
        figure.set_layout_engine("constrained", w_pad=0.08, h_pad=0.08)
        (agreement, mse), (norm, stationary) = figure.subplots(2, 2)
        for kind, (label, line, marker, index) in _STYLES.items():
            style = {"linestyle": line, "marker": marker, "color": colour(index), "label": label}
            _series(agreement, points, partial(StrengthPoint.agreement, kind=kind), style)
            _series(mse, points, partial(StrengthPoint.mse, kind=kind), style)
        least = min(point.agreement(kind).low for point in points for kind in _STYLES)
        agreement.set_ylim(*((least - 15, 101) if least > 50 else (0, 103)))  # beneath is room for the legend
        agreement.legend(loc="lower left")
        mse.set_yscale("log", nonpositive="clip")
        _title(agreement, "(a) predictions that stay", "agreement (%)")
        _title(mse, "(b) change of probabilities", "mse_probability")
        black = {"linestyle": "-", "marker": "o", "color": colour(6)}
        _series(norm, points, lambda point: point.number("norm"), black)
        norm.set_yscale("log")
        _title(norm, "(c) norm of the noise", "L2 norm")
        _stationary(stationary, points)
        for axes in (agreement, mse, norm, stationary):
            axes.set_xscale("log")
            for axis in (axes.xaxis, axes.yaxis):
                _plain_decades(axis)
            axes.set_xlabel("lambda (logits)")
            for point in points:
                if point.ran_away:
                    axes.axvspan(point.strength / 1.25, point.strength * 1.25, color="#e6e6e6", linewidth=0, zorder=0)
        figure.supxlabel(wrap_text(caption, 118), fontsize=8, color=GREY)


def _stationary(axes: Any, points: Sequence[StrengthPoint]) -> None:
    strengths = [point.strength for point in points]
    axes.plot(strengths, strengths, color=GREY, linewidth=1, label="lambda")
    for label, of, style in (
        ("<v, grad J>, learned on", lambda point: point.number("radial"), ("-", "D", 2)),
        ("J, learned on", lambda point: point.number("distance"), (":", "^", 3)),
        ("J, held out", lambda point: point.logit_distance("learned"), ("--", "v", 0)),
    ):
        line, marker, index = style
        kind = {"linestyle": line, "marker": marker, "color": colour(index), "label": label}
        _series(axes, points, of, kind)
    axes.set_yscale("log", nonpositive="clip")
    axes.legend(loc="best")
    _title(axes, "(d) where it settles, <v, grad J> is lambda", "logits")


def _series(
    axes: Any, points: Sequence[StrengthPoint], of: Callable[[StrengthPoint], Interval], style: dict[str, Any]
) -> None:
    values, reach = ends_of(points, of)
    axes.errorbar(
        [point.strength for point in points], values, yerr=reach, markersize=4.5, linewidth=1.4, elinewidth=1,
        capsize=2.5, **style,
    )  # fmt: skip


def _plain_decades(axis: Any) -> None:
    """Of an axis with a log scale, numbers at powers of ten as they are written in tables; at 2 and 5, too, if few."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    if axis.get_scale() == "log":
        low, high = axis.get_view_interval()
        if high < 100 * low:
            axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axis.set_minor_formatter(NullFormatter())


def _title(axes: Any, title: str, label: str) -> None:
    axes.set_title(title)
    axes.set_ylabel(label)
