"""Rounding a patch to whole levels so that a linear map of it stays near the original's: Babai's nearest plane."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch

from ..errors import OptionError

# Weights of a pixel's move against the embedding's error, relative to the root mean square norm of W's columns.
# benchmarks/rounding_gain.py prints what each alone divides the error by, and the best of them for each patch.
STIFFNESS = (0.15, 0.1, 0.07, 0.05, 0.035)
_BLOCK = 32  # pixels whose errors are handed on one by one; to all others in one product
_SORTED = 128  # rows of a factor between two products
_CHUNK = 2048  # patches rounded at a time: few enough for a processor's cache
_SLOW = 3  # seconds after which a bar counts the decompositions


class _Plane(NamedTuple):
    """The order of the pixels and the triangular factor of [W; s I] in that order, for one stiffness s.

    Attributes:
        order: (n,) pixels; the last is rounded first.
        factor: (n, n) float64, upper triangular with a unit diagonal: R with each row divided by its diagonal.
        pull: (n, D) moves pixels z, by ``pull @ W (z - x)``, to where the weighted sum of the embedding's error and of
            their moves is least; 0 where W z = W x.
    """

    order: torch.Tensor
    factor: torch.Tensor
    pull: torch.Tensor


class PatchLattice:
    """Whole levels of a patch whose image under W is near that of the original patch.

    Babai's nearest plane (L. Babai, "On Lovasz' lattice reduction and the nearest lattice point problem",
    Combinatorica 6, 1986) in the lattice of the columns of [W; s I]: the stiffness s makes the n columns independent,
    where those of W alone are not, and keeps pixels near where they were. Each pixel is rounded given those before it;
    its error is then made up for, as far as least squares can, by all that come after. The pixels' order is that of a
    sorted QR decomposition (Wuebben et al., "Efficient algorithm for decoding layered space-time codes", Electronics
    Letters 37, 2001): from the first column on, always the one that is nearest the span of those chosen, where the
    usual pivoting takes the farthest. Of several stiffnesses each patch takes the best, or plain rounding.

    Kept is a matrix of n x n for each stiffness.

    Args:
        matrix: W, (D, n), float64 on the CPU.
        levels: the largest level, which stands for 1.
        reach: most levels by which a pixel moves before it is rounded; 0 is plain rounding.
        stiffness: as :data:`STIFFNESS`.
        like: a lattice of a multiple of the same matrix, whose decompositions are used again; of another they are not.

    Raises:
        OptionError: ``reach`` is not a whole number >= 0.
    """

    def __init__(
        self,
        matrix: torch.Tensor,
        levels: int,
        reach: int,
        *,
        stiffness: Sequence[float] = STIFFNESS,
        like: PatchLattice | None = None,
    ) -> None:
        if isinstance(reach, bool) or not isinstance(reach, int) or reach < 0:
            raise OptionError(f"reach: expected a whole number of levels >= 0, found {reach!r}.")
        self.matrix, self.levels, self.reach = matrix, levels, reach
        if like is not None and _are_multiples(matrix, like.matrix):
            times = float(matrix.norm() / like.matrix.norm())
            planes = [plane._replace(pull=plane.pull / times) for plane in like._planes]
        else:
            planes = _planes(matrix, stiffness) if bool(matrix.any()) else []
        self._planes: list[_Plane] = planes

    def round(self, original: torch.Tensor, given: torch.Tensor) -> torch.Tensor:
        """Levels (P, n) for patches x and z, (P, n) each, float64 in [0, 1] on the CPU."""
        pairs = zip(original.split(_CHUNK), given.split(_CHUNK), strict=True)
        return torch.cat([self._round(x, z) for x, z in pairs])

    def errors(self, original: torch.Tensor, levels: torch.Tensor) -> torch.Tensor:
        """||W (q - ``levels`` x)||^2, (P,), of levels q and patches x, (P, n) each."""
        return ((levels - original * self.levels) @ self.matrix.T).square().sum(1)

    def _round(self, original: torch.Tensor, given: torch.Tensor) -> torch.Tensor:
        target, start = original.T * self.levels, given.T * self.levels  # a row a pixel, contiguous while it is rounded
        best, off = start.round(), self.matrix @ (start - target)
        least = (self.matrix @ (best - target)).square().sum(0)
        low, high = (start - self.reach).round().clamp_min(0), (start + self.reach).round().clamp_max(self.levels)
        for plane in self._planes:
            levels = _nearest_plane(plane, start - plane.pull @ off, low, high)
            error = (self.matrix @ (levels - target)).square().sum(0)
            best, least = torch.where(error < least, levels, best), torch.minimum(error, least)
        return best.T


def _are_multiples(one: torch.Tensor, other: torch.Tensor) -> bool:
    return one.shape == other.shape and torch.allclose(one / one.norm(), other / other.norm(), rtol=1e-6, atol=1e-9)


def _planes(matrix: torch.Tensor, stiffness: Sequence[float]) -> list[_Plane]:
    from tqdm.auto import tqdm

    gram, outer = matrix.T @ matrix, matrix @ matrix.T
    scale = float(gram.diagonal().mean())
    planes = []
    for share in tqdm(stiffness, desc="lattice", unit="decomposition", disable=None, leave=False, delay=_SLOW):
        ridge = share**2 * scale
        order, factor = _sorted_factor(gram, ridge)
        # (W'W + r I)^-1 W' = W' (W W' + r I)^-1
        pull = torch.linalg.solve(outer + ridge * torch.eye(len(outer), dtype=outer.dtype), matrix).T
        planes.append(_Plane(order, factor, pull))
    return planes


def _sorted_factor(gram: torch.Tensor, ridge: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Order and factor of a :class:`_Plane` whose Gram matrix is ``gram`` + ``ridge`` I, by a Cholesky's with sorting.

    As of LAPACK's pstrf, with the least pivot for the greatest: within a block of rows only the diagonal of what is
    left is kept up to date, as it decides the order; the rest in one product after each block.
    """
    n = len(gram)
    rest, factor = gram + ridge * torch.eye(n, dtype=gram.dtype), torch.zeros_like(gram)
    places = torch.arange(n)  # of the columns of ``rest``
    order: list[int] = []
    while len(order) < n:
        size = min(_SORTED, n - len(order))
        diagonal, rows = rest.diagonal().clone(), torch.zeros(size, len(rest), dtype=rest.dtype)  # R's
        for number in range(size):
            pivot = int(diagonal.argmin())
            row = rest[pivot] - rows[:number, pivot] @ rows[:number]
            row /= row[pivot].sqrt()
            row[diagonal.isinf()] = 0  # chosen before
            rows[number] = row
            diagonal -= row.square()
            diagonal[pivot] = torch.inf
            factor[len(order), places] = row / row[pivot]
            order.append(int(places[pivot]))
        kept = (~diagonal.isinf()).nonzero()[:, 0]
        places, rows = places[kept], rows[:, kept]
        rest = rest.index_select(0, kept).index_select(1, kept).addmm_(rows.T, rows, alpha=-1)
    chosen = torch.tensor(order)
    return chosen, factor[:, chosen]


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
