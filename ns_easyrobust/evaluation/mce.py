"""The corruption errors of ImageNet-C, relative to AlexNet's (Hendrycks and Dietterich 2019, arXiv:1903.12261)."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from ..data import ALEXNET_ERROR


def corruption_error(corruption: str, accuracies: Collection[float]) -> float:
    """CE as a fraction: the mean error over the severities, divided by AlexNet's; accuracies in percent."""
    return (100 - sum(accuracies) / len(accuracies)) / (100 * ALEXNET_ERROR[corruption])


def mean_corruption_error(accuracies: Mapping[tuple[str, int], float]) -> float:
    """mCE as a fraction, from the accuracies in percent on all 75 (corruption, severity) folders."""
    errors = [
        corruption_error(name, [accuracy for (other, _), accuracy in accuracies.items() if other == name])
        for name in ALEXNET_ERROR
    ]
    return sum(errors) / len(errors)
