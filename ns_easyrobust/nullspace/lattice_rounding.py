"""Nullspace noise as 8-bit files keep it: whole levels whose patch embedding is near that of the original image.

Noise v of the nullspace gives pixels z = x + v with W z = W x. An 8-bit file keeps levels q of 0..255, and in general
no q / 255 near z solves W q / 255 = W x: the points W q form no coarse lattice but are dense in W's range, so what is
sought is a near one. Rounding each pixel by itself loses the nullspace; here each pixel's rounding error is made up
for by the pixels that are rounded after it.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import nn

from ..errors import OptionError
from .exact import find_projection, linear_map
from .exact_noise import check_pixels, patchify, unpatchify

LEVELS = 255
# Weights of a pixel's move against the embedding's error, relative to the root mean square norm of W's columns.
# Measured on a trained ViT-S/14: each alone divides the error by 3.0 to 3.7, the best of them for each patch by 4.
_STIFFNESS = (0.15, 0.1, 0.07, 0.05, 0.035)
_BLOCK = 32  # pixels whose errors are handed on one by one; to all others in one product
_CHUNK = 2048  # patches rounded at a time: few enough for a processor's cache


class _Plane(NamedTuple):
    """The order of the pixels and the triangular factor of [W; s I] in that order, for one stiffness s.

    Attributes:
        order: (n,) pixels; the last is rounded first.
        factor: (n, n) float64, upper triangular with a unit diagonal: R with each row divided by its diagonal.
        pull: (n, n) moves pixels z, by ``pull @ (z - x)``, to where the weighted sum of the embedding's error and of
            their moves is least; 0 where W z = W x.
    """

    order: torch.Tensor
    factor: torch.Tensor
    pull: torch.Tensor


class LatticeRounding:
    """Rounds pixels to 8 bits so that their patch embeddings stay near those of the original images.

    Babai's nearest plane (L. Babai, "On Lovasz' lattice reduction and the nearest lattice point problem",
    Combinatorica 6, 1986) in the lattice of the columns of [W; s I], W the pixel-space map of a patch: the stiffness s
    makes the n columns independent, where those of W alone are not, and keeps pixels near where they were. Each pixel
    is rounded given those before it; its error is then made up for, as far as least squares can, by all that come
    after. The pixels' order is that of a sorted QR decomposition (Wuebben et al., "Efficient algorithm for decoding
    layered space-time codes", Electronics Letters 37, 2001): from the first column on, always the one that is nearest
    the span of those chosen. On a trained ViT-S/14 this order divides the error by twice as much as the usual
    pivoting, which takes the farthest. Of several stiffnesses each patch takes the best, or plain rounding.

    Guaranteed: whole levels within 0..255, none farther than ``reach`` + 1/2 from the given pixel; and no patch with a
    larger error ||W (q / 255 - x)|| than plain rounding's. Not guaranteed: the nearest point of the lattice, which is
    hard to find; nor any gain, where W's singular values are equal and its nullspace is small.

    Args:
        model: with normalisation in front, wrapped or not.
        reach: most levels by which a pixel moves; 0 is plain rounding.

    Raises:
        ModelError: the patch embedding is not linear, or the model has no normalisation in front.
        OptionError: ``reach`` is not a whole number >= 0.
    """

    def __init__(self, model: nn.Module, *, reach: int = 8) -> None:
        if isinstance(reach, bool) or not isinstance(reach, int) or reach < 0:
            raise OptionError(f"reach: expected a whole number of levels >= 0, found {reach!r}.")
        self.reach = reach
        self.patch_size = find_projection(model).kernel_size[0]
        matrix, _ = linear_map(model, "pixel", None)
        self._setup(matrix)

    def _setup(self, matrix: torch.Tensor, levels: int = LEVELS) -> None:
        self.matrix, self.levels = matrix, levels
        gram = matrix.T @ matrix
        scale = float(gram.diagonal().mean())
        self.planes = [_plane(gram, share**2 * scale) for share in _STIFFNESS] if scale > 0 else []

    def __call__(self, images: torch.Tensor, pixels: torch.Tensor) -> torch.Tensor:
        """``pixels`` rounded to multiples of 1/255.

        Args:
            images: (B, C, H, W) in [0, 1], floating point: x, whose embedding is to be kept.
            pixels: of the same shape, in [0, 1]: z, near which the result is, as x plus noise of the nullspace.

        Returns:
            (B, C, H, W) in ``pixels``' dtype and on its device: multiples of 1/255 as that dtype has them.

        Raises:
            DataError: either is not (B, C, H, W) of pixels in [0, 1].
            OptionError: the shapes differ, or the sides are not multiples of the patch size.
        """
        original, given = checked_patches(images, pixels, self.patch_size, self.matrix.shape[1])
        levels = torch.cat(
            [
                self.round_patches(x, z)
                for x, z in zip(original.flatten(0, 1).split(_CHUNK), given.flatten(0, 1).split(_CHUNK), strict=True)
            ]
        )
        return unpatchify(levels / LEVELS, self.patch_size, pixels.shape[1:]).to(pixels)

    def round_patches(self, original: torch.Tensor, given: torch.Tensor) -> torch.Tensor:
        """Levels (P, n) for patches x and z, (P, n) each, float64 in [0, 1] on the CPU."""
        target, start = original.T * self.levels, given.T * self.levels  # a row a pixel, contiguous while it is rounded
        best = start.round()
        least = (self.matrix @ (best - target)).square().sum(0)
        low, high = (start - self.reach).round().clamp_min(0), (start + self.reach).round().clamp_max(self.levels)
        for plane in self.planes:
            levels = _nearest_plane(plane, start - plane.pull @ (start - target), low, high)
            error = (self.matrix @ (levels - target)).square().sum(0)
            best, least = torch.where(error < least, levels, best), torch.minimum(error, least)
        return best.T


def rounded_in_nullspace(
    model: nn.Module, images: torch.Tensor, pixels: torch.Tensor, *, reach: int = 8
) -> torch.Tensor:
    """``pixels`` as multiples of 1/255 with nearly the patch embeddings of ``images``: :class:`LatticeRounding`, once.

    For many batches of one model make a :class:`LatticeRounding`, whose decompositions take seconds.

    Example:
        >>> noise = valid_nullspace_noise(model, images, generator=torch.Generator().manual_seed(0))
        >>> kept = rounded_in_nullspace(model, images, images + noise)
        >>> plain = rounded_to_8_bits(images + noise)
        >>> bool((embedding_error(model, images, kept) <= embedding_error(model, images, plain)).all())
        True
    """
    return LatticeRounding(model, reach=reach)(images, pixels)


def embedding_error(model: nn.Module, images: torch.Tensor, pixels: torch.Tensor) -> torch.Tensor:
    """How far the patch embedding of ``pixels`` is from that of ``images``: ||W (z - x)|| / ||W x|| over all patches.

    Args:
        model: with normalisation in front, wrapped or not; W is its pixel-space map, without mean and bias.
        images, pixels: x and z, (B, C, H, W) in [0, 1], with sides that are multiples of the patch size.

    Returns:
        (B,) float64, on the CPU: of all patches of an image together, as a single black patch has W x = 0. Infinite
        for a wholly black image that changes, 0 for one that does not.

    Raises:
        ModelError: as :class:`LatticeRounding`.
        DataError, OptionError: as :meth:`LatticeRounding.__call__`.
    """
    patch_size = find_projection(model).kernel_size[0]
    matrix, _ = linear_map(model, "pixel", None)
    original, given = checked_patches(images, pixels, patch_size, matrix.shape[1])
    change, size = (((patches @ matrix.T).flatten(1)).norm(dim=1) for patches in (given - original, original))
    return torch.where(change > 0, change / size, 0.0)


def checked_patches(
    images: torch.Tensor, pixels: torch.Tensor, patch_size: int, input_dim: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Both as patches (B, N, C*p*p), float64 on the CPU."""
    check_pixels(images)
    check_pixels(pixels)
    if images.shape != pixels.shape:
        raise OptionError(
            f"pixels: expected the images' shape {tuple(images.shape)}, found {tuple(pixels.shape)}. Correct the call."
        )
    one, other = (patchify(each.detach().cpu().double(), patch_size, input_dim) for each in (images, pixels))
    return one, other


