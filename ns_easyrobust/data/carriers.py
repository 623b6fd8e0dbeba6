"""What becomes of an image's pixels on their way: in files that round or compress them, resized, cropped.

Each carrier makes the real bytes of a file and reads them again. A carrier is named by its kind and a number:

- ``float``: float32, as :func:`write_image` writes it;
- ``png16``: a PNG of 16 bits a colour (OpenCV), read with all of them;
- ``png``: a PNG of 8 bits, each value rounded to the nearest;
- ``jpeg-Q``: a JPEG of quality Q, 1 to 100, with colours at half the resolution (4:2:0), which is Pillow's default;
- ``resize-F``: resized to F times the sides by Pillow's bicubic filter, an 8-bit PNG, and resized back the same way;
- ``crop-F``: the middle F of each side, an 8-bit PNG, resized to the whole image's size by the bicubic filter.
"""

from __future__ import annotations

import io
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from PIL import Image

from ..errors import DataError, OptionError
from ..utils import import_package, np, torch
from .image_writing import as_8_bits, as_array, decoded, encoded

if TYPE_CHECKING:
    from numpy.typing import NDArray

_FORMS = "float, png16, png, jpeg-QUALITY (1 to 100), resize-FACTOR (0.05 to 4, not 1), crop-SHARE (0.05 to below 1)"


@dataclass(frozen=True)
class Carrier:
    """A way from pixels to pixels.

    Attributes:
        name: as :func:`find_carrier` takes it.
        through: an image (H, W, 3) in [0, 1] to what arrives, of the same shape.
    """

    name: str
    through: Callable[[NDArray[Any]], NDArray[Any]]

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        """What arrives of ``images``, (3, H, W) or (B, 3, H, W) in [0, 1]: of the same shape, dtype and device.

        Raises:
            DataError: they are no RGB images in [0, 1].
        """
        if images.dim() not in (3, 4) or 0 in images.shape:
            raise DataError(
                f"images: expected (3, H, W) or (B, 3, H, W), found shape {tuple(images.shape)}. Correct the call."
            )
        batch = images if images.dim() == 4 else images[None]
        arrived = np.stack([self.through(as_array(image)).transpose(2, 0, 1) for image in batch])
        return torch.from_numpy(arrived).to(images).view(images.shape)


def find_carrier(name: str) -> Carrier:
    """The carrier of that name, for example ``png``, ``jpeg-75`` or ``resize-0.5``.

    Raises:
        OptionError: there is none, its number is out of range, or its package (OpenCV, for ``png16``) is not installed.
    """
    kind, dash, number = name.partition("-")
    if kind in ("float", "png16", "png") and not dash:
        if kind == "png16":
            import_package("cv2", "png16")
        return Carrier(name, partial(_through_file, image_format=kind))
    value = _number(number)
    if kind == "jpeg" and value == int(value) and 1 <= value <= 100:
        return Carrier(name, partial(_through_jpeg, quality=int(value)))
    if kind == "resize" and 0.05 <= value <= 4 and value != 1:
        return Carrier(name, partial(_through_resize, factor=value))
    if kind == "crop" and 0.05 <= value < 1:
        return Carrier(name, partial(_through_crop, share=value))
    raise OptionError(f"carrier: expected {_FORMS}, found {name!r}. Choose one of them.")


def _number(text: str) -> float:
    """The number, or 0, which is none of any carrier's."""
    try:
        value = float(text)
    except ValueError:
        return 0.0
    return value if math.isfinite(value) else 0.0


def _through_file(array: NDArray[Any], image_format: str) -> NDArray[Any]:
    return decoded(encoded(array, image_format), image_format)


def _through_jpeg(array: NDArray[Any], quality: int) -> NDArray[Any]:
    stream = io.BytesIO()
    as_8_bits(array).save(stream, "JPEG", quality=quality, subsampling="4:2:0")
    return decoded(stream.getvalue(), "JPEG")


def _through_resize(array: NDArray[Any], factor: float) -> NDArray[Any]:
    image = as_8_bits(array)
    width, height = (max(1, round(side * factor)) for side in image.size)
    return _resized_back(image.resize((width, height), Image.Resampling.BICUBIC), image.size)


def _through_crop(array: NDArray[Any], share: float) -> NDArray[Any]:
    image = as_8_bits(array)
    width, height = (max(1, round(side * share)) for side in image.size)
    left, top = (image.width - width) // 2, (image.height - height) // 2
    return _resized_back(image.crop((left, top, left + width, top + height)), image.size)


def _resized_back(image: Image.Image, size: tuple[int, int]) -> NDArray[Any]:
    """``image``, from an 8-bit PNG, at ``size``."""
    stream = io.BytesIO()
    image.save(stream, "PNG")
    return np.asarray(Image.open(stream).resize(size, Image.Resampling.BICUBIC)) / 255
