"""A sheet of images with their masks, to see whether the masks are any good."""

from __future__ import annotations

from pathlib import Path

from PIL import Image, ImageDraw

from ...utils import np, write_atomically
from .masked_images import MaskedImages, read_pair

_TILE, _TEXT, _GAP, _ACROSS = 128, 14, 4, 3  # pixels of a tile's side, a line of text, a gap; images side by side
_EACH = 3 * (_TILE + _GAP) + 3 * _GAP  # pixels that an image takes with its mask and both together
_DARK = 0.25  # brightness of the background


def write_sheet(masked: MaskedImages, path: Path, most: int = 24) -> None:
    """Write a PNG of up to ``most`` images, spread evenly: the image, its mask, the image with its background dark.

    Raises:
        DataError: an image or a mask cannot be read. OutputError: the file cannot be written.
    """
    chosen = np.unique(np.linspace(0, len(masked) - 1, min(most, len(masked))).round().astype(int)).tolist()
    rows = -(-len(chosen) // _ACROSS)
    sheet = Image.new("RGB", (_EACH * min(_ACROSS, len(chosen)), (_TILE + _TEXT) * rows), "white")
    writing = ImageDraw.Draw(sheet)
    for place, index in enumerate(chosen):
        item = masked.items[index]
        left, top = _EACH * (place % _ACROSS), (_TILE + _TEXT) * (place // _ACROSS)
        name = f"{masked.classes[item.label]}/{Path(item.image).name}"
        writing.text((left + 2, top), name.encode("ascii", "replace").decode(), fill="black")
        for column, tile in enumerate(_tiles(*_pixels(masked, index))):
            sheet.paste(tile, (left + column * (_TILE + _GAP), top + _TEXT))
    write_atomically(path, lambda temporary: sheet.save(temporary, "PNG"), sync=False)


def _pixels(masked: MaskedImages, index: int) -> tuple[Image.Image, Image.Image]:
    """The image and its mask in a tile's size, squashed to a square as training sees them."""
    image, ids = read_pair(masked.items[index])
    mask = Image.fromarray(np.where(ids > 0, 255, 0).astype(np.uint8))
    return image.resize((_TILE, _TILE), Image.Resampling.BILINEAR), mask.resize(
        (_TILE, _TILE), Image.Resampling.NEAREST
    )


def _tiles(image: Image.Image, mask: Image.Image) -> tuple[Image.Image, Image.Image, Image.Image]:
    dark = image.point(lambda value: value * _DARK)
    return image, mask.convert("RGB"), Image.composite(image, dark, mask)
