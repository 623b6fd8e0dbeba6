"""How much of a change of pixels lies in the patch embedding's nullspace, beside what untrained weights leave there."""

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
    return _share(changes, space.seen(patches))


def within_squares_share(changes: torch.Tensor, square: int) -> torch.Tensor:
    """Share of each change's energy that averaging over squares hides: that of pixels less their square's mean, (B,).

    The nullspace of every embedding behind that pooling holds it, whatever its weights.

    Args:
        changes: (B, C, H, W), with sides that are multiples of ``square``; of one that is all zero the share is 0.
        square: side in pixels, >= 1.
    """
    return _share(changes, _pooled(changes, square))


def random_rows(rank: int, input_dim: int, *, generator: torch.Generator) -> torch.Tensor:
    """Orthonormal basis (rank, input_dim), float64, of the row space of a random W: elements N(0, 1), as untrained.

    Its distribution is the same in all directions: of any change it leaves 1 - rank / input_dim in the nullspace, on
    average over draws.
    """
    drawn = torch.randn(input_dim, rank, generator=generator, dtype=torch.float64, device=generator.device)
    return torch.linalg.qr(drawn)[0].T


def unseen_share_of_rows(
    rows: torch.Tensor, patch_size: int, changes: torch.Tensor, *, square: int = 1
) -> torch.Tensor:
    """:func:`unseen_share` of an embedding behind average pooling of squares of ``square`` x ``square`` pixels.

    Args:
        rows: (rank, C (p / square)^2), orthonormal: its row space, for patches of squares.
        patch_size: p, in pixels before the pooling.
        changes: (B, C, H, W) before the pooling.
        square: 1 for none.
    """
    patches = patchify(_pooled(changes, square), patch_size // square, rows.shape[1])
    return _share(changes, patches @ rows.to(patches).T)


def _pooled(changes: torch.Tensor, square: int) -> torch.Tensor:
    """Averages over squares, scaled so that what is constant over them keeps its energy; float64."""
    return square * torch.nn.functional.avg_pool2d(changes.double(), square)


def _share(changes: torch.Tensor, seen: torch.Tensor) -> torch.Tensor:
    whole = changes.double().square().sum((1, 2, 3))
    return torch.where(whole > 0, 1 - seen.square().flatten(1).sum(1) / whole, 0.0)
