"""scikit-learn's handwritten digits as image folders in EasyRobust's layout: the demo's data."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from ..utils import import_package, os_errors_as_output_errors
from .corruptions import known_corruptions

SIDE = 32
VALIDATION = 500  # of 1797 images
SEVERITY = 3  # the folder that holds the corrupted images; their strengths are not ImageNet-C's
STRENGTHS = {"gaussian_noise": 0.35, "impulse_noise": 0.2, "contrast": 0.15, "pixelate": 6 / 32, "jpeg_compression": 4}


def write_digits(root: str | Path, seed: int = 0) -> Path:
    """Write the 1797 digits as 32x32 RGB PNGs: ``train/``, ``val/``, ``imagenet-val/``, ``imagenet-c/``.

    The split is random (``seed``): 1297 images for training, 500 for evaluation. ``imagenet-val``
    holds the same 500 images as ``val``, because EasyRobust's training and benchmark scripts name
    that folder differently. ``imagenet-c`` holds them under five of ImageNet-C's fifteen
    corruptions, with strengths chosen for this image size.

    Raises:
        MissingPackageError: scikit-learn is not installed.
        OutputError: ``root`` cannot be written.
    """
    root, digits = Path(root), import_package("sklearn.datasets", "the demo's images").load_digits()
    order = np.random.default_rng(seed).permutation(len(digits.target))
    with os_errors_as_output_errors(root):
        for position, index in enumerate(order):
            small = Image.fromarray((digits.images[index] * 255 / 16).astype(np.uint8))
            image = small.resize((SIDE, SIDE), Image.Resampling.BICUBIC).convert("RGB")
            path = f"{digits.target[index]}/{index:04d}.png"
            if position >= VALIDATION:
                _write(image, root / "train" / path)
                continue
            _write(image, root / "val" / path)
            _write(image, root / "imagenet-val" / path)
            for name, strength in STRENGTHS.items():
                generator = np.random.default_rng((seed, int(index)))
                corrupted = known_corruptions()[name](np.asarray(image), generator, strength)
                _write(Image.fromarray(corrupted), root / "imagenet-c" / name / str(SEVERITY) / path)
    return root


def _write(image: Image.Image, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path)
