"""Pictures of frost: the published ones, or drawn ones that need nothing but this package."""

from __future__ import annotations

import hashlib
import importlib.util
import math
from collections.abc import Sequence
from functools import cache, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...utils import cv2, np
from ..image_reading import read_image
from .filters import plasma_fractal

if TYPE_CHECKING:
    from numpy.typing import NDArray

# Of the six published pictures, those that the published code draws from.
_PUBLISHED = ("frost1.png", "frost2.png", "frost3.png", "frost4.jpg", "frost5.jpg")
# Height and width, mean and standard deviation of red, green and blue (of 255), crystals and their length in pixels:
# sizes and colours are those of the published pictures. The last number is the share of clouds in the variance.
_DRAWN = (
    (600, 900, (77.7, 149.1, 165.7), (26.9, 16.5, 15.3), 220, 90, 0.7),
    (315, 560, (200.8, 205.4, 214.5), (21.4, 22.1, 22.6), 260, 60, 0.2),
    (315, 560, (200.8, 205.4, 214.5), (21.4, 22.1, 22.6), 260, 60, 0.2),
    (350, 527, (137.6, 152.8, 165.2), (28.5, 28.5, 29.9), 400, 30, 0.3),
    (495, 660, (112.4, 123.4, 134.7), (44.4, 43.3, 41.6), 420, 60, 0.4),
)


class FrostPictures:
    """Pictures from which the corruption ``frost`` takes its frost.

    Attributes:
        origin: "published" or "drawn".

    Example:
        >>> len(FrostPictures.drawn()), FrostPictures.drawn()
        (5, FrostPictures(drawn))
    """

    def __init__(self, pictures: Sequence[NDArray[np.uint8]], origin: str) -> None:
        self.origin = origin
        self._pictures = pictures
        self._enlarged = lru_cache(maxsize=2 * len(pictures))(self._enlarge)  # most sets have few sizes

    def __len__(self) -> int:
        return len(self._pictures)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.origin})"

    @classmethod
    def read(cls, folder: str | Path) -> FrostPictures:
        """The published pictures, frost1.png to frost5.jpg, as the package imagecorruptions has them in ``frost/``.

        Raises:
            DataError: one of them is missing or cannot be read.
        """
        return cls([np.asarray(read_image(str(Path(folder, name)))) for name in _PUBLISHED], "published")

    @classmethod
    def drawn(cls) -> FrostPictures:
        """Five drawn pictures, always the same: ice crystals and clouds in the published pictures' sizes and colours."""
        return _all_drawn()

    @classmethod
    def installed_or_drawn(cls) -> FrostPictures:
        """The published pictures where the package imagecorruptions is, which is not imported; else drawn ones."""
        found = importlib.util.find_spec("imagecorruptions")
        folder = Path(found.origin).with_name("frost") if found and found.origin else None
        return cls.read(folder) if folder and folder.is_dir() else cls.drawn()

    @property
    def sha256(self) -> str:
        """SHA-256 (hex) of the pictures' pixels."""
        return hashlib.sha256(b"".join(picture.tobytes() for picture in self._pictures)).hexdigest()

    def at_least(self, index: int, height: int, width: int) -> NDArray[np.uint8]:
        """Picture ``index``, at least 1.1 times as large as an image of this size, as the published code enlarges it."""
        rows, columns = self._pictures[index].shape[:2]
        factor = max(1, height / rows, width / columns) * 1.1
        return self._enlarged(index, math.ceil(rows * factor), math.ceil(columns * factor))

    def _enlarge(self, index: int, height: int, width: int) -> NDArray[np.uint8]:
        return cv2.resize(self._pictures[index], (width, height), interpolation=cv2.INTER_CUBIC)  # type: ignore[no-any-return]


@cache
def _all_drawn() -> FrostPictures:
    return FrostPictures([_draw(np.random.default_rng(seed), *how) for seed, how in enumerate(_DRAWN)], "drawn")


def _draw(
    generator: np.random.Generator,
    height: int,
    width: int,
    mean: tuple[float, ...],
    std: tuple[float, ...],
    crystals: int,
    length: float,
    clouds: float,
) -> NDArray[np.uint8]:
    """One picture (height, width, 3) of feathers of ice before clouds."""
    ice = np.zeros((height, width), np.uint8)
    for _ in range(crystals):
        start = generator.uniform((0, 0), (width, height))
        _draw_crystal(ice, generator, start, generator.uniform(0, 2 * np.pi), length * generator.uniform(0.4, 1.2))
    relief = cv2.GaussianBlur(ice.astype(np.float32), (0, 0), 0.8)
    cloud = plasma_fractal(generator, 1024, 1.8)[:height, :width]
    parts = [(part - part.mean()) / part.std() for part in (cloud, relief)]
    grey = math.sqrt(clouds) * parts[0] + math.sqrt(1 - clouds) * parts[1]
    grey /= grey.std()
    return np.clip(np.array(mean) + np.array(std) * grey[..., None], 0, 255).astype(np.uint8)


def _draw_crystal(
    ice: NDArray[np.uint8], generator: np.random.Generator, start: NDArray[Any], angle: float, length: float
) -> None:
    """A straight needle with parallel branches at 60 degrees to both sides, shorter towards its tip."""
    brightness = int(generator.integers(90, 256))
    needle = length * np.array([np.cos(angle), np.sin(angle)])
    _draw_line(ice, start, start + needle, brightness)
    for share in np.arange(0.1, 1, max(0.05, 3 / length)):
        for side in (-1, 1):
            direction = angle + side * np.pi / 3
            reach = length * 0.35 * (1 - share) * generator.uniform(0.6, 1.2)
            base = start + share * needle
            _draw_line(ice, base, base + reach * np.array([np.cos(direction), np.sin(direction)]), brightness * 3 // 4)


def _draw_line(ice: NDArray[np.uint8], start: NDArray[Any], end: NDArray[Any], brightness: int) -> None:
    """A smooth line between two places (right, down) in pixels, which OpenCV takes in sixteenths."""
    ends = [tuple(int(round(16 * coordinate)) for coordinate in place) for place in (start, end)]
    cv2.line(ice, ends[0], ends[1], brightness, 1, cv2.LINE_AA, 4)
