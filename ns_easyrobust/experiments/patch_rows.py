"""Patch embeddings of architectures and files, and the rows of Table 1 of arXiv:2403.10476 that they make."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .. import models, nullspace
from ..errors import CheckpointError, ModelError, OptionError, printable
from ..utils import as_csv, fork_rng, torch

if TYPE_CHECKING:
    from torch import nn

    from ..models import Checkpoint
    from ..nullspace import PatchSpectrum

# Table 1 of arXiv:2403.10476, "Empirically computed nullspace dimensions for the pre-trained ViT models".
PUBLISHED_DIMENSIONS = {
    "vit_tiny_patch16_224": 576,
    "vit_small_patch32_224": 2688,
    "vit_small_patch16_224": 384,
    "vit_base_patch32_224": 2304,
    "vit_base_patch16_224": 2,
    "vit_base_patch8_224": 0,
    "vit_large_patch32_224": 2048,
    "vit_large_patch16_224": 0,
}
_SEED = 0  # of random weights
_HEADER = (
    "model", "weights", "patch", "input dim", "embedding dim", "nullspace dim", "paper", "smallest kept",
    "largest dropped",
)  # fmt: skip


@dataclass(frozen=True)
class Row:
    """One row of the table; the fields are in the order of the columns.

    Attributes:
        weights: ``random``, ``pretrained``, or the entry of the checkpoint file that the weights came from.
        published: the nullspace dimension in Table 1; None if the model is not in it.
        smallest_kept, largest_dropped: singular values relative to the largest; None if none was kept or dropped.
    """

    model: str
    weights: str
    patch_size: int
    input_dim: int
    embed_dim: int
    nullity: int
    published: int | None
    smallest_kept: float | None
    largest_dropped: float | None


def is_checkpoint(name: str) -> bool:
    """Whether ``name`` is an address, a file, or looks like a path and not like a factory in one."""
    looks_like_path = "/" in name or re.search(r"\.(pth|pt|tar|bin|ckpt|npz|safetensors)$", name) is not None
    return (
        models.is_url(name)
        or (looks_like_path and not models.is_factory(name))
        or models.is_hub_name(name)
        or Path(name).is_file()
    )


@dataclass(frozen=True, eq=False)
class Patch:
    """The patch embedding of a model, and where it came from.

    Attributes:
        name, weights, published: as a :class:`Row` has them.
        weight: (D, C, p, p).
        std: of the normalisation; None where it is not asked for.
        model: as it was built; None of a checkpoint file, whose architecture need not be known.
        checkpoint: as it was read; None of an architecture.
    """

    name: str
    weights: str
    weight: torch.Tensor
    std: Sequence[float] | None = None
    published: int | None = None
    model: nn.Module | None = None
    checkpoint: Checkpoint | None = None

    def spectrum(self, space: str, rtol: float | None) -> PatchSpectrum:
        """Its singular values (:func:`~ns_easyrobust.nullspace.patch_spectrum`)."""
        return nullspace.patch_spectrum(self.weight, space=space, rtol=rtol, std=self.std)

    def row(self, spectrum: PatchSpectrum) -> Row:
        """Its row of the table."""
        return Row(
            model=self.name,
            weights=self.weights,
            patch_size=spectrum.patch_size,
            input_dim=spectrum.input_dim,
            embed_dim=spectrum.embed_dim,
            nullity=spectrum.nullity,
            published=self.published,
            smallest_kept=spectrum.smallest_kept,
            largest_dropped=spectrum.largest_dropped,
        )


def architecture_patch(
    name: str, *, pretrained: bool = False, space: str = "normalised", model_kwargs: Mapping[str, Any] | None = None
) -> Patch:
    """The patch embedding of an architecture; see :func:`architecture_row`."""
    with fork_rng(_SEED):
        try:
            vit: nn.Module = (
                models.load_model(name, pretrained=True, model_kwargs=model_kwargs)[1]
                if pretrained
                else models.build(name, **(model_kwargs or {}))
            )
        except ModelError as error:
            raise ModelError(f"{error.line} Or give the path of a checkpoint file.") from error
    weight = nullspace.find_projection(vit).weight  # raise before asking for a normalisation, which may not exist
    std = models.resolve_normalization(vit)[1] if space == "pixel" else None
    published = PUBLISHED_DIMENSIONS.get(name.split(".")[0])  # timm 1.x appends the weights' name after a dot
    return Patch(name, "pretrained" if pretrained else "random", weight, std, published, model=vit)


def architecture_row(
    name: str,
    *,
    pretrained: bool = False,
    space: str = "normalised",
    rtol: float | None = None,
    model_kwargs: Mapping[str, Any] | None = None,
) -> Row:
    """The row of an architecture, with timm's trained weights or with random ones (always the same).

    For pixel space, the normalisation is the one that timm or EasyRobust names for the architecture.

    Raises:
        ModelError: unknown name, or no linear patch embedding.
        CheckpointError: no pretrained weights, or no way to get them.
        OptionError: ``space`` or ``rtol`` out of range.
    """
    patch = architecture_patch(name, pretrained=pretrained, space=space, model_kwargs=model_kwargs)
    return patch.row(patch.spectrum(space, rtol))


def checkpoint_patch(path: str | Path, *, ema: bool = False, space: str = "normalised") -> Patch:
    """The patch embedding of a checkpoint file; see :func:`checkpoint_row`."""
    checkpoint = models.read_checkpoint(path)
    if checkpoint.form == "npz":
        if ema:
            raise CheckpointError(f"{path}: expected EMA weights, found a JAX .npz, which has only raw ones.")
        entry, std = "npz", None
        weight = _jax_projection(checkpoint.content, str(path))
    else:
        weights = checkpoint.weights(ema)
        entry, std = weights.name, weights.std
        weight = _projection(weights.state, str(path))
    if space == "pixel" and std is None:
        raise OptionError(
            f"{path}: expected a normalisation in the checkpoint for pixel space, found none. "
            "Use the space normalised, or export it with mean and std first."
        )
    return Patch(Path(checkpoint.source).name, entry, weight, std, checkpoint=checkpoint)


def checkpoint_row(path: str | Path, *, ema: bool = False, space: str = "normalised", rtol: float | None = None) -> Row:
    """The row of a checkpoint file, whose architecture need not be known.

    Raises:
        CheckpointError: unreadable file, no EMA weights, or not exactly one patch embedding in it.
        OptionError: ``space`` or ``rtol`` out of range, or no normalisation in the file for pixel space.
    """
    patch = checkpoint_patch(path, ema=ema, space=space)
    return patch.row(patch.spectrum(space, rtol))


def _projection(state: dict[str, torch.Tensor], source: str) -> torch.Tensor:
    """The weight (D, C, p, p) of the only patch embedding, which may hold nothing besides its projection but a norm."""
    entries = [name for name in state if re.search(r"(^|\.)patch_embed\.", name)]
    projections = [name for name in entries if name.endswith("patch_embed.proj.weight") and state[name].ndim == 4]
    others = [name for name in entries if not re.search(r"patch_embed\.(proj|norm)\.(weight|bias)$", name)]
    if len(projections) != 1 or others:
        shown = ", ".join((others or projections or entries or list(state))[:4])
        raise CheckpointError(
            f"{source}: expected one patch embedding with a single projection (patch_embed.proj.weight), "
            f"found {shown}, ... Stems of several convolutions have no exact patch nullspace."
        )
    return state[projections[0]]


def _jax_projection(arrays: dict[str, Any], source: str) -> torch.Tensor:
    """The kernel (p, p, C, D) of a JAX ViT as the weight (D, C, p, p)."""
    kernels = [name for name in arrays if re.fullmatch(r"(.*/)?embedding/kernel", name)]
    hybrid = [name for name in arrays if "conv_root" in name]
    if len(kernels) != 1 or hybrid:
        raise CheckpointError(
            f"{source}: expected one embedding/kernel of pixels (a JAX ViT), found "
            f"{', '.join((hybrid or kernels or list(arrays))[:4])}. Hybrids have no exact patch nullspace."
        )
    return torch.as_tensor(arrays[kernels[0]]).permute(3, 2, 0, 1)


def dimensions_text(rows: Sequence[Row]) -> str:
    """The table in aligned columns: numbers right-aligned, a dash for a missing value."""
    lines = [list(_HEADER), *([_cell(value) for value in astuple(row)] for row in rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(_HEADER))]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if column < 2 else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(line, widths, strict=True))
        )
        for line in lines
    )


def _cell(value: object) -> str:
    if value is None:
        return "-"
    return f"{value:.2e}" if isinstance(value, float) else printable(str(value))


def dimensions_csv(rows: Sequence[Row]) -> str:
    """The table as CSV (:func:`~ns_easyrobust.utils.as_csv`): an empty cell for a missing value."""
    return as_csv([_HEADER, *map(astuple, rows)])
