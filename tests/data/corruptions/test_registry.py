"""Each corruption beside the package imagecorruptions, which is given the same random numbers."""

from __future__ import annotations

import functools

import numpy as np
import pytest
from helpers.processes import load_script
from sklearn.datasets import load_sample_image

from ns_easyrobust.data import (
    ALEXNET_ERROR,
    CORRUPTION_GROUPS,
    FrostPictures,
    corrupt,
    known_corruptions,
    register_corruption,
)
from ns_easyrobust.errors import OptionError

GROUPS = {  # Hendrycks and Dietterich 2019, figure 1, and where their code has the four extra ones
    "noise": ["gaussian_noise", "shot_noise", "impulse_noise", "speckle_noise"],
    "blur": ["defocus_blur", "glass_blur", "motion_blur", "zoom_blur", "gaussian_blur"],
    "weather": ["snow", "frost", "fog", "brightness", "spatter"],
    "digital": ["contrast", "elastic_transform", "pixelate", "jpeg_compression", "saturate"],
}
EXTRA = ("speckle_noise", "gaussian_blur", "spatter", "saturate")
# Strengths are rows of one table, so that the ends show most; all five are tried by `make stress`.
SEVERITIES = [1, *(pytest.param(severity, marks=pytest.mark.stress) for severity in (2, 3, 4)), 5]
BLURS = (
    "gaussian_blur",
    "defocus_blur",
    "glass_blur",
    "motion_blur",
    "zoom_blur",
    "elastic_transform",
    "pixelate",
    "contrast",
    "jpeg_compression",
)  # which leave one colour as it is
SLOW = ("glass_blur", "zoom_blur")  # of theirs


@pytest.fixture(scope="module")
def published():
    pytest.importorskip("imagecorruptions", reason="`make test` installs it: pip install --no-deps imagecorruptions")
    return load_script("published_corruptions").published


@pytest.fixture(scope="module")
def pictures() -> FrostPictures:
    return FrostPictures.installed_or_drawn()


china = functools.cache(lambda: load_sample_image("china.jpg"))


def photograph(height: int, width: int, left: int = 150) -> np.ndarray:
    return np.ascontiguousarray(china()[120 : 120 + height, left : left + width])


