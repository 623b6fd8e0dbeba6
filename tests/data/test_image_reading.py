"""Images of every depth by numbers of numpy's, and files that hold no image."""

from __future__ import annotations

import os
import random
import struct
import time
import warnings
import zlib
from contextlib import suppress

import numpy as np
import pytest
from helpers.checkpoints import one_line
from helpers.hostile_images import chunk, encoded, hostile_images, mutated, png_header, small
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from ns_easyrobust.data import image_reading
from ns_easyrobust.data.image_folder import FolderView, open_image_folder
from ns_easyrobust.data.image_reading import decode_image, read_image
from ns_easyrobust.data.integrity import examine
from ns_easyrobust.errors import DataError

DEEP = np.random.default_rng(0).integers(0, 2**16, (9, 11), dtype=np.uint16)
DEEP[0, :2] = 0, 2**16 - 1


@pytest.fixture
def read(tmp_path):
    def pixels(content: bytes) -> np.ndarray:
        (tmp_path / "x.png").write_bytes(content)
        image = read_image(str(tmp_path / "x.png"))
        assert image.mode == "RGB"
        return np.asarray(image).astype(int)

    return pixels


def grey(values: np.ndarray) -> np.ndarray:
    return np.repeat(values[..., None], 3, axis=2)


def tiff(values: bytes, width: int, height: int, bits: int, *tags: tuple[int, int]) -> bytes:
    sizes = ((256, width), (257, height), (258, bits), (259, 1), (262, 1), (277, 1), (278, height))
    tags = tuple(sorted((*sizes, (273, 122 + 12 * len(tags)), (279, len(values)), *tags)))
    entries = [struct.pack("<HHIHH", tag, 3, 1, value, 0) for tag, value in tags]
    return b"II*\0" + struct.pack("<IH", 8, len(tags)) + b"".join(entries) + b"\0" * 4 + values


@pytest.mark.parametrize(
    "content",
    [
        lambda: encoded(Image.fromarray(DEEP)),
        lambda: encoded(Image.fromarray(DEEP), "TIFF"),
        lambda: encoded(Image.fromarray(DEEP.astype(">u2")), "TIFF"),
        lambda: encoded(Image.fromarray(DEEP), "TIFF", compression="tiff_lzw"),
        lambda: encoded(Image.fromarray(DEEP.astype(">u2")), "TIFF", compression="tiff_lzw"),
        lambda: encoded(Image.fromarray(DEEP), "JPEG2000"),
        lambda: b"P5 11 9 65535\n" + DEEP.astype(">u2").tobytes(),
    ],
    ids=["png", "tiff", "big-endian tiff", "lzw tiff", "big-endian lzw tiff", "jpeg2000", "pgm"],
)
def test_greys_of_16_bits_are_scaled(read, content):
    assert (read(content()) == grey(np.rint(DEEP / 257))).all()


def test_greys_are_scaled_by_their_formats_range(read):
    inverted = encoded(Image.fromarray(DEEP), "TIFF", tiffinfo={262: 0})
    assert (read(inverted) == grey(255 - np.rint(DEEP / 257))).all()
    assert read(tiff(b"\xab\xc1\x23\x00\x0f\xff", 2, 2, 12))[..., 0].tolist() == [
        [round(0xABC / 4095 * 255), round(0x123 / 4095 * 255)],
        [0, 255],
    ]
    ten = DEEP >> 6
    assert (read(b"P5 11 9 1023\n" + ten.astype(">u2").tobytes()) == grey(np.rint(ten / 1023 * 255))).all()


def test_colours_of_16_bits_by_their_high_byte(read):
    values = np.random.default_rng(1).integers(0, 2**16, (5, 7, 3), dtype=np.uint16)
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    png = png_header(7, 5, 16) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    assert (read(png) == values >> 8).all()


def test_what_pillow_misreads_is_refused(read):
    """Signed bytes, which it takes for unsigned ones, and 16 bits in separate planes, of which it takes the bytes."""
    pixels = bytes(range(64))
    assert (read(tiff(pixels, 8, 8, 8)) == grey(np.arange(64).reshape(8, 8))).all()
    with pytest.raises(DataError, match="found 32-bit or signed integers"):
        read(tiff(pixels, 8, 8, 8, (339, 2)))
    with pytest.raises(DataError, match="found 16 bits in separate planes"):
        read(tiff(pixels * 2, 8, 8, 16, (284, 2)))


def test_other_modes(read):
    eight = np.asarray(small("L")).astype(int)
    assert (read(encoded(small("1"))) == grey(np.asarray(small("1")).astype(int) * 255)).all()
    assert (read(encoded(small("LA"))) == grey(eight)).all()
    assert (read(encoded(small("RGBA"))) == np.asarray(small())).all()
    palette = small("P")
    colours = np.asarray(palette.getpalette()).reshape(-1, 3)[np.asarray(palette)]
    assert (read(encoded(palette, transparency=3)) == colours).all()
    ink = Image.new("CMYK", (16, 16), (10, 200, 60, 0))  # Adobe's files, as Pillow's, hold it inverted
    assert abs(read(encoded(ink, "JPEG", quality=95)) - [245, 55, 195]).max() <= 3


