"""scikit-learn's handwritten digits as image folders in EasyRobust's layout: the demo's data."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

from .errors import OptionError
from .files import one_line_for_os_errors

SIDE = 32
VALIDATION = 500  # of 1797 images
SEVERITY = 3  # the folder the corruptions lie in; their strengths are this file's own


def _gaussian_noise(image: Image.Image, generator: np.random.Generator) -> Image.Image:
    pixels = np.asarray(image) / 255
    return Image.fromarray((255 * np.clip(pixels + generator.normal(0, 0.35, pixels.shape), 0, 1)).astype(np.uint8))


def _impulse_noise(image: Image.Image, generator: np.random.Generator) -> Image.Image:
    pixels, draw = np.asarray(image).copy(), generator.random(np.asarray(image).shape)
    pixels[draw < 0.1], pixels[draw > 0.9] = 0, 255
    return Image.fromarray(pixels)


def _pixelate(image: Image.Image, generator: np.random.Generator) -> Image.Image:
    return image.resize((6, 6), Image.Resampling.BOX).resize((SIDE, SIDE), Image.Resampling.NEAREST)


def _contrast(image: Image.Image, generator: np.random.Generator) -> Image.Image:
    pixels = np.asarray(image) / 255
    return Image.fromarray((255 * (0.15 * (pixels - pixels.mean()) + pixels.mean())).astype(np.uint8))


def _jpeg_compression(image: Image.Image, generator: np.random.Generator) -> Image.Image:
    stream = io.BytesIO()
    image.save(stream, "JPEG", quality=4)
    return Image.open(stream).convert("RGB")


CORRUPTIONS: dict[str, Callable[[Image.Image, np.random.Generator], Image.Image]] = {
    "gaussian_noise": _gaussian_noise,
    "impulse_noise": _impulse_noise,
    "contrast": _contrast,
    "pixelate": _pixelate,
    "jpeg_compression": _jpeg_compression,
}


def write_digits(root: str | Path, seed: int = 0) -> Path:
    """Write the 1797 digits as 32x32 RGB PNGs: ``train/``, ``val/``, ``imagenet-val/``, ``imagenet-c/``.

    The split is random (``seed``): 1297 to train on, 500 to evaluate on. ``imagenet-val`` holds
    the same 500 images as ``val``: EasyRobust's training and benchmark scripts name that folder
    differently. ``imagenet-c`` holds them under five of ImageNet-C's fifteen corruptions, with
    strengths chosen for this size.

    Raises:
        OptionError: scikit-learn is not installed.
        OutputError: ``root`` cannot be written.
    """
    try:
        from sklearn.datasets import load_digits
    except ImportError:
        raise OptionError(
            "the demo's images: expected scikit-learn, found none. Run: pip install 'ns_easyrobust[demo]'"
        ) from None
    root, digits = Path(root), load_digits()
    order = np.random.default_rng(seed).permutation(len(digits.target))
    with one_line_for_os_errors(root):
        for position, index in enumerate(order):
            small = Image.fromarray((digits.images[index] * 255 / 16).astype(np.uint8))
            image = small.resize((SIDE, SIDE), Image.Resampling.BICUBIC).convert("RGB")
            place = f"{digits.target[index]}/{index:04d}.png"
            if position >= VALIDATION:
                _write(image, root / "train" / place)
                continue
            _write(image, root / "val" / place)
            _write(image, root / "imagenet-val" / place)
            for name, corrupt in CORRUPTIONS.items():
                generator = np.random.default_rng((seed, int(index)))
                _write(corrupt(image, generator), root / "imagenet-c" / name / str(SEVERITY) / place)
    return root


def _write(image: Image.Image, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path)
