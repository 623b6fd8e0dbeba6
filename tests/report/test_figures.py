"""Pictures: what was drawn is read back from the figure and from the pixels."""

from __future__ import annotations

import ast
import io
import math
import sys
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pytest
import torch
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.image import imread

from ns_easyrobust.errors import OptionError, OutputError
from ns_easyrobust.report import figures
from ns_easyrobust.report.canvas import colour
from ns_easyrobust.report.figures import Dot, dot_panels, image_sheet, noise_history


def entries(norms: list[float], converged: list[bool | None]) -> list[dict[str, Any]]:
    common = {"synthesis_steps": 9, "stopped": True}
    return [
        {"step": 40 * index, "norm": norm, "mse_probability": norm / 100, "converged": state, **common}
        for index, (norm, state) in enumerate(zip(norms, converged, strict=True))
    ]


def texts(figure: Figure) -> list[str]:
    return [text.get_text() for axes in [figure, *figure.axes] for text in axes.texts]


def test_noise_history_draws_each_run_in_both_panels(tmp_path: Path, saved: list[Figure]) -> None:
    runs = {
        "one": entries([1.0, 4.0, 2.0], [True, False, True]),
        r"other $\bad{ run$": entries([2.0, 3.0], [None, None]),
    }
    path = noise_history(runs, tmp_path / "h.png", 0.03)
    assert path == tmp_path / "h.png"
    norms, influences = saved[0].axes
    for axes, key in ((norms, "norm"), (influences, "mse_probability")):
        for index, (name, history) in enumerate(runs.items()):
            (line,) = [line for line in axes.lines if line.get_label() == name]
            assert line.get_xydata().tolist() == [[entry["step"], entry[key]] for entry in history]
            assert to_rgb(line.get_color()) == to_rgb(colour(index))
        markers = {
            (line.get_marker(), to_rgb(line.get_markerfacecolor()) == (1, 1, 1)): line.get_xdata().tolist()
            for line in axes.lines
            if line.get_linestyle() == "None" and len(line.get_xdata())
        }
        assert markers == {("o", False): [0, 80], ("o", True): [40], (".", False): [0, 40]}
    (threshold,) = [line for line in influences.lines if line.get_linestyle() == "--"]
    assert set(threshold.get_ydata()) == {0.03}
    assert "eps = 0.03" in texts(saved[0])
    legends = [text.get_text() for legend in saved[0].legends for text in legend.get_texts()]
    assert legends[:2] == ["one", r"other $\bad{ run$"]
    assert len(legends) == 5
    assert imread(path).std() > 0.05


def test_noise_history_reads_over_decades_and_skips_empty_runs(tmp_path: Path, saved: list[Figure]) -> None:
    runs = {"wide": entries([0.01, 0.1, 30.0], [True] * 3), "empty": []}
    noise_history(runs, tmp_path / "h.png", 0.03)
    noise_history({"close": entries([2.0, math.nan, 4.0], [True] * 3)}, tmp_path / "h.png", 0.03)
    assert [figure.axes[1].get_yscale() for figure in saved] == ["log", "linear"]
    assert "empty" not in saved[0].axes[0].get_legend_handles_labels()[1]


@pytest.mark.parametrize(
    ("runs", "eps", "message"),
    [
        ({}, 0.03, "at least one noise"),
        ({"a": []}, 0.03, "at least one noise"),
        ({"a": entries([1.0], [True])}, 0.0, "eps > 0"),
        ({"a": [{"step": 0, "norm": 1.0}]}, 0.03, "found no mse_probability and no converged"),
    ],
)
def test_noise_history_without_noise_is_refused(tmp_path: Path, runs: Any, eps: float, message: str) -> None:
    with pytest.raises(OptionError, match=message):
        noise_history(runs, tmp_path / "h.png", eps)
    assert not list(tmp_path.iterdir())


def test_small_images_are_enlarged_pixel_by_pixel(tmp_path: Path) -> None:
    red, lime, blue, pink = (1, 0, 0), (0, 1, 0), (0, 0, 1), (1, 0, 1)
    image = torch.tensor([[red, lime], [blue, pink]], dtype=torch.float32).permute(2, 0, 1)[None]
    path = image_sheet([(image, "", [""])], tmp_path / "s.png")
    pixels = imread(path)[..., :3]
    side = round(1.55 * figures.DPI)
    for paint in (red, lime, blue, pink):
        assert (pixels == paint).all(-1).sum() == pytest.approx((side / 2) ** 2, rel=0.03)
    rows, columns = np.nonzero((pixels == lime).all(-1))
    reds = np.nonzero((pixels == red).all(-1))
    assert reds[1].max() < columns.min(), "left is left"
    assert rows.max() < np.nonzero((pixels == pink).all(-1))[0].min(), "top is top"


