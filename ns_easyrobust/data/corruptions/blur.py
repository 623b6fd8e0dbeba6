"""Blur: defocus, frosted glass, motion, zoom, and Gaussian, which is one of the four extra corruptions."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any

from ...utils import cv2, ndimage, np
from .filters import as_bytes, central_zoom, gaussian
from .filters import motion_blur as blur_along
from .registry import register_corruption

if TYPE_CHECKING:
    from numpy.typing import NDArray


def _floats(pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
    return pixels.astype(np.float32) / np.float32(255)


@register_corruption("gaussian_blur", 1, 2, 3, 4, 6)
def gaussian_blur(pixels: NDArray[np.uint8], generator: np.random.Generator, sigma: float) -> NDArray[Any]:
    """A Gaussian of ``sigma`` pixels."""
    return as_bytes(gaussian(_floats(pixels), (sigma, sigma), 4, cv2.BORDER_REPLICATE))


@cache
def _disk(radius: int, alias_blur: float) -> NDArray[np.float32]:
    """A disk whose sum is 1, its rim softened by a Gaussian of ``alias_blur`` pixels."""
    side = np.arange(-max(8, radius), max(8, radius) + 1)
    disk = (side**2 + side[:, None] ** 2 <= radius**2).astype(np.float32)
    reach = 3 if radius <= 8 else 5
    return cv2.GaussianBlur(disk / disk.sum(), (reach, reach), alias_blur)


@register_corruption("defocus_blur", (3, 0.1), (4, 0.5), (6, 0.5), (8, 0.5), (10, 0.5))
def defocus_blur(
    pixels: NDArray[np.uint8], generator: np.random.Generator, radius: float, alias_blur: float
) -> NDArray[Any]:
    """Spread each point over a disk of ``radius`` pixels."""
    return as_bytes(cv2.filter2D(_floats(pixels), -1, _disk(int(radius), alias_blur)))


@register_corruption("glass_blur", (0.7, 1, 2), (0.9, 2, 1), (1, 2, 3), (1.1, 3, 2), (1.5, 4, 2))
def glass_blur(
    pixels: NDArray[np.uint8], generator: np.random.Generator, sigma: float, reach: float, rounds: float
) -> NDArray[Any]:
    """Blur, let each pixel take the value of one up to ``reach`` away, in ``rounds``, and blur again.

    The blur is scipy's in double precision: rounded otherwise, flat areas would be another grey level in both steps.
    """
    smooth = (255 * ndimage.gaussian_filter(pixels / 255, (sigma, sigma, 0), mode="nearest")).astype(np.uint8)
    for _ in range(int(rounds)):
        smooth = _displaced(smooth, generator, int(reach))
    return as_bytes(gaussian(_floats(smooth), (sigma, sigma), 4, cv2.BORDER_REPLICATE))


def _displaced(pixels: NDArray[np.uint8], generator: np.random.Generator, reach: int) -> NDArray[np.uint8]:
    """``pixels`` (H, W, 3), each taking in its turn what another within ``reach`` then holds.

    The published loop goes from the last pixel to the first, row by row. (It means to swap two pixels, but numpy's
    rows are views, so that one is lost.) So a pixel takes another's first value if that is still to come, or else what
    that one took: a chain, followed here for all pixels at once, its length doubled at each step.
    """
    height, width = pixels.shape[:2]
    rows, columns = (np.arange(length - reach, reach, -1) for length in (height, width))
    own = (rows[:, None] * width + columns).ravel()
    shifts = generator.integers(-reach, reach, (len(own), 2))
    source = np.arange(height * width)
    source[own] += shifts[:, 0] + width * shifts[:, 1]
    taken_from_taker = np.zeros(height * width, bool)  # whether the source had its turn before
    taken_from_taker[own] = True
    taken_from_taker = taken_from_taker[source] & (source > np.arange(height * width))
    while taken_from_taker.any():
        source, taken_from_taker = (
            np.where(taken_from_taker, source[source], source),
            taken_from_taker & taken_from_taker[source],
        )
    return pixels.reshape(-1, 3)[source].reshape(pixels.shape)


@register_corruption("motion_blur", (10, 3), (15, 5), (15, 8), (15, 12), (20, 15))
def motion_blur(pixels: NDArray[np.uint8], generator: np.random.Generator, radius: float, sigma: float) -> NDArray[Any]:
    """Blur along a direction within 45 degrees of the horizontal; published with ImageMagick's filter."""
    return np.clip(blur_along(pixels.astype(np.float32), int(radius), sigma, generator.uniform(-45, 45)), 0, 255)


@register_corruption("zoom_blur", (1.11, 0.01), (1.16, 0.01), (1.21, 0.02), (1.26, 0.02), (1.31, 0.03))
def zoom_blur(pixels: NDArray[np.uint8], generator: np.random.Generator, end: float, step: float) -> NDArray[Any]:
    """The mean of the image and of its centre enlarged by 1, 1 + ``step``, ... below ``end``."""
    values, factors = _floats(pixels), np.arange(1, end, step)
    total = values.swapaxes(0, 1).copy()
    for factor in factors:
        total += central_zoom(values, factor)
    return as_bytes(total.swapaxes(0, 1) / np.float32(len(factors) + 1))
