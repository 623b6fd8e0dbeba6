"""ImageNet-S's files."""

from __future__ import annotations

import numpy as np
import pytest
from helpers.hostile_images import chunk, png_header
from PIL import Image

from ns_easyrobust.errors import DataError
from ns_easyrobust.training.masks.mask_files import flaw, read_ids, require_fitting, write_mask


def test_ids_are_green_times_256_and_red(tmp_path):
    ids = np.array([[0, 1, 255, 256], [257, 918, 999, 1001], [1000, 0, 1000, 2]])
    pixels = np.stack([ids % 256, ids // 256, np.full_like(ids, 7)], -1).astype(np.uint8)  # blue is not looked at
    Image.fromarray(pixels).save(tmp_path / "a.png")
    assert np.array_equal(read_ids(tmp_path / "a.png"), np.where(ids == 1000, 0, ids))


def test_what_is_written_is_read_again_at_the_images_size(tmp_path):
    patches = np.array([[True, False], [False, False]])
    write_mask(tmp_path / "class" / "a.png", patches, (6, 4))
    ids = read_ids(tmp_path / "class" / "a.png")
    expected = np.zeros((4, 6), int)
    expected[:2, :3] = 1
    assert np.array_equal(ids, expected)
    assert [path.name for path in (tmp_path / "class").iterdir()] == ["a.png"]


def test_flaws():
    assert flaw(np.array([[0, 3]])) == ""
    assert flaw(np.array([[0, 0]])) == "all background"
    assert flaw(np.array([[3, 3]])) == "all foreground"
    assert flaw(np.array([[0, 3, 4]])) == flaw(np.array([[3, 4]])) == "of several classes"


@pytest.mark.parametrize(("sides", "fits"), [((8, 6), True), ((4, 3), True), ((9, 6), True), ((6, 8), False)])
def test_masks_have_their_images_proportions(sides, fits):
    image, ids = Image.new("RGB", (16, 12)), np.zeros(sides[::-1], int)
    if fits:
        require_fitting(image, "a.jpg", ids, "a.png")
    else:
        with pytest.raises(DataError, match=r"^a.png: expected a mask of 16x12 pixels, as a.jpg, .* found 6x8"):
            require_fitting(image, "a.jpg", ids, "a.png")


def test_a_damaged_mask_and_a_bomb_are_one_line_each(tmp_path):
    (tmp_path / "a.png").write_bytes(png_header(60_000, 60_000) + chunk(b"IDAT", b"") + chunk(b"IEND", b""))
    with pytest.raises(DataError, match=r"a.png: expected an image, found one that declares more pixels"):
        read_ids(tmp_path / "a.png")
    write_mask(tmp_path / "b.png", np.eye(8, dtype=bool), (64, 64))
    (tmp_path / "b.png").write_bytes((tmp_path / "b.png").read_bytes()[:60])
    with pytest.raises(DataError, match=r"b.png: expected an image"):
        read_ids(tmp_path / "b.png")
