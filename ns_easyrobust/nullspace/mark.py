"""Finding a known mark that was put into images by the patch embedding's nullspace, without the original images.

The model sees nothing of such a mark, and a detector need not see what the model sees: what the patch embedding lets
through is taken out of both the image and the mark, and the rest is compared, patch by patch.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import nn

from ..errors import OptionError
from .exact_noise import check_pixels, patchify
from .row_space import PatchRowSpace

MOST_NUMBERS = 3 * 64**2  # of a patch; their covariance and its root take 1.2 GB each
_BATCH = 8  # images at a time: whose patches fit into memory that is used again, without new pages
_RIDGE = 0.01  # of the mean variance, added to all: directions that photographs hardly have would be all that counts


class MarkDetector:
    """Scores of images: how much more they are like a mark than like the same mark in other places.

    Image and mark are cut into patches and projected onto the pixel-space nullspace. Both are then whitened: divided by
    a root of the covariance of what unmarked photographs have there, which are far from white, so that the matched
    filter is that of coloured noise. Each patch of the image is scaled to norm 1, so that no patch of strong texture
    outweighs the others, and multiplied with the mark's: the sum over patches is the correlation. The same with the
    mark moved, cyclically, by every number of whole patches is what this image has by chance; the score is the
    correlation less their mean, divided by their standard deviation.

    A mark lighter than the image gives a positive score, a darker one a negative: where the tone is not known, compare
    the absolute value.

    No basis of the nullspace is made: with R of :class:`~.row_space.PatchRowSpace` the projection is I - R'R, and the
    root is a Cholesky factor, as products and norms are the same with each root.

    Args:
        model: with normalisation in front, wrapped or not.
        mark: (H, W) or (C, H, W), the change that the mark makes, of any scale.
        photographs: batches (B, C, H, W) in [0, 1] of unmarked images, of which the covariance is taken; None for no
            whitening. Choose thresholds, and measure false positives, on others.

    Raises:
        ModelError: the patch embedding is not linear, or the model has no normalisation in front.
        DataError: ``photographs`` are not (B, C, H, W) of pixels in [0, 1].
        OptionError: the mark's sides are not multiples of the patch size, a patch has more than :data:`MOST_NUMBERS`
            numbers, there are fewer than 4 patches, or nothing of the mark lies in the nullspace, as where it is empty.
    """

    def __init__(self, model: nn.Module, mark: torch.Tensor, photographs: Iterable[torch.Tensor] | None = None) -> None:
        self.space = space = PatchRowSpace(model)
        require_detectable(space.input_dim)
        wanted = mark.detach().cpu().double().expand(space.channels, *mark.shape[-2:])
        self.shape = wanted.shape
        template = self._unseen(patchify(wanted[None], space.patch_size, space.input_dim)[0])
        if not float(template.norm()) > 1e-9 * float(wanted.norm()):
            raise OptionError(
                "mark: expected one that the nullspace can show, found nothing of it there (dimension "
                f"{space.input_dim - len(space.rows)}). Take another mark, or a model with a larger nullspace."
            )
        self.grid = rows, columns = [side // space.patch_size for side in mark.shape[-2:]]
        if rows * columns < 4:
            raise OptionError(
                f"mark: expected one of at least 4 patches, found {rows * columns}. Take a model of smaller patches."
            )
        self.mean, self.factor = torch.zeros(space.input_dim, dtype=torch.float64), None
        if photographs is not None:
            self.mean, self.factor = self._moments(photographs)
        self.template = self._whitened(template).view(rows, columns, -1)

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        """Scores (B,), float64 on the CPU, of ``images`` (B, C, H, W) in [0, 1]; 0 for one without any texture.

        Raises:
            DataError: they are not (B, C, H, W) of pixels in [0, 1].
            OptionError: they have not the mark's size.
        """
        return torch.cat([self._scores(batch) for batch in images.split(_BATCH)])

    def _scores(self, images: torch.Tensor) -> torch.Tensor:
        patches = self._whitened(self._patches(images) - self.mean)
        sizes = patches.norm(dim=-1, keepdim=True)
        units = torch.where(sizes > 1e-9, patches / sizes, 0.0)
        return _standardised(cyclic_correlations(units.unflatten(1, self.grid), self.template).flatten(1))

    def _patches(self, images: torch.Tensor) -> torch.Tensor:
        """(B, C, H, W) to (B, N, C p^2): what of each patch lies in the nullspace."""
        check_pixels(images)
        if images.shape[1:] != self.shape:
            raise OptionError(
                f"images: expected (B, {', '.join(map(str, self.shape))}) as the mark, found {tuple(images.shape)}. "
                "Make the mark for them."
            )
        return self._unseen(patchify(images.detach().cpu().double(), self.space.patch_size, self.space.input_dim))

    def _unseen(self, patches: torch.Tensor) -> torch.Tensor:
        return patches - self.space.spread(self.space.seen(patches))

    def _whitened(self, patches: torch.Tensor) -> torch.Tensor:
        """Patches (..., C p^2) of the nullspace divided by the root."""
        if self.factor is None:
            return patches
        rows = torch.linalg.solve_triangular(self.factor, patches.flatten(0, -2).T, upper=False)
        return rows.T.reshape(patches.shape)

    def _moments(self, photographs: Iterable[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        """Mean (C p^2,) of all their patches in the nullspace, and the lower root of their covariance with a ridge."""
        size = self.space.input_dim
        count, total = 0, torch.zeros(size, dtype=torch.float64)
        products = torch.zeros(size, size, dtype=torch.float64)
        for images in photographs:
            for batch in images.split(_BATCH):
                patches = self._patches(batch).flatten(0, 1)
                count, total = count + len(patches), total + patches.sum(0)
                products.addmm_(patches.T, patches)
        mean = total / max(count, 1)
        products.addr_(mean, mean, alpha=-count).div_(max(count - 1, 1))
        # On the row space, where all of this is zero, the ridge is what makes a root exist.
        variance = float(products.trace()) / (size - len(self.space.rows))
        products.diagonal().add_(_RIDGE * max(variance, 1e-12))
        return mean, torch.linalg.cholesky(products)


def require_detectable(input_dim: int) -> None:
    """Refuse patches of more than :data:`MOST_NUMBERS` numbers by an OptionError, before hours of work."""
    if input_dim > MOST_NUMBERS:
        raise OptionError(
            f"mark: expected patches of at most {MOST_NUMBERS} numbers, for the detector's covariance, found "
            f"{input_dim}. Choose a smaller --enlarge, or a model of smaller patches."
        )


def cyclic_correlations(images: torch.Tensor, template: torch.Tensor) -> torch.Tensor:
    """Products of ``images`` (B, r, c, k) with the ``template`` (r, c, k) moved by (i, j) patches: (B, r, c) of [i, j].

    By the Fourier transform over the grid: the product of one with the other's conjugate.
    """
    spectrum = torch.einsum(
        "brck,rck->brc", torch.fft.rfft2(images, dim=(1, 2)), torch.fft.rfft2(template, dim=(0, 1)).conj()
    )
    return torch.fft.irfft2(spectrum, s=template.shape[:2])


def _standardised(correlations: torch.Tensor) -> torch.Tensor:
    """(B, M) to (B,): the first of each row less the others' mean, by their standard deviation; 0 if that is 0."""
    first, others = correlations[:, 0], correlations[:, 1:]
    spread = others.std(dim=1)
    return torch.where(spread > 1e-12, (first - others.mean(dim=1)) / spread, 0.0)


def threshold_at(scores: torch.Tensor, rate: float) -> float:
    """The threshold that another unmarked image's score exceeds with probability at most ``rate``.

    It is the k-th largest of the n ``scores`` of unmarked images, k = floor(rate (n + 1)): if the other image is drawn
    as they were, its score is equally likely to have each of the n + 1 ranks. That needs a detector that was made
    without all of them: of images that its covariance is taken of, scores are not distributed as others'.

    Args:
        scores: (n,).
        rate: in (0, 1).

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
