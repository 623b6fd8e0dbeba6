"""What all figures share: the palette, the style and the writing of PNG files.

Figures use matplotlib's object interface on the Agg canvas and start from matplotlib's own
defaults: no display and no pyplot are needed, and a user's matplotlibrc has no effect on the file.
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ..errors import OptionError
from ..utils import write_atomically

DPI = 150
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
def open_canvas(path: str | Path, width: float, height: float) -> Iterator[Any]:
    """A matplotlib ``Figure`` of ``width`` x ``height`` inches, written to ``path`` after the ``with`` block.

    The style applies only inside the block and to the writing; the process's own settings are then restored.

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
        # savefig cannot infer the format from the suffix of the temporary name.
        write_atomically(path, lambda temporary: figure.savefig(temporary, format="png"))


def wrap_text(text: str, width: int) -> str:
    """``text`` wrapped to at most ``width`` characters a line; its own line breaks are kept."""
    return "\n".join(wrapped for line in text.splitlines() for wrapped in textwrap.wrap(line, width) or [""])


def line_count(text: str) -> int:
    return text.count("\n") + 1 if text else 0
