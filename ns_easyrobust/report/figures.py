"""Figures as PNG files: noise histories, sheets of images, and accuracies with their intervals."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ..errors import OptionError
from ..utils import torch
from .canvas import DPI, GREY, colour, line_count, open_canvas, wrap_text

_MOST_PANELS, _MOST_DOTS = 64, 2048  # of dot_panels: some ten seconds


def noise_history(histories: Mapping[str, Sequence[Mapping[str, Any]]], path: str | Path, eps: float) -> Path:
    """Plot the norm and ``mse_probability`` of the noises of one or more training runs over training steps.

    Markers are filled where a noise was feasible on held-out images (``converged`` is true),
    hollow where it was not, and small dots where no images were held out.

    Args:
        histories: :attr:`NullspaceAugmentation.history` by run name; each entry holds step, norm,
            mse_probability and converged.
        path: the PNG file.
        eps: the threshold on ``mse_probability`` (arXiv:2403.10476, Algorithm 1), > 0.

    Raises:
        OptionError: no entry at all, an entry without one of those keys, or ``eps`` <= 0.
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
    nonempty = {name: history for name, history in histories.items() if history}
    if not nonempty or not eps > 0:
        raise OptionError(
            f"noise history: expected at least one noise and eps > 0, found {sum(map(len, nonempty.values()))} "
            f"and eps={eps}. Draw it once a training has made its first noise."
        )
    with open_canvas(path, 7.2, 5.4) as figure:
        from matplotlib.lines import Line2D

        figure.set_layout_engine("constrained", w_pad=0.08, h_pad=0.08)
        norms, influences = figure.subplots(2, 1, sharex=True)
        convergence: set[bool | None] = set()
        for index, (name, history) in enumerate(nonempty.items()):
            convergence |= {_converged(entry) for entry in history}
            for axes, key in ((norms, "norm"), (influences, "mse_probability")):
                _history_line(axes, history, key, colour(index), name)
        values = [entry["mse_probability"] for history in nonempty.values() for entry in history]
        positive = [value for value in [*values, eps] if value > 0]
        if max(positive) > 50 * min(positive):
            influences.set_yscale("log")
            influences.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
        else:
            influences.set_ylim(bottom=0, top=1.12 * max(positive))
        norms.set_ylim(bottom=0)
        influences.axhline(eps, color="black", linewidth=1, linestyle=(0, (5, 3)))
        right_of_axes = {"xycoords": ("axes fraction", "data"), "ha": "left", "va": "center", "fontsize": 8.5}
        influences.annotate(f"eps = {eps:g}", (1.01, eps), annotation_clip=False, **right_of_axes)
        norms.set_ylabel("L2 norm of the noise")
        influences.set_ylabel("mse_probability")
        influences.set_xlabel("training step")
        steps = [entry["step"] for history in nonempty.values() for entry in history]
        if min(steps) == max(steps):
            influences.set_xlim(steps[0] - 1, steps[0] + 1)
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
            Line2D([], [], **_marker(GREY, converged, 5), linestyle="", label=meaning)
            for converged, meaning in meanings.items()
            if converged in convergence
        ]
        figure.legend(handles=markers, loc="outside lower center", ncols=len(markers), handletextpad=0.2)
    return Path(path)


def _converged(entry: Mapping[str, Any]) -> bool | None:
    return None if entry["converged"] is None else bool(entry["converged"])


def _marker(marker_colour: str, converged: bool | None, size: float) -> dict[str, Any]:
    if converged is None:
        return {"marker": ".", "color": marker_colour, "markersize": size}
    face = marker_colour if converged else "white"
    sizes = {"markersize": size, "markeredgewidth": size / 4}
    return {"marker": "o", "color": marker_colour, "markerfacecolor": face, **sizes}


