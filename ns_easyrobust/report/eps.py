"""Tables and picture of ``eps``: accuracy against the noise's eps, as in Table 4 of arXiv:2403.10476."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import IO, Any

from .canvas import GREY, colour, line_count, open_canvas, wrap_text
from .figure_report import FigureReport
from .published import TABLE_4
from .sheet import Cell, Sheet, format_count
from .statistics import holm

Line = Mapping[str, Any]
_LEVEL = 0.05
_MARKERS = "osD^vPX<"
_WIDTH, _HEIGHT = 10.5, 6.0


def eps_report(lines: Sequence[Line]) -> FigureReport:
    """The report of the lines of the experiment ``eps``."""
    measures = list(dict.fromkeys(line["measure"] for line in lines if line["kind"] == "accuracy"))
    contrasts = [line for line in lines if line["kind"] == "contrast"]
    sheets = [("", _accuracy(lines, measures))]
    if contrasts:
        sheets.append(("Nullspace minus the other noises at the same eps", _contrasts(contrasts, measures)))
    sheets.append(("Table 4 of the paper: nullspace minus random", _published()))
    return FigureReport(
        "Accuracy against eps of the noise (Table 4)",
        sheets,
        [*_protocol(lines, measures), *_findings(contrasts, measures), *_uncorrected(lines)],
        list(_rows(lines)),
        partial(_draw, lines, measures),
    )


def _name(measure: str) -> str:
    return measure.partition(":")[0]


def _accuracy(lines: Sequence[Line], measures: Sequence[str]) -> Sheet:
    headings = [("norm", "mean"), ("influence", "held out")] + [(_name(measure), "%") for measure in measures]
    rows = []
    for label in dict.fromkeys(line["label"] for line in lines if line["kind"] == "accuracy"):
        noise = _find(lines, kind="noise", label=label)
        cells = [
            Cell("" if noise is None or noise[key] is None else f"{noise[key]:.4g}") for key in ("norm", "held_out")
        ]
        for measure in measures:
            found = _find(lines, kind="accuracy", label=label, measure=measure)
            cells.append(Cell("") if found is None else Cell(f"{found['value']:.2f}", (_difference(found),)))
        rows.append((label, cells))
    return Sheet(headings, rows, ["In brackets: minus the method without noise, in points, with 95% interval."])


def _difference(line: Line) -> str:
    if "delta" not in line:
        return ""
    ends = f" [{line['low']:.2f}, {line['high']:.2f}]" if "low" in line else ""
    return f"({line['delta']:+.2f}{ends})"


def _contrasts(contrasts: Sequence[Line], measures: Sequence[str]) -> Sheet:
    rows = []
    for other, eps in dict.fromkeys((line["other"], line["eps"]) for line in contrasts):
        found = [_find(contrasts, other=other, eps=eps, measure=measure) for measure in measures]
        rows.append((f"{other}, eps {eps:g}", [Cell("" if one is None else _difference(one)[1:-1]) for one in found]))
    return Sheet([(_name(measure), "points") for measure in measures], rows, ["Points, with 95% interval."])


def _published() -> Sheet:
    """Pairs of the paper's rows; mCE, of which less is better, with its sign turned round."""
    rows = []
    values = {tuple(row.label.split(", ")[1:]): row.columns for row in TABLE_4}
    for eps in dict.fromkeys(eps for _, eps in values):
        own, other = values["nullspace", eps], values["random", eps]
        rows.append((eps, [Cell(f"{(-1 if name == 'c' else 1) * (own[name] - other[name]):+.2f}") for name in own]))
    headings = [("-mCE" if name == "c" else name, "points") for name in next(iter(values.values()))]
    notes = ["One run each, ViT-S on ImageNet, without intervals. The table has no clean column."]
    return Sheet(headings, rows, notes)


def _find(lines: Sequence[Line], **key: Any) -> Line | None:
    return next((line for line in lines if all(line.get(name) == value for name, value in key.items())), None)


def _protocol(lines: Sequence[Line], measures: Sequence[str]) -> Iterator[str]:
    for measure in measures:
        name, _, columns = measure.partition(": ")
        n = min(line["n"] for line in lines if line.get("measure") == measure)
        yield f"{name}: plain mean of {columns} (n={n} images at least)."
    seeds = sorted({line["seeds"] for line in lines})
    over = "over images alone: what another training would give is not in them" if seeds == [1] else "as in studies"
    yield f"{' to '.join(map(str, seeds))} {'seed' if seeds == [1] else 'seeds'} of each method; intervals are {over}."


def _findings(contrasts: Sequence[Line], measures: Sequence[str]) -> Iterator[str]:
    """For each other kind of noise, where nullspace noise is ahead of it or behind it."""
    tested = [line for line in contrasts if "p" in line]
    adjusted = dict(zip(map(id, tested), holm([line["p"] for line in tested]), strict=True))
    for other in dict.fromkeys(line["other"] for line in contrasts):
        parts = []
        for measure in measures:
            own = [line for line in tested if (line["other"], line["measure"]) == (other, measure)]
            if not own:
                continue
            clear = [line for line in own if adjusted[id(line)] <= _LEVEL]
            ahead = [f"{line['eps']:g}" for line in clear if line["delta"] > 0]
            behind = [f"{line['eps']:g}" for line in clear if line["delta"] < 0]
            said = [f"{word} at eps {', '.join(at)}" for word, at in (("ahead", ahead), ("behind", behind)) if at]
            deltas = f"{min(line['delta'] for line in own):+.2f} to {max(line['delta'] for line in own):+.2f} points"
            ends = f"intervals from {min(line['low'] for line in own):+.2f} to {max(line['high'] for line in own):+.2f}"
            parts.append(f"{_name(measure)}: {' and '.join(said) or 'no difference found'} ({deltas}; {ends})")
        if parts:
            yield f"Nullspace against {other} noise of the same eps: {'; '.join(parts)}."
    if tested:
        yield f"Ahead and behind: p of at most {_LEVEL:g} after Holm's correction over these {len(tested)} tests."


