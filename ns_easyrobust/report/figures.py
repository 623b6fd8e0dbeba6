"""Pictures as PNG files: histories of noise, sheets of images, accuracies with their intervals.

Everything is drawn with matplotlib's objects on the Agg canvas, under matplotlib's own
defaults: no display, no pyplot, and a user's matplotlibrc does not reach the file.
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch

from ..errors import OptionError
from ..utils.files import write_atomically

DPI = 150
# Okabe and Ito's colours, told apart with every common colour blindness; yellow is too pale for lines.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
GREY = "#6b6b6b"

_STYLE: Any = {
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": GREY,
    "axes.linewidth": 0.8,
    "axes.titlesize": 10,
    "axes.titlelocation": "left",
    "axes.labelsize": 9,
    "axes.axisbelow": True,
    "axes.grid": True,
    "grid.color": "#e6e6e6",
    "grid.linewidth": 0.6,
    "font.size": 9,
    "text.parse_math": False,  # a run's name may hold dollar signs
    "legend.fontsize": 8.5,
    "legend.frameon": False,
    "xtick.color": GREY,
    "xtick.labelcolor": "black",
    "ytick.color": GREY,
    "ytick.labelcolor": "black",
}


def colour(index: int) -> str:
    """The palette's colour for line or row ``index``; it starts again after the last."""
    return COLOURS[index % len(COLOURS)]


@contextmanager
def canvas(path: str | Path, width: float, height: float) -> Iterator[Any]:
    """A matplotlib ``Figure`` of ``width`` x ``height`` inches; after the body it is written to ``path``.

    The style holds for the body and the writing only; the process's own settings come back.

    Raises:
        OptionError: matplotlib is not installed.
        OutputError: ``path`` cannot be written.
    """
    try:
        import matplotlib
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ModuleNotFoundError as error:
        raise OptionError(
            f"cannot draw {path}: expected matplotlib, found none. Install it: pip install matplotlib."
        ) from error
    with matplotlib.rc_context():
        # The backend is kept: resetting it too would make matplotlib look for a display.
        matplotlib.rcParams.update(
            {key: value for key, value in matplotlib.rcParamsDefault.items() if not key.startswith("backend")}
        )
        matplotlib.rcParams.update(_STYLE)
        figure = Figure(figsize=(width, height), dpi=DPI)
        FigureCanvasAgg(figure)
        yield figure
        # The temporary name has no suffix to tell the format by.
        write_atomically(path, lambda temporary: figure.savefig(temporary, format="png"))


