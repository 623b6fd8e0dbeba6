"""Masks as ImageNet-S has them: ``<masks>/<class>/<image>.png``, an RGB PNG of class ids."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

from PIL import Image

from ...data import read_image
from ...errors import DataError
from ...utils import np, os_errors_as_output_errors, write_atomically

_IGNORED = 1000  # ImageNet-S's id of pixels whose class is unclear
_OBJECT = 1  # what is written; a label + 1 would be the ignored id for ImageNet's last class


def read_ids(path: str | Path) -> Any:
    """Class ids of a mask, (H, W) int64: green * 256 + red; 0 is the background, as is 1000, which ImageNet-S ignores.

    RobustViT reads them so (segmentation_dataset.py:95-101; with numpy 2, its 8-bit product is an OverflowError).
    A grey mask of 0 and 255 gives two ids too, as fits.

    Raises:
        DataError: no file that can be decoded as an image.
    """
    rgb = np.asarray(read_image(str(path))).astype(np.int64)
    ids = rgb[..., 1] * 256 + rgb[..., 0]
    ids[ids == _IGNORED] = 0
    return ids


def write_mask(path: Path, foreground: Any, size: tuple[int, int]) -> None:
    """Write ``foreground``, (h, w) bool, as a mask of ``size`` (width, height), atomically; folders are made.

    Each pixel takes the value of the cell that it lies in.

    Raises:
        OutputError: the file cannot be written.
    """
    ids = np.zeros((*foreground.shape, 3), np.uint8)
    ids[..., 0][foreground] = _OBJECT
    image = Image.fromarray(ids).resize(size, Image.Resampling.NEAREST)
    with os_errors_as_output_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, functools.partial(image.save, format="PNG"), sync=False)


def flaw(ids: Any) -> str:
    """Why a mask of these ids, (H, W), says nothing of an image's foreground; "" if it does."""
    found = np.unique(ids)
    if len(found) > 2 or (len(found) == 2 and found[0] != 0):
        return "of several classes"  # where RobustViT stops with an AssertionError (segmentation_dataset.py:97)
    if len(found) == 1:
        return "all foreground" if found[0] else "all background"
    return ""


def require_fitting(image: Image.Image, image_path: str, ids: Any, mask_path: str | Path) -> None:
    """Raise DataError unless the mask ``ids`` (H, W) has the image's sides, or others in the same proportion."""
    (width, height), (mask_height, mask_width) = image.size, ids.shape
    # One pixel of rounding at the smaller of the two scales.
    if abs(mask_width * height - width * mask_height) > max(width, height, mask_width, mask_height):
        raise DataError(
            f"{mask_path}: expected a mask of {width}x{height} pixels, as {image_path}, or in proportion, found "
            f"{mask_width}x{mask_height}. Give the masks that were made for these images."
        )
