"""Rounding to 8 bits within the nullspace of a patch embedding that reads squares of pixels through their sums."""

from __future__ import annotations

import torch
from torch import nn

from .exact_noise import unpatchify
from .lattice_rounding import LEVELS, LatticeRounding, checked_patches
from .row_space import PatchRowSpace


class SquareRounding(LatticeRounding):
    """:class:`~.lattice_rounding.LatticeRounding` for models of larger images, as of :func:`~.enlargement.enlarged`.

    What such a model reads is the sum of each square of f x f pixels, whole numbers of 0..255 f^2: levels f^2 times as
    fine as those of a pixel. These sums are rounded in the lattice of the small weight; each square's pixels are then
    the whole levels nearest to what was given that have this sum. So the error is about f^2 times smaller than that of
    the small model's files, and the decompositions are those of the small weight. Of a weight that is constant over no
    squares this is LatticeRounding itself.

    Args:
        model: with normalisation in front, wrapped or not.
        reach: most levels by which a sum moves before it is rounded; 0 is plain rounding of the sums.

    Raises:
        ModelError, OptionError: as LatticeRounding.
    """

    def __init__(self, model: nn.Module, *, reach: int = 8) -> None:
        self.space = PatchRowSpace(model)
        super().__init__(model, reach=reach)

    def _setup(self, matrix: torch.Tensor, levels: int = LEVELS) -> None:
        super()._setup(self.space.matrix, levels * self.space.square**2)

    def __call__(self, images: torch.Tensor, pixels: torch.Tensor) -> torch.Tensor:
        """As :meth:`~.lattice_rounding.LatticeRounding.__call__`; no pixel moves by more than the levels of its sum."""
        space, f = self.space, self.space.square
        original, given = (
            each.flatten(0, 1) for each in checked_patches(images, pixels, self.patch_size, space.input_dim)
        )
        sums = self.round_patches(*(space.sums(each) / f**2 for each in (original, given)))
        levels = self._squares(given * LEVELS, sums)
        return unpatchify(levels / LEVELS, self.patch_size, pixels.shape[1:]).to(pixels)

    def _squares(self, wanted: torch.Tensor, sums: torch.Tensor) -> torch.Tensor:
        """Whole levels (P, n) near ``wanted`` whose squares have ``sums`` (P, n / f^2)."""
        space, f = self.space, self.space.square
        side = self.patch_size // f
        squares = wanted.unflatten(-1, (space.channels, side, f, side, f)).transpose(-3, -2)
        levels = nearest_of_sum(squares.flatten(-2), sums.unflatten(-1, (space.channels, side, side)), LEVELS)
        return levels.unflatten(-1, (f, f)).transpose(-3, -2).flatten(1)


def nearest_of_sum(wanted: torch.Tensor, sums: torch.Tensor, most: int) -> torch.Tensor:
    """The whole numbers in 0..``most`` nearest to ``wanted`` (..., k), by least squares, that have ``sums`` (...).

    As the squared distance is convex in each number, one by one the number whose step costs least is raised, or
    lowered, from the nearest whole ones, until the sum is right.

    Args:
        wanted: in [0, ``most``].
        sums: whole, in 0..k ``most``.
    """
    found = wanted.round()
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
