"""Exact nullspace of the patch embedding (arXiv:2403.10476, section 3.1 and Eq. 2).

A non-overlapping patch embedding applies one affine map u = W x + b to every patch, where x has C*p*p
elements and u has D. Noise in the nullspace of W never reaches the rest of the transformer. Throughout
this file patches are flattened in the order of the convolution's weight, (C, p, p). The decomposition
runs in float64 on the CPU, so that the basis, and noise drawn with it, does not depend on the model's
device.

All this concerns the patch embedding alone: a model that also reads pixels elsewhere (EasyRobust's
DrViT, through its discrete tokens) still sees the noise there.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from ..errors import ModelError, OptionError
from ..models import bare_vit, find_normalize, find_patch_embed
from ..utils import nn, torch

SPACES = ("normalised", "pixel")
_MOST_STD = 1 + 1e-3  # of pixels in [0, 1]; a moving average may round it up
_NEEDS = "needs one unpadded, ungrouped convolution of the pixels whose square kernel equals its stride"


def find_projection(model: nn.Module) -> nn.Conv2d:
    """The convolution that maps pixels to patch embeddings: weight (D, C, p, p), stride p.

    Raises:
        ModelError: the model has no patch embedding, or one that is not a linear map of each patch:
            overlapping patches, a stem of several convolutions (XCiT, FAN, VOLO), a CNN backbone (hybrids).
    """
    embed = find_patch_embed(model)
    name = type(bare_vit(model)).__name__
    # A norm (Swin) acts on the output of the projection; any other layer with weights may act on its input.
    other_layers = [
        f"{child} ({type(module).__name__})"
        for child, module in embed.named_children()
        if child not in ("proj", "norm") and any(True for _ in module.parameters())
    ]
    projection = getattr(embed, "proj", None)
    if other_layers:
        raise _no_linear_map(name, f"{', '.join(other_layers)} beside the projection")
    # A subclass with its own forward may pad the images or standardise the weight.
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
    return ModelError(f"{name} has no exact patch nullspace: it {_NEEDS}, found {found}. Use a plain ViT or Swin.")


@dataclass(frozen=True, eq=False)
class PatchSpectrum:
    """Singular values of the patch embedding, and the cut below which they count as zero.

    Attributes:
        embed_dim: D, output size of the projection.
        input_dim: C*p*p, elements of a patch.
        patch_size: p, side of a patch in pixels.
        rank: number of singular values above ``rtol`` times the largest.
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
        """Largest singular value not above the cut, relative to the largest; None if there is none.

        If None, W has full rank, and its nullity is max(C*p*p - D, 0).
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
        model_or_weight: a model, or a projection's weight (D, C, p, p) from a checkpoint. A bare
            weight does not tell its stride, which is assumed to be p.
        space, rtol: as in :func:`patch_nullspace`.
        std: standard deviations of the normalisation for the pixel space, one per channel, for pixels
            in [0, 1]. By default those of the model; a bare weight or bare transformer has none.

    Raises:
        ModelError: the patch embedding is not linear or not finite, or the pixel space lacks ``std``.
        OptionError: ``space``, ``rtol`` or ``std`` is out of range.
    """
    matrix, rtol = linear_map(model_or_weight, space, rtol, std)
    values = torch.linalg.svdvals(matrix)
    return PatchSpectrum(
        embed_dim=matrix.shape[0],
        input_dim=matrix.shape[1],
        patch_size=_weight_of(model_or_weight).shape[-1],
        rank=_rank(values, rtol),
        rtol=rtol,
        singular_values=values,
    )


def patch_nullspace(model: nn.Module, *, space: str = "normalised", rtol: float | None = None) -> torch.Tensor:
    """Orthonormal basis of the perturbations of a patch that the patch embedding maps to zero.

    Args:
        model: bare transformer or Sequential with normalisation, wrapped or not.
        space: ``"normalised"`` for perturbations of the transformer's input, the nullspace of W;
            ``"pixel"`` for perturbations of pixels in [0, 1], which the normalisation divides by std:
            the nullspace of W diag(1/std).
        rtol: singular values up to ``rtol`` times the largest count as zero. Default:
            max(D, C*p*p) times the machine epsilon of the weight's own dtype, as in
            ``scipy.linalg.null_space``, because a weight stored in float32 is no more precise. Half
            precision counts as float32: with its own epsilon hardly any rank would be left.

    Returns:
        (nullity, C*p*p), float64, on the CPU; rows are orthonormal in ``space`` and flattened as
        (C, p, p). (0, C*p*p) where the nullspace is trivial.

    Raises:
        ModelError: the patch embedding is not linear or not finite, or ``space`` is ``"pixel"`` and the
            model has no normalisation.
        OptionError: ``space`` or ``rtol`` is out of range.

    Example:
        >>> basis = patch_nullspace(model, space="pixel")  # patches of 3 x 8 x 8 pixels, width 64
        >>> basis.shape
        torch.Size([128, 192])
        >>> torch.allclose(basis @ basis.T, torch.eye(128, dtype=torch.float64))
        True
    """
    return row_and_null_space(model, space, rtol)[1]


def row_and_null_space(model: nn.Module, space: str, rtol: float | None) -> tuple[torch.Tensor, torch.Tensor]:
    """Orthonormal bases of the projection's row space, (rank, C*p*p), and of its nullspace, (nullity, C*p*p)."""
    matrix, rtol = linear_map(model, space, rtol)
    _, values, right_vectors = torch.linalg.svd(matrix, full_matrices=True)
    rank = _rank(values, rtol)
    return right_vectors[:rank].clone(), right_vectors[rank:].clone()


def patch_pseudo_inverse(model: nn.Module, *, space: str = "normalised", rtol: float | None = None) -> torch.Tensor:
    """Moore-Penrose inverse of the patch embedding's linear map, W or W diag(1/std).

    It maps a change of a patch's embedding to the change of the patch, of the least norm in ``space``, that causes it;
    or comes nearest to it, where there is none as the rank is below D.

    Args:
        model, space, rtol: as in :func:`patch_nullspace`.

    Returns:
        (C*p*p, D), float64, on the CPU; rows in the order of a patch flattened as (C, p, p).

    Raises:
        ModelError, OptionError: as :func:`patch_nullspace`.
    """
    matrix, rtol = linear_map(model, space, rtol)
    return torch.linalg.pinv(matrix, rtol=rtol)


def linear_map(
    model_or_weight: nn.Module | torch.Tensor, space: str, rtol: float | None, std: Sequence[float] | None = None
) -> tuple[torch.Tensor, float]:
    """The matrix of one patch, W or W diag(1/std), (D, C*p*p) in float64 on the CPU, and the relative cut.

    Arguments and errors are those of :func:`patch_spectrum`.
    """
    weight = _weight_of(model_or_weight)
    return _matrix(weight, space, _std_of(model_or_weight, space, std)), _tolerance(weight, rtol)


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
    """The linear map of one patch, W or W diag(1/std): (D, C*p*p), float64, on the CPU."""
    matrix = weight.detach().to("cpu", torch.float64)
    if not torch.isfinite(matrix).all():
        raise ModelError("patch projection: expected finite weights, found NaN or infinity. Check the checkpoint.")
    if std is not None:
        if len(std) != weight.shape[1] or not bool((std > 0).all() and (std <= _MOST_STD).all()):
            raise OptionError(
                f"std: expected {weight.shape[1]} positive numbers up to 1, one a channel, found {std.tolist()}. "
                "Give the normalisation that the model was trained with; if it is for pixels in 0..255, divide by 255."
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
