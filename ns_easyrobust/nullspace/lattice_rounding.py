"""Nullspace noise as 8-bit files keep it: whole levels whose patch embedding is near that of the original image.

Noise v of the nullspace gives pixels z = x + v with W z = W x. An 8-bit file keeps levels q of 0..255, and in general
no q / 255 near z solves W q / 255 = W x: the points W q form no coarse lattice but are dense in W's range, so what is
sought is a near one. Rounding each pixel by itself loses the nullspace; here each pixel's rounding error is made up
for by the pixels that are rounded after it.
"""

from __future__ import annotations

import torch
from torch import nn

from ..errors import OptionError
from .exact import find_projection, linear_map
from .exact_noise import check_pixels, patchify, unpatchify
from .patch_lattice import PatchLattice

LEVELS = 255


class LatticeRounding:
    """Rounds pixels to 8 bits so that their patch embeddings stay near those of the original images.

    Each patch is rounded in its :class:`~.patch_lattice.PatchLattice`. What that needs is decomposed once, here: for
    patches of few pixels at once, for those of 32 x 32 and more in many seconds, which a bar counts.

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
        self.patch_size = find_projection(model).kernel_size[0]
        matrix, _ = linear_map(model, "pixel", None)
        self.lattice = PatchLattice(matrix, LEVELS, reach)

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
        original, given = checked_patches(images, pixels, self.patch_size, self.lattice.matrix.shape[1])
        levels = self.lattice.round(original.flatten(0, 1), given.flatten(0, 1))
        return unpatchify(levels / LEVELS, self.patch_size, pixels.shape[1:]).to(pixels)


def rounded_in_nullspace(
    model: nn.Module, images: torch.Tensor, pixels: torch.Tensor, *, reach: int = 8
) -> torch.Tensor:
    """``pixels`` as multiples of 1/255 with nearly the patch embeddings of ``images``: :class:`LatticeRounding`, once.

    For many batches of one model make a :class:`LatticeRounding` once, as its decompositions take time.

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
