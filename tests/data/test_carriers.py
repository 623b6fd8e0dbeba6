"""Carriers of pixels: bounds of rounding, files by Pillow and OpenCV alone, and names that are none."""

from __future__ import annotations

import io

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

from ns_easyrobust.data.carriers import find_carrier
from ns_easyrobust.errors import DataError, OptionError
from ns_easyrobust.report import WatermarkKinds


@pytest.fixture
def images() -> torch.Tensor:
    """Smooth with a little noise, as photographs are."""
    rows, columns = torch.meshgrid(torch.linspace(0, 3, 40), torch.linspace(0, 2, 32), indexing="ij")
    waves = torch.stack([torch.sin(rows + k) * torch.cos(columns * k) for k in range(6)]).view(2, 3, 40, 32).double()
    noise = torch.randn(waves.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return (0.5 + 0.4 * waves + 0.03 * noise).clamp(0, 1)


def bytes_of(image: torch.Tensor) -> np.ndarray:
    return np.rint(image.permute(1, 2, 0).numpy() * 255).astype(np.uint8)


def test_rounding_is_within_half_a_step(images):
    for name, most in (("png", 1 / 510), ("png16", 1 / 131070), ("float", 2**-25)):
        arrived = find_carrier(name)(images)
        error = float((arrived - images).abs().max())
        assert 0.8 * most < error <= most * (1 + 1e-9)
        assert torch.equal(find_carrier(name)(arrived), arrived)


@pytest.mark.parametrize("name", WatermarkKinds.CARRIERS)
def test_shape_and_dtype_stay_and_values_do_not(images, name):
    carrier = find_carrier(name)
    arrived = carrier(images)
    assert arrived.shape == images.shape
    assert arrived.dtype == images.dtype
    assert not torch.equal(arrived, images)
    assert 0 <= float(arrived.min()) <= float(arrived.max()) <= 1
    assert torch.equal(carrier(images[1]), arrived[1])
    assert carrier(images.float()).dtype == torch.float32


def test_jpeg_is_that_of_another_decoder_and_worse_with_less_quality(images):
    errors = []
    for quality in (95, 75, 50, 10):
        arrived = find_carrier(f"jpeg-{quality}")(images)
        errors.append(float((arrived - images).square().mean()))
        stream = io.BytesIO()
        Image.fromarray(bytes_of(images[0])).save(stream, "JPEG", quality=quality)  # 4:2:0 is the default
        other = cv2.imdecode(np.frombuffer(stream.getvalue(), np.uint8), cv2.IMREAD_COLOR)[..., ::-1]
        assert np.abs(bytes_of(arrived[0]).astype(int) - other).max() <= 4  # decoders round differently
    assert errors == sorted(errors)
    assert errors[0] < 0.3 * errors[-1]


def test_resizing_and_cropping_are_pillows(images):
    image = Image.fromarray(bytes_of(images[0]))
    smaller = image.resize((16, 20), Image.Resampling.BICUBIC).resize((32, 40), Image.Resampling.BICUBIC)
    assert np.array_equal(bytes_of(find_carrier("resize-0.5")(images[0])), np.asarray(smaller))
    cropped = image.crop((4, 5, 28, 35)).resize((32, 40), Image.Resampling.BICUBIC)
    assert np.array_equal(bytes_of(find_carrier("crop-0.75")(images[0])), np.asarray(cropped))


@pytest.mark.parametrize(
    "name",
    ["", "gif", "png-8", "jpeg", "jpeg-0", "jpeg-101", "jpeg-7.5", "jpeg-nan", "resize-1", "resize-inf", "crop-1"],
)
def test_names_that_are_none_are_refused(name):
    with pytest.raises(OptionError, match="carrier: expected float, png16, png, jpeg-QUALITY"):
        find_carrier(name)


def test_what_is_no_image_is_refused(images):
    for bad in (images[0, 0], images[:, :1], images * 2, images[:0]):
        with pytest.raises(DataError, match="expected"):
            find_carrier("png")(bad)
