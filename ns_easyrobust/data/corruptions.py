"""Five of ImageNet-C's fifteen corruptions (arXiv:1903.12261), at any strength, for small images."""

from __future__ import annotations

import io
from collections.abc import Callable

from PIL import Image

from ..utils import np


def _gaussian_noise(image: Image.Image, generator: np.random.Generator, std: float) -> Image.Image:
    pixels = np.asarray(image) / 255
    noisy = pixels + generator.normal(0, std, pixels.shape)
    return Image.fromarray((255 * np.clip(noisy, 0, 1)).astype(np.uint8))


def _impulse_noise(image: Image.Image, generator: np.random.Generator, fraction: float) -> Image.Image:
    pixels, uniform = np.asarray(image).copy(), generator.random(np.asarray(image).shape)
    pixels[uniform < fraction / 2], pixels[uniform > 1 - fraction / 2] = 0, 255
    return Image.fromarray(pixels)


def _contrast(image: Image.Image, generator: np.random.Generator, factor: float) -> Image.Image:
    pixels = np.asarray(image) / 255
    means = pixels.mean(axis=(0, 1), keepdims=True)
    return Image.fromarray((255 * np.clip(factor * (pixels - means) + means, 0, 1)).astype(np.uint8))


def _pixelate(image: Image.Image, generator: np.random.Generator, side: float) -> Image.Image:
    small = image.resize((int(side), int(side)), Image.Resampling.BOX)
    return small.resize(image.size, Image.Resampling.NEAREST)


def _jpeg_compression(image: Image.Image, generator: np.random.Generator, quality: float) -> Image.Image:
    stream = io.BytesIO()
    image.save(stream, "JPEG", quality=int(quality))
    return Image.open(stream).convert("RGB")


CORRUPTIONS: dict[str, Callable[[Image.Image, np.random.Generator, float], Image.Image]] = {
    "gaussian_noise": _gaussian_noise,  # standard deviation, for pixels in [0, 1]
    "impulse_noise": _impulse_noise,  # fraction of the values that become 0 or 255
    "contrast": _contrast,  # factor on each value's distance from its channel's mean
    "pixelate": _pixelate,  # side of the reduced image in pixels
    "jpeg_compression": _jpeg_compression,  # JPEG quality
}