@pytest.mark.parametrize("name", hostile_images())
def test_a_hostile_file_is_one_line(tmp_path, name):
    path = tmp_path / name
    path.write_bytes(hostile_images()[name])
    began = time.monotonic()
    with pytest.raises(DataError) as caught:
        read_image(str(path))
    assert one_line(caught).startswith(f"{path}: expected an image")
    assert time.monotonic() - began < 5


def test_a_file_of_endless_blocks_is_given_up(tmp_path, monkeypatch):
    monkeypatch.setattr(image_reading, "_MOST_READS", 1000)
    good = encoded(small())
    (tmp_path / "x.png").write_bytes(good[:33] + chunk(b"prVt", b"") * 1000 + good[33:])
    with pytest.raises(DataError, match="cannot be decoded"):
        read_image(str(tmp_path / "x.png"))
    (tmp_path / "x.png").write_bytes(good)
    read_image(str(tmp_path / "x.png"))


def test_many_pixels_are_no_warning(read, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)  # small() has 192, Pillow's error comes from 201 on
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert (read(encoded(small())) == np.asarray(small())).all()


def lay(path, kind):
    path.unlink()
    if kind == "FIFO":
        os.mkfifo(path)
    elif kind == "loop":
        path.symlink_to(path.name)
    elif kind == "dangling link":
        path.symlink_to("nowhere")
    elif kind == "device":
        path.symlink_to("/dev/zero")
    else:
        path.write_bytes(hostile_images()[kind])


KINDS = {
    "FIFO": "found: a pipe",
    "loop": "found: Too many levels of symbolic links",
    "dangling link": "found: No such file",
    "device": "found: a device",
    "bomb.png": "more pixels than Pillow takes",
    "floats.tif": "found floats",
}


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_no_image_is_named_or_replaced(folder, kind):
    lay(folder / "a" / "1.png", kind)
    dataset = open_image_folder(folder)
    with pytest.raises(DataError, match=KINDS[kind]):
        dataset[1]
    view = FolderView(dataset, [0, 1, 2], lambda image: image.size, replace_bad=True)
    assert view[1] == view[2] == ((60, 40), 0)
    assert view.replaced.tolist() == [0, 1, 0, 0, 0, 0]


def test_doctor_names_depths(folder):
    os.makedirs(folder / "data" / "imagenet-val")
    for name in ("a", "b"):
        os.rename(folder / name, folder / "data" / "imagenet-val" / name)
    deep = folder / "data" / "imagenet-val" / "a" / "1.png"
    deep.write_bytes(encoded(Image.fromarray(DEEP)))
    floats = folder / "data" / "imagenet-val" / "b" / "2.png"
    floats.write_bytes(hostile_images()["floats.tif"])
    texts = {f.level: f.text for f in examine(folder / "data", 2, suites=["val"], workers=1)}
    assert texts["warning"] == f"1 of 6 images decoded are greys of more than 8 bits: {deep}"
    assert texts["problem"].startswith(f"1 of 6 images decoded are unreadable: {floats} (expected an image of 8 or 16")
    assert decode_image(str(deep)).bits == 16


FORMS = [
    *(("RGB", form) for form in ("PNG", "JPEG", "BMP", "TIFF", "WEBP", "JPEG2000")),
    *(("P", "GIF"), ("CMYK", "JPEG"), ("I;16", "TIFF"), ("L", "PPM")),
]


@settings(derandomize=True, deadline=None, max_examples=100)
@given(form=st.sampled_from(FORMS), seed=st.integers(0, 2**32))
def test_any_mutation_is_an_image_or_an_error(tmp_path_factory, form, seed):
    mode, kind = form
    path = tmp_path_factory.getbasetemp() / "mutated.png"
    path.write_bytes(mutated(random.Random(seed), encoded(small(mode), kind)))
    with suppress(DataError):
        assert read_image(str(path)).mode == "RGB"


@settings(derandomize=True, deadline=None, max_examples=30)
@given(level=st.integers(0, 9), text=st.binary(max_size=40), behind=st.binary(max_size=40))
def test_an_image_written_otherwise_is_equal(tmp_path_factory, level, text, behind):
    path = tmp_path_factory.getbasetemp() / "rewritten.png"
    png = encoded(small(), compress_level=level)
    path.write_bytes(png[:33] + chunk(b"prVt", text) + png[33:] + behind)
    assert (np.asarray(read_image(str(path))) == np.asarray(small())).all()
