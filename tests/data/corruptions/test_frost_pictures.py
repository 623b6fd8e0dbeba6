from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from ns_easyrobust.data import FrostPictures, corrupt
from ns_easyrobust.errors import DataError


def test_drawn_pictures_have_the_published_ones_sizes_and_colours():
    pytest.importorskip("imagecorruptions", reason="`make test` installs it: pip install --no-deps imagecorruptions")
    drawn, published = FrostPictures.drawn(), FrostPictures.installed_or_drawn()
    assert (drawn.origin, published.origin) == ("drawn", "published")
    assert len(drawn) == len(published) == 5
    for one, other in zip(drawn._pictures, published._pictures, strict=True):
        assert one.shape == other.shape
        assert np.abs(one.mean((0, 1)) - other.mean((0, 1))).max() < 2
        assert np.abs(one.std((0, 1)) - other.std((0, 1))).max() < 2
        fine, coarse = (np.abs(np.diff(picture.mean(2), axis=0)).mean() for picture in (one, other))
        assert 0.4 < fine / coarse < 2.5  # as rough from pixel to pixel
    assert len({picture.tobytes() for picture in drawn._pictures}) == 5


def test_pictures_from_a_folder(tmp_path):
    with pytest.raises(DataError, match=r"found no frost1\.png, .*frost5\.jpg\. Give"):
        FrostPictures.read(tmp_path)
    for number, ending in enumerate(("png", "png", "png", "jpg", "jpg"), start=1):
        Image.new("RGB", (50, 40), (10 * number,) * 3).save(tmp_path / f"frost{number}.{ending}")
    pictures = FrostPictures.read(tmp_path)
    black = np.zeros((30, 30, 3), np.uint8)
    found = {int(corrupt(black, "frost", 1, np.random.default_rng(seed), pictures)[0, 0, 0]) for seed in range(40)}
    assert found == {4, 8, 12, 16, 20}  # 0.4 of each picture's grey
    large = corrupt(np.zeros((90, 200, 3), np.uint8), "frost", 1, np.random.default_rng(0), pictures)
    assert large.shape == (90, 200, 3)
    assert large.min() >= 4
