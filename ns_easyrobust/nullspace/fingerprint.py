"""A model's fingerprint: what its patch embedding sees of a patch (arXiv:2403.10476, section 6).

The paper would tell models by their nullspace. Its orthogonal complement, the row space of W, holds the same and is the
smaller of the two wherever a nullspace is exact by shape (k = D < n = C*p*p, mostly D <= n / 2); and two nullspaces of
more than n / 2 dimensions share some directions whatever the weights, so that their angles say less. It is invariant
to W -> A W for any invertible A: rotations and scalings of the embedding, weight decay, signs and orders of features.

Two are compared by S, the sum of squared cosines of the principal angles (Jordan 1875; Bjorck and Golub 1973). As
sin(angle) <= ||E|| / sigma for a change E of W (Wedin 1972), directions of small sigma turn freely under finetuning,
rounding and pruning, and count in S as much as any. So there is a second, weighted fingerprint (ours): the matrix
``|W| = (W'W)^(1/2)``, in which directions count by their singular values, of W without its mean over features, which
no LayerNorm lets pass. It is invariant to W -> Q W + 1 v', Q orthogonal and orthogonal to 1, all that can be undone
further on in a pre-LayerNorm transformer, and to scalings.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from ..errors import ModelError
from ..utils import torch
from .exact import linear_map


@dataclass(frozen=True, eq=False)
class Fingerprint:
    """The row space of a patch embedding.

    Attributes:
        basis: (k, n) float64, orthonormal rows in the space of normalised patches, flattened as (C, p, p); k is the
            rank of W, n = C*p*p.
        patch_size: p, in pixels.
        std: of the model's normalisation, one number a channel; None where it is not known. With it the row space in
            pixels, that of W diag(1/std), can be had, which is what models with other normalisations share.
        digest: SHA-256 of the patch embedding's weight as it was read.
        name: of the model, as its owner calls it.
        strengths: (j, n) float64, orthogonal rows whose norms are singular values, with ``strengths' strengths`` =
            V'V, V being W without its mean over features.
    """

    basis: torch.Tensor = field(repr=False)
    strengths: torch.Tensor = field(repr=False)
    patch_size: int
    std: tuple[float, ...] | None
    digest: str
    name: str = ""

    @property
    def rank(self) -> int:
        """k, the dimension of the row space."""
        return self.basis.shape[0]

    @property
    def input_dim(self) -> int:
        """n, the elements of a patch."""
        return self.basis.shape[1]

    def rows(
        self, space: str = "normalised", metric: torch.Tensor | None = None, *, weighted: bool = False
    ) -> torch.Tensor:
        """Rows R for :func:`likeness`: an orthonormal basis of the row space, or with R'R = ``|V|``, in ``space``.

        Args:
            space: ``normalised``, of W and V; ``pixel``, of W diag(1/std) and V diag(1/std).
            metric: (n, n), a square root of the covariance of patches in ``space``: W and V are multiplied by it. Then
                squared cosines of principal angles are squared canonical correlations of the embeddings of such
                patches (Hotelling 1936), and directions that no patch has do not count.
            weighted: ``|V|`` in place of the row space.

        Raises:
            ModelError: the pixel space of a fingerprint without ``std``.
        """
        rows = self.strengths if weighted else self.basis
        if space == "pixel":
            if self.std is None:
                raise ModelError(f"{self.name or 'fingerprint'}: expected a known normalisation for pixel space.")
            per_channel = self.input_dim // len(self.std)
            rows = rows / torch.tensor(self.std, dtype=torch.float64).repeat_interleave(per_channel)
        if metric is not None:
            rows = rows @ metric
        if rows is self.basis:
            return rows
        _, values, right = torch.linalg.svd(rows, full_matrices=False)
        return values.sqrt()[:, None] * right if weighted else right


def fingerprint_of(
    weight: torch.Tensor, *, std: Sequence[float] | None = None, name: str = "", rtol: float | None = None
) -> Fingerprint:
    """The fingerprint of a patch embedding.

    Args:
        weight: (D, C, p, p), of any floating type.
        std: of the normalisation in front, one number a channel, in units of pixels in [0, 1].
        rtol: singular values up to ``rtol`` times the largest are zero (default as in
            :func:`~ns_easyrobust.nullspace.exact.patch_nullspace`).

    Raises:
        ModelError: no weight of square patches, not finite, zero, or without a nullspace: then the row space is all of
            the patches' space, and the same for every model.
        OptionError: ``rtol`` or ``std`` is out of range.

    Example:
        >>> print_of = fingerprint_of(vit.patch_embed.proj.weight, std=(0.5, 0.5, 0.5))
        >>> print_of.rank, print_of.input_dim
        (64, 192)
    """
    shown = f"{name}: " if name else ""
    matrix, rtol = linear_map(weight, "normalised", rtol)
    if std is not None:
        linear_map(weight, "pixel", rtol, std)  # checks std
    _, values, right = torch.linalg.svd(matrix, full_matrices=False)
    rank = int((values > rtol * values[0]).sum())
    if rank == 0:
        raise ModelError(f"{shown}expected a patch embedding that sees something, found zeros. Check the checkpoint.")
    if rank == matrix.shape[1]:
        raise ModelError(
            f"{shown}expected a patch embedding with a nullspace, found rank {rank} of {rank}: every such model sees "
            "the whole space of patches, so that it has no fingerprint of this kind. Use a model with fewer features "
            "or larger patches."
        )
    centred = torch.linalg.svd(matrix - matrix.mean(0), full_matrices=False)
    kept = int((rtol * values[0] < centred.S).sum())
    if kept == 0:
        raise ModelError(f"{shown}expected features that differ, found {len(matrix)} equal ones. Check the checkpoint.")
    stored = weight.detach().cpu().contiguous()
    told = hashlib.sha256(f"{stored.dtype} {tuple(stored.shape)}".encode())
    told.update(stored.reshape(-1).view(torch.uint8).numpy().tobytes())
    return Fingerprint(
        basis=right[:rank].clone(),
        strengths=centred.S[:kept, None] * centred.Vh[:kept],
        patch_size=weight.shape[-1],
        std=None if std is None else tuple(float(value) for value in std),
        digest=told.hexdigest(),
        name=name,
    )


def common_space(prints: Sequence[Fingerprint]) -> str:
    """``pixel`` where the normalisation of all of them is known, else ``normalised``.

    Raises:
        ModelError: they are of patches of other sizes or channels, which share no space.
    """
    first = prints[0]
    for other in prints[1:]:
        if (other.patch_size, other.input_dim) != (first.patch_size, first.input_dim):
            raise ModelError(
                f"{other.name}: expected patches of {first.patch_size} pixels and {first.input_dim} numbers, as "
                f"{first.name} has them, found {other.patch_size} pixels and {other.input_dim} numbers. Only models of "
                "the same patches can be compared."
            )
    return "pixel" if all(each.std is not None for each in prints) else "normalised"


def overlap(one: torch.Tensor, other: torch.Tensor) -> float:
    """S, the sum of squared cosines of the principal angles: the inner product ``tr(P1 P2)`` of both projections.

    Args:
        one, other: (k1, n) and (k2, n), orthonormal rows.
    """
    return float((one @ other.T).square().sum())


def likeness(one: torch.Tensor, other: torch.Tensor) -> float:
    """The cosine between R1'R1 and R2'R2, in [0, 1]; 1 where they are the same but for a factor.

    Of orthonormal rows it is S / sqrt(k1 k2). Of weighted ones, ``tr(|V1| |V2|) / (||V1|| ||V2||)``.

    Args:
        one, other: (k1, n) and (k2, n), of :meth:`Fingerprint.rows`.
    """
    norms = [torch.linalg.matrix_norm(rows @ rows.T) for rows in (one, other)]
    return min(1.0, overlap(one, other) / float(norms[0] * norms[1]))


class HaarOverlap(NamedTuple):
    """Mean and standard deviation of S between a fixed and a uniformly random subspace."""

    mean: float
    sd: float


def haar_overlap(k1: int, k2: int, n: int) -> HaarOverlap:
    """S of two independent subspaces of R^n of which one is uniform (Haar): what it is if weights were pure chance.

    ``tr(P1 P2)`` has the mean ``k1 k2 / n`` and the variance
    ``2 k1 (n - k1) k2 (n - k2) / (n^2 (n - 1) (n + 2))`` (second moments of a uniform projection). It is **not** the
    null of a fingerprint: independently trained models are more alike than that.
    """
    variance = 2 * k1 * (n - k1) * k2 * (n - k2) / (n**2 * (n - 1) * (n + 2))
    return HaarOverlap(k1 * k2 / n, math.sqrt(variance))
