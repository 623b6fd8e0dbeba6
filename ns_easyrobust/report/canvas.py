"""What all figures share: the palette, the style and the writing of PNG files.

Figures use matplotlib's object interface on the Agg canvas and start from matplotlib's own
defaults: no display and no pyplot are needed, and a user's matplotlibrc has no effect on the file.
"""

from __future__ import annotations

import textwrap
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from ..errors import DataError, OptionError
from ..utils import write_atomically
from .presentable import presentable

DPI = 150
_LONGEST_SIDE = 2**16 - 1  # pixels, as Agg can draw
_MOST_PIXELS = 2**26  # a quarter of a gigabyte
# Okabe and Ito's colours, distinguishable with all common forms of colour blindness; yellow is too pale for lines.
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
    """The palette's colour for line or row ``index``; the palette repeats after its last colour."""
    return COLOURS[index % len(COLOURS)]


@contextmanager
def open_canvas(path: str | Path | IO[bytes], width: float, height: float) -> Iterator[Any]:
    """A matplotlib ``Figure`` of ``width`` x ``height`` inches, written to ``path`` after the ``with`` block.

    ``path`` may also be a stream of bytes. The style applies only inside the block and to the writing; the process's
    own settings are then restored.

    Raises:
        OptionError: matplotlib is not installed, or the figure is too large to be drawn.
        OutputError: ``path`` cannot be written.
    """
    pixels = round(width * DPI), round(height * DPI)
    if max(pixels) > _LONGEST_SIDE or pixels[0] * pixels[1] > _MOST_PIXELS:
        raise OptionError(
            f"figure: expected at most {_LONGEST_SIDE} pixels a side and {_MOST_PIXELS} in all, found "
            f"{pixels[0]} x {pixels[1]}. Show fewer rows or columns."
        )
    try:
        import matplotlib
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ModuleNotFoundError as error:
        raise OptionError("figure: expected matplotlib, found none. Install it: pip install matplotlib.") from error
    with matplotlib.rc_context(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from", UserWarning)  # a box stands for it
        # The backend is kept: resetting it too would make matplotlib look for a display.
        matplotlib.rcParams.update(
            {key: value for key, value in matplotlib.rcParamsDefault.items() if not key.startswith("backend")}
        )
        matplotlib.rcParams.update(_STYLE)
        figure = Figure(figsize=(width, height), dpi=DPI)
        FigureCanvasAgg(figure)
        yield figure
        _write_plain_logarithms(figure)
        # savefig cannot infer the format from the suffix of the temporary name.
        if isinstance(path, str | Path):
            write_atomically(path, lambda temporary: figure.savefig(temporary, format="png"))
        else:
            figure.savefig(path, format="png")


def show_image(axes: Any, path: Path) -> None:
    """Fill ``axes`` with the image of a file, pixel by pixel, without ticks and frame.

    Raises:
        DataError: the file is missing or no image.
    """
    from PIL import Image

    try:
        with Image.open(path) as image:
            axes.imshow(image.convert("RGB"), interpolation="nearest")
    except OSError as error:
        raise DataError(f"{path}: expected an image of the experiment, found none ({error}). Run it anew.") from error
    axes.set_xticks([])
    axes.set_yticks([])
    axes.grid(visible=False)
    for spine in axes.spines.values():
        spine.set_visible(False)


def _write_plain_logarithms(figure: Any) -> None:
    """Ticks of logarithmic axes as 0.01 and 1e-05: matplotlib writes them in markup, which is not read here."""
    from matplotlib.ticker import FuncFormatter, LogFormatter, NullFormatter

    for axes in figure.axes:
        for axis in (axes.xaxis, axes.yaxis):
            if isinstance(axis.get_major_formatter(), LogFormatter):
                axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
            if isinstance(axis.get_minor_formatter(), LogFormatter):
                axis.set_minor_formatter(NullFormatter())


def wrap_text(text: str, width: int) -> str:
    """``text``, :func:`presentable`, wrapped to at most ``width`` characters a line; its own line breaks are kept."""
    lines = map(presentable, text.splitlines())
    return "\n".join(wrapped for line in lines for wrapped in textwrap.wrap(line, width) or [""])


def line_count(text: str) -> int:
    return text.count("\n") + 1 if text else 0
