"""Finding a known mark that was put into images by the patch embedding's nullspace, without the original images.

The model sees nothing of such a mark, and a detector need not see what the model sees: what the patch embedding lets
through is taken out of both the image and the mark, and the rest is compared, patch by patch.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import nn

from ..errors import OptionError
from .exact import find_projection, patch_nullspace
from .exact_noise import check_pixels, patchify


class CrossFit(NamedTuple):
    """False positives of a threshold on images that it was not chosen on.

    Attributes:
        positives: unmarked images above the threshold that the other half of them gave.
        n: number of unmarked images.
        thresholds: of the second half for the first, and of the first for the second.
    """

    positives: int
    n: int
    thresholds: tuple[float, float]


class MarkDetector:
    """Scores of images: how much more they are like a mark than like the same mark in other places.

    Image and mark are cut into patches and projected onto the pixel-space nullspace. Both are then whitened: divided by
    the covariance's root of what unmarked photographs have there, which are far from white, so that the matched filter
    is that of coloured noise. Each patch of the image is scaled to norm 1, so that no patch of strong texture outweighs
    the others, and multiplied with the mark's: the sum over patches is the correlation. The same with the mark moved,
    cyclically, by every number of whole patches is what this image has by chance; the score is the correlation less
    their mean, divided by their standard deviation.

    A mark lighter than the image gives a positive score, a darker one a negative: where the tone is not known, compare
    the absolute value.

    Args:
        model: with normalisation in front, wrapped or not.
        mark: (H, W) or (C, H, W), the change that the mark makes, of any scale.
        photographs: (M, C, H, W) in [0, 1], unmarked images whose covariance is taken; None for no whitening. Measure
            false positives on others.

    Raises:
        ModelError: the patch embedding is not linear, or the model has no normalisation in front.
        DataError: ``photographs`` are not (M, C, H, W) of pixels in [0, 1].
        OptionError: the mark's sides are not multiples of the patch size, there are fewer than 4 patches, or nothing
            of the mark lies in the nullspace, as where it is empty.
    """

    def __init__(self, model: nn.Module, mark: torch.Tensor, photographs: torch.Tensor | None = None) -> None:
        self.basis = patch_nullspace(model, space="pixel")
        self.patch_size = find_projection(model).kernel_size[0]
        channels = self.basis.shape[1] // self.patch_size**2
        wanted = mark.detach().cpu().double().expand(channels, *mark.shape[-2:])
        self.shape = wanted.shape
        template = patchify(wanted[None], self.patch_size, self.basis.shape[1])[0] @ self.basis.T
        if not float(template.norm()) > 1e-9 * float(wanted.norm()):
            raise OptionError(
                "mark: expected one that the nullspace can show, found nothing of it there (dimension "
                f"{len(self.basis)}). Take another mark, or a model with a larger nullspace."
            )
        rows, columns = (side // self.patch_size for side in mark.shape[-2:])
        if rows * columns < 4:
            raise OptionError(
                f"mark: expected one of at least 4 patches, found {rows * columns}. Take a model of smaller patches."
            )
        self.mean, self.whitening = (
            torch.zeros(len(self.basis), dtype=torch.float64),
            torch.eye(len(self.basis)).double(),
        )
        if photographs is not None:
            self.mean, self.whitening = _whitening(self._coefficients(photographs).flatten(0, 1))
        self.moved = _cyclic_moves(template @ self.whitening, rows, columns).flatten(1)

    def _coefficients(self, images: torch.Tensor) -> torch.Tensor:
        """(B, C, H, W) to (B, N, k), those of each patch in the nullspace's basis."""
        check_pixels(images)
        if images.shape[1:] != self.shape:
            raise OptionError(
                f"images: expected (B, {', '.join(map(str, self.shape))}) as the mark, found {tuple(images.shape)}. "
                "Make the mark for them."
            )
        return patchify(images.detach().cpu().double(), self.patch_size, self.basis.shape[1]) @ self.basis.T

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        """Scores (B,), float64 on the CPU, of ``images`` (B, C, H, W) in [0, 1]; 0 for one without any texture.

        Raises:
            DataError: they are not (B, C, H, W) of pixels in [0, 1].
            OptionError: they have not the mark's size.
        """
        patches = (self._coefficients(images) - self.mean) @ self.whitening
        sizes = patches.norm(dim=-1, keepdim=True)
        units = torch.where(sizes > 1e-9, patches / sizes, 0.0)
        return standardised(units.flatten(1) @ self.moved.T)


_RIDGE = 0.01  # of the mean variance, added to all: directions that photographs hardly have would be all that counts


def _whitening(coefficients: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean (k,) of the rows of (M, k), and the inverse root (k, k) of their covariance."""
    covariance = torch.cov(coefficients.T).reshape(coefficients.shape[1], -1)
    values, vectors = torch.linalg.eigh(covariance)
    values = values.clamp_min(0) + _RIDGE * values.mean().clamp_min(1e-12)
    return coefficients.mean(0), (vectors / values.sqrt()) @ vectors.T


def _cyclic_moves(template: torch.Tensor, rows: int, columns: int) -> torch.Tensor:
    """The template (N, k) of rows x columns patches in all its places, (N, N, k), the first its own."""
    grid = template.view(rows, columns, -1)
    moves = [grid.roll((down, right), (0, 1)) for down in range(rows) for right in range(columns)]
    return torch.stack(moves).flatten(1, 2)


def standardised(correlations: torch.Tensor) -> torch.Tensor:
    """(B, M) to (B,): the first of each row less the others' mean, by their standard deviation; 0 if that is 0."""
    first, others = correlations[:, 0], correlations[:, 1:]
    spread = others.std(dim=1)
    return torch.where(spread > 0, (first - others.mean(dim=1)) / spread, 0.0)


def threshold_at(scores: torch.Tensor, rate: float) -> float:
    """The threshold that another unmarked image's score exceeds with probability at most ``rate``.

    It is the k-th largest of the n ``scores`` of unmarked images, k = floor(rate (n + 1)): if the other image is drawn
    as they were, its score is equally likely to have each of the n + 1 ranks.

    Raises:
        OptionError: ``rate`` is not in (0, 1), or needs more than these n scores.
    """
    k = int(rate * (len(scores) + 1) + 1e-9) if 0 < rate < 1 else 0
    if k < 1:
        raise OptionError(
            f"false-positive rate: expected a number below 1 and at least 1 / ({len(scores)} scores + 1), found "
            f"{rate}. Give more unmarked images or a larger rate."
        )
    return float(scores.sort(descending=True).values[k - 1])


def cross_fitted(scores: torch.Tensor, rate: float, *, generator: torch.Generator) -> CrossFit:
    """False positives at :func:`threshold_at` ``rate``, each half of the unmarked images judged by the other's.

    Args:
        scores: (n,) of unmarked images.
        generator: source of the halves.

    Raises:
        OptionError: as :func:`threshold_at`, for half of the scores.
    """
    order = torch.randperm(len(scores), generator=generator)
    first, second = scores[order[: len(scores) // 2]], scores[order[len(scores) // 2 :]]
    thresholds = threshold_at(second, rate), threshold_at(first, rate)
    positives = int((first > thresholds[0]).sum()) + int((second > thresholds[1]).sum())
    return CrossFit(positives, len(scores), thresholds)
