"""What patches of images vary in, and noise for a patch embedding in the directions that they hardly have."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from ..errors import DataError
from ..utils import torch
from .exact_noise import patchify

_FLOOR = 1e-9  # of the largest eigenvalue: what no smaller one counts as


@dataclass(frozen=True, eq=False)
class PatchCovariance:
    """Second central moments of patches, flattened as (C, p, p).

    Attributes:
        matrix: (n, n) float64, in pixel space.
    """

    matrix: torch.Tensor

    @classmethod
    def of(cls, pixels: torch.Tensor, patch_size: int) -> PatchCovariance:
        """Of all patches of images (N, C, H, W) in [0, 1].

        Raises:
            DataError: no more patches than a patch has numbers.
        """
        size = pixels.shape[1] * patch_size**2
        patches = patchify(pixels.double().cpu(), patch_size, size).flatten(0, -2)
        if len(patches) <= patches.shape[1]:
            raise DataError(
                f"patches: expected more than {patches.shape[1]}, the numbers of one, found {len(patches)}. Give more "
                "images."
            )
        return cls(torch.cov(patches.T, correction=0))

    def in_space(self, space: str, std: Sequence[float] | None) -> torch.Tensor:
        """The covariance of pixels, or of what a normalisation by ``std`` makes of them."""
        if space == "pixel" or std is None:
            return self.matrix
        per_channel = len(self.matrix) // len(std)
        scale = torch.tensor(list(std), dtype=torch.float64).repeat_interleave(per_channel)
        return self.matrix / scale[:, None] / scale

    def spectrum(self, space: str = "pixel", std: Sequence[float] | None = None) -> tuple[torch.Tensor, torch.Tensor]:
        """Eigenvalues (n,), descending and not under a floor, and eigenvectors as rows (n, n)."""
        values, vectors = torch.linalg.eigh(self.in_space(space, std))
        values, vectors = values.flip(0), vectors.flip(1).T
        return values.clamp_min(_FLOOR * float(values[0])), vectors

    def root(self, space: str = "pixel", std: Sequence[float] | None = None) -> torch.Tensor:
        """The symmetric square root (n, n): the metric of :meth:`~.fingerprint.Fingerprint.rows`."""
        values, vectors = self.spectrum(space, std)
        return vectors.T * values.sqrt() @ vectors


def hidden_noise(
    weight: torch.Tensor,
    covariance: PatchCovariance,
    strength: float,
    *,
    std: Sequence[float] | None,
    generator: torch.Generator,
) -> torch.Tensor:
    """Noise for a patch embedding's weight, of its shape, that turns its row space and hardly shows on images.

    ``N = c G L^(-1/2) Q'`` with G of N(0, 1), and Q, L the eigenvectors and eigenvalues of the covariance of normalised
    patches that have the least of it, as many as the nullspace has dimensions: what it adds to the embeddings of
    patches is white among them, and c is such that its energy is ``strength``^2 of that of the embeddings without it.

    Args:
        weight: (D, C, p, p).
        strength: rms of the change of an embedding, relative to the rms of embeddings about their mean.
        std: of the normalisation; None: none.
    """
    matrix = weight.detach().to("cpu", torch.float64).flatten(1)
    features, size = matrix.shape
    values, vectors = covariance.spectrum("normalised", std)
    count = max(size - features, 1)
    energy = float(((matrix @ vectors.T).square() * values).sum())
    drawn = torch.randn(features, count, generator=generator, dtype=torch.float64) / values[-count:].sqrt()
    scale = strength * math.sqrt(energy / (features * count))
    return (scale * drawn @ vectors[-count:]).view(weight.shape).to(weight)
