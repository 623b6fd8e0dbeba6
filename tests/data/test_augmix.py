"""AugMix as published, beside EasyRobust's copy of the published operations."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from easyrobust.augmentations.augmix import AugMixAugmentations
from PIL import Image, ImageEnhance
from torchvision.transforms import functional

from ns_easyrobust.data import augmix
from ns_easyrobust.data.augmix import AugMix
from ns_easyrobust.errors import OptionError

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
SIDE = 24


@pytest.fixture(scope="module")
def image():
    noise = np.random.default_rng(0).integers(0, 256, (6, 6, 3), dtype=np.uint8)
    return Image.fromarray(noise).resize((SIDE, SIDE), Image.Resampling.BICUBIC)


def published(image, severity, width=3, depth=-1, alpha=1.0):
    """imagenet.py:197-227 of google-research/augmix, on EasyRobust's operations: it mixes what is normalised."""
    operations = AugMixAugmentations(img_size=SIDE).aug_list

    def preprocess(picture):
        return functional.normalize(functional.to_tensor(picture), MEAN, STD).double()

    weights = np.random.dirichlet([alpha] * width)
    share = np.random.beta(alpha, alpha)
    total = torch.zeros(3, SIDE, SIDE, dtype=torch.float64)
    for weight in weights:
        chain = image.copy()
        for _ in range(depth if depth > 0 else np.random.randint(1, 4)):
            chain = np.random.choice(operations)(chain, severity)
        total += weight * preprocess(chain)
    return (1 - share) * preprocess(image) + share * total


@pytest.mark.parametrize("settings", [{}, {"severity": 3, "width": 2}, {"severity": 10, "depth": 2, "alpha": 0.5}])
def test_same_pixels_as_the_published_mixture_after_normalisation(image, settings):
    for seed in range(8):
        np.random.seed(seed)
        expected = published(image, **{"severity": 1, **settings})
        after = np.random.get_state()[1:3]
        np.random.seed(seed)
        mixed = AugMix(**settings)(image)
        assert mixed.min() >= 0
        assert mixed.max() <= 1
        torch.testing.assert_close(functional.normalize(mixed, MEAN, STD).double(), expected, rtol=0, atol=1e-5)
        assert all(np.array_equal(a, b) for a, b in zip(after, np.random.get_state()[1:3], strict=True))


def test_it_changes_images(image):
    np.random.seed(0)
    changes = torch.stack([(AugMix(severity=3)(image) - functional.to_tensor(image)).abs().mean() for _ in range(24)])
    assert changes.mean() > 0.01
    assert (changes > 1e-4).float().mean() > 0.9


def test_what_overlaps_with_imagenet_c_is_never_drawn(image, monkeypatch):
    """Colour, contrast, brightness and sharpness are Pillow's enhancements, here and in timm."""

    def refuse(*args):
        raise AssertionError("an operation that overlaps with ImageNet-C")

    for name in ("Color", "Contrast", "Brightness", "Sharpness"):
        monkeypatch.setattr(ImageEnhance, name, refuse)
    drawn: list[str] = []
    names = {operation.__name__ for operation in augmix.PUBLISHED_OPERATIONS}

    def counted(operation):
        return lambda picture, severity: (drawn.append(operation.__name__), operation(picture, severity))[1]

    monkeypatch.setattr(augmix, "PUBLISHED_OPERATIONS", tuple(map(counted, augmix.PUBLISHED_OPERATIONS)))
    np.random.seed(0)
    counts = []
    for _ in range(150):
        before = len(drawn)
        AugMix(width=1)(image)
        counts.append(len(drawn) - before)
    assert set(drawn) == names
    assert np.bincount(counts, minlength=4)[1:] == pytest.approx([50, 50, 50], abs=20)  # 3.5 deviations
    assert set(counts) == {1, 2, 3}
    shares = [drawn.count(name) / len(drawn) for name in set(drawn)]
    assert shares == pytest.approx([1 / 9] * 9, abs=0.065)  # 3.6 deviations of about 300 draws


def test_timms_letters():
    assert AugMix.from_policy("augmix") == AugMix(1, 3, 0, 1.0)
    assert AugMix.from_policy("augmix-m3-w4-d2-a0.5") == AugMix(3, 4, 2, 0.5)


@pytest.mark.parametrize(
    "policy",
    [
        *("augmix-m0", "augmix-m11", "augmix-w0", "augmix-w1.5", "augmix-b1", "augmix-mstd0.5", "augmix-m3-m3"),
        *("augmix-", "augmixer-m3", "augmix-m", "augmix-m-1", "augmix-a0", "augmix-d100", "augmix-m٣"),
        "augmix-" + "m3" * 9999,
    ],
)
def test_other_letters_and_ranges_are_refused_in_one_line(policy):
    with pytest.raises(OptionError, match="expected") as raised:
        AugMix.from_policy(policy)
    assert "\n" not in str(raised.value)
    assert len(str(raised.value)) < 500
