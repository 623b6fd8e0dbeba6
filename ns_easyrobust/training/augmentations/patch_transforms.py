"""Images whose patches are shuffled, rotated or replaced: negative examples for a ViT (Qin et al. 2022, section 3).

A batch is (B, C, H, W) and a patch ``side`` x ``side`` pixels; each image of a batch is transformed on its own. Pixels
are moved, never changed. The randomness comes from ``generator`` alone, on its own device, so that the same seed gives
the same images on any device.
"""

from __future__ import annotations

from ... import nullspace
from ...errors import OptionError
from ...utils import torch

TRANSFORMS = ("shuffle", "rotate", "infill")


def transform_patches(
    transform: str, images: torch.Tensor, side: int, *, generator: torch.Generator, rate: float = 0.25
) -> torch.Tensor:
    """``images`` (B, C, H, W) after P-Shuffle, P-Rotate or P-Infill; the same shape, dtype and device.

    Args:
        transform: one of :data:`TRANSFORMS`.
        side: of a patch, in pixels.
        rate: share of all patches that ``infill`` replaces.

    Raises:
        OptionError: see :func:`check_grid`.
    """
    check_grid(transform, tuple(images.shape[-2:]), side, rate)
    if transform == "shuffle":
        return shuffle_patches(images, side, generator=generator)
    if transform == "rotate":
        return rotate_patches(images, side, generator=generator)
    return infill_patches(images, side, rate, generator=generator)


def check_grid(transform: str, size: tuple[int, ...], side: int, rate: float) -> None:
    """Raise OptionError unless images of ``size`` (height, width) are a grid of patches that ``transform`` can change.

    The sides must be multiples of ``side``; ``shuffle`` and ``infill`` need two patches, and ``infill`` a share of
    them that comes to one patch or more but not to all.
    """
    if transform not in TRANSFORMS:
        raise OptionError(f"transform: expected one of {', '.join(TRANSFORMS)}, found {transform!r}. Choose one.")
    image = " x ".join(map(str, size))
    if any(length % side or not length for length in size):
        raise OptionError(
            f"images: expected sides that are multiples of the {side} pixels of a transformed patch, found {image}. "
            "Resize the images, or set multiple to transform smaller patches."
        )
    number = (size[0] // side) * (size[1] // side)
    if transform != "rotate" and number < 2:
        raise OptionError(
            f"{transform}: expected two patches or more, found one of {side} pixels in an image of {image}. "
            "Lower multiple."
        )
    if transform == "infill" and not 0 < round(rate * number) < number:
        raise OptionError(
            f"infill: expected a rate that replaces 1 to {number - 1} of the {number} patches of {side} pixels in an "
            f"image of {image}, found {rate:g}. Change rate, or lower multiple."
        )


def shuffle_patches(images: torch.Tensor, side: int, *, generator: torch.Generator) -> torch.Tensor:
    """P-Shuffle: the patches of each image in a random order."""
    patches = _patches_of(images, side)
    return _images_of(_taken(patches, _random_orders(patches, generator)), images, side)


def rotate_patches(images: torch.Tensor, side: int, *, generator: torch.Generator) -> torch.Tensor:
    """P-Rotate: each patch turned at its place by 0, 90, 180 or 270 degrees, all equally likely."""
    patches = _patches_of(images, side)
    turns = torch.randint(4, patches.shape[:2], generator=generator, device=generator.device)
    turns = turns.to(images.device)[:, :, None, None, None]
    squares = patches.unflatten(2, (images.shape[1], side, side))
    turned = squares
    for turn in (1, 2, 3):
        turned = torch.where(turns == turn, squares.rot90(turn, (-2, -1)), turned)
    return _images_of(turned, images, side)


def infill_patches(images: torch.Tensor, side: int, rate: float, *, generator: torch.Generator) -> torch.Tensor:
    """P-Infill: the patches of the centre replaced by patches of the boundary.

    The centre is the ``round(rate * N)`` of the N patches that are nearest to the middle, by the larger of the row's
    and the column's distance relative to the image; among equally near ones, random ones. On grids of 4 x 4 with a
    rate of 1/4 and of 4 x 8 with 3/8 that is all but the boundary, as in the unofficial code of
    JoonHyeokJ/patch-based-negative-augmentation (p-infill.py:20-52). The boundary is the outermost ring, as far as it
    is not replaced itself; its patches are drawn at random, and none twice before each was once.
    """
    rows, columns = (length // side for length in images.shape[-2:])
    number = rows * columns
    row, column = torch.arange(rows)[:, None], torch.arange(columns)
    down, across = (2 * row - (rows - 1)).abs() * columns, (2 * column - (columns - 1)).abs() * rows  # whole numbers
    distance = torch.maximum(down, across).flatten()
    is_boundary = ((down == (rows - 1) * columns) | (across == (columns - 1) * rows)).flatten()

    patches = _patches_of(images, side)
    ties, draws = (_random_orders(patches, generator).cpu() for _ in range(2))
    nearest = ties.gather(1, distance[ties].argsort(dim=1, stable=True))
    replaced = nearest[:, : round(rate * number)]
    gives = is_boundary.expand(len(patches), -1).scatter(1, replaced, False)
    givers = draws.gather(1, gives.gather(1, draws).int().argsort(dim=1, descending=True, stable=True))
    turn = torch.arange(replaced.shape[1]) % gives.sum(1, keepdim=True)
    source = torch.arange(number).repeat(len(patches), 1).scatter(1, replaced, givers.gather(1, turn))
    return _images_of(_taken(patches, source.to(images.device)), images, side)


def _random_orders(patches: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """(B, N) a random order of N for each of ``patches`` (B, N, P), on their device."""
    draws = torch.rand(patches.shape[:2], generator=generator, device=generator.device, dtype=torch.float64)
    return draws.argsort(1).to(patches.device)


def _taken(patches: torch.Tensor, source: torch.Tensor) -> torch.Tensor:
    """``patches`` (B, N, P) by the indices ``source`` (B, N)."""
    return patches.gather(1, source[:, :, None].expand_as(patches))


def _patches_of(images: torch.Tensor, side: int) -> torch.Tensor:
    return nullspace.patchify(images, side, images.shape[1] * side * side)


def _images_of(patches: torch.Tensor, like: torch.Tensor, side: int) -> torch.Tensor:
    return nullspace.unpatchify(patches, side, like.shape[1:])
