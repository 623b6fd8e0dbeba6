"""How alike images look: structural similarity and distance, near by and from afar."""

from __future__ import annotations

from ..utils import import_package, torch

AFAR = 4  # squares of so many of the model's own pixels are averaged, as an eye far away does
_WINDOW = 7  # pixels of scikit-image's window


def least_side() -> int:
    """Of images, in the model's own pixels, for :func:`structural_similarity` from afar."""
    return AFAR * _WINDOW


def require_likeness(purpose: str) -> None:
    """Raises MissingPackageError, one line, where scikit-image is not installed."""
    import_package("skimage.metrics", purpose)


def structural_similarity(one: torch.Tensor, other: torch.Tensor) -> list[float]:
    """SSIM of each pair of (B, C, H, W), 1 for equal ones: scikit-image's default, range 1.

    Means, variances and covariances are of uniform windows of 7 x 7 pixels, the latter two with 48 as divisor (sample
    covariance), and the SSIM the mean over the windows that lie within. Wang et al. weigh 11 x 11 pixels by a Gaussian.

    Source: Z. Wang et al., "Image quality assessment: from error visibility to structural similarity", IEEE TIP 13
    (2004); scikit-image, ``skimage.metrics.structural_similarity``.

    Raises:
        MissingPackageError: scikit-image is not installed.
    """
    metrics = import_package("skimage.metrics", "structural similarity")
    pairs = zip(one.double().cpu().numpy(), other.double().cpu().numpy(), strict=True)
    return [
        float(metrics.structural_similarity(first, second, channel_axis=0, data_range=1.0, win_size=_WINDOW))
        for first, second in pairs
    ]


def seen_from_afar(images: torch.Tensor, factor: int) -> torch.Tensor:
    """Averages over squares of :data:`AFAR` of a model's own pixels, each ``factor`` pixels of ``images`` wide."""
    return torch.nn.functional.avg_pool2d(images, AFAR * factor)


def root_mean_squares(difference: torch.Tensor) -> list[float]:
    """Of each of (B, C, H, W)."""
    return difference.double().square().mean((1, 2, 3)).sqrt().tolist()
