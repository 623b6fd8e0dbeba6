"""Pictures of frost: the published ones, or drawn ones that need nothing but this package."""

from __future__ import annotations

import hashlib
import importlib.util
import math
from collections.abc import Sequence
from functools import cache, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...errors import DataError
from ...utils import cv2, np
from ..image_reading import read_image
from .filters import plasma_fractal

if TYPE_CHECKING:
    from numpy.typing import NDArray

# Of the six published pictures, those that the published code draws from.
_PUBLISHED = ("frost1.png", "frost2.png", "frost3.png", "frost4.jpg", "frost5.jpg")
# Height and width, mean and standard deviation of red, green and blue (of 255), crystals and their length in pixels:
# sizes, colours and roughly the spectra are those of the published pictures. Last, the share of clouds in the variance.
_DRAWN = (
    (600, 900, (77.7, 149.1, 165.7), (26.9, 16.5, 15.3), 500, 70, 0.75),
    (315, 560, (200.8, 205.4, 214.5), (21.4, 22.1, 22.6), 500, 60, 0.3),
    (315, 560, (200.8, 205.4, 214.5), (21.4, 22.1, 22.6), 500, 60, 0.3),
    (350, 527, (137.6, 152.8, 165.2), (28.5, 28.5, 29.9), 900, 25, 0.4),
    (495, 660, (112.4, 123.4, 134.7), (44.4, 43.3, 41.6), 900, 60, 0.5),
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
        if missing := [name for name in _PUBLISHED if not Path(folder, name).exists()]:
            raise DataError(
                f"{folder}: expected the published pictures of frost, {', '.join(_PUBLISHED)}, found no "
                f"{', '.join(missing)}. Give the folder `frost` of the package imagecorruptions."
            )
        return cls([np.asarray(read_image(str(Path(folder, name)))) for name in _PUBLISHED], "published")

    @classmethod
    def drawn(cls) -> FrostPictures:
        """Five drawn pictures, always the same: needles of ice and clouds in the published ones' sizes and colours."""
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
        """Picture ``index``, at least 1.1 times as large as an image of this size: enlarged as published."""
        rows, columns = self._pictures[index].shape[:2]
        factor = max(1, height / rows, width / columns) * 1.1
        return self._enlarged(index, math.ceil(rows * factor), math.ceil(columns * factor))

    def _enlarge(self, index: int, height: int, width: int) -> NDArray[np.uint8]:
        return cv2.resize(self._pictures[index], (width, height), interpolation=cv2.INTER_CUBIC)


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
    """One picture (height, width, 3) of needles of ice, lit from one side, before clouds."""
    ice = np.zeros((height, width), np.uint8)
    for _ in range(crystals):
        start = generator.uniform((0, 0), (width, height))
        _draw_crystal(ice, generator, start, generator.uniform(0, 2 * np.pi), length * generator.uniform(0.3, 1.3))
    rough = cv2.GaussianBlur(ice.astype(np.float32), (0, 0), 0.7)
    relief = rough - np.roll(rough, (3, 2), (0, 1)) + 0.5 * rough
    cloud = plasma_fractal(generator, 1024, 1.45)[:height, :width]
    parts = [(part - part.mean()) / part.std() for part in (cloud, relief)]
    grey = math.sqrt(clouds) * parts[0] + math.sqrt(1 - clouds) * parts[1]
    grey /= grey.std()
    return np.clip(np.array(mean) + np.array(std) * grey[..., None], 0, 255).astype(np.uint8)


def _draw_crystal(
    ice: NDArray[np.uint8], generator: np.random.Generator, start: NDArray[Any], angle: float, length: float
) -> None:
    """A straight needle with branches at about 30 degrees to both sides, shorter towards its tip."""
    brightness = int(generator.integers(60, 256))
    needle = length * np.array([np.cos(angle), np.sin(angle)])
    share = np.repeat(np.arange(0.1, 1, max(0.08, 5 / length)), 2)  # of the needle, where a branch begins
    directions = angle + generator.uniform(0.3, 0.8, len(share)) * np.where(np.arange(len(share)) % 2, 1, -1)
    reach = length * 0.5 * (1 - share) * generator.uniform(0.2, 1.2, len(share))
    bases = start + share[:, None] * needle
    tips = bases + reach[:, None] * np.stack([np.cos(directions), np.sin(directions)], -1)
    for lines, grey in ((np.stack([bases, tips], 1), 2 * brightness // 3), ([[start, start + needle]], brightness)):
        sixteenths = np.round(16 * np.asarray(lines)).astype(np.int32)  # of a pixel
        cv2.polylines(ice, list(sixteenths), False, grey, 1, cv2.LINE_AA, 4)
