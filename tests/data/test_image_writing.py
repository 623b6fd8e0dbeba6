"""Files of 8, 16 and 32 bits: read by Pillow, torchvision, OpenCV and numpy, and what cannot be read or written."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.io import ImageReadMode, decode_png

from ns_easyrobust.data.image_reading import read_image
from ns_easyrobust.data.image_writing import IMAGE_FORMATS, read_pixels, write_image
from ns_easyrobust.errors import DataError, MissingPackageError, OptionError, OutputError


@pytest.fixture
def pixels() -> torch.Tensor:
    values = torch.rand(3, 9, 13, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    values[:, 0, 0], values[:, 0, 1] = 0, 1
    return values


@pytest.mark.parametrize(("image_format", "most"), [("png", 1 / 510), ("png16", 1 / 131070), ("float", 2**-25)])
def test_what_is_written_is_read_within_half_a_step(pixels, tmp_path, image_format, most):
    path = write_image(tmp_path / f"image{IMAGE_FORMATS[image_format]}", pixels, image_format)
    back = read_pixels(path)
    assert back.shape == pixels.shape
    assert back.dtype == torch.float64
    error = float((back - pixels).abs().max())
    assert 0.8 * most < error <= most * (1 + 1e-9)
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


def test_other_readers_find_the_same(pixels, tmp_path):
    eight, sixteen, floats = (
        write_image(tmp_path / f"{name}{suffix}", pixels, name) for name, suffix in IMAGE_FORMATS.items()
    )
    expected = pixels.permute(1, 2, 0).numpy()
    assert np.array_equal(np.asarray(Image.open(eight)), np.rint(expected * 255))
    assert np.array_equal(cv2.imread(str(sixteen), cv2.IMREAD_UNCHANGED)[..., ::-1], np.rint(expected * 65535))
    content = torch.frombuffer(bytearray(sixteen.read_bytes()), dtype=torch.uint8)
    decoded = decode_png(content, mode=ImageReadMode.RGB)
    assert decoded.dtype == torch.uint16
    assert torch.equal(decoded.double(), (pixels * 65535).round())
    assert np.array_equal(np.load(floats), pixels.float().numpy())


def test_the_usual_loading_keeps_the_high_byte(pixels, tmp_path):
    path = write_image(tmp_path / "image.png", pixels, "png16")
    usual = np.asarray(read_image(str(path)))
    assert np.array_equal(usual, (pixels.permute(1, 2, 0).numpy() * 65535).round().astype(int) >> 8)
    assert float((read_pixels(path) - torch.tensor(usual / 255).permute(2, 0, 1)).abs().max()) > 1e-3


def test_bad_calls_are_refused_in_one_line(pixels, tmp_path, monkeypatch):
    with pytest.raises(OptionError, match="image format: expected one of png, png16, float, found 'gif'"):
        write_image(tmp_path / "a", pixels, "gif")
    for bad in (pixels[:1], pixels[None], (pixels * 255).byte(), pixels * 2, pixels * float("nan")):
        with pytest.raises(DataError, match="image: expected"):
            write_image(tmp_path / "a", bad)
    with pytest.raises(OutputError, match="cannot write"):
        write_image(tmp_path / "none" / "a", pixels)
    monkeypatch.setitem(__import__("sys").modules, "cv2", None)
    with pytest.raises(MissingPackageError, match="16-bit PNG: expected"):
        write_image(tmp_path / "a", pixels, "png16")
    assert not list(tmp_path.iterdir())


def test_damaged_files_are_refused_in_one_line(pixels, tmp_path):
    for image_format in IMAGE_FORMATS:
        path = write_image(tmp_path / image_format, pixels, image_format)
        content = path.read_bytes()
        path.write_bytes(content[: len(content) // 2] if image_format != "png16" else content[:40])
        with pytest.raises(DataError, match=r"expected an? .*Replace the file"):
            read_pixels(path)
    with pytest.raises(DataError, match="No such file"):
        read_pixels(tmp_path / "none")
    for array in (np.zeros((2, 4, 4)), np.full((3, 4, 4), 2.0), np.zeros((3, 4, 4), int), np.full((3, 2, 2), np.nan)):
        np.save(tmp_path / "other.npy", array)
        with pytest.raises(DataError, match=r"expected floats \(3, H, W\)"):
            read_pixels(tmp_path / "other.npy")
    np.save(tmp_path / "object.npy", np.array([{}]), allow_pickle=True)
    with pytest.raises(DataError, match="expected a NumPy array"):
        read_pixels(tmp_path / "object.npy")
