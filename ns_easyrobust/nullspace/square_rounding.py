"""Rounding to 8 bits within the nullspace of a patch embedding that reads squares of pixels through their sums."""

from __future__ import annotations

import torch
from torch import nn

from ..errors import OptionError
from .exact_noise import unpatchify
from .lattice_rounding import LEVELS, checked_patches
from .patch_lattice import PatchLattice
from .row_space import PatchSquares


class SquareRounding:
    """:class:`~.lattice_rounding.LatticeRounding` for models of larger images, as of :func:`~.enlargement.enlarged`.

    What such a model reads is the sum of each square of f x f pixels, whole numbers of 0..255 f^2. These sums are
    rounded in the lattice of the small weight; each square's pixels are then the whole levels nearest to what was given
    that have this sum. Beside the lattice of the large weight itself what is gained is time: the decompositions, and
    each rounding, are those of C (p / f)^2 numbers a patch, not of C p^2. Of a weight that is constant over no squares
    this is LatticeRounding itself.

    Guaranteed: whole levels within 0..255, none farther than ``reach`` + 1/2, or, with ``reach`` 0, than 1 from the
    given pixel; and no patch with a larger error ||W (q / 255 - x)|| than if each pixel is rounded by itself.

    Args:
        model: with normalisation in front, wrapped or not.
        reach: most levels by which a sum moves before it is rounded.
        like: that of the same model for images of another size, whose decompositions are used again.

    Raises:
        ModelError, OptionError: as LatticeRounding.
    """

    def __init__(self, model: nn.Module, *, reach: int = 8, like: SquareRounding | None = None) -> None:
        self.squares = PatchSquares(model)
        most = LEVELS * self.squares.square**2
        like_lattice = like.lattice if like else None
        self.lattice: PatchLattice = PatchLattice(self.squares.matrix, most, reach, like=like_lattice)

    def __call__(self, images: torch.Tensor, pixels: torch.Tensor) -> torch.Tensor:
        """As :meth:`~.lattice_rounding.LatticeRounding.__call__`."""
        squares = self.squares
        original, given = (
            each.flatten(0, 1) for each in checked_patches(images, pixels, squares.patch_size, squares.input_dim)
        )
        means = squares.sums(original) / squares.square**2
        sums = self.lattice.round(means, squares.sums(given) / squares.square**2)
        plain = (given * LEVELS).round()
        is_plain = self.lattice.errors(means, squares.sums(plain)) < self.lattice.errors(means, sums)
        levels = torch.where(is_plain[:, None], plain, self._of_sums(given * LEVELS, sums))
        return unpatchify(levels / LEVELS, squares.patch_size, pixels.shape[1:]).to(pixels)

    def _of_sums(self, wanted: torch.Tensor, sums: torch.Tensor) -> torch.Tensor:
        """Whole levels (P, n) near ``wanted`` whose squares have ``sums`` (P, n / f^2)."""
        channels, f = self.squares.channels, self.squares.square
        side = self.squares.patch_size // f
        squares = wanted.unflatten(-1, (channels, side, f, side, f)).transpose(-3, -2)
        levels = nearest_of_sum(squares.flatten(-2), sums.unflatten(-1, (channels, side, side)), LEVELS)
        return levels.unflatten(-1, (f, f)).transpose(-3, -2).flatten(1)


def nearest_of_sum(wanted: torch.Tensor, sums: torch.Tensor, most: int) -> torch.Tensor:
    """The whole numbers in 0..``most`` nearest to ``wanted`` (..., k), by least squares, that have ``sums`` (...).

    As the squared distance is convex in each number, one by one the number whose step costs least is raised, or
    lowered, from the nearest whole ones, until the sum is right.

    Args:
        wanted: in [0, ``most``].
        sums: whole, in 0..k ``most``.

    Raises:
        OptionError: no such numbers have one of these sums.
    """
    highest = wanted.shape[-1] * most
    if not bool(((sums >= 0) & (sums <= highest) & (sums == sums.round())).all()):
        raise OptionError(
            f"sums: expected whole numbers in 0..{highest}, of {wanted.shape[-1]} numbers in 0..{most}, found "
            f"{float(sums.min()):g} to {float(sums.max()):g}. Correct the call."
        )
    found = wanted.round().clamp(0, most)
    while True:
        left = (sums - found.sum(-1)).unsqueeze(-1)
        if not bool(left.any()):
            return found
        step = left.sign()
        room = torch.where(step > 0, found < most, found > 0)
        cost = torch.where(room, step * (found - wanted), torch.inf)  # of a step, up to a constant and a factor
        # At most one step a number in each round: those that cost least, as many as are left.
        rank = cost.argsort(dim=-1, stable=True).argsort(-1)
        found = found + step * ((rank < left.abs()) & room)
