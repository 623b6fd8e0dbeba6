"""Pairs of sources and targets."""

from __future__ import annotations

from argparse import Namespace

import numpy as np
import pytest
import torch
from PIL import Image

from ns_easyrobust.errors import DataError, OptionError
from ns_easyrobust.experiments.image_set import ImageSet
from ns_easyrobust.experiments.triplets import pair_images, pair_photographs


@pytest.fixture
def images(digits):
    return ImageSet(digits[0][1297:1321], "", "")


def test_a_target_is_another_image_of_another_prediction(trained, images):
    pairs = pair_images(trained, images, 7, seed=0)
    assert len(pairs) == 24
    with torch.no_grad():
        sources, targets = (trained(each).argmax(-1) for each in (pairs.sources, pairs.targets))
    assert bool((sources != targets).all())
    assert torch.equal(pairs.sources, images.pixels)
    assert pairs.digest == pair_images(trained, images, 24, seed=0).digest
    assert pairs.digest != pair_images(trained, images, 24, seed=1).digest
    number = int(pairs.names[3][1].split()[1]) - 1
    assert torch.equal(pairs.targets[3], images.pixels[number])
    assert torch.equal(pairs.take(3, 5).targets, pairs.targets[3:5])


def test_images_of_one_prediction_are_refused(trained, images):
    alike = ImageSet(images.pixels[:1].repeat(3, 1, 1, 1), "", "")
    with pytest.raises(DataError, match=r"to pair them, found class \d predicted for all 3"):
        pair_images(trained, alike, 3, seed=0)


def test_photographs_are_paired_in_their_order(tmp_path):
    for number in range(4):
        pixels = np.random.default_rng(number).integers(0, 256, (32, 32, 3), np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{number}.png")
    files = [str(tmp_path / f"{number}.png") for number in range(4)]
    args = Namespace(photographs=files, input_size=32, crop_pct=1, interpolation="bicubic")
    pairs = pair_photographs(args, torch.device("cpu"))
    assert pairs.names == [("0.png", "1.png"), ("2.png", "3.png")]
    third = torch.from_numpy(np.asarray(Image.open(files[3]))).permute(2, 0, 1) / 255
    assert torch.allclose(pairs.targets[1], third)
    assert pair_photographs(Namespace(photographs=[]), torch.device("cpu")) is None
    with pytest.raises(OptionError, match="expected pairs of source and target, at most 4, found 3 files"):
        pair_photographs(Namespace(**{**vars(args), "photographs": files[:3]}), torch.device("cpu"))
    with pytest.raises(DataError, match=r"found 1\.png twice"):
        pair_photographs(Namespace(**{**vars(args), "photographs": [files[1], files[1]]}), torch.device("cpu"))
