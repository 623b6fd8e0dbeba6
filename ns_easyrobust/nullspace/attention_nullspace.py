"""Proposition 1 of arXiv:2403.10476: conditions for noise that no head of a self-attention layer sees.

Head i maps tokens X (n, d) to Softmax(X A_i X' / sqrt(d_k)) X V_i with A_i = Q_i K_i'. If every A_i is symmetric
(condition 1), the row space of every V_i' is inside that of A_i (2), and a row of some A_m is inside the row space of
another A_n (3), then some w is orthogonal to all these row spaces, and W = c w' leaves every head as it is, for any
column c of coefficients, one a token.

What the conditions say of weights: with Q_i of full column rank, the row space of A_i is the column space of K_i. So
condition 2 is that V_i and K_i have the same column space, and condition 3 makes [K_1 ... K_h] singular.

Without condition 1, w has to be orthogonal to Q_i, K_i and V_i. Of one w on all tokens alike, K_i sees nothing: it adds
the same to all logits of a token, which the softmax takes away.
"""

from __future__ import annotations

import math
from typing import NamedTuple

from ..models import HeadProjections
from ..utils import torch


def symmetric_share(query: torch.Tensor, key: torch.Tensor) -> torch.Tensor:
    """||(A + A')/2||^2 / ||A||^2 of A = Q K' (Frobenius): 1 where it is symmetric, 0 where it is antisymmetric.

    Independent Gaussian Q and K have about 1/2 + 1/(2d). The correlation of A's entries with those of A' (of mean 0)
    is twice the share minus one.

    Args:
        query, key: (..., d, d_k).

    Returns:
        (...); nan where A is 0.

    Example:
        >>> symmetric_share(torch.eye(2)[:, :1], torch.eye(2)[:, 1:])  # A has one entry, off the diagonal
        tensor(0.5000)
    """
    crossed = key.mT @ query  # tr(A A) = tr(K'Q K'Q), and ||A||^2 = tr(K'K Q'Q): no d x d matrix is needed
    energy = ((key.mT @ key) * (query.mT @ query)).sum((-1, -2))
    return 0.5 + 0.5 * (crossed * crossed.mT).sum((-1, -2)) / energy


def principal_cosines(one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    """Cosines of the principal angles between two column spaces, descending; all are 1 where they are the same.

    Those of random spaces have squares of mean d_k / d.

    Args:
        one, other: (..., d, d_k) of full column rank.

    Returns:
        (..., d_k) in [0, 1].

    Source: A. Bjorck and G. H. Golub, "Numerical methods for computing angles between linear subspaces", Mathematics of
    Computation 27 (1973).
    """
    bases = [torch.linalg.qr(matrix).Q for matrix in (one, other)]
    return torch.linalg.svdvals(bases[0].mT @ bases[1]).clamp(max=1)


def nearest_row(query: torch.Tensor, key: torch.Tensor) -> float | None:
    """Condition 3: the largest cosine of a row of an A_m with another head's row space; None of one head alone.

    It is 1 where the condition is met.

    Args:
        query, key: (h, d, d_k), of which ``key`` has full column rank. A row of 0 counts as orthogonal to all.
    """
    if len(key) < 2:
        return None
    bases = torch.linalg.qr(key).Q
    triangles = bases.mT @ key  # K_m = bases_m triangles_m: rows of A_m, in coordinates of their own basis
    coordinates = query @ triangles.mT
    lengths = coordinates.norm(dim=-1)
    largest = 0.0
    for m, n in ((m, n) for m in range(len(key)) for n in range(len(key)) if m != n):
        inside = (coordinates[m] @ (bases[m].mT @ bases[n])).norm(dim=-1)
        largest = max(largest, float((inside / lengths[m]).nan_to_num().max()))
    return min(largest, 1.0)


class LeastSeen(NamedTuple):
    """The directions that a stack of projections sees least.

    Attributes:
        ratio: the smallest singular value over the largest.
        dimension: of the nullspace: how many singular values rounding may have kept from 0.
        tolerance: singular values up to this, over the largest, may be 0 but for the rounding of the weights.
        direction: (d,) of norm 1, with the smallest singular value.
    """

    ratio: float
    dimension: int
    tolerance: float
    direction: torch.Tensor


def least_seen(matrices: torch.Tensor, roundoff: float, gain: torch.Tensor | None = None) -> LeastSeen:
    """The common (approximate) nullspace of projections: directions w with M' w = 0 for each of ``matrices``.

    Rounding each weight by at most ``roundoff``, relatively, moves singular values by at most ``roundoff`` times the
    Frobenius norm (Weyl's inequality): this is the tolerance. Twice it with a gain, which was rounded too.

    Args:
        matrices: (..., d, k).
        roundoff: of the stored weights (:func:`unit_roundoff`).
        gain: (d,) the layer norm's gamma. If given, w is added before this gain, and is sought orthogonal to the
            all-ones direction, which a layer norm's output does not have.
    """
    stack = matrices.movedim(-2, -1).flatten(0, -2)
    if gain is not None:
        basis = centred_basis(len(gain), gain)
        stack, roundoff = (stack * gain) @ basis, 2 * roundoff
    rows, size = stack.shape
    _, values, directions = torch.linalg.svd(stack, full_matrices=rows < size)
    values = torch.nn.functional.pad(values, (0, size - len(values)))
    largest = float(values[0])
    tolerance = roundoff * float(stack.norm()) / largest
    direction = directions[-1] if gain is None else basis @ directions[-1]
    ratio = float(values[-1]) / largest
    return LeastSeen(ratio, int((values <= tolerance * largest).sum()), tolerance, direction)


def centred_basis(width: int, like: torch.Tensor) -> torch.Tensor:
    """(d, d - 1) orthonormal basis of what is orthogonal to the all-ones direction: columns of a reflection."""
    normal = -torch.full((width,), 1 / math.sqrt(width), dtype=like.dtype, device=like.device)
    normal[0] += 1
    normal = normal / normal.norm()
    return (torch.eye(width, dtype=like.dtype, device=like.device) - 2 * torch.outer(normal, normal))[:, 1:]


def unit_roundoff(weights: torch.Tensor) -> float:
    """Largest relative error by rounding that weights may have: that of the shortest format which holds them exactly.

    Example:
        >>> unit_roundoff(torch.tensor([0.5, 0.1]).half().double()) == 2**-11
        True
    """
    for dtype in (torch.bfloat16, torch.float16, torch.float32):
        if torch.equal(weights.to(dtype).to(weights.dtype), weights):
            return torch.finfo(dtype).eps / 2
    return torch.finfo(torch.float64).eps / 2


def head_invariant_directions(projections: HeadProjections, roundoff: float) -> tuple[LeastSeen, LeastSeen]:
    """What no head sees of noise on the layer norm's output, before its gain (:func:`least_seen`).

    Returns:
        Of a w in other amounts on each token, the nullspace of all [Q_i, K_i, V_i]; of one w on all tokens alike, that
        of all [Q_i, V_i].
    """
    query, key, value = projections.query, projections.key, projections.value
    return (
        least_seen(torch.stack((query, key, value)), roundoff, projections.gain),
        least_seen(torch.stack((query, value)), roundoff, projections.gain),
    )