def _plane(gram: torch.Tensor, ridge: float) -> _Plane:
    """The decomposition of the lattice whose Gram matrix is ``gram`` + ``ridge`` I, by a Cholesky's with sorting."""
    n = len(gram)
    full = gram + ridge * torch.eye(n, dtype=gram.dtype)
    rest, factor = full.clone(), torch.zeros_like(full)
    left, order = torch.ones(n, dtype=torch.bool), []
    for row in range(n):
        pivot = int(torch.where(left, rest.diagonal(), torch.inf).argmin())
        order.append(pivot)
        left[pivot] = False
        share = rest[pivot] / rest[pivot, pivot]
        rest.addr_(rest[pivot].clone(), share, alpha=-1)
        factor[row] = torch.where(left, share, 0.0)
    places = torch.tensor(order)
    factor = factor[:, places]
    factor.fill_diagonal_(1.0)
    return _Plane(places, factor, torch.linalg.solve(full, gram))


def _nearest_plane(plane: _Plane, centre: torch.Tensor, low: torch.Tensor, high: torch.Tensor) -> torch.Tensor:
    """Levels (n, P) near ``centre`` within ``low`` and ``high``, (n, P) each."""
    order, factor = plane.order, plane.factor
    wanted, low, high = centre[order], low[order], high[order]  # wanted: given the pixels rounded so far
    levels, errors = torch.empty_like(wanted), torch.empty_like(wanted)
    centre = wanted.clone()
    for end in range(len(order), 0, -_BLOCK):
        start = max(0, end - _BLOCK)
        for row in range(end - 1, start - 1, -1):
            levels[row] = wanted[row].round().clamp(low[row], high[row])
            errors[row] = centre[row] - levels[row]
            wanted[start:row].addr_(factor[start:row, row], errors[row])
        wanted[:start].addmm_(factor[:start, start:end], errors[start:end])
    return torch.empty_like(levels).index_copy_(0, order, levels)
