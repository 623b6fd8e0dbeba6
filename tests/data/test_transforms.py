from __future__ import annotations

import pickle
import random

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps
from timm.data import AugMixDataset, create_transform
from timm.data.random_erasing import RandomErasing
from torchvision import transforms
from torchvision.transforms import autoaugment

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


def at(seed, transform, image):
    random.seed(seed), np.random.seed(seed), torch.manual_seed(seed)
    return transform(image)


def test_trivial_augment_is_torchvisions_in_the_place_of_timms_policy(folder, monkeypatch):
    """One of 14 operations, and one of 31 magnitudes of either sign where it has one (arXiv:2103.10158, Table 5)."""
    image = Image.open(folder / "a" / "0.png")
    transform = training_transform(
        16, (0.5, 0.25, 1.0), (0.5,) * 3, auto_augment="trivial", hflip=0, interpolation="random"
    )
    _, policy, _ = transform.transforms
    assert type(policy) is transforms.TrivialAugmentWide
    assert (policy.fill, policy.interpolation.value) == ([128, 64, 255], "nearest")
    named = training_transform(16, (0.5,) * 3, (0.5,) * 3, auto_augment="trivial", interpolation="bicubic")
    assert named.transforms[2].interpolation.value == "bicubic"
    for seed in range(5):
        expected = transforms.functional.to_tensor(at(seed, transforms.Compose(transform.transforms[:2]), image))
        assert torch.equal(at(seed, transform, image), expected)
    drawn = []
    original = autoaugment._apply_op

    def noted(picture, name, magnitude, **options):
        drawn.append((name, magnitude))
        return original(picture, name, magnitude, **options)

    monkeypatch.setattr(autoaugment, "_apply_op", noted)
    cropped = transforms.functional.to_pil_image(torch.rand(3, 16, 16))
    unchanged = sum(at(seed, policy, cropped) is cropped for seed in range(200))
    assert 2 < unchanged < 30  # the identity, of 14 operations
    names = [name for name, _ in drawn]
    assert len(set(names)) == 14
    assert max(names.count(name) for name in set(names)) < 30  # of 200, where 14 are expected
    shears = {abs(magnitude) for name, magnitude in drawn if name.startswith("Shear")}
    bins = [0.99 * step / 30 for step in range(31)]
    assert all(min(abs(shear - bin_) for bin_ in bins) < 1e-6 for shear in shears)
    assert len(shears) > 8
    assert {magnitude < 0 for name, magnitude in drawn if name == "Rotate"} == {True, False}


class Single:
    """A data set of one image, as timm's AugMixDataset takes it."""

    def __init__(self, image, transform):
        self.image, self.transform = image, transform

    def __getitem__(self, index):
        return self.transform(self.image), 0


def test_views_are_those_of_timms_augmix_dataset(folder):
    image, mean, std = Image.open(folder / "a" / "0.png").convert("RGB"), (0.5, 0.4, 0.6), (0.5, 0.2, 0.3)
    separate = create_transform(
        (3, 16, 16), is_training=True, auto_augment="augmix-m3", mean=mean, std=std, separate=True
    )
    timms = AugMixDataset(Single(image, separate), num_splits=3)
    ours = training_transform(16, mean, std, auto_augment="augmix-m3", splits=3)
    for seed in range(5):
        expected = at(seed, lambda _: timms[0][0], None)
        views = at(seed, ours, image)
        assert len(views) == 3
        for view, other in zip(views, expected, strict=True):
            torch.testing.assert_close(transforms.functional.normalize(view, mean, std), other)
        assert not torch.equal(views[1], views[2])


@pytest.mark.parametrize("ops", ["timm", "published"])
def test_erasing_spares_the_clean_view_where_it_is_asked_to(folder, ops):
    image = Image.new("RGB", (20, 20), (200, 100, 50))
    options = {"auto_augment": "augmix-m1", "augmix_ops": ops, "splits": 3, "erase_prob": 1.0, "erase_mode": "pixel"}
    clean = torch.tensor([200, 100, 50]).view(3, 1, 1) / 255
    for erase_clean in (True, False):
        transform = training_transform(16, (0.5,) * 3, (0.5,) * 3, erase_clean=erase_clean, **options)
        first, *others = at(0, pickle.loads(pickle.dumps(transform)), image)  # as to workers that are spawned
        assert torch.equal(first, clean.expand(3, 16, 16)) is not erase_clean
        assert all(len(view.flatten(1).unique(dim=1)[0]) > 10 for view in others)
        assert all(view.min() >= 0 and view.max() <= 1 for view in others)
