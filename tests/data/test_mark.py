"""Marks of text and of logos: where they are, how they cover, and what is refused."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from ns_easyrobust.data.mark import embossed, logo_mark, text_mark
from ns_easyrobust.errors import DataError, OptionError


def extent(mark: torch.Tensor) -> tuple[int, int, int, int]:
    """First and last row and column that the mark covers by half."""
    rows, columns = (np.flatnonzero((mark > 0.5).any(dim).numpy()) for dim in (1, 0))
    return rows[0], rows[-1], columns[0], columns[-1]


@pytest.mark.parametrize(("text", "height", "width"), [("ICML", 112, 112), ("NULL\nSPACE", 96, 224), ("I", 32, 32)])
def test_a_text_fills_the_image_in_its_middle(text, height, width):
    mark = text_mark(text, height, width)
    assert mark.shape == (height, width)
    assert 0 <= float(mark.min()) < float(mark.max()) <= 1
    top, bottom, left, right = extent(mark)
    assert max((bottom - top + 1) / height, (right - left + 1) / width) == pytest.approx(0.94, abs=0.08)
    assert abs((top + bottom) / 2 - (height - 1) / 2) <= 3
    assert abs((left + right) / 2 - (width - 1) / 2) <= 3
    assert not torch.equal(mark, text_mark(text.replace("I", "O").replace("N", "M"), height, width))


def test_a_logo_covers_where_it_is_dark_or_opaque(tmp_path):
    ring = np.full((40, 80), 255, np.uint8)
    ring[5:35, 10:70] = 0
    ring[15:25, 30:50] = 255
    Image.fromarray(ring).save(tmp_path / "dark.png")
    rgba = np.zeros((40, 80, 4), np.uint8)
    rgba[..., :3], rgba[..., 3] = 255, 255 - ring  # white on transparent
    Image.fromarray(rgba).save(tmp_path / "opaque.png")
    dark, opaque = (logo_mark(str(tmp_path / name), 100, 100) for name in ("dark.png", "opaque.png"))
    assert torch.allclose(dark, opaque)
    assert dark.shape == (100, 100)
    top, bottom, left, right = extent(dark)
    assert (right - left + 1) / (bottom - top + 1) == pytest.approx(2, abs=0.1)  # of 60 x 30
    assert right - left + 1 == pytest.approx(0.94 * 100 * 60 / 80, abs=2)
    assert float(dark[50, 50]) < 0.1
    assert float(dark[38, 50]) > 0.9


def test_rounded_corners_are_no_logo(tmp_path):
    """A badge whose corners are transparent bears what is dark in it, not its own outline."""
    rows, columns = np.mgrid[:80, :80]
    corner = np.hypot(np.maximum(abs(rows - 39.5) - 23.5, 0), np.maximum(abs(columns - 39.5) - 23.5, 0)) > 16
    assert 0.02 < corner.mean() < 0.05
    rgba = np.full((80, 80, 4), 255, np.uint8)
    rgba[corner] = 0  # black, and transparent
    rgba[20:60, 35:45, :3] = 0
    Image.fromarray(rgba).save(tmp_path / "badge.png")
    mark = logo_mark(str(tmp_path / "badge.png"), 85, 85)
    top, bottom, left, right = extent(mark)
    assert (bottom - top + 1, right - left + 1) == (40, 10)
    assert float(mark.mean()) == pytest.approx(400 / 85**2, rel=0.02)


def test_embossing_is_blending():
    mark = text_mark("A", 24, 24)
    images = torch.stack([torch.full((3, 24, 24), 0.2), torch.full((3, 24, 24), 0.9)]).double()
    found = embossed(images, mark, strength=0.5)
    assert torch.allclose(found[0], 0.2 + 0.5 * mark * 0.8)  # lighter on dark
    assert torch.allclose(found[1], 0.9 - 0.5 * mark * 0.9)


def test_bad_marks_are_refused_in_one_line(tmp_path):
    for text in ("", " \n ", "x" * 201):
        with pytest.raises(OptionError, match="mark's text: expected 1 to 200 characters"):
            text_mark(text, 32, 32)
    with pytest.raises(OptionError, match="characters of Pillow's own font"):
        text_mark("\u6c34", 32, 32)
    Image.new("RGB", (20, 20), (90, 90, 90)).save(tmp_path / "blank.png")
    with pytest.raises(DataError, match="expected a logo"):
        logo_mark(str(tmp_path / "blank.png"), 32, 32)
    line = np.full((400, 400, 3), 255, np.uint8)
    line[200] = 0
    Image.fromarray(line).save(tmp_path / "line.png")
    Image.fromarray(255 - line).save(tmp_path / "full.png")
    for name in ("line.png", "full.png"):  # a hair, and a black square but for a hair
        with pytest.raises(DataError, match=r"covers 2% to 98% of its frame at 30 x 30 pixels, found"):
            logo_mark(str(tmp_path / name), 32, 32)
    (tmp_path / "text.png").write_text("no image")
    for name in ("text.png", "none.png"):
        with pytest.raises(DataError, match="expected an image"):
            logo_mark(str(tmp_path / name), 32, 32)
    images, mark = torch.rand(1, 3, 32, 32), torch.ones(32, 32)
    for bad in ({"strength": 0}, {"strength": 1.1}):
        with pytest.raises(OptionError, match="expected"):
            embossed(images, mark, **bad)
    with pytest.raises(OptionError, match="mark: expected the images' size"):
        embossed(images, mark[:16], strength=0.5)