def _history_line(axes: Any, history: Sequence[Mapping[str, Any]], key: str, line_colour: str, name: str) -> None:
    # Markers shrink and the line thins as noises grow in number, so that thousands of them stay legible.
    scale = min(1.0, 100 / len(history))
    size = max(2.0, 5 * scale)
    label = wrap_text(name, 60) or "unnamed"
    label = f" {label}" if label.startswith("_") else label  # which a legend would leave out
    steps, values = [entry["step"] for entry in history], [entry[key] for entry in history]
    axes.plot(steps, values, color=line_colour, linewidth=max(0.3, 1.4 * scale), label=label)
    for converged in (True, False, None):
        entries = [entry for entry in history if _converged(entry) is converged]
        steps, values = [e["step"] for e in entries], [e[key] for e in entries]
        axes.plot(steps, values, linestyle="", zorder=3, **_marker(line_colour, converged, size))


def image_sheet(rows: Sequence[tuple[torch.Tensor, str, Sequence[str]]], path: str | Path, title: str = "") -> Path:
    """Draw rows of images, with a heading for each row and a caption for each image.

    Small images are enlarged without smoothing, so that a perturbation is shown pixel by pixel.

    Args:
        rows: (images (B, 3, H, W) in [0, 1], heading, B captions) each; rows may differ in B, H and W.
        path: the PNG file.
        title: a line above the sheet, or "".

    Raises:
        OptionError: no rows, images of another shape, dtype or range, or not one caption per image.
        OutputError: ``path`` cannot be written.
    """
    if not rows:
        raise OptionError("image sheet: expected at least one row of images, found none. Give some images.")
    for images, heading, captions in rows:
        _check_row(images, heading, captions)
    side, gap, margin = 1.55, 0.14, 0.2  # inches
    most_images = max(len(images) for images, _, _ in rows)
    width = max(3.6, 2 * margin + most_images * (side + gap) - gap)
    title = wrap_text(title, int(8 * width))
    headings = [wrap_text(heading, int(10.5 * width)) for _, heading, _ in rows]
    wrapped_captions = [[wrap_text(str(caption), 24) for caption in captions] for _, _, captions in rows]
    image_heights = [side * min(2.0, images.shape[2] / images.shape[3]) for images, _, _ in rows]
    heading_heights = [0.17 * line_count(heading) + 0.13 for heading in headings]
    caption_heights = [0.15 * max(map(line_count, captions)) + 0.16 for captions in wrapped_captions]
    top = margin + (0.21 * line_count(title) + 0.13 if title else 0.0)
    height = top + sum(heading_heights) + sum(image_heights) + sum(caption_heights)
    with open_canvas(path, width, height) as figure:

        def write(x: float, y: float, text: str, size: float, weight: str = "normal") -> None:
            """Draw ``text`` with its upper left corner ``x``, ``y`` inches from the upper left corner of the sheet."""
            figure.text(x / width, 1 - y / height, text, fontsize=size, weight=weight, va="top", linespacing=1.2)

        write(margin, margin, title, 12, "bold")
        for index, (images, _, _) in enumerate(rows):
            write(margin, top + 0.06, headings[index], 9.5, "bold")
            top += heading_heights[index]
            for column, image in enumerate(images):
                left = margin + column * (side + gap)
                bottom = 1 - (top + image_heights[index]) / height
                axes = figure.add_axes((left / width, bottom, side / width, image_heights[index] / height))
                axes.set_axis_off()
                pixels = image.detach().float().clamp(0, 1).permute(1, 2, 0).cpu().numpy()
                enlarged = max(pixels.shape) < side * DPI
                axes.imshow(pixels, interpolation="nearest" if enlarged else "antialiased")
                write(left, top + image_heights[index] + 0.05, wrapped_captions[index][column], 8)
            top += image_heights[index] + caption_heights[index]
    return Path(path)


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
    """A value and the ends of its interval, both None where there is none."""

    value: float
    low: float | None
    high: float | None


