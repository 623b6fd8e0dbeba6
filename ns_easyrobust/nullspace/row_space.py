"""The row space of a patch embedding's weight, also of one that is constant over squares of pixels, without large SVDs.

A model made for images f times larger (:func:`~.enlargement.enlarged`) reads squares of f x f pixels through their sum
alone. Its row space is that of the weight with one pixel for each square, spread over them: the decomposition and each
product with it cost f^2 times less than those of the large weight.
"""

from __future__ import annotations

import torch
from torch import nn

from .exact import find_projection, linear_map


def square_side(weight: torch.Tensor) -> int:
    """The largest f so that ``weight`` (D, C, p, p) is constant over squares of f x f pixels; 1 where it is not."""
    side = weight.shape[-1]
    for f in range(side, 1, -1):
        if side % f == 0:
            corners = weight[..., ::f, ::f]
            if torch.equal(corners.repeat_interleave(f, 2).repeat_interleave(f, 3), weight):
                return f
    return 1


class PatchSquares:
    """A patch embedding's pixel-space map, of the squares of pixels whose sums are all that it reads.

    Args:
        model: with normalisation in front, wrapped or not.

    Attributes:
        square: f of :func:`square_side`.
        channels, patch_size: C and p.
        input_dim: C p^2.
        matrix: (D, C (p / f)^2), the map of the squares' sums; float64, on the CPU.
        rtol: singular values of ``matrix`` up to this share of the largest count as zero.

    Raises:
        ModelError: the patch embedding is not linear, or the model has no normalisation.
    """

    def __init__(self, model: nn.Module) -> None:
        weight = find_projection(model).weight.detach()
        large, self.rtol = linear_map(model, "pixel", None)
        self.square = f = square_side(weight)
        self.channels, self.patch_size, self.input_dim = weight.shape[1], weight.shape[-1], large.shape[1]
        self.matrix = large.view(weight.shape)[..., ::f, ::f].flatten(1)

    def sums(self, patches: torch.Tensor) -> torch.Tensor:
        """Of patches (..., C p^2), the sum over each square: (..., C (p / f)^2)."""
        f, side = self.square, self.patch_size // self.square
        if f == 1:
            return patches
        return patches.unflatten(-1, (self.channels, side, f, side, f)).sum((-3, -1)).flatten(-3)

    def repeated(self, small: torch.Tensor) -> torch.Tensor:
        """Of (..., C (p / f)^2), each number on all of its square: (..., C p^2)."""
        f, side = self.square, self.patch_size // self.square
        if f == 1:
            return small
        squares = small.unflatten(-1, (self.channels, side, 1, side, 1))
        return squares.expand(*squares.shape[:-4], side, f, side, f).flatten(-5)


class PatchRowSpace(PatchSquares):
    """What a patch embedding sees of a change of a patch's pixels: its pixel-space row space, orthonormal.

    Args:
        model: with normalisation in front, wrapped or not.
        device: of the patches.

    Attributes:
        rows: (rank, C (p / f)^2) float64, orthonormal: of the squares' sums divided by f.

    Raises:
        ModelError: as :class:`PatchSquares`.
    """

    def __init__(self, model: nn.Module, device: torch.device | str = "cpu") -> None:
        super().__init__(model)
        _, values, right = torch.linalg.svd(self.matrix, full_matrices=False)
        self.rows = right[values > self.rtol * values[0]].to(device)

    def seen(self, patches: torch.Tensor) -> torch.Tensor:
        """Coordinates (..., rank) of patches (..., C p^2), float64, in the row space."""
        return self.sums(patches) @ self.rows.T / self.square

    def spread(self, coordinates: torch.Tensor) -> torch.Tensor:
        """The patches (..., C p^2) in the row space that have these coordinates."""
        return self.repeated(coordinates @ self.rows / self.square)
