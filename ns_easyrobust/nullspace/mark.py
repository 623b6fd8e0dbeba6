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


def mark_scores(model: nn.Module, images: torch.Tensor, mark: torch.Tensor) -> torch.Tensor:
    """How much more like the mark each image is than like the mark in other places, in standard deviations.

    Image and mark are cut into patches and projected onto the pixel-space nullspace. Each patch of the image is then
    scaled to norm 1, so that no patch of strong texture outweighs the others, and multiplied with the mark's: the sum
    over patches is the correlation. The same with the mark moved, cyclically, by every number of whole patches gives
    what this image has by chance; the score is the correlation less their mean, divided by their standard deviation.

    A mark lighter than the image gives a positive score, a darker one a negative: where the tone is not known, compare
    the absolute value.

    Args:
        model: with normalisation in front, wrapped or not.
        images: (B, C, H, W) in [0, 1], floating point, with sides that are multiples of the patch size.
        mark: (H, W), coverage in [0, 1]; the same in all channels.

    Returns:
        (B,) float64 on the CPU; 0 for an image that has nothing in the nullspace.

    Raises:
        ModelError: the patch embedding is not linear, or the model has no normalisation in front.
        DataError: ``images`` are not (B, C, H, W) of pixels in [0, 1].
        OptionError: the sizes do not fit, there are fewer than 4 patches, the nullspace is trivial, or nothing of the
            mark lies in it.
    """
    check_pixels(images)
    basis = patch_nullspace(model, space="pixel")
    patch_size = find_projection(model).kernel_size[0]
    if mark.shape != images.shape[2:]:
        raise OptionError(
            f"mark: expected the images' size {tuple(images.shape[2:])}, found {tuple(mark.shape)}. Make it for them."
        )
    wanted = mark.detach().cpu().double().expand(1, images.shape[1], *mark.shape)
    template = patchify(wanted, patch_size, basis.shape[1])[0] @ basis.T
    if not float(template.norm()) > 1e-9 * float(wanted.norm()):
        raise OptionError(
            f"mark: expected one that the nullspace can show, found nothing of it there (dimension {len(basis)}). "
            "Take another mark, or a model with a larger nullspace."
        )
    moved = _cyclic_moves(template, mark.shape[0] // patch_size, mark.shape[1] // patch_size)
    if len(moved) < 4:
        raise OptionError(f"images: expected at least 4 patches, found {len(moved)}. Take a model of smaller patches.")
    patches = patchify(images.detach().cpu().double(), patch_size, basis.shape[1]) @ basis.T
    sizes = patches.norm(dim=-1, keepdim=True)
    units = torch.where(sizes > 1e-9, patches / sizes, 0.0)
    return standardised(units.flatten(1) @ moved.flatten(1).T)


def _cyclic_moves(template: torch.Tensor, rows: int, columns: int) -> torch.Tensor:
    """The template (N, k) of rows x columns patches in all its places, (N, N, k), the first its own."""
    grid = template.view(rows, columns, -1)
    moves = [grid.roll((down, right), (0, 1)) for down in range(rows) for right in range(columns)]
    return torch.stack(moves).flatten(1, 2)


def standardised(correlations: torch.Tensor) -> torch.Tensor:
    """(B, M) to (B,): the first of each row less the others' mean, divided by their standard deviation; 0 if that is 0."""
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
            f"false-positive rate: expected a number below 1 and at least 1 / ({len(scores)} scores + 1), found {rate}. "
            "Give more unmarked images or a larger rate."
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
