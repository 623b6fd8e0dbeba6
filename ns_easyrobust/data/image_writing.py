"""Pixels in files that lose little or nothing: 8-bit PNG, 16-bit PNG and NumPy's float32, and back.

:func:`read_image`, and with it every verb of this package, reads 8 bits: of a 16-bit PNG's colours the high byte. So do
most loaders of photographs (Pillow's ``convert("RGB")``, torchvision's ``ImageFolder``). What a 16-bit file keeps
reaches a model only through :func:`read_pixels` or a loader like it.
"""

from __future__ import annotations

import io
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image

from ..errors import DataError, OptionError
from ..utils import cv2, import_package, np, read_bounded, torch, write_atomically
from .image_reading import read_image_bytes

if TYPE_CHECKING:
    from numpy.typing import NDArray

IMAGE_FORMATS = {"png": ".png", "png16": ".png", "float": ".npy"}  # and the suffixes of their files
_MOST_BYTES = 256 * 2**20
_MOST_PIXELS = 2**27  # as many as Pillow takes, about
_PNG = b"\x89PNG\r\n\x1a\n"


def write_image(path: str | Path, pixels: torch.Tensor, image_format: str = "png") -> Path:
    """Write one image atomically.

    Args:
        path: the file; its suffix is not looked at, :data:`IMAGE_FORMATS` has the usual one.
        pixels: (3, H, W) in [0, 1], floating point.
        image_format: ``png``, rounded to multiples of 1/255; ``png16``, of 1/65535; ``float``, a NumPy array (3, H, W)
            of float32.

    Raises:
        DataError: ``pixels`` are none.
        OptionError: an unknown format, or one whose package (OpenCV, for ``png16``) is not installed.
        OutputError: the file cannot be written.
    """
    require_format(image_format)
    content = encoded(as_array(pixels), image_format)
    return write_atomically(path, lambda temporary: temporary.write_bytes(content), sync=False)


def require_format(image_format: str) -> None:
    """Raise the OptionError of :func:`write_image`, before hours of work."""
    if image_format not in IMAGE_FORMATS:
        raise OptionError(
            f"image format: expected one of {', '.join(IMAGE_FORMATS)}, found {image_format!r}. Choose one of them."
        )
    if image_format == "png16":
        import_package("cv2", "16-bit PNG")


def read_pixels(path: str | Path) -> torch.Tensor:
    """What :func:`write_image` wrote, with all its bits: (3, H, W) float64 in [0, 1]. Other images have 8 bits.

    Raises:
        DataError: the file is missing, too large, or holds no image, or no array (3, H, W) of pixels in [0, 1].
        OptionError: a 16-bit PNG, and OpenCV is not installed.
    """
    try:
        content = read_bounded(path, _MOST_BYTES)
    except OSError as error:
        raise DataError(f"{path}: expected an image, found: {error.strerror or error}. Replace the file.") from error
    return torch.from_numpy(decoded(content, str(path)).transpose(2, 0, 1).copy())


def as_array(pixels: torch.Tensor) -> NDArray[np.float64]:
    """One image (3, H, W) in [0, 1] as (H, W, 3) float64.

    Raises:
        DataError: it is none.
    """
    if pixels.dim() != 3 or len(pixels) != 3 or 0 in pixels.shape or not pixels.is_floating_point():
        raise DataError(
            f"image: expected floating-point pixels (3, H, W), found {pixels.dtype} of shape {tuple(pixels.shape)}. "
            "Give one RGB image, divided by 255."
        )
    array = pixels.detach().cpu().double().permute(1, 2, 0).numpy()
    if not (array.min() >= 0 and array.max() <= 1):  # NaN too
        raise DataError(
            f"image: expected pixels in [0, 1], found values from {array.min():g} to {array.max():g}. Give them before "
            "normalisation; it is part of the model."
        )
    return array


def encoded(array: NDArray[Any], image_format: str) -> bytes:
    """The file of an image (H, W, 3) in [0, 1]."""
    stream = io.BytesIO()
    if image_format == "float":
        np.save(stream, np.ascontiguousarray(array.transpose(2, 0, 1), dtype=np.float32))
    elif image_format == "png16":
        import_package("cv2", "16-bit PNG")
        done, content = cv2.imencode(".png", np.rint(array[..., ::-1] * 65535).astype(np.uint16))
        if not done:
            raise DataError(f"image of shape {array.shape}: expected one that OpenCV writes as PNG, found it refused.")
        stream.write(content.tobytes())
    else:
        as_8_bits(array).save(stream, "PNG")
    return stream.getvalue()


def as_8_bits(array: NDArray[Any]) -> Image.Image:
    """An image (H, W, 3) in [0, 1], each value rounded to the nearest of 256."""
    return Image.fromarray(np.rint(array * 255).astype(np.uint8))


def decoded(content: bytes, name: str) -> NDArray[np.float64]:
    """The image (H, W, 3) in [0, 1] of a file's ``content``, which messages call ``name``; 16-bit colours whole."""
    if content.startswith(b"\x93NUMPY"):
        return _array_in(content, name)
    if content.startswith(_PNG) and content[24:25] == b"\x10":  # its header's bit depth
        width, height = (int.from_bytes(content[start : start + 4], "big") for start in (16, 20))
        import_package("cv2", "16-bit PNG")
        image = None
        if width * height <= _MOST_PIXELS:
            image = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_COLOR | cv2.IMREAD_ANYDEPTH)
        if image is None or image.dtype != np.uint16:
            raise DataError(f"{name}: expected a 16-bit PNG, found one that cannot be decoded. Replace the file.")
        return image[..., ::-1] / 65535
    return np.asarray(read_image_bytes(content, name)) / 255


def _array_in(content: bytes, name: str) -> NDArray[np.float64]:
    try:
        array = np.load(io.BytesIO(content), allow_pickle=False)
    except (ValueError, EOFError, OSError, MemoryError) as error:
        raise DataError(f"{name}: expected a NumPy array, found a damaged one. Replace the file.") from error
    pixels = array.ndim == 3 and len(array) == 3 and array.size > 0 and array.dtype.kind == "f"
    if not pixels or not (array.min() >= 0 and array.max() <= 1):
        raise DataError(
            f"{name}: expected floats (3, H, W) in [0, 1], found {array.dtype} of shape {array.shape}"
            f"{' with others' if pixels else ''}. Replace the file."
        )
    return array.transpose(1, 2, 0).astype(np.float64)