def _uncorrected(lines: Sequence[Line]) -> Iterator[str]:
    """Of each family of tests the intervals that exclude 0, and how many of the tests survive Holm's correction."""
    for kind, family in (("contrast", "Nullspace minus other noise"), ("accuracy", "Noise minus no noise")):
        tested = [line for line in lines if line["kind"] == kind and "p" in line]
        if not tested:
            continue
        apart = [line for line in tested if line["low"] > 0 or line["high"] < 0]
        kept = sum(p <= _LEVEL for p in holm([line["p"] for line in tested]))
        named = "; ".join(
            f"{line.get('other', line['aug'])}, eps {line['eps']:g}, {_name(line['measure'])} {_difference(line)[1:-1]}"
            for line in apart
        )
        yield (
            f"{family}: before Holm's correction {len(apart)} of {format_count(len(tested), 'interval')} exclude 0"
            f"{f' ({named})' if named else ''}; after it {kept or 'none'} of the p are at most {_LEVEL:g}."
        )


def _rows(lines: Sequence[Line]) -> Iterator[Sequence[object]]:
    names = ["kind", "label", "aug", "other", "eps", "measure", "value", "delta", "low", "high", "p", "n", "seeds"]
    names += ["noises", "norm", "held_out"]
    yield names
    for line in lines:
        yield [line.get(name) for name in names]


def _draw(lines: Sequence[Line], measures: Sequence[str], stream: IO[bytes]) -> None:
    """A panel a measure: the difference from the method without noise; then norm and influence of the noises."""
    noises = [line for line in lines if line["kind"] == "noise"]
    kinds = list(dict.fromkeys(line["aug"] for line in noises))
    seeds = format_count(min(line["seeds"] for line in lines), "seed")
    counts = sorted({line["n"] for line in lines if "n" in line})
    caption = wrap_text(
        f"differences from the method without noise, same start and updates; bars: 95% intervals; {seeds} of each "
        f"method; n={counts[0]} to {counts[-1]} images a column",
        int(17 * _WIDTH),
    )
    rows = 1 if len(measures) < 2 else 2
    with open_canvas(stream, _WIDTH, _HEIGHT / 2 * rows + 0.14 * line_count(caption)) as figure:
        figure.set_layout_engine("constrained", w_pad=0.08, h_pad=0.08, wspace=0.03)
        figure.supxlabel(caption, fontsize=8, color=GREY)
        panels = list(figure.subplots(rows, math.ceil((len(measures) + 2) / rows), squeeze=False).flat)
        for axes, measure in zip(panels, measures, strict=False):
            for index, kind in enumerate(kinds):
                _draw_differences(axes, lines, kind, measure, index, (index - (len(kinds) - 1) / 2) * 0.03)
            axes.axhline(0, color=GREY, linewidth=0.8, zorder=1)
            _finish(axes, noises, _name(measure), "points over no noise")
        for axes, number, unit in zip(
            panels[len(measures) :], ("norm", "held_out"), ("L2", "mse_probability"), strict=False
        ):
            for index, kind in enumerate(kinds):
                own = sorted((line["eps"], line[number]) for line in noises if line["aug"] == kind and line[number])
                axes.plot(*zip(*own, strict=True), **_style(index)) if own else None
            if number == "held_out":
                ends = [min(line["eps"] for line in noises), max(line["eps"] for line in noises)]
                axes.plot(ends, ends, color=GREY, linewidth=0.9, linestyle=":")
            axes.set_yscale("log")
            _finish(
                axes,
                noises,
                {"norm": "norm of the noise", "held_out": "influence, held out (dotted: eps)"}[number],
                unit,
            )
        for axes in panels[len(measures) + 2 :]:
            axes.set_axis_off()
        handles = [panels[-1].plot([], [], label=kind, **_style(index))[0] for index, kind in enumerate(kinds)]
        figure.legend(handles=handles, loc="outside upper center", ncols=min(6, len(handles)))


def _draw_differences(axes: Any, lines: Sequence[Line], kind: str, measure: str, index: int, shift: float) -> None:
    """Moved sideways by ``shift`` of a decade, so that no bar hides another."""
    own = [line for line in lines if (line["kind"], line["aug"], line.get("measure")) == ("accuracy", kind, measure)]
    own = sorted((line for line in own if "delta" in line), key=lambda line: line["eps"])
    x = [line["eps"] * 10**shift for line in own]
    axes.plot(x, [line["delta"] for line in own], **_style(index))
    for place, line in zip(x, own, strict=True):
        if "low" in line:
            axes.plot([place, place], [line["low"], line["high"]], color=colour(index), linewidth=0.9, alpha=0.6)


def _style(index: int) -> dict[str, Any]:
    return {"color": colour(index), "marker": _MARKERS[index % len(_MARKERS)], "markersize": 5, "linewidth": 1.2}


def _finish(axes: Any, noises: Sequence[Line], title: str, unit: str) -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter, NullLocator

    if axes.get_yscale() == "log":
        axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 3.0)))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.yaxis.set_minor_formatter(NullFormatter())
    axes.set_xscale("log")
    values = sorted({line["eps"] for line in noises})
    axes.set_xticks(values, [f"{value:g}" for value in values])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_title(title)
    axes.set_xlabel("eps (mse_probability)")
    axes.set_ylabel(unit)