def dot_panels(
    panels: Sequence[tuple[str, Mapping[str, Dot]]],
    labels: Sequence[str],
    *,
    unit: str = "%",
    caption: str = "",
    baseline: str | None = None,
    absent: str = "not run",
) -> bytes:
    """A PNG with one panel per column, with a dot and its interval in each row; only the left panels name the rows.

    Args:
        panels: (title, dots by label) each; a label without a dot shows the text ``absent``.
        labels: the rows from top to bottom.
        unit: of every panel's x-axis; with "%" the axis stays within 0 to 100.
        caption: a line under the panels, or "".
        baseline: the label whose value a thin vertical line extends through all rows.
        absent: the text in place of a missing dot.

    Raises:
        OptionError: no panel or no label, or too many to be drawn.
    """
    if not panels or not labels:
        raise OptionError("dot panels: expected at least one column and one row, found none. Give some records.")
    if len(panels) > _MOST_PANELS or len(panels) * len(labels) > _MOST_DOTS:
        raise OptionError(
            f"dot panels: expected at most {_MOST_PANELS} columns and {_MOST_DOTS} cells, found {len(panels)} columns "
            f"of {len(labels)} rows. Show fewer."
        )
    grid_rows = -(-len(panels) // 4)  # both divisions round up: the fewest rows of at most four panels, evenly filled
    grid_columns = -(-len(panels) // grid_rows)
    names = [wrap_text(label, 30) for label in labels]
    titles = [wrap_text(title, 30) for title, _ in panels]
    rows_height = sum(max(0.24, 0.17 * line_count(name)) for name in names) + 0.3
    title_height = 0.6 + 0.16 * max(map(line_count, titles))
    names_width = 0.07 * max(len(line) for name in names for line in name.splitlines())
    height = grid_rows * (rows_height + title_height) + (0.3 if caption else 0.1)
    picture = io.BytesIO()
    with open_canvas(picture, names_width + 0.4 + 2.35 * grid_columns, height) as figure:
        figure.set_layout_engine("constrained", w_pad=0.08, h_pad=0.08, wspace=0.03)
        if caption:
            figure.supxlabel(caption, fontsize=8, color=GREY)
        grid = figure.subplots(grid_rows, grid_columns, sharey=True, squeeze=False)
        for index, axes in enumerate(grid.flat):
            if index >= len(panels):
                axes.set_axis_off()
                continue
            dots = panels[index][1]
            if baseline is not None and baseline in dots:
                axes.axvline(dots[baseline].value, color=GREY, linewidth=0.9, linestyle=(0, (4, 3)), zorder=1)
            for row, label in enumerate(labels):
                _draw_dot(axes, row, dots.get(label), absent)
            axes.set_title(titles[index])
            axes.set_xlabel(unit)
            axes.grid(axis="y", visible=False)
            axes.tick_params(axis="y", length=0)
            axes.spines["left"].set_visible(False)
            axes.margins(x=0.12)
            _set_limits(axes, unit)
            axes.locator_params(axis="x", nbins=5)
            axes.set_yticks(range(len(labels)), names)
            axes.set_ylim(len(labels) - 0.5, -0.5)
    return picture.getvalue()


def _set_limits(axes: Any, unit: str) -> None:
    """Widen the x-axis to at least two units, so that a lone dot's interval does not fill the panel."""
    low, high = axes.get_xlim()
    padding = max(0.0, 2 - (high - low)) / 2
    low, high = low - padding, high + padding
    axes.set_xlim((max(low, 0), min(high, 100)) if unit == "%" else (low, high))


def _draw_dot(axes: Any, row: int, dot: Dot | None, absent: str) -> None:
    if dot is None:
        centred = {"xycoords": ("axes fraction", "data"), "ha": "center", "va": "center"}
        axes.annotate(absent, (0.5, row), color=GREY, **centred)
        return
    if dot.low is not None and dot.high is not None:
        bar = {"linewidth": 2.2, "solid_capstyle": "butt", "zorder": 2}
        axes.plot([dot.low, dot.high], [row, row], color=colour(row), **bar)
    axes.plot(dot.value, row, marker="o", markersize=6, color=colour(row), zorder=3, clip_on=False)
