"""Five of ImageNet-C's fifteen corruptions (arXiv:1903.12261), of any strength, for small images."""

from __future__ import annotations

import io
from collections.abc import Callable

import numpy as np
from PIL import Image


def _gaussian_noise(image: Image.Image, generator: np.random.Generator, deviation: float) -> Image.Image:
    pixels = np.asarray(image) / 255
    noisy = pixels + generator.normal(0, deviation, pixels.shape)
    return Image.fromarray((255 * np.clip(noisy, 0, 1)).astype(np.uint8))


def _impulse_noise(image: Image.Image, generator: np.random.Generator, share: float) -> Image.Image:
    pixels, draw = np.asarray(image).copy(), generator.random(np.asarray(image).shape)
    pixels[draw < share / 2], pixels[draw > 1 - share / 2] = 0, 255
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
    "gaussian_noise": _gaussian_noise,  # deviation, of pixels in [0, 1]
    "impulse_noise": _impulse_noise,  # share of the values that become 0 or 255
    "contrast": _contrast,  # factor of a value's distance from its channel's mean
    "pixelate": _pixelate,  # pixels a side
    "jpeg_compression": _jpeg_compression,  # quality
}
