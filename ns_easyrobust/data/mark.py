"""A visible mark, from a text or a logo's file, and photographs that bear it in the ordinary way."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from PIL import Image, ImageDraw, ImageFont

from ..errors import DataError, OptionError
from ..utils import np, torch
from .image_reading import read_image

if TYPE_CHECKING:
    from numpy.typing import NDArray

_SHARE = 0.94  # of the image that the mark fills, in width or in height
_BOLD = 0.03  # of the letters' size, by which their strokes are widened on each side
_LONGEST = 200  # characters; more are illegible in any image
_TRANSPARENT = 0.1  # share of a logo's frame from which on what is opaque is the logo; rounded corners take up to 5%
_COVERED = (0.02, 0.98)  # shares of its frame between which a logo can be told from nothing, and from its frame


def text_mark(text: str, height: int, width: int) -> torch.Tensor:
    """``text`` in Pillow's own font as large as fits, in the middle: coverage (height, width), float64 in [0, 1].

    Raises:
        OptionError: the text is empty or too long, or has characters that the font lacks.
    """
    text = "\n".join(line.strip() for line in text.strip().splitlines())
    if not 0 < len(text) <= _LONGEST:
        raise OptionError(f"mark's text: expected 1 to {_LONGEST} characters, found {len(text)}. Change it.")
    missing = _missing(text)
    if missing:
        raise OptionError(
            f"mark's text: expected characters of Pillow's own font (Latin), found {missing!r}. Give a logo's file."
        )
    side = 100.0
    for _ in range(3):  # hinting makes a text's size not quite proportional to its font's
        left, top, right, bottom = _box(text, side)
        side *= _SHARE * min(width / (right - left), height / (bottom - top))
    canvas = Image.new("L", (width, height))
    left, top, right, bottom = _box(text, side)
    place = ((width - right - left) / 2, (height - bottom - top) / 2)
    ImageDraw.Draw(canvas).multiline_text(place, text, fill=255, **_lettering(side))
    return _coverage(np.asarray(canvas))


def _box(text: str, side: float) -> tuple[float, float, float, float]:
    """Left, top, right and bottom of ``text`` where it is drawn at (0, 0)."""
    draw = ImageDraw.Draw(Image.new("L", (1, 1)))
    return draw.multiline_textbbox((0, 0), text, **_lettering(side))


def _lettering(side: float) -> dict[str, Any]:
    """Pillow's options of bold letters of that size."""
    return {"font": ImageFont.load_default(side), "align": "center", "stroke_width": round(_BOLD * side)}


def _missing(text: str) -> str:
    """The characters that the font has no picture of."""
    font = ImageFont.load_default(20)
    none = bytes(font.getmask("\uffff"))
    return "".join(sorted(sign for sign in set(text) - {"\n"} if bytes(font.getmask(sign)) == none))


def logo_mark(path: str, height: int, width: int) -> torch.Tensor:
    """A logo as large as fits, in the middle: coverage (height, width), float64 in [0, 1].

    What covers is what is opaque, if a tenth of the file or more is transparent; else, as in a badge with rounded
    corners, what is dark.

    Raises:
        DataError: the file is missing, too large, or no image; or hardly anything of it covers, or nearly all, as in a
            blank one, or one of lines that are too thin for this size.
    """
    rgb = read_image(path)  # which bounds what is read
    with Image.open(path) as file:
        alpha = np.asarray(file.convert("RGBA"))[..., 3]
    covers = alpha
    if float((alpha < 128).mean()) < _TRANSPARENT:
        covers = ((255 - np.asarray(rgb.convert("L"))) * (alpha / 255)).astype(np.uint8)
    scale = _SHARE * min(width / rgb.width, height / rgb.height)
    size = (max(1, round(rgb.width * scale)), max(1, round(rgb.height * scale)))
    small = Image.fromarray(covers).resize(size, Image.Resampling.LANCZOS)
    share = float((np.asarray(small) > 127).mean())
    if not _COVERED[0] <= share <= _COVERED[1]:
        raise DataError(
            f"{path}: expected a logo, dark on light or opaque on transparent, that covers {_COVERED[0]:.0%} to "
            f"{_COVERED[1]:.0%} of its frame at {size[0]} x {size[1]} pixels, found {share:.1%}. Crop it, or give "
            "another."
        )
    canvas = Image.new("L", (width, height))
    canvas.paste(small, ((width - size[0]) // 2, (height - size[1]) // 2))
    return _coverage(np.asarray(canvas))


def _coverage(grey: NDArray[Any]) -> torch.Tensor:
    return torch.from_numpy(grey / 255)


def embossed(images: torch.Tensor, mark: torch.Tensor, *, strength: float = 0.5) -> torch.Tensor:
    """Images that bear the mark in the ordinary way, the targets of Eq. 12: blended with white or with black.

    Each image with the one that its pixels under the mark are farther from.

    Args:
        images: (B, 3, H, W) in [0, 1].
        mark: (H, W), coverage in [0, 1].
        strength: opacity of the mark, in (0, 1].

    Raises:
        OptionError: ``strength`` is out of range, or the mark's size is not that of the images.
    """
    if not 0 < strength <= 1:
        raise OptionError(f"strength: expected a number in (0, 1], found {strength}. Correct it.")
    if mark.shape != images.shape[2:]:
        raise OptionError(
            f"mark: expected the images' size {tuple(images.shape[2:])}, found {tuple(mark.shape)}. Make it for them."
        )
    shown = mark.to(images)
    under = (images * shown).sum((1, 2, 3), keepdim=True) / (images.shape[1] * shown.sum()).clamp_min(1e-12)
    return images + strength * shown * ((under < 0.5).to(images) - images)
