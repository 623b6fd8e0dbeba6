"""Distances between clean and noisy outputs: of each image, and their means over the images of all ranks."""

from __future__ import annotations

from typing import NamedTuple

from ..utils import sum_over_ranks, torch

ONE_SIDED_95 = 1.6448536269514722  # 0.95 quantile of the standard normal distribution


def squared_distance(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Squared L2 distance of each pair of rows; (B, K), (B, K) -> (B,)."""
    return (a - b).square().sum(dim=-1)


def probability_distance(clean: torch.Tensor, noisy: torch.Tensor) -> torch.Tensor:
    """``squared_distance`` of the softmax outputs (Algorithm 1, line 8); logits (B, K) -> (B,)."""
    return squared_distance(noisy.softmax(dim=-1), clean.softmax(dim=-1))


def logit_distance(clean: torch.Tensor, noisy: torch.Tensor) -> torch.Tensor:
    """L2 distance, not squared, between logits (B, K) with and without noise: (B,). Its mean is J of Eq. 4 of
    arXiv:2403.10476."""
    return torch.linalg.vector_norm(noisy - clean, dim=-1)


class Moments(NamedTuple):
    """Means over images of the probability distance and of its square: 0-dim tensors, which stay on the device."""

    mean: torch.Tensor
    mean_square: torch.Tensor

    @property
    def deviation(self) -> torch.Tensor:
        """Standard deviation of the probability distance over the images."""
        return (self.mean_square - self.mean.square()).clamp_min(0).sqrt()

    def smoothed(self, past: Moments, weight: float) -> Moments:
        """Weighted mean of these moments and of ``past``, which has the ``weight``, in [0, 1]."""
        return Moments(torch.lerp(self.mean, past.mean, weight), torch.lerp(self.mean_square, past.mean_square, weight))


class DistanceMeans(NamedTuple):
    """Means over ``n`` images of all ranks, in float64, on the device; nan without images.

    Attributes:
        probability: of the probability distance.
        mse_logits: of the squared logit distance, 0-dim.
        agreement: share of unchanged predictions, 0-dim, in [0, 1].
        n: number of images, 0-dim.
    """

    probability: Moments
    mse_logits: torch.Tensor
    agreement: torch.Tensor
    n: torch.Tensor


class DistanceSums:
    """Sums over images, in float64, of how clean and noisy outputs differ."""

    def __init__(self, device: torch.device) -> None:
        self._sums = torch.zeros(5, dtype=torch.float64, device=device)

    def add(self, clean: torch.Tensor, noisy: torch.Tensor) -> None:
        """Add a batch, by its logits (B, K)."""
        distance = probability_distance(clean, noisy).double()
        logit_distance = squared_distance(noisy, clean).double()
        unchanged = (clean.argmax(-1) == noisy.argmax(-1)).double()
        n = distance.new_tensor(float(len(distance)))
        self._sums += torch.stack([distance.sum(), distance.square().sum(), logit_distance.sum(), unchanged.sum(), n])

    def means_over_ranks(self) -> DistanceMeans:
        """Means over the images of all ranks; each rank calls this once, at the end."""
        sums = sum_over_ranks(self._sums)
        n = sums[-1]
        probability, probability_square, logits, unchanged = sums[:-1] / n
        return DistanceMeans(Moments(probability, probability_square), logits, unchanged, n)
