"""Reading one image file, whatever is in it: 8-bit RGB, or one line that says why not; bounded time and memory."""

from __future__ import annotations

import io
import os
import warnings
from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

from PIL import Image

from ..errors import DataError
from ..utils import np, open_regular

# Formats of photographs. Others that Pillow knows start programs (EPS) or are unbounded, and no released set has any.
_FORMATS = ("JPEG", "PNG", "BMP", "DIB", "PPM", "GIF", "TIFF", "WEBP", "JPEG2000", "AVIF")
_MIB = 2**20
# By first bytes. Pillow's time to open a file grows with the square of a GIF's comments and of a JPEG's EXIF, and it
# takes a second for each MiB of the PPM, PGM and PBM files that are texts.
_TEXTS = (b"P1", b"P2", b"P3")
_MOST_BYTES = {b"GIF8": _MIB, b"\xff\xd8": 64 * _MIB, **dict.fromkeys(_TEXTS, 8 * _MIB), b"": 256 * _MIB}
_MOST_READS = 2_000_000  # a few hundred do for most files; without a limit, empty blocks could go on for hours
_MOST_ELONGATED = 500  # the shorter side is resized to the model's, and the longer one in proportion
_ADVICE = "Replace the file or take it out of the folder."


class DecodedImage(NamedTuple):
    """An image as 8-bit RGB, and how many bits of grey its file had if its values had to be scaled to 8; else 8."""

    rgb: Image.Image
    bits: int


class _LimitedFile(io.BufferedReader):
    """A file that can be read :data:`_MOST_READS` times."""

    reads = 0

    def read(self, size: int | None = -1, /) -> bytes:
        self.reads += 1
        if self.reads > _MOST_READS:
            raise ValueError("too many blocks")
        return super().read(size)


def read_image(path: str) -> Image.Image:
    """The image as 8-bit RGB: greys of 16 bits scaled by their format's range, colours of 16 bits by their high byte.

    Transparency is dropped, and of several frames the first is taken, as torchvision does.

    Raises:
        DataError: the file is missing, no regular file, too large, or not an image that can be decoded; or its values
            have no range that is known (floats, 32 bits, signed numbers).
    """
    return decode_image(path).rgb


def read_image_bytes(content: bytes, name: str) -> Image.Image:
    """:func:`read_image` of a file's ``content``, which messages call ``name``."""
    return _decode(lambda: io.BytesIO(content), name).rgb


def decode_image(path: str) -> DecodedImage:
    """:func:`read_image`, and the bits that the file has; raises the same errors."""
    return _decode(lambda: open_regular(path).detach(), path)


def _decode(open_raw: Callable[[], Any], path: str) -> DecodedImage:
    try:
        with _LimitedFile(open_raw()) as stream, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # dozens of ImageNet's files have malformed EXIF data
            start = stream.peek(16)
            most = next(most for first_bytes, most in _MOST_BYTES.items() if start.startswith(first_bytes))
            size = stream.seek(0, os.SEEK_END)
            stream.seek(0)
            if size > most:
                raise DataError(
                    f"{path}: expected an image file of at most {most // _MIB} MiB, found {size / _MIB:.1f}. "
                    "Convert it to a smaller PNG."
                )
            with Image.open(stream, formats=_formats()) as image:
                return _as_rgb(image, path)
    except DataError:
        raise
    except OSError as error:
        if error.errno is None:  # Pillow's own
            raise _undecodable(path, error) from error
        raise DataError(f"{path}: expected an image, found: {error.strerror}. {_ADVICE}") from error
    except Image.DecompressionBombError as error:
        raise DataError(
            f"{path}: expected an image, found one that declares more pixels than Pillow takes (a decompression bomb?)."
            f" {_ADVICE}"
        ) from error
    except Exception as error:  # on a hostile file, Pillow raises whatever its parsers run into
        raise _undecodable(path, error) from error


def _undecodable(path: str, error: Exception) -> DataError:
    return DataError(f"{path}: expected an image, found one that cannot be decoded ({type(error).__name__}). {_ADVICE}")


@cache
def _formats() -> tuple[str, ...]:
    """Those of :data:`_FORMATS` that this Pillow was built with."""
    Image.init()
    return tuple(name for name in _FORMATS if name in Image.OPEN)


def _as_rgb(image: Any, path: str) -> DecodedImage:
    """The opened ``image`` as 8-bit RGB."""
    # TIFF's: 258 BitsPerSample, 259 Compression, 262 PhotometricInterpretation, 284 PlanarConfiguration,
    # 339 SampleFormat
    tags = getattr(image, "tag_v2", {})
    bits, white_is_zero = (tags.get(258) or (16,))[0], tags.get(262) == 0
    if tags.get(284) == 2 and bits > 8 and tags.get(259, 1) == 1:  # Pillow takes the bytes of these for pixels
        raise DataError(
            f"{path}: expected an image of 8 bits or with its colours side by side, found {bits} bits in separate "
            "planes. Convert it to 8 bits."
        )
    width, height = image.size
    if not 0 < max(width, height) <= _MOST_ELONGATED * min(width, height):
        raise DataError(
            f"{path}: expected an image with sides of at most {_MOST_ELONGATED}:1, found {width}x{height} pixels. "
            f"{_ADVICE}"
        )
    image.load()
    # Pillow's "I" has 32 bits; from these two formats it holds 16 (scaled to them, for PGM).
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format in ("PNG", "PPM")):
        most = 2**bits - 1
        scaled = ((np.arange(2**16) * 255 + most // 2) // most).clip(0, 255).astype(np.uint8)
        grey = (255 - scaled if white_is_zero else scaled)[np.asarray(image)]
        return DecodedImage(Image.fromarray(grey).convert("RGB"), bits)
    if image.mode in ("I", "F") or 2 in tags.get(339, ()):  # Pillow takes signed bytes for unsigned ones
        kind = "floats" if image.mode == "F" else "32-bit or signed integers"
        raise DataError(
            f"{path}: expected an image of 8 or 16 unsigned bits, found {kind}, whose black and white are unknown. "
            "Convert it to 8 bits."
        )
    return DecodedImage(image.convert("RGB"), 8)
