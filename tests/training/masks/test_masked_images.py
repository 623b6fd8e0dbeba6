"""Images and masks under one transform."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
import torch
from PIL import Image

from ns_easyrobust.training.masks import MaskedImage, MaskedImages, write_mask, write_sheet
from ns_easyrobust.training.masks.masked_images import crop_alike


@pytest.fixture
def masked(tmp_path) -> MaskedImages:
    """One image that is its mask: white where the foreground is."""
    patches = np.random.default_rng(0).random((5, 7)) > 0.5
    write_mask(tmp_path / "m" / "a" / "1.png", patches, (70, 50))
    (tmp_path / "i" / "a").mkdir(parents=True)
    Image.fromarray(np.where(patches, 255, 0).astype(np.uint8)).resize((70, 50), 0).save(tmp_path / "i/a/1.png")
    item = MaskedImage(str(tmp_path / "i/a/1.png"), str(tmp_path / "m/a/1.png"), 3)
    return MaskedImages([item], ["z", "y", "x", "a"], tmp_path / "i")


def test_an_image_that_is_its_mask_stays_it(masked):
    different = set()
    for seed in range(12):
        image, mask, label = masked.pair(0, seed, 28)
        assert image.shape == (3, 28, 28)
        assert mask.shape == (1, 28, 28)
        assert label == 3
        assert image.dtype == mask.dtype == torch.float32
        assert mask.min() >= 0
        assert mask.max() <= 1
        assert torch.equal(image, mask.expand(3, -1, -1))
        assert torch.equal(mask, masked.pair(0, seed, 28).mask)
        different.add(mask.numpy().tobytes())
    assert len(different) == 12
    assert ((mask > 0) & (mask < 1)).any()  # the share of the foreground, at its border


def test_crops_and_flips_are_uniform():
    """Each pixel's value says where it comes from: 32 pixels of 28/32 are not resized, so crops start at 0 to 4."""
    columns = np.tile(np.arange(32, dtype=np.uint8) * 8, (32, 1))
    image = Image.fromarray(np.stack([columns, columns.T, columns], -1))
    places = []
    random = torch.random.get_rng_state()
    for seed in range(400):
        pixels, _ = crop_alike(image, np.eye(32, dtype=bool), seed, 28)
        across, down = (pixels[channel] * 255 / 8 for channel in (0, 1))
        flipped = bool(across[0, 0] > across[0, -1])
        places.append((flipped, round(float(across.min())), round(float(down.min()))))
        assert torch.equal(across[0].sort().values.round(), torch.arange(28) + across.min().round())
    assert torch.equal(torch.random.get_rng_state(), random)
    assert 160 < sum(flipped for flipped, _, _ in places) < 240  # 200, sd 10
    for axis in (1, 2):
        counts = np.bincount([place[axis] for place in places], minlength=5)
        assert len(counts) == 5
        assert counts.min() > 45


def test_it_can_be_pickled_and_looked_at(masked, tmp_path):
    again = pickle.loads(pickle.dumps(masked))
    assert torch.equal(again.pair(0, 1, 28).image, masked.pair(0, 1, 28).image)
    assert len(again) == 1
    assert repr(masked).startswith("MaskedImages(1 images of 1 classes in ")
    write_sheet(masked, tmp_path / "sheet.png")
    sheet = np.asarray(Image.open(tmp_path / "sheet.png"))
    image, mask, dark = (sheet[-128:, 132 * place : 132 * place + 128] for place in range(3))  # four pixels between
    image = image.astype(int)
    assert (sheet[-128:, 128:132] == 255).all()
    assert set(np.unique(mask)) == {0, 255}
    assert np.array_equal(dark[mask > 0], image[mask > 0])
    assert (abs(dark[mask == 0] - image[mask == 0] / 4) < 1).all()