def extremes(height: int, width: int) -> np.ndarray:
    """Areas of one colour, for which roundings count: black, white, greys, pure colours, a ramp, and noise."""
    image = np.zeros((height, width, 3), np.uint8)
    for number, colour in enumerate([(0, 0, 0), (255,) * 3, (100,) * 3, (255, 0, 0), (0, 1, 255), (250, 255, 4)]):
        image[:, number * width // 8 : (number + 1) * width // 8] = colour
    image[:, 6 * width // 8 : 7 * width // 8] = np.linspace(0, 255, height).astype(np.uint8)[:, None, None]
    noise = image[:, 7 * width // 8 :]
    noise[:] = np.random.default_rng(0).integers(0, 256, noise.shape)
    return image


def differ_by_one_level_at_most(image, name, severity, published, pictures):
    ours = corrupt(image, name, severity, np.random.default_rng(severity), pictures)
    try:
        with np.errstate(divide="raise", invalid="raise"):
            theirs = published(image, name, severity, np.random.default_rng(severity))
    except FloatingPointError:  # 0 / 0 where a small image has no drop
        assert name == "spatter"
        theirs = image
    levels = np.abs(ours.astype(int) - theirs)
    assert levels.max() <= 1, f"{levels.max()} levels in {(levels > 1).mean():.2%} of the values"
    return (levels > 0).mean()


@pytest.mark.parametrize("severity", SEVERITIES)
@pytest.mark.parametrize("name", [*ALEXNET_ERROR, *EXTRA])
def test_as_published_but_for_one_grey_level(name, severity, published, pictures):
    assert pictures.origin == "published"
    if name not in SLOW:
        # Fractions are cut off, so that roundings show where values are whole.
        assert differ_by_one_level_at_most(photograph(224, 224), name, severity, published, pictures) < 0.2
    for image in (photograph(32, 57), extremes(70, 40), extremes(33, 32)):
        differ_by_one_level_at_most(image, name, severity, published, pictures)


@pytest.mark.stress
@pytest.mark.parametrize("severity", range(1, 6))
@pytest.mark.parametrize("name", [*ALEXNET_ERROR, *EXTRA])
def test_larger_images_as_published(name, severity, published, pictures):
    for image in (photograph(224, 224, 300), photograph(300, 470), extremes(224, 224), extremes(130, 600)):
        differ_by_one_level_at_most(image, name, severity, published, pictures)


def test_imagenet_c_has_fifteen_and_four_more():
    assert set(known_corruptions()) == {*ALEXNET_ERROR, *EXTRA}


@pytest.mark.parametrize("severity", SEVERITIES)
@pytest.mark.parametrize("size", [(1, 1), (1, 9), (2, 2), (8, 8), (3, 300), (65, 1)])
def test_images_of_any_size(size, severity, pictures):
    for name in (*ALEXNET_ERROR, *EXTRA):
        stays_itself(name, size, severity, pictures)


def stays_itself(name, size, severity, pictures):
    """Shape, draws, input and numpy's own generator."""
    image = np.random.default_rng(1).integers(0, 256, (*size, 3), dtype=np.uint8)
    before, state = image.copy(), np.random.get_state()[1].copy()
    with np.errstate(all="raise"):
        first, again = (corrupt(image, name, severity, np.random.default_rng(5), pictures) for _ in range(2))
    assert (first.shape, first.dtype) == (image.shape, np.uint8), name
    assert np.array_equal(first, again), name
    assert np.array_equal(image, before)
    assert np.array_equal(np.random.get_state()[1], state)


def test_black_and_white_stay_whole(pictures):
    """Where the published code divides by the largest value, which may be 0."""
    for value in (0, 255):
        image = np.full((40, 40, 3), value, np.uint8)
        for name in known_corruptions():
            with np.errstate(all="raise"):
                found = corrupt(image, name, 5, np.random.default_rng(0), pictures)
            off = np.abs(found.astype(int) - value)
            if name in BLURS or (value == 0 and name in ("shot_noise", "speckle_noise", "fog", "saturate")):
                assert off.max() <= (name == "elastic_transform"), name
            elif (name, value) in (("brightness", 255), ("snow", 255)):
                assert off.max() == 0, name
            elif (name, value) == ("brightness", 0):
                assert (found == 127).all()
            else:
                assert off.max() > 50, name
                assert off.min() < off.max(), name


@pytest.mark.parametrize(
    ("pixels", "name", "severity", "message"),
    [
        (np.zeros((4, 4, 3), np.uint8), "rain", 1, "a corruption of .*found 'rain' and 1"),
        (np.zeros((4, 4, 3), np.uint8), "fog", 6, "a severity from 1 to 5, found 'fog' and 6"),
        (np.zeros((4, 4), np.uint8), "fog", 1, r"expected pixels \(H, W, 3\) of 8 bits, found \(4, 4\) of uint8"),
        (np.zeros((4, 4, 3)), "fog", 1, "found .* of float64"),
        (np.zeros((0, 4, 3), np.uint8), "fog", 1, r"found \(0, 4, 3\)"),
    ],
)
def test_what_cannot_be_corrupted(pixels, name, severity, message):
    with pytest.raises(OptionError, match=message):
        corrupt(pixels, name, severity, np.random.default_rng(0))


def test_a_corruption_of_ones_own():
    try:

        @register_corruption("negative", 1, 2, 3, (4,), 5)
        def negative(pixels, generator, least):
            return np.maximum(255.0 - pixels, least)

        image = np.array([[[0, 1, 255]]], np.uint8)
        assert corrupt(image, "negative", 4, np.random.default_rng(0)).tolist() == [[[255, 254, 4]]]
        for name, strengths, message in (
            ("negative", (1,) * 5, "taken"),
            ("common", (1,) * 5, "taken"),
            ("other", (1,), "strengths of 5 severities, found 1"),
        ):
            with pytest.raises(OptionError, match=message):
                register_corruption(name, *strengths)(lambda pixels, generator, strength: pixels)
    finally:
        known_corruptions().pop("negative", None)


def test_each_is_of_its_group_in_the_paper() -> None:
    assert tuple(GROUPS) == CORRUPTION_GROUPS
    for group, names in GROUPS.items():
        assert {known_corruptions()[name].group for name in names} == {group}
    assert {name for names in GROUPS.values() for name in names} >= {*ALEXNET_ERROR}
