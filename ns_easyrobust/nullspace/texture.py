"""A texture that the model does not see and an eye does: what letters are made of where the nullspace has no areas.

The nullspace of a trained patch embedding is nearly all fine detail. Of a plain logo blended into an image, whose
areas are smooth, Eq. 12 of arXiv:2403.10476 keeps hardly more than outlines. A logo filled with a pattern that lies in
the nullspace keeps the pattern: all of it in patches that the logo covers whole.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import nn

from ..errors import ModelError, OptionError
from .exact_noise import unpatchify
from .row_space import PatchRowSpace

BLUR = 0.4  # pixels, of an eye: with less it is blind to colour alone, with more to most of the nullspace of a ViT-S/14
_LUMINANCE = (0.2126, 0.7152, 0.0722)  # of red, green and blue (ITU-R BT.709)
_LEAST_SIDE = 9  # pixels: a blur's kernel of 17 reaches 8 beyond the edge, where the image is mirrored


def visible_texture(model: nn.Module, height: int, width: int, *, blur: float = BLUR) -> torch.Tensor:
    """The pattern of the nullspace that an eye sees best, the same in each patch.

    Of all directions v of a patch's pixel-space nullspace, that whose luminance keeps most energy after a Gaussian blur
    of the pattern repeated without end. With B the blur of the luminance, p^2 x C p^2, and P the projection onto the
    nullspace, it is P B' y with y the first eigenvector of B P B', which has p^2 dimensions and is never written down:
    Lanczos' iterations find it.

    Args:
        model: with normalisation in front, wrapped or not.
        height, width: of the images, multiples of the patch size.
        blur: standard deviation, in pixels, > 0.

    Returns:
        (C, height, width) float64 with mean square 1, on the CPU.

    Raises:
        ModelError: the patch embedding is not linear or has no nullspace, or the model no normalisation in front.
        OptionError: ``blur`` is not positive, or the sides are not multiples of the patch size.
    """
    if not blur > 0:
        raise OptionError(f"blur: expected a number of pixels > 0, found {blur}.")
    space = PatchRowSpace(model)
    side, channels = space.patch_size, space.channels
    if len(space.rows) == space.input_dim:
        raise ModelError(
            "watermark: expected a patch embedding with a nullspace, found none. Choose a model with larger patches or "
            "a smaller width."
        )
    if height % side or width % side or min(height, width) < side:
        raise OptionError(f"images: expected sides that are multiples of {side}, found {height} x {width}.")
    best = _most_visible(space, blur)
    best = best * best.sum().sign() if best.sum().abs() > 1e-9 else best * best[best.abs().argmax()].sign()
    count = (height // side) * (width // side)
    tiled = unpatchify(best.expand(1, count, -1), side, (channels, height, width))[0]
    return tiled / tiled.square().mean().sqrt()


def _most_visible(space: PatchRowSpace, blur: float) -> torch.Tensor:
    """The nullspace's unit vector (C p^2,) of the most visible energy."""
    from scipy.sparse.linalg import LinearOperator, eigsh

    side, channels = space.patch_size, space.channels
    weights = torch.tensor(_LUMINANCE if channels == 3 else [1 / channels] * channels, dtype=torch.float64)
    frequencies = torch.fft.fftfreq(side, dtype=torch.float64)
    kept = torch.exp(-2 * (torch.pi * blur) ** 2 * (frequencies[:, None] ** 2 + frequencies**2))

    def blurred(luminance: torch.Tensor) -> torch.Tensor:
        return torch.fft.ifft2(torch.fft.fft2(luminance) * kept).real

    def unseen(luminance: torch.Tensor) -> torch.Tensor:
        """P B' y of y (p, p)."""
        patch = (weights[:, None, None] * blurred(luminance)).flatten()
        return patch - space.spread(space.seen(patch))

    def visible(vector: Any) -> Any:
        """B P B' y."""
        patch = unseen(torch.from_numpy(vector).view(side, side)).view(channels, side, side)
        return blurred((weights[:, None, None] * patch).sum(0)).flatten().numpy()

    size = side**2
    operator = LinearOperator((size, size), matvec=visible, dtype="float64")
    start = torch.rand(size, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    if size > 1:
        vectors = eigsh(operator, k=1, which="LA", v0=start.numpy(), ncv=min(size, 40), maxiter=100 * size)[1]
        start = torch.from_numpy(vectors[:, 0].copy())
    best = unseen(start.view(side, side))
    return best / best.norm()


def textured(images: torch.Tensor, mark: torch.Tensor, texture: torch.Tensor, strength: float) -> torch.Tensor:
    """Targets of Eq. 12: ``images`` with the mark drawn in the texture, clipped to [0, 1].

    Args:
        images: (B, C, H, W) in [0, 1].
        mark: (H, W), coverage in [0, 1].
        texture: (C, H, W) of mean square 1.
        strength: root mean square of what is added where the mark covers, in pixels from 0 to 1; > 0.

    Raises:
        OptionError: ``strength`` is not positive.
    """
    if not strength > 0:
        raise OptionError(f"strength: expected a number > 0, found {strength}. Correct it.")
    return (images + strength * (mark * texture).to(images)).clamp(0, 1)


class MarkContrast(NamedTuple):
    """How much the mark stands out of each image; (B,) float64 each.

    Attributes:
        inside: root mean square of the change under the mark, in pixels from 0 to 1.
        outside: of the change elsewhere.
        relative: ``inside`` by the image's own contrast there: what differs from a blur of 2 pixels.
        afar: ``inside`` of the change blurred by 1 pixel, as seen from a distance.
    """

    inside: torch.Tensor
    outside: torch.Tensor
    relative: torch.Tensor
    afar: torch.Tensor


def mark_contrast(images: torch.Tensor, change: torch.Tensor, mark: torch.Tensor) -> MarkContrast:
    """:class:`MarkContrast` of what a mark changes.

    Args:
        images: (B, C, H, W) in [0, 1], without the mark.
        change: of them, of the same shape, in pixels from 0 to 1.
        mark: (H, W), coverage in [0, 1].

    Raises:
        OptionError: the images are smaller than the blur's kernel allows, or of other shapes.
    """
    from torchvision.transforms.functional import gaussian_blur

    if images.shape != change.shape or images.shape[2:] != mark.shape or min(mark.shape) < _LEAST_SIDE:
        raise OptionError(
            f"images: expected (B, C, H, W) with sides of {_LEAST_SIDE} pixels at least, and a change and a mark of "
            f"their size, found {tuple(images.shape)}, {tuple(change.shape)} and {tuple(mark.shape)}. Correct the call."
        )
    images, change, cover = images.double(), change.double(), mark.to(images.device, torch.float64)

    def rms(values: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        return ((values.square().mean(1) * weights).sum((1, 2)) / weights.sum().clamp_min(1e-12)).sqrt()

    inside = rms(change, cover)
    own = rms(images - gaussian_blur(images, [17, 17], [2.0, 2.0]), cover)
    return MarkContrast(
        inside=inside,
        outside=rms(change, 1 - cover),
        relative=inside / own.clamp_min(1 / 255),  # a plain area has none
        afar=rms(gaussian_blur(change, [9, 9], [1.0, 1.0]), cover),
    )