def noise_history(histories: Mapping[str, Sequence[Mapping[str, Any]]], path: str | Path, eps: float) -> Path:
    """Norm and ``mse_probability`` of the noises of one or more trainings, over training steps.

    Markers are filled where a noise was feasible on held-out images (``converged`` is true),
    hollow where it was not, and small dots where none were held out.

    Args:
        histories: by run name, :attr:`NullspaceAugmentation.history`; entries with step, norm,
            mse_probability and converged.
        path: the PNG file.
        eps: the threshold on ``mse_probability`` (arXiv:2403.10476, Algorithm 1).

    Raises:
        OptionError: no entry at all, or one without those keys.
        OutputError: ``path`` cannot be written.
    """
    for name, history in histories.items():
        for entry in history:
            missing = [key for key in ("step", "norm", "mse_probability", "converged") if key not in entry]
            if missing:
                raise OptionError(
                    f"noise history {name!r}: expected step, norm, mse_probability and converged in each "
                    f"entry, found no {' and no '.join(missing)}. Give NullspaceAugmentation.history."
                )
    drawn = {name: history for name, history in histories.items() if history}
    if not drawn or not eps > 0:
        raise OptionError(
            f"noise history: expected at least one noise and eps > 0, found {sum(map(len, drawn.values()))} "
            f"and eps={eps}. Draw it once a training has made its first noise."
        )
    with canvas(path, 7.2, 5.4) as figure:
        from matplotlib.lines import Line2D

        figure.set_layout_engine("constrained", w_pad=0.08, h_pad=0.08)
        norms, influences = figure.subplots(2, 1, sharex=True)
        states: set[bool | None] = set()
        for index, (name, history) in enumerate(drawn.items()):
            states |= {_state(entry) for entry in history}
            for axes, key in ((norms, "norm"), (influences, "mse_probability")):
                _history_line(axes, history, key, colour(index), name)
        values = [entry["mse_probability"] for history in drawn.values() for entry in history]
        positive = [value for value in [*values, eps] if value > 0]
        if max(positive) > 50 * min(positive):
            influences.set_yscale("log")
            influences.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
        else:
            influences.set_ylim(bottom=0, top=1.12 * max(positive))
        norms.set_ylim(bottom=0)
        influences.axhline(eps, color="black", linewidth=1, linestyle=(0, (5, 3)))
        beside = {"xycoords": ("axes fraction", "data"), "ha": "left", "va": "center", "fontsize": 8.5}
        influences.annotate(f"eps = {eps:g}", (1.01, eps), annotation_clip=False, **beside)
        norms.set_ylabel("L2 norm of the noise")
        influences.set_ylabel("mse_probability")
        influences.set_xlabel("training step")
        seen = [entry["step"] for history in drawn.values() for entry in history]
        if min(seen) == max(seen):
            influences.set_xlim(seen[0] - 1, seen[0] + 1)
        influences.xaxis.get_major_locator().set_params(integer=True)
        figure.align_ylabels()
        lines = norms.get_legend_handles_labels()[0]
        longest = max(len(row) for line in lines for row in line.get_label().splitlines())
        figure.legend(handles=lines, loc="outside upper center", ncols=max(1, min(4, 96 // (longest + 9))))
        meanings = {
            True: "feasible on held-out images",
            False: "not feasible on held-out images",
            None: "no images held out",
        }
        markers = [
            Line2D([], [], **_marker(GREY, state, 5), linestyle="", label=meaning)
            for state, meaning in meanings.items()
            if state in states
        ]
        figure.legend(handles=markers, loc="outside lower center", ncols=len(markers), handletextpad=0.2)
    return Path(path)


def _state(entry: Mapping[str, Any]) -> bool | None:
    return None if entry["converged"] is None else bool(entry["converged"])


def _marker(paint: str, converged: bool | None, size: float) -> dict[str, Any]:
    if converged is None:
        return {"marker": ".", "color": paint, "markersize": size}
    face = paint if converged else "white"
    sizes = {"markersize": size, "markeredgewidth": size / 4}
    return {"marker": "o", "color": paint, "markerfacecolor": face, **sizes}


def _history_line(axes: Any, history: Sequence[Mapping[str, Any]], key: str, paint: str, name: str) -> None:
    # Thousands of noises shall not become one blot: their markers shrink and their line thins.
    crowding = min(1.0, 100 / len(history))
    size = max(2.0, 5 * crowding)
    label = _fold(name, 60) or "unnamed"
    steps, values = [entry["step"] for entry in history], [entry[key] for entry in history]
    axes.plot(steps, values, color=paint, linewidth=max(0.3, 1.4 * crowding), label=label)
    for state in (True, False, None):
        chosen = [entry for entry in history if _state(entry) is state]
        steps, values = [e["step"] for e in chosen], [e[key] for e in chosen]
        axes.plot(steps, values, linestyle="", zorder=3, **_marker(paint, state, size))


def image_sheet(rows: Sequence[tuple[torch.Tensor, str, Sequence[str]]], path: str | Path, title: str = "") -> Path:
    """Rows of images with a heading a row and a caption an image.

    Small images are enlarged pixel by pixel, so that a perturbation shows as it is.

    Args:
        rows: (images (B, 3, H, W) in [0, 1], heading, B captions); rows may differ in B, H and W.
        path: the PNG file.
        title: a line above the sheet, or "".

    Raises:
        OptionError: no rows, another shape or range, or not one caption an image.
        OutputError: ``path`` cannot be written.
    """
    if not rows:
        raise OptionError("image sheet: expected at least one row of images, found none. Give some images.")
    for images, heading, captions in rows:
        _check_row(images, heading, captions)
    side, gap, margin = 1.55, 0.14, 0.2  # inches
    most = max(len(images) for images, _, _ in rows)
    width = max(3.6, 2 * margin + most * (side + gap) - gap)
    title = _fold(title, int(8 * width))
    headings = [_fold(heading, int(10.5 * width)) for _, heading, _ in rows]
    texts = [[_fold(str(caption), 24) for caption in captions] for _, _, captions in rows]
    tall = [side * min(2.0, images.shape[2] / images.shape[3]) for images, _, _ in rows]
    above = [0.17 * _lines(heading) + 0.13 for heading in headings]
    below = [0.15 * max(map(_lines, captions)) + 0.16 for captions in texts]
    top = margin + (0.21 * _lines(title) + 0.13 if title else 0.0)
    height = top + sum(above) + sum(tall) + sum(below)
    with canvas(path, width, height) as figure:

        def write(x: float, y: float, text: str, size: float, weight: str = "normal") -> None:
            """Text whose upper left corner lies x, y inches from the sheet's."""
            figure.text(x / width, 1 - y / height, text, fontsize=size, weight=weight, va="top", linespacing=1.2)

        write(margin, margin, title, 12, "bold")
        for index, (images, _, _) in enumerate(rows):
            write(margin, top + 0.06, headings[index], 9.5, "bold")
            top += above[index]
            for column, image in enumerate(images):
                left = margin + column * (side + gap)
                bottom = 1 - (top + tall[index]) / height
                axes = figure.add_axes((left / width, bottom, side / width, tall[index] / height))
                axes.set_axis_off()
                pixels = image.detach().float().clamp(0, 1).permute(1, 2, 0).cpu().numpy()
                small = max(pixels.shape) < side * DPI
                axes.imshow(pixels, interpolation="nearest" if small else "antialiased")
                write(left, top + tall[index] + 0.05, texts[index][column], 8)
            top += tall[index] + below[index]
    return Path(path)


def _fold(text: str, width: int) -> str:
    """``text`` in lines of at most ``width`` characters; its own line ends are kept."""
    return "\n".join(part for line in text.splitlines() for part in textwrap.wrap(line, width) or [""])


def _lines(text: str) -> int:
    return text.count("\n") + 1 if text else 0


def _check_row(images: torch.Tensor, heading: str, captions: Sequence[str]) -> None:
    if images.ndim != 4 or images.shape[1] != 3 or 0 in images.shape or not images.is_floating_point():
        raise OptionError(
            f"image sheet, {heading!r}: expected float images (B, 3, H, W), found {images.dtype} of shape "
            f"{tuple(images.shape)}. Give a batch of pixels."
        )
    low, high = float(images.detach().min()), float(images.detach().max())
    if not (low >= -1e-4 and high <= 1 + 1e-4):
        raise OptionError(
            f"image sheet, {heading!r}: expected pixels in [0, 1], found [{low:.3g}, {high:.3g}]. "
            "Undo the normalisation, or move differences into [0, 1] first."
        )
    if len(captions) != len(images):
        raise OptionError(
            f"image sheet, {heading!r}: expected a caption for each of {len(images)} images, found "
            f"{len(captions)}. Give '' where there is nothing to say."
        )


class Dot(NamedTuple):
    """A value and its interval, both ends None where it has none."""

    value: float
    low: float | None
    high: float | None


def dot_panels(
    panels: Sequence[tuple[str, Mapping[str, Dot]]],
    labels: Sequence[str],
    path: str | Path,
    *,
    unit: str = "%",
    caption: str = "",
    baseline: str | None = None,
    absent: str = "not run",
) -> Path:
    """A panel a column, a dot with its interval a row; the rows are named once, at the left.

    Args:
        panels: (title, dots by label); a label without a dot reads ``absent``.
        labels: the rows from top to bottom.
        path: the PNG file.
        unit: of every panel's axis; "%" stays within 0 to 100.
        caption: a line under the panels, or "".
        baseline: the label whose value a thin line carries through all rows.

    Raises:
        OptionError: no panel or no label.
        OutputError: ``path`` cannot be written.
    """
    if not panels or not labels:
        raise OptionError("dot panels: expected at least one column and one row, found none. Give some records.")
    down = -(-len(panels) // 4)  # rounded up, as is the next: as few rows as hold them, evenly filled
    across = -(-len(panels) // down)
    names = [_fold(label, 30) for label in labels]
    titles = [_fold(title, 30) for title, _ in panels]
    rows = sum(max(0.24, 0.17 * _lines(name)) for name in names) + 0.3
    heads = 0.6 + 0.16 * max(map(_lines, titles))
    left = 0.07 * max(len(line) for name in names for line in name.splitlines())
    height = down * (rows + heads) + (0.3 if caption else 0.1)
    with canvas(path, left + 0.4 + 2.35 * across, height) as figure:
        figure.set_layout_engine("constrained", w_pad=0.08, h_pad=0.08, wspace=0.03)
        if caption:
            figure.supxlabel(caption, fontsize=8, color=GREY)
        grid = figure.subplots(down, across, sharey=True, squeeze=False)
        for index, axes in enumerate(grid.flat):
            if index >= len(panels):
                axes.set_axis_off()
                continue
            dots = panels[index][1]
            if baseline is not None and baseline in dots:
                axes.axvline(dots[baseline].value, color=GREY, linewidth=0.9, linestyle=(0, (4, 3)), zorder=1)
            for row, label in enumerate(labels):
                _dot(axes, row, dots.get(label), absent)
            axes.set_title(titles[index])
            axes.set_xlabel(unit)
            axes.grid(axis="y", visible=False)
            axes.tick_params(axis="y", length=0)
            axes.spines["left"].set_visible(False)
            axes.margins(x=0.12)
            _limit(axes, unit)
            axes.locator_params(axis="x", nbins=5)
            axes.set_yticks(range(len(labels)), names)
            axes.set_ylim(len(labels) - 0.5, -0.5)
    return Path(path)


def _limit(axes: Any, unit: str) -> None:
    """Two units wide at least, so that a lone dot's interval does not fill the panel."""
    low, high = axes.get_xlim()
    spare = max(0.0, 2 - (high - low)) / 2
    low, high = low - spare, high + spare
    axes.set_xlim((max(low, 0), min(high, 100)) if unit == "%" else (low, high))


def _dot(axes: Any, row: int, dot: Dot | None, absent: str) -> None:
    if dot is None:
        middle = {"xycoords": ("axes fraction", "data"), "ha": "center", "va": "center"}
        axes.annotate(absent, (0.5, row), color=GREY, **middle)
        return
    if dot.low is not None and dot.high is not None:
        bar = {"linewidth": 2.2, "solid_capstyle": "butt", "zorder": 2}
        axes.plot([dot.low, dot.high], [row, row], color=colour(row), **bar)
    axes.plot(dot.value, row, marker="o", markersize=6, color=colour(row), zorder=3, clip_on=False)
