"""Digital: contrast, elastic transform, pixelate, JPEG, and saturate, which is one of the four extra corruptions."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any

from PIL import Image

from ...utils import cv2, np
from .filters import as_bytes, gaussian
from .registry import register_corruption

if TYPE_CHECKING:
    from numpy.typing import NDArray


@register_corruption("contrast", 0.4, 0.3, 0.2, 0.1, 0.05)
def contrast(pixels: NDArray[np.uint8], generator: np.random.Generator, factor: float) -> NDArray[Any]:
    """Multiply each value's distance from its channel's mean."""
    means = (pixels / 255).mean(axis=(0, 1))
    levels = np.arange(256)[:, None] / 255
    table = as_bytes(factor * (levels - means) + means).astype(np.uint8)  # of each channel's 256 values
    return np.stack([table[pixels[..., channel], channel] for channel in range(3)], axis=-1)


@register_corruption("elastic_transform", *(250 * share for share in (0.05, 0.065, 0.085, 0.1, 0.12)))
def elastic_transform(pixels: NDArray[np.uint8], generator: np.random.Generator, strength: float) -> NDArray[Any]:
    """Displace pixels by smooth noise; amplitude and width of the noise grow with the image."""
    height, width = pixels.shape[:2]
    sigmas, most = (0.01 * height, 0.01 * width), 0.005 * height
    shifts = [
        strength * gaussian(generator.uniform(-most, most, (height, width)), sigmas, 3, cv2.BORDER_REFLECT)
        for _ in range(2)
    ]
    y, down = _reflected(np.arange(height)[:, None] + shifts[1].astype(np.float32), height)
    x, right = _reflected(np.arange(width) + shifts[0].astype(np.float32), width)
    below, beside = np.minimum(y + 1, height - 1), np.minimum(x + 1, width - 1)
    colours = pixels.reshape(-1, 3).astype(np.float32)
    upper, lower = (
        colours[row * width + x] * (1 - right) + colours[row * width + beside] * right for row in (y, below)
    )
    return np.clip(upper * (1 - down) + lower * down, 0, 255)


def _reflected(places: NDArray[Any], length: int) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Index, and fraction (H, W, 1) to the next, of ``places`` reflected at an axis' ends, half a pixel outside."""
    places = np.mod(places + 0.5, 2 * length)
    places = np.clip(np.minimum(places, 2 * length - places) - 0.5, 0, length - 1)
    index = places.astype(np.int64)
    return index, (places - index).astype(np.float32)[..., None]


@register_corruption("pixelate", 0.6, 0.5, 0.4, 0.3, 0.25)
def pixelate(pixels: NDArray[np.uint8], generator: np.random.Generator, scale: float) -> NDArray[Any]:
    """Reduce the image to ``scale`` of its sides and enlarge it again."""
    image = Image.fromarray(pixels)
    small = image.resize((max(1, int(image.width * scale)), max(1, int(image.height * scale))), Image.Resampling.BOX)
    return np.asarray(small.resize(image.size, Image.Resampling.NEAREST))


@register_corruption("jpeg_compression", 25, 18, 15, 10, 7)
def jpeg_compression(pixels: NDArray[np.uint8], generator: np.random.Generator, quality: float) -> NDArray[Any]:
    """Compress as JPEG."""
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "JPEG", quality=int(quality))
    return np.asarray(Image.open(stream).convert("RGB"))


@register_corruption("saturate", (0.3, 0), (0.1, 0), (2, 0), (5, 0.1), (20, 0.2))
def saturate(pixels: NDArray[np.uint8], generator: np.random.Generator, factor: float, offset: float) -> NDArray[Any]:
    """Scale and shift the saturation of HSV: with hue and value fixed, each channel's distance from the largest.

    Grey has no hue, and HSV then says red; so it does here, as published.
    """
    value, least = (extreme(2).astype(np.float32)[..., None] for extreme in (pixels.max, pixels.min))
    grey = value == least
    saturation = (value - least) / np.maximum(value, 1)
    new = np.clip(saturation * np.float32(factor) + np.float32(offset), 0, 1)
    ratio = new / np.where(grey, 1, saturation)
    distance = value - pixels
    if offset:
        distance = np.where(grey, value * np.array([0, 1, 1], np.float32), distance)
    return value - distance * ratio
