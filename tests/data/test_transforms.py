from __future__ import annotations

import pickle
import random

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps
from timm.data.random_erasing import RandomErasing

from ns_easyrobust.data.transforms import PixelErasing, Preprocessing, describe_transform, training_transform
from ns_easyrobust.errors import OptionError


def test_preprocessing_is_resize_crop_and_pixels(folder):
    image = Image.open(folder / "a" / "0.png").convert("RGB")
    pixels = Preprocessing(16, 0.8, "bilinear").transform()(image)
    by_hand = np.asarray(image.resize((30, 20), Image.Resampling.BILINEAR))[2:18, 7:23]
    assert torch.equal(pixels, torch.tensor(by_hand / np.float32(255)).permute(2, 0, 1))
    described = describe_transform(Preprocessing(16, 0.8, "bilinear").transform())
    assert described == {"resize": 20, "crop": 16, "interpolation": "bilinear"}
    assert Preprocessing().resize == 256


@pytest.mark.parametrize("wrong", [{"size": 0}, {"crop_pct": 0}, {"crop_pct": 1.1}, {"interpolation": "best"}])
def test_bad_preprocessing(wrong):
    with pytest.raises(OptionError, match="expected size"):
        Preprocessing(**wrong)


@pytest.mark.parametrize("mode", ["const", "rand", "pixel"])
def test_erasing_stays_in_range_and_changes_only_its_rectangle(mode):
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    pixels = torch.rand(3, 32, 32) * 0.999
    random.seed(1), torch.manual_seed(1)
    ours = PixelErasing(RandomErasing(1.0, mode=mode, device="cpu"), mean, std)(pixels)
    mean_, std_ = torch.tensor(mean).view(3, 1, 1), torch.tensor(std).view(3, 1, 1)
    normalised = (pixels - mean_) / std_
    random.seed(1), torch.manual_seed(1)
    theirs = RandomErasing(1.0, mode=mode, device="cpu")(normalised.clone())
    changed = theirs != normalised
    assert changed.any()
    assert not changed.all()
    assert torch.equal(ours[~changed], pixels[~changed])
    assert torch.allclose(ours[changed], (theirs * std_ + mean_).clamp(0, 1)[changed], atol=1e-6)


def test_training_pixels_are_in_range_and_the_authors_way_is_not(folder):
    image = Image.open(folder / "a" / "0.png")
    options = {"erase_prob": 1.0, "auto_augment": "rand-m9-mstd0.5-inc1", "interpolation": "bicubic"}
    torch.manual_seed(0), random.seed(0), np.random.seed(0)
    inside = training_transform(16, (0.5,) * 3, (0.5,) * 3, **options)
    outside = training_transform(16, (0.5,) * 3, (0.5,) * 3, erase_outside=True, **options)
    assert all(inside(image).min() >= 0 and inside(image).max() <= 1 for _ in range(20))
    assert any(outside(image).min() < 0 for _ in range(20))


@pytest.mark.parametrize("policy", ["rand-m10-inc1", "augmix-m10", "originalr"])
def test_posterize_of_no_bits_is_black_under_every_pillow(policy, monkeypatch):
    from_pillow = ImageOps.posterize

    def refusing(image, bits):
        """As Pillow 13's."""
        if not 1 <= bits <= 8:
            raise ValueError("bits must be between or equal to 1 and 8")
        return from_pillow(image, bits)

    monkeypatch.setattr(ImageOps, "posterize", refusing)
    image = Image.new("RGB", (4, 4), (200, 100, 50))
    transform = training_transform(16, (0.5,) * 3, (0.5,) * 3, auto_augment=policy)
    (policies,) = (step for step in transform.transforms if type(step).__module__ == "timm.data.auto_augment")
    operations = getattr(policies, "ops", None) or [step for steps in policies.policy for step in steps]
    posterize = next(operation for operation in operations if operation.name.startswith("Posterize"))
    assert posterize.aug_fn(image, 0).getcolors() == [(16, (0, 0, 0))]
    assert posterize.aug_fn(image, 1).getcolors() == [(16, (128, 0, 0))]
    assert pickle.loads(pickle.dumps(transform)) is not None  # for workers that are spawned
