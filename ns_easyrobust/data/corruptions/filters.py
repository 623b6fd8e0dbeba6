"""Filters that several corruptions share; all are exact up to rounding, and none has a loop over pixels."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from ...utils import cv2, np

if TYPE_CHECKING:
    from numpy.typing import NDArray


def as_bytes(values: NDArray[Any]) -> NDArray[Any]:
    """Values of [0, 1] in [0, 255], clipped."""
    return np.clip(values, 0, 1) * 255


def gaussian_kernel(sigma: float, truncate: float) -> NDArray[np.float64]:
    """(2r + 1,) weights whose sum is 1, with r = ``truncate`` standard deviations, rounded; scipy's."""
    radius = int(truncate * sigma + 0.5)
    kernel = np.exp(-0.5 / sigma**2 * np.arange(-radius, radius + 1) ** 2)
    return kernel / kernel.sum()


def gaussian(values: NDArray[Any], sigmas: tuple[float, float], truncate: float, border: int) -> NDArray[Any]:
    """``values`` (H, W) or (H, W, C), blurred by ``sigmas`` pixels along height and width; OpenCV's ``border``."""
    rows, columns = (gaussian_kernel(sigma, truncate) for sigma in sigmas)
    return cv2.sepFilter2D(values, -1, columns, rows, borderType=border)


def motion_taps(radius: int, sigma: float, angle: float, height: int, width: int) -> list[tuple[int, int, float]]:
    """Offsets (down, right) and weights of a blur along one direction, half a Gaussian of 2 ``radius`` + 1 steps.

    ``angle`` is in degrees. Steps that leave the image end the motion: their weights are lost, as published.
    """
    steps = 2 * radius + 1
    weights = np.exp(-(np.arange(steps) ** 2) / (2 * sigma**2))
    weights /= weights.sum()
    down, right = (steps * function(np.deg2rad(angle)) for function in (np.sin, np.cos))
    length = math.hypot(down, right)
    taps = []
    for step in range(steps):
        dy, dx = (-math.ceil(step * part / length - 0.5) for part in (down, right))
        if abs(dy) >= height or abs(dx) >= width:
            break
        taps.append((dy, dx, float(weights[step])))
    return taps


def motion_blur(values: NDArray[Any], radius: int, sigma: float, angle: float) -> NDArray[Any]:
    """``values`` (H, W) or (H, W, C) of floats, blurred along :func:`motion_taps`, borders repeated."""
    height, width = values.shape[:2]
    taps = motion_taps(radius, sigma, angle, height, width)
    down, across = [0, *(dy for dy, _, _ in taps)], [0, *(dx for _, dx, _ in taps)]
    top, bottom, left, right = max(down), -min(down), max(across), -min(across)
    padded = cv2.copyMakeBorder(values, top, bottom, left, right, cv2.BORDER_REPLICATE)
    blurred = np.zeros_like(values)
    term = np.empty_like(values)
    for dy, dx, weight in taps:
        np.multiply(padded[top - dy : top - dy + height, left - dx : left - dx + width], weight, out=term)
        blurred += term
    return blurred


def _central_zoom(length: int, factor: float) -> tuple[NDArray[np.int64], NDArray[Any]]:
    """Where each pixel of the central part of an axis, enlarged by ``factor``, lies: index, fraction to the next."""
    part = math.ceil(length / factor)
    enlarged = round(part * factor)
    places = np.arange(enlarged) * ((part - 1) / (enlarged - 1) if enlarged > 1 else 1)
    index = np.minimum(places.astype(np.int64), max(part - 2, 0))
    return (length - part) // 2 + index, places - index


def _along_rows(values: NDArray[Any], index: NDArray[np.int64], fraction: NDArray[Any]) -> NDArray[Any]:
    following = values[np.minimum(index + 1, len(values) - 1)]
    result = values[index]
    following -= result
    following *= fraction.astype(values.dtype).reshape(-1, *(1,) * (values.ndim - 1))
    result += following
    result[fraction > 1] = 0  # beyond the last one by a rounding, which is outside for scipy, and so as published
    return result


def central_zoom(values: NDArray[Any], factor: float, whole: bool = False) -> NDArray[Any]:
    """The central part of ``values`` (H, W, ...), linearly enlarged by ``factor``, as (W, H, ...), transposed.

    The enlarged part may be a few pixels larger than the image; what is beyond is cut off unless it is wanted
    ``whole``. The result is transposed because rows are gathered several times faster than columns.
    """
    places = [_central_zoom(length, factor) for length in values.shape[:2]]
    if not whole:
        places = [
            (index[:length], fraction[:length]) for length, (index, fraction) in zip(values.shape, places, strict=False)
        ]
    rows, columns = places
    return _along_rows(np.ascontiguousarray(_along_rows(values, *rows).swapaxes(0, 1)), *columns)


def plasma_fractal(generator: np.random.Generator, side: int, decay: float) -> NDArray[np.float64]:
    """A height map (side, side) in [0, 1] by the diamond-square algorithm; ``side`` is a power of 2.

    At each step the centre of every square, then the middles of its sides, become the mean of their four neighbours
    plus noise whose range falls by ``decay`` a step. The map is periodic.
    """
    heights = np.empty((side, side))
    heights[0, 0] = 0
    step, wibble = side, 100.0
    while step >= 2:
        half = step // 2

        def perturbed(total: NDArray[np.float64], wibble: float = wibble) -> NDArray[np.float64]:
            return total / 4 + wibble * generator.uniform(-wibble, wibble, total.shape)

        corners = heights[::step, ::step]
        across = corners + np.roll(corners, -1, 0)
        heights[half::step, half::step] = perturbed(across + np.roll(across, -1, 1))
        centres = heights[half::step, half::step]
        heights[::step, half::step] = perturbed(centres + np.roll(centres, 1, 0) + corners + np.roll(corners, -1, 1))
        heights[half::step, ::step] = perturbed(centres + np.roll(centres, 1, 1) + corners + np.roll(corners, -1, 0))
        step, wibble = half, wibble / decay
    heights -= heights.min()
    return heights / heights.max()
