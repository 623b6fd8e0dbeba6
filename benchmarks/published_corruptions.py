"""The package imagecorruptions 1.1.2, ImageNet-C's code for images of other sizes, on today's numpy and scikit-image.

Three of its 19 corruptions need names that these no longer have; they get them for the time of a call. (Install the
package with ``pip install --no-deps imagecorruptions``: it asks for opencv-python, which hides opencv-python-headless.)
"""

from __future__ import annotations

import contextlib
import io
import warnings
from collections.abc import Iterator
from typing import Any
from unittest import mock

import numpy as np
from PIL import Image

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # scipy.ndimage.interpolation, pkg_resources
    with mock.patch.object(np, "float_", np.float64, create=True):
        from imagecorruptions import corruption_dict
        from imagecorruptions import corruptions as original

_gaussian = original.gaussian


def _gaussian_of_channels(image: np.ndarray, *args: Any, multichannel: bool = False, **settings: Any) -> np.ndarray:
    return _gaussian(image, *args, channel_axis=-1 if multichannel else None, **settings)


class Draws:
    """Legacy ``numpy.random``, as far as the package calls it, drawn from a ``numpy.random.Generator``."""

    def __init__(self, generator: np.random.Generator) -> None:
        self.generator = generator
        self.poisson = generator.poisson

    def normal(self, loc: float = 0, scale: float = 1, size: Any = None) -> Any:
        return self.generator.normal(loc, scale, size)

    def uniform(self, low: float, high: float, size: Any = None) -> Any:
        return self.generator.uniform(low, high, size)

    def randint(self, low: int, high: int | None = None, size: Any = None) -> Any:
        return self.generator.integers(low, high, size)

    def random_noise(self, image: np.ndarray, mode: str, amount: float) -> np.ndarray:
        """scikit-image's salt and pepper, with one uniform number a value: low ones are black, high ones white."""
        uniform = self.generator.random(image.shape)
        return np.where(uniform < amount / 2, 0, np.where(uniform > 1 - amount / 2, 1, image))


@contextlib.contextmanager
def repaired() -> Iterator[None]:
    """All 19 run while the body does."""
    with (
        mock.patch.object(original, "gaussian", _gaussian_of_channels),
        mock.patch.object(np, "float_", np.float64, create=True),
        contextlib.redirect_stdout(io.StringIO()),
    ):
        yield


def published(pixels: np.ndarray, name: str, severity: int, generator: np.random.Generator) -> np.ndarray:
    """The package's corruption of pixels (H, W, 3), with all that is random drawn from ``generator``."""
    draws = Draws(generator)
    with (
        repaired(),
        mock.patch.object(np, "random", draws),
        mock.patch.object(original.sk.util, "random_noise", draws.random_noise),
    ):
        return np.uint8(corruption_dict[name](Image.fromarray(pixels), severity))
