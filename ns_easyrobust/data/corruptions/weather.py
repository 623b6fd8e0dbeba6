"""Weather: snow, frost, fog, brightness, and spatter, which is one of the four extra corruptions."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ...utils import cv2, ndimage, np
from .filters import as_bytes, central_zoom, motion_blur, plasma_fractal
from .registry import register_corruption

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from .frost_pictures import FrostPictures

_WATER = (175, 238, 238)  # pale turquoise
_MUD = (63, 42, 20)


@register_corruption(
    "snow",
    (0.1, 0.3, 3, 0.5, 10, 4, 0.8),
    (0.2, 0.3, 2, 0.5, 12, 4, 0.7),
    (0.55, 0.3, 4, 0.9, 12, 8, 0.7),
    (0.55, 0.3, 4.5, 0.85, 12, 8, 0.65),
    (0.55, 0.3, 2.5, 0.85, 12, 12, 0.55),
)
def snow(
    pixels: NDArray[np.uint8],
    generator: np.random.Generator,
    mean: float,
    std: float,
    zoom: float,
    threshold: float,
    radius: float,
    sigma: float,
    keep: float,
) -> NDArray[Any]:
    """Whiten the image, and add flakes, enlarged noise above a threshold that falls from one side, and from two."""
    height, width = pixels.shape[:2]
    values = pixels.astype(np.float32) / np.float32(255)
    flakes = central_zoom(generator.normal(mean, std, (height, width)), zoom, whole=True).T
    flakes[flakes < threshold] = 0
    flakes = motion_blur(np.clip(flakes, 0, 1), int(radius), sigma, generator.uniform(-135, -45))
    flakes = (np.round(flakes * 255).astype(np.uint8) / np.float32(255))[:height, :width]
    grey = cv2.cvtColor(values, cv2.COLOR_RGB2GRAY)[..., None]
    values = np.float32(keep) * values + np.float32(1 - keep) * np.maximum(values, grey * 1.5 + 0.5)
    return as_bytes(values + (flakes + np.rot90(flakes, 2))[..., None])


@register_corruption("frost", (1, 0.4), (0.8, 0.6), (0.7, 0.7), (0.65, 0.7), (0.6, 0.75), pictures=True)
def frost(
    pixels: NDArray[np.uint8], generator: np.random.Generator, keep: float, add: float, pictures: FrostPictures
) -> NDArray[Any]:
    """Add a part of a picture of frost."""
    height, width = pixels.shape[:2]
    picture = pictures.at_least(int(generator.integers(len(pictures))), height, width)
    top, left = (int(generator.integers(picture.shape[axis] - pixels.shape[axis])) for axis in (0, 1))
    values = np.float32(keep) * pixels + np.float32(add) * picture[top : top + height, left : left + width]
    return np.clip(values, 0, 255)


@register_corruption("fog", (1.5, 2), (2, 2), (2.5, 1.7), (2.5, 1.5), (3, 1.4))
def fog(pixels: NDArray[np.uint8], generator: np.random.Generator, amount: float, decay: float) -> NDArray[Any]:
    """Add a fractal height map, and scale the image to its old maximum."""
    height, width = pixels.shape[:2]
    side = 1 << (max(*pixels.shape) - 1).bit_length()
    heights = plasma_fractal(generator, side, decay)[:height, :width].astype(np.float32)
    most = np.float32(pixels.max() / 255)
    values = pixels.astype(np.float32) / np.float32(255) + np.float32(amount) * heights[..., None]
    return as_bytes(values * (most / (most + np.float32(amount))))


@register_corruption("brightness", 0.1, 0.2, 0.3, 0.4, 0.5)
def brightness(pixels: NDArray[np.uint8], generator: np.random.Generator, amount: float) -> NDArray[Any]:
    """Add to the value of HSV: with hue and saturation fixed, all three channels are scaled alike."""
    levels = np.arange(1, 256, dtype=np.float32)
    factors = np.minimum(levels + np.float32(255 * amount), 255) / levels
    value = pixels.max(2)
    values = pixels * np.concatenate([[np.float32(0)], factors])[value][..., None]
    values[value == 0] = 255 * amount  # black has no hue
    return np.minimum(values, 255)


@register_corruption(
    "spatter",
    (0.65, 0.3, 4, 0.69, 0.6, 0),
    (0.65, 0.3, 3, 0.68, 0.6, 0),
    (0.65, 0.3, 2, 0.68, 0.5, 0),
    (0.65, 0.3, 1, 0.65, 1.5, 1),
    (0.67, 0.4, 1, 0.65, 1.5, 1),
)
def spatter(
    pixels: NDArray[np.uint8],
    generator: np.random.Generator,
    mean: float,
    std: float,
    sigma: float,
    threshold: float,
    amount: float,
    mud: float,
) -> NDArray[Any]:
    """Drops of water or of mud, where smoothed noise is above a threshold.

    Smoothed as scipy does in double precision: a threshold and an edge detector follow, for which roundings count.
    """
    values = pixels.astype(np.float32) / np.float32(255)
    liquid = ndimage.gaussian_filter(generator.normal(mean, std, pixels.shape[:2]), sigma, mode="nearest")
    liquid[liquid < threshold] = 0
    if mud:
        covered = ndimage.gaussian_filter((liquid > threshold).astype(np.float32), amount, mode="nearest")
        covered[covered < 0.8] = 0
        return as_bytes(values * (1 - covered)[..., None] + covered[..., None] * (np.array(_MUD) / 255))
    water = _water_relief((liquid * 255).astype(np.uint8))
    most = water.max()
    if most == 0:  # a small image without a drop, where the published code divides by zero
        return pixels
    return as_bytes(values + (water / most * np.float32(amount))[..., None] * (np.array(_WATER, np.float32) / 255))


def _water_relief(liquid: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Drops (H, W) lit from one side: their height by the distance from their edges, embossed."""
    distance = cv2.distanceTransform(255 - cv2.Canny(liquid, 50, 150), cv2.DIST_L2, 5)
    distance = cv2.blur(np.minimum(distance, np.float32(20)), (3, 3)).astype(np.uint8)
    emboss = np.array([[-2, -1, 0], [-1, 1, 1], [0, 1, 2]])
    relief = cv2.filter2D(cv2.equalizeHist(distance), cv2.CV_8U, emboss)
    return liquid * cv2.blur(relief, (3, 3)).astype(np.float32)
