"""Exact nullspace of the patch embedding (arXiv:2403.10476, section 3.1 and Eq. 2).

A non-overlapping patch embedding is one linear map u = W x + b of every patch, x of C*p*p numbers
and u of D. What lies in the nullspace of W never reaches the rest of the transformer. Patches are
flattened as the convolution's weight is, (C, p, p), everywhere in this file. The decomposition runs
in float64 on the CPU, so that a basis, and noise drawn with it, is the same whatever device the
model is on.

The statement is about the patch embedding: a model that also reads pixels elsewhere (EasyRobust's
DrViT, through its discrete tokens) still sees the noise there.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import nn

from ..errors import ModelError, OptionError
from ..models.vit import find_normalize, find_patch_embed, unwrap

SPACES = ("normalised", "pixel")
_FITS = "needs one unpadded, ungrouped convolution of the pixels whose square kernel equals its stride"


def find_projection(model: nn.Module) -> nn.Conv2d:
    """The convolution that maps pixels to patch embeddings: weight (D, C, p, p), stride p.

    Raises:
        ModelError: the patch embedding is no linear map of separate patches: overlapping patches, a
            stem of several convolutions (XCiT, FAN, VOLO), a CNN backbone (hybrids), or there is none.
    """
    embed = find_patch_embed(model)
    inner = unwrap(model)
    name = type(inner[1] if find_normalize(inner) is not None else inner).__name__  # type: ignore[index]
    # A norm after the projection (Swin) acts on u alone; anything else with weights may come before it.
    others = [
        f"{child} ({type(module).__name__})"
        for child, module in embed.named_children()
        if child not in ("proj", "norm") and any(True for _ in module.parameters())
    ]
    projection = getattr(embed, "proj", None)
    if others:
        raise _no_linear_map(name, f"{', '.join(others)} beside the projection")
    # A subclass with a forward of its own may pad or standardise its weight.
    if not isinstance(projection, nn.Conv2d) or type(projection).forward is not nn.Conv2d.forward:
        found = "no proj" if projection is None else f"{type(projection).__name__} as proj"
        raise _no_linear_map(name, f"{found} in {type(embed).__name__}")
    height, width = projection.kernel_size
    if (
        height != width
        or projection.stride != projection.kernel_size
        or projection.padding not in ((0, 0), 0, "valid")
        or projection.dilation != (1, 1)
        or projection.groups != 1
    ):
        raise _no_linear_map(
            name,
            f"kernel {projection.kernel_size}, stride {projection.stride}, padding {projection.padding}, "
            f"dilation {projection.dilation}, groups {projection.groups}",
        )
    return projection


def _no_linear_map(name: str, found: str) -> ModelError:
    return ModelError(f"{name} has no exact patch nullspace: it {_FITS}, found {found}. Use a plain ViT or Swin.")


@dataclass(frozen=True, eq=False)
class PatchSpectrum:
    """Singular values of the patch embedding, and where the cut for its nullspace falls.

    Attributes:
        embed_dim: D, outputs of the projection.
        input_dim: C*p*p, numbers in a patch.
        patch_size: p, side of a patch in pixels.
        rank: singular values above ``rtol`` times the largest.
        rtol: the cut, relative to the largest singular value.
        singular_values: (min(D, C*p*p),) float64, descending.
    """

    embed_dim: int
    input_dim: int
    patch_size: int
    rank: int
    rtol: float
    singular_values: torch.Tensor = field(repr=False)

    @property
    def nullity(self) -> int:
        """Dimension of the nullspace."""
        return self.input_dim - self.rank

    @property
    def smallest_kept(self) -> float | None:
        """Smallest singular value above the cut, relative to the largest; None if there is none."""
        return self._relative(self.rank - 1) if self.rank else None

    @property
    def largest_dropped(self) -> float | None:
        """Largest singular value below the cut, likewise.

        None if there is none: the nullspace, if any, is then only that of a map to fewer dimensions.
        """
        return self._relative(self.rank) if self.rank < len(self.singular_values) else None

    def _relative(self, index: int) -> float:
        largest = float(self.singular_values[0])
        return float(self.singular_values[index]) / largest if largest > 0 else 0.0


def patch_spectrum(
    model_or_weight: nn.Module | torch.Tensor,
    *,
    space: str = "normalised",
    rtol: float | None = None,
    std: Sequence[float] | None = None,
) -> PatchSpectrum:
    """Singular values of the patch embedding and the dimension of its nullspace (Table 1).

    Args:
        model_or_weight: a model, or a projection's weight (D, C, p, p) out of a checkpoint. A bare
            weight does not tell its stride, which is taken to be p.
        space, rtol: as in :func:`patch_nullspace`.
        std: for the pixel space of a bare weight or a bare transformer, one number a channel in units
            of pixels in [0, 1]; default: that of the model's own normalisation.

    Raises:
        ModelError: no linear patch embedding, or no pixel space for want of ``std``.
        OptionError: ``space``, ``rtol`` or ``std`` out of range.
    """
    weight = _weight_of(model_or_weight)
    matrix = _matrix(weight, space, _std_of(model_or_weight, space, std))
    rtol = _tolerance(weight, rtol)
    values = torch.linalg.svdvals(matrix)
    return PatchSpectrum(
        embed_dim=matrix.shape[0],
        input_dim=matrix.shape[1],
        patch_size=weight.shape[-1],
        rank=_rank(values, rtol),
        rtol=rtol,
        singular_values=values,
    )


def patch_nullspace(model: nn.Module, *, space: str = "normalised", rtol: float | None = None) -> torch.Tensor:
    """Orthonormal basis of the perturbations of a patch that the patch embedding maps to zero.

    Args:
        model: bare transformer or Sequential with normalisation, wrapped or not.
        space: ``"normalised"`` for perturbations of what the transformer is given, the nullspace of W;
            ``"pixel"`` for perturbations of pixels in [0, 1], which the normalisation divides by std:
            the nullspace of W diag(1/std).
        rtol: singular values up to ``rtol`` times the largest count as zero. Default:
            max(D, C*p*p) times the machine epsilon of the weight's own dtype, as
            ``scipy.linalg.null_space`` has it; a weight stored in float32 is known no better. Half
            precision counts as float32: at its own epsilon nothing would be left.

    Returns:
        (nullity, C*p*p), float64, on the CPU; rows are orthonormal in that space and flattened as
        (C, p, p). (0, C*p*p) where the nullspace is trivial.

    Raises:
        ModelError: no linear patch embedding, or a bare transformer, which has no pixel space.
        OptionError: ``space`` or ``rtol`` out of range.
    """
    return decompose(model, space, rtol)[1]


def decompose(model: nn.Module, space: str, rtol: float | None) -> tuple[torch.Tensor, torch.Tensor]:
    """Orthonormal rows (rank, C*p*p) that the projection sees, and (nullity, C*p*p) that it does not."""
    weight = find_projection(model).weight
    matrix = _matrix(weight, space, _std_of(model, space, None))
    rtol = _tolerance(weight, rtol)
    _, values, rows = torch.linalg.svd(matrix, full_matrices=True)
    rank = _rank(values, rtol)
    return rows[:rank].clone(), rows[rank:].clone()


def _weight_of(model_or_weight: nn.Module | torch.Tensor) -> torch.Tensor:
    if isinstance(model_or_weight, nn.Module):
        return find_projection(model_or_weight).weight
    shape = tuple(model_or_weight.shape)
    if len(shape) != 4 or shape[2] != shape[3] or 0 in shape or not model_or_weight.is_floating_point():
        raise ModelError(
            "patch projection: expected a floating-point weight (D, C, p, p) with square patches, found "
            f"{model_or_weight.dtype} of shape {shape}. Give the weight of patch_embed.proj."
        )
    return model_or_weight


def _std_of(model_or_weight: nn.Module | torch.Tensor, space: str, std: Sequence[float] | None) -> torch.Tensor | None:
    """Standard deviations (C,) in float64 for the pixel space, None for the normalised one."""
    if space not in SPACES:
        raise OptionError(f"space: expected one of {', '.join(SPACES)}, found {space!r}. Choose one of them.")
    if space == "normalised":
        return None
    if std is not None:
        return torch.tensor([float(value) for value in std], dtype=torch.float64)
    normalize = find_normalize(model_or_weight) if isinstance(model_or_weight, nn.Module) else None
    if normalize is None:
        raise ModelError(
            f"{type(model_or_weight).__name__} has no pixel space: expected a normalisation in front, found "
            "none. Wrap it, Sequential(Normalize(mean, std), vit), or use space='normalised'."
        )
    return normalize.get_buffer("std").detach().to("cpu", torch.float64).flatten()


def _matrix(weight: torch.Tensor, space: str, std: torch.Tensor | None) -> torch.Tensor:
    """The map of one patch: W, or W diag(1/std), (D, C*p*p), float64, on the CPU."""
    matrix = weight.detach().to("cpu", torch.float64)
    if not torch.isfinite(matrix).all():
        raise ModelError("patch projection: expected finite weights, found NaN or infinity. Check the checkpoint.")
    if std is not None:
        if len(std) != weight.shape[1] or not bool((std > 0).all() and torch.isfinite(std).all()):
            raise OptionError(
                f"std: expected {weight.shape[1]} positive numbers, one a channel, found {std.tolist()}. "
                "Give the normalisation that the model was trained with."
            )
        matrix = matrix / std[:, None, None]
    return matrix.flatten(1)


def _tolerance(weight: torch.Tensor, rtol: float | None) -> float:
    if rtol is None:
        dtype = weight.dtype if weight.dtype == torch.float64 else torch.float32
        return max(weight.shape[0], math.prod(weight.shape[1:])) * torch.finfo(dtype).eps
    if not 0 <= rtol < 1:  # NaN fails too
        raise OptionError(f"rtol: expected a number in [0, 1), found {rtol}. Leave it out for the default.")
    return float(rtol)


def _rank(values: torch.Tensor, rtol: float) -> int:
    return int((values > rtol * values[0]).sum())


def to_patches(images: torch.Tensor, patch_size: int, input_dim: int) -> torch.Tensor:
    """(B, C, H, W) to (B, N, C*p*p), patches row by row as the convolution visits them."""
    p = patch_size
    if isinstance(p, bool) or not isinstance(p, int) or p < 1:
        raise OptionError(f"patch_size: expected a whole number >= 1, found {p!r}. Give the model's own.")
    if images.dim() != 4 or images.shape[2] % p or images.shape[3] % p:
        raise OptionError(
            f"images: expected (B, C, H, W) with sides that are multiples of the patch size {p}, found shape "
            f"{tuple(images.shape)}. Resize or crop them."
        )
    b, c, h, w = images.shape
    if c * p * p != input_dim:
        raise OptionError(
            f"basis: expected rows of C*p*p = {c}*{p}*{p} = {c * p * p} numbers for these images, found "
            f"{input_dim}. Take the basis, the patch size and the images of one model."
        )
    grid = images.reshape(b, c, h // p, p, w // p, p)
    return grid.permute(0, 2, 4, 1, 3, 5).reshape(b, -1, input_dim)


def to_images(patches: torch.Tensor, patch_size: int, image_shape: Sequence[int]) -> torch.Tensor:
    """Inverse of :func:`to_patches`: (B, N, C*p*p) to (B, C, H, W)."""
    (c, h, w), p = image_shape, patch_size
    grid = patches.reshape(-1, h // p, w // p, c, p, p)
    return grid.permute(0, 3, 1, 4, 2, 5).reshape(-1, c, h, w)


def sample_nullspace(
    basis: torch.Tensor,
    image_shape: Sequence[int],
    patch_size: int,
    *,
    generator: torch.Generator,
    n: int = 1,
) -> torch.Tensor:
    """Noise in the nullspace: v = sum_i lambda_i b_i with lambda ~ N(0, 1) in every patch (Eq. 2).

    Args:
        basis: (nullity, C*p*p) of :func:`patch_nullspace`; the noise lives in the basis' space.
        image_shape: (C, H, W), sides that are multiples of the patch size.
        patch_size: p, in pixels.
        generator: where the randomness comes from, and the device of the result.
        n: how many.

    Returns:
        (n, C, H, W), float64; zeros where the nullspace is trivial.

    Raises:
        OptionError: the image's shape does not fit the basis and the patch size.
    """
    if isinstance(n, bool) or not isinstance(n, int) or n < 1:
        raise OptionError(f"n: expected a whole number >= 1, found {n!r}.")
    empty = torch.empty(1, *image_shape, device="meta")  # its shape is checked as an image's is
    patches = to_patches(empty, patch_size, basis.shape[1]).shape[1]
    basis = basis.to(generator.device, torch.float64)
    coefficients = torch.randn(
        n, patches, len(basis), generator=generator, device=generator.device, dtype=torch.float64
    )
    return to_images(coefficients @ basis, patch_size, image_shape)


def project_to_nullspace(basis: torch.Tensor, perturbation: torch.Tensor, patch_size: int) -> torch.Tensor:
    """The nearest perturbation in the nullspace: the orthogonal projection of every patch.

    Args:
        basis: (nullity, C*p*p) of :func:`patch_nullspace`, for the space that ``perturbation`` is in.
        perturbation: (B, C, H, W), floating point; sides that are multiples of the patch size.
        patch_size: p, in pixels.

    Returns:
        (B, C, H, W), computed in float64, in ``perturbation``'s dtype and on its device.

    Raises:
        OptionError: shapes that do not fit each other, or integers, which would be rounded.
    """
    if not perturbation.is_floating_point():
        raise OptionError(f"perturbation: expected floating point, found {perturbation.dtype}. Convert it.")
    patches = to_patches(perturbation, patch_size, basis.shape[1]).double()
    rows = basis.to(patches)
    projected = to_images((patches @ rows.T) @ rows, patch_size, perturbation.shape[1:])
    return projected.to(perturbation.dtype)
