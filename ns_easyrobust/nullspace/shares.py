"""How much of a change of pixels lies in the patch embedding's nullspace, beside an untrained embedding's."""

from __future__ import annotations

import torch

from .exact_noise import patchify
from .row_space import PatchRowSpace


def unseen_share(space: PatchRowSpace, changes: torch.Tensor) -> torch.Tensor:
    """Share of each change's energy in the nullspace: ||V d||^2 / ||d||^2 over all patches, (B,) in [0, 1].

    Of patches of white noise it is nullity / (C p^2) on average, whatever the weights.

    Args:
        space: of a model.
        changes: (B, C, H, W) of pixels, with sides that are multiples of the patch size; of one that is all zero the
            share is 0.
    """
    patches = patchify(changes.double(), space.patch_size, space.input_dim)
    return _share(patches, space.seen(patches))


def random_rows(rank: int, input_dim: int, *, generator: torch.Generator) -> torch.Tensor:
    """Orthonormal basis (rank, input_dim), float64, of the row space of a random W: elements N(0, 1), as untrained."""
    drawn = torch.randn(input_dim, rank, generator=generator, dtype=torch.float64, device=generator.device)
    return torch.linalg.qr(drawn)[0].T


def unseen_share_of_rows(rows: torch.Tensor, patch_size: int, changes: torch.Tensor) -> torch.Tensor:
    """:func:`unseen_share` for a row space of orthonormal ``rows`` (rank, C p^2)."""
    patches = patchify(changes.double(), patch_size, rows.shape[1])
    return _share(patches, patches @ rows.to(patches).T)


def _share(patches: torch.Tensor, seen: torch.Tensor) -> torch.Tensor:
    whole = patches.square().sum((1, 2))
    return torch.where(whole > 0, 1 - seen.square().sum((1, 2)) / whole, 0.0)