def test_image_sheet_names_rows_and_images(tmp_path: Path, saved: list[Figure]) -> None:
    small, large = torch.rand(3, 3, 8, 8), torch.rand(1, 3, 300, 200, dtype=torch.float64)
    rows = [(small, "clean $", ["a", "b\nc", ""]), (large.requires_grad_(), "attacked", ["word " * 20])]
    path = image_sheet(rows, tmp_path / "s.png", "A title")
    figure = saved[0]
    assert [axes.images[0].get_array().shape for axes in figure.axes] == [(8, 8, 3)] * 3 + [(300, 200, 3)]
    assert [axes.images[0].get_interpolation() for axes in figure.axes] == ["nearest"] * 3 + ["antialiased"]
    np.testing.assert_array_equal(figure.axes[1].images[0].get_array(), small[1].permute(1, 2, 0).numpy())
    assert {"A title", "clean $", "attacked", "a", "b\nc"} <= set(texts(figure))
    assert next(text for text in texts(figure) if text.startswith("word")).count("word") == 20
    renderer = figure.canvas.get_renderer()
    frame = figure.bbox
    for text in figure.texts:
        box = text.get_window_extent(renderer)
        assert frame.x0 <= box.x0
        assert box.x1 <= frame.x1, text.get_text()
        assert frame.y0 <= box.y0
        assert box.y1 <= frame.y1
        for axes in figure.axes:
            assert not text.get_text() or not box.overlaps(axes.get_window_extent(renderer)), text.get_text()
    assert imread(path).shape[:2] == (int(frame.height), int(frame.width))


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([], "at least one row"),
        ([(torch.zeros(1, 1, 8, 8), "x", [""])], r"expected float images \(B, 3, H, W\)"),
        ([(torch.zeros(1, 3, 8, 8, dtype=torch.uint8), "x", [""])], "found torch.uint8"),
        ([(torch.full((1, 3, 8, 8), 1.5), "x", [""])], r"expected pixels in \[0, 1\], found \[1.5, 1.5\]"),
        ([(torch.full((1, 3, 8, 8), math.nan), "x", [""])], "found .nan"),
        ([(torch.zeros(2, 3, 8, 8), "x", [""])], "a caption for each of 2 images, found 1"),
    ],
)
def test_image_sheet_of_something_else_is_refused(tmp_path: Path, rows: Any, message: str) -> None:
    with pytest.raises(OptionError, match=message):
        image_sheet(rows, tmp_path / "s.png")
    assert not list(tmp_path.iterdir())


def test_dot_panels_set_dots_and_bars_at_their_rows(saved: list[Figure]) -> None:
    panels = [
        ("val", {"a": Dot(60.0, 50.0, 70.0), "b": Dot(80.0, None, None)}),
        ("fgsm", {"b": Dot(0.0, 0.0, 4.0)}),
    ]
    picture = dot_panels(panels, ["a", "b"], caption="bars", baseline="a")
    first, second = saved[0].axes
    dots = {tuple(line.get_xydata()[0]) for line in first.lines if line.get_marker() == "o"}
    assert dots == {(60.0, 0.0), (80.0, 1.0)}
    bars = [
        line.get_xydata().tolist() for line in first.lines if line.get_linestyle() == "-" and len(line.get_xdata()) == 2
    ]
    assert bars == [[[50.0, 0.0], [70.0, 0.0]]]
    assert [set(line.get_xdata()) for line in first.lines if line.get_linestyle() == "--"] == [{60.0}]
    assert [text.get_text() for text in second.texts] == ["not run"]
    assert second.texts[0].xy[1] == 0
    assert [label.get_text() for label in first.get_yticklabels()] == ["a", "b"]
    assert first.get_ylim()[0] > first.get_ylim()[1], "the first row is on top"
    assert second.get_xlim()[0] == 0, "no accuracy under 0"
    assert imread(io.BytesIO(picture)).std() > 0.02
    with pytest.raises(OptionError, match="one column and one row"):
        dot_panels([], ["a"])


@pytest.mark.parametrize(("count", "shape"), [(1, (1, 1)), (4, (1, 4)), (5, (2, 3)), (9, (3, 3))])
def test_dot_panels_wrap_evenly(saved: list[Figure], count: int, shape: tuple[int, int]) -> None:
    dot_panels([(f"{i}", {"a": Dot(5.0, 4.0, 6.0)}) for i in range(count)], ["a"])
    assert saved[0].axes[0].get_gridspec().get_geometry() == shape
    assert sum(axes.axison for axes in saved[0].axes) == count


def test_a_users_style_neither_leaks_in_nor_is_changed() -> None:
    def draw() -> bytes:
        return dot_panels([("val", {"a": Dot(5.0, 4.0, 6.0)})], ["a"])

    plain = draw()
    with matplotlib.rc_context({"axes.facecolor": "red", "font.size": 30, "savefig.dpi": 20}):
        before = dict(matplotlib.rcParams)
        assert draw() == plain
        assert dict(matplotlib.rcParams) == before


def test_a_failed_write_keeps_the_old_picture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "s.png"
    path.write_bytes(b"old")

    def full_disk(self: Figure, target: Path, **kwargs: Any) -> None:
        Path(target).write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Figure, "savefig", full_disk)
    with pytest.raises(OutputError, match="No space left"):
        image_sheet([(torch.zeros(1, 3, 8, 8), "x", [""])], path)
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_matplotlib_is_asked_for_late_and_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tree = ast.parse(Path(figures.__file__).read_text())
    imports = [node for node in ast.walk(tree) if isinstance(node, ast.Import | ast.ImportFrom)]
    names = [getattr(node, "module", None) or node.names[0].name for node in imports]
    assert not [node for node in tree.body if node in imports and "matplotlib" in ast.unparse(node)]
    assert not [name for name in names if "pyplot" in name]
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(OptionError, match="pip install matplotlib"):
        image_sheet([(torch.zeros(1, 3, 8, 8), "x", [""])], tmp_path / "s.png")


def test_a_run_whose_name_begins_with_an_underscore_is_in_the_legend(tmp_path: Path, saved: list[Figure]) -> None:
    entry = {"step": 0, "norm": 1.0, "mse_probability": 0.01, "converged": True}
    noise_history({"_a": [entry], "$b$ \x1b[1m \udcff": [entry]}, tmp_path / "h.png", eps=0.03)
    names = [text.get_text().strip() for text in saved[0].legends[0].get_texts()]
    assert names == ["_a", "$b$ \\x1b[1m \\udcff"]
