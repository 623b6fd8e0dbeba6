"""The picture of Figure 5: heat maps of pairs, the line of convex combinations, scaling, and the spectrum."""

from __future__ import annotations

from typing import IO, TYPE_CHECKING, Any

from ..utils import np
from .canvas import GREY, colour, open_canvas
from .closure_numbers import spread_name

if TYPE_CHECKING:
    from .closure_numbers import ClosureNumbers

_MARKERS = ("o", "s", "^", "D")


def draw_closure(numbers: ClosureNumbers, stream: IO[bytes]) -> None:
    """Write the picture, a PNG.

    Raises:
        OptionError: matplotlib is not installed.
    """
    noises, pairs = numbers.noises, numbers.drawn_pairs
    model = numbers.protocol["model"].rpartition(":")[2]  # of a factory's path, its name
    with open_canvas(stream, 10, 7.2) as figure:
        figure.set_layout_engine("constrained", w_pad=0.06, h_pad=0.08, wspace=0.04, hspace=0.04)
        above, below = figure.subfigures(2, 1, height_ratios=(1, 1))
        _draw_maps(above, numbers)
        line, scaling, spectrum = below.subplots(1, 3)
        _draw_line(line, numbers)
        _draw_scaling(scaling, numbers)
        if numbers.spectrum is None:
            spectrum.set_axis_off()
        else:
            _draw_spectrum(spectrum, numbers)
        figure.supxlabel(
            f"{model}, n={numbers.protocol['n']} images; {noises} noises and {pairs} random pairs of each kind; random "
            "and permuted noise is scaled to the influence of the nullspace noise.\n"
            f"Bars: {spread_name(pairs, 'pair')} (left); {spread_name(noises, 'noise')} (middle).",
            fontsize=8.5, color=GREY,
        )  # fmt: skip


def _draw_maps(figure: Any, numbers: ClosureNumbers) -> None:
    from matplotlib.colors import LogNorm

    grids = {kind: numbers.grid(kind) for kind in numbers.kinds}
    largest = max(float(grid.max()) for grid in grids.values())
    least = min(numbers.eps / 20, largest / 2)
    scale = LogNorm(least, largest)
    panels = figure.subplots(1, len(grids), sharey=True, squeeze=False)[0]
    step = numbers.alphas[1] - numbers.alphas[0]
    edges = np.array([numbers.alphas[0] - step / 2, *(alpha + step / 2 for alpha in numbers.alphas)])
    image = None
    for axes, (kind, grid) in zip(panels, grids.items(), strict=True):
        image = axes.pcolormesh(edges, edges, np.maximum(grid, least), norm=scale, cmap="cividis")
        if float(grid.max()) >= numbers.eps:
            axes.contour(numbers.alphas, numbers.alphas, grid, [numbers.eps], colors="white", linewidths=2.2)
        axes.plot([0, 1], [1, 0], color=colour(1), linewidth=1.8, linestyle=(0, (4, 2)))
        axes.set_title(f"{kind} pairs")
        axes.set_xlabel("alpha2")
        axes.set_aspect("equal")
        axes.grid(visible=False)
    panels[0].set_ylabel("alpha1")
    bar = figure.colorbar(image, ax=list(panels), shrink=0.9, pad=0.015, extend="min")
    bar.set_label("influence (mse_probability)")
    bar.ax.axhline(numbers.eps, color="white", linewidth=2.2)
    reaches = any(float(grid.max()) >= numbers.eps for grid in grids.values())
    contour = "white: the contour of" if reaches else "everything shown is under"
    said = f"mean over pairs; {contour} eps = {numbers.eps:g}; dashed: alpha1 + alpha2 = 1"
    figure.suptitle(said, x=0.01, ha="left", fontsize=9, color=GREY)


def _bars(axes: Any, index: int, kind: str, x: Any, found: Any) -> None:
    """Means with intervals; the kinds a little apart, so that bars do not hide each other."""
    x = np.asarray(x) + (index - 1) * 0.008 * (max(x) - min(x))
    mean, low, high = np.array(found).T
    finite = np.isfinite(low)
    spans = np.where(finite, mean - low, 0), np.where(finite, high - mean, 0)
    axes.errorbar(
        x,
        mean,
        spans,
        color=colour(index),
        marker=_MARKERS[index % 4],
        markersize=4,
        linewidth=1.2,
        capsize=2,
        label=kind,
    )


def _draw_line(axes: Any, numbers: ClosureNumbers) -> None:
    for index, kind in enumerate(numbers.kinds):
        _bars(axes, index, kind, numbers.shares, numbers.line_shape(kind))
    shares = np.linspace(0, 1, 51)
    quadratic = axes.plot(shares, shares**2 + (1 - shares) ** 2, color=GREY, linestyle=":")[0]
    chord = axes.plot([0, 1], [1, 1], color="black", linewidth=1, linestyle="--")[0]
    axes.set_title("convex combinations")
    axes.set_xlabel("alpha1 (alpha2 = 1 - alpha1)")
    axes.set_ylabel("influence / mean of both ends")
    axes.set_ylim(bottom=0)
    axes.legend([chord, quadratic], ["chord", "quadratic, orthogonal responses"], loc="lower center")


def _draw_scaling(axes: Any, numbers: ClosureNumbers) -> None:
    for index, kind in enumerate(numbers.kinds):
        _bars(axes, index, kind, numbers.alphas, numbers.scaled(kind))
    alphas = np.linspace(0, numbers.alphas[-1], 51)
    axes.plot(alphas, alphas**2, color=GREY, linestyle=":", label="alpha^2 (quadratic)")
    axes.plot(alphas, alphas, color="black", linestyle="--", linewidth=1, label="alpha (the paper's bound)")
    axes.set_title("scaling")
    axes.set_xlabel("alpha")
    axes.set_ylabel("influence of alpha v / influence of v")
    axes.legend(loc="upper left")


def _draw_spectrum(axes: Any, numbers: ClosureNumbers) -> None:
    assert numbers.spectrum is not None
    values = np.array(numbers.spectrum["values"])
    values = values[values > 0]
    axes.loglog(np.arange(1, len(values) + 1), values, color=colour(0), marker=".", markersize=3, linewidth=1)
    for norm in numbers.norms_counted:
        axes.axhline(numbers.eps / norm**2, color="black", linewidth=0.8, linestyle="--")
        axes.annotate(
            f"eps / {norm:.3g}^2", (1, numbers.eps / norm**2), xytext=(2, 2), textcoords="offset points", fontsize=8
        )
    axes.set_title("eigenvalues of the squared Jacobian")
    axes.set_xlabel(f"rank, of {numbers.spectrum['dimension']} directions")
    axes.set_ylabel("influence of noise of norm 1")
