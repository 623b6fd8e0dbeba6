"""Noise: Gaussian, shot, impulse, and speckle, which is one of the four extra corruptions."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ...utils import np
from .filters import as_bytes
from .registry import register_corruption

if TYPE_CHECKING:
    from numpy.typing import NDArray


@register_corruption("gaussian_noise", 0.08, 0.12, 0.18, 0.26, 0.38)
def gaussian_noise(pixels: NDArray[np.uint8], generator: np.random.Generator, std: float) -> NDArray[Any]:
    """Add N(0, std^2) to values in [0, 1]."""
    return as_bytes(pixels / 255 + generator.normal(0, std, pixels.shape))


@register_corruption("shot_noise", 60, 25, 12, 5, 3)
def shot_noise(pixels: NDArray[np.uint8], generator: np.random.Generator, photons: float) -> NDArray[Any]:
    """Count photons, of which white has ``photons`` on average."""
    return as_bytes(generator.poisson(pixels * (photons / 255)) / photons)


@register_corruption("impulse_noise", 0.03, 0.06, 0.09, 0.17, 0.27)
def impulse_noise(pixels: NDArray[np.uint8], generator: np.random.Generator, fraction: float) -> NDArray[Any]:
    """Set this fraction of the values to 0 or 255, half of them each."""
    uniform, noisy = generator.random(pixels.shape), pixels.copy()
    noisy[uniform < fraction / 2] = 0
    noisy[uniform > 1 - fraction / 2] = 255
    return noisy


@register_corruption("speckle_noise", 0.15, 0.2, 0.35, 0.45, 0.6)
def speckle_noise(pixels: NDArray[np.uint8], generator: np.random.Generator, std: float) -> NDArray[Any]:
    """Multiply values by N(1, std^2)."""
    values = pixels / 255
    return as_bytes(values + values * generator.normal(0, std, pixels.shape))
