"""Loading weights into a transformer strictly: each name, each shape and each kind of number must match."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn

from ..errors import CheckpointError
from .weights import Weights, check_finite, unfit_numbers


class Misfit(NamedTuple):
    """Names of tensors in which a state dict differs from a model's own; all empty if it fits."""

    missing: list[str]
    unexpected: list[str]
    reshaped: list[str]
    recast: list[str]  # of numbers that cannot be cast to the model's without loss

    @property
    def names_match(self) -> bool:
        return not self.missing and not self.unexpected


def misfit(vit: nn.Module, state: Mapping[str, torch.Tensor]) -> Misfit:
    """Compare a state dict, by the bare transformer's names, with ``vit``'s own."""
    own = vit.state_dict()
    shared = [name for name in own if name in state]
    return Misfit(
        missing=[name for name in own if name not in state],
        unexpected=[name for name in state if name not in own],
        reshaped=[name for name in shared if own[name].shape != state[name].shape],
        recast=[name for name in shared if not _can_be_cast(state[name], own[name])],
    )


def _can_be_cast(given: torch.Tensor, own: torch.Tensor) -> bool:
    """Floats to floats of any precision; to whole numbers what is whole, as in a checkpoint in half precision."""
    if own.is_floating_point():
        return given.is_floating_point()
    return given.dtype == own.dtype or torch.equal(given.to(own.dtype).to(given.dtype), given)


def load_strictly(vit: nn.Module, weights: Weights, arch: str, source: str) -> None:
    """Load ``weights`` into the bare transformer ``vit``, strictly.

    No position embedding is resized, no head dropped, and no whole or complex number cast to a weight.

    Raises:
        CheckpointError: another class count, image size or architecture, or other numbers.
    """
    given, differences = weights.state, misfit(vit, weights.state)
    if any(differences):
        raise _misfit_error(vit, given, differences, arch, source)
    vit.load_state_dict(given)


def _misfit_error(
    vit: nn.Module, given: Mapping[str, torch.Tensor], differences: Misfit, arch: str, source: str
) -> CheckpointError:
    own, (missing, unexpected, reshaped, recast) = vit.state_dict(), differences
    if differences.names_match and reshaped:
        flat = [name for name in reshaped if own[name].ndim in (1, 2) and own[name].ndim == given[name].ndim]
        head_sizes = {(own[name].shape[0], given[name].shape[0]) for name in flat}
        same_width = flat == reshaped and all(own[name].shape[1:] == given[name].shape[1:] for name in reshaped)
        if same_width and len(head_sizes) == 1 and (sizes := head_sizes.pop())[0] == getattr(vit, "num_classes", None):
            return class_count_error(source, sizes[1], sizes[0])
        if all("pos_embed" in name for name in reshaped):
            return _image_size_error(source, arch, given[reshaped[0]].shape, own[reshaped[0]].shape)
    if prefix := _foreign_prefix(own, given):
        return CheckpointError(
            f"{source} does not fit {arch}: expected names such as {next(iter(own))}, found them behind {prefix!r}. "
            f"Save model.{prefix.rstrip('.')}.state_dict(), or the same entries without that prefix."
        )
    if recast and not reshaped and differences.names_match:
        return unfit_numbers(source, recast[0], str(given[recast[0]].dtype).removeprefix("torch."))
    shapes = [f"{name[:80]} {tuple(given[name].shape)} not {tuple(own[name].shape)}" for name in reshaped]
    mismatches = [
        f"{len(names)} {kind} ({', '.join(name[:160] for name in names[:3])}{', ...' if len(names) > 3 else ''})"
        for kind, names in (("missing", missing), ("unexpected", unexpected), ("of another shape", shapes))
        if names
    ]
    return CheckpointError(
        f"{source} does not fit {arch}: expected its {len(own)} tensors, found {', '.join(mismatches)}. "
        "Name the architecture it was trained with."
    )


def _foreign_prefix(own: Iterable[str], given: Mapping[str, Any]) -> str | None:
    """What stands before most of the model's names in ``given``, such as ``encoder.``; None if nothing does."""
    own = list(own)
    prefixes = {name[: -len(own[0])] for name in given if name.endswith(f".{own[0]}")}
    return next((p for p in sorted(prefixes) if 2 * sum(p + name in given for name in own) > len(own)), None)


def class_count_error(source: str, given: int, expected: int) -> CheckpointError:
    """The error for a checkpoint with a head for ``given`` classes where ``expected`` are wanted and no new head is."""
    return CheckpointError(
        f"{source}: checkpoint has {given} classes, the model {expected}: pass num_classes={given} to use it as it is. "
        f"For a new head for {expected} classes: new_head=True in Python, or ns-easyrobust train --num-classes "
        f"{expected}; benchmark never makes one."
    )


def _image_size_error(source: str, arch: str, given: Sequence[int], expected: Sequence[int]) -> CheckpointError:
    return CheckpointError(
        f"{source} is for another image size than {arch}: expected a position embedding of {tuple(expected)}, "
        f"found {tuple(given)}. Build the model for the size that the file is for (img_size=...); only a ViT's "
        "position embedding of one square grid is resized to another."
    )


def jax_class_count(arrays: Mapping[str, Any]) -> int | None:
    """Number of classes of an augreg ``.npz``; None if it does not hold exactly one head."""
    heads = [array for key, array in arrays.items() if re.fullmatch(r"(.*/)?head/bias", key) and array.ndim]
    return int(heads[0].shape[-1]) if len(heads) == 1 else None


def jax_position(arrays: Mapping[str, Any]) -> Any:
    """The position embedding (1, N, D) of an augreg ``.npz``; None if it does not hold exactly one."""
    found = [array for key, array in arrays.items() if re.fullmatch(r"(.*/)?(posembed_input/)?pos_embedding", key)]
    return found[0] if len(found) == 1 else None


def load_jax_strictly(vit: nn.Module, arrays: Mapping[str, Any], path: Path, arch: str, source: str) -> None:
    """Load an augreg ``.npz`` through timm's own ``load_pretrained``, strictly.

    timm silently resizes position and patch embeddings, skips a head of another size and reads
    only as many blocks as the model has; all such files are refused here.

    Raises:
        CheckpointError: not the JAX layout, NaN or infinity, other numbers than floats, or another class count, image
            size or architecture.
    """
    for key, array in arrays.items():
        if array.dtype not in (np.float16, np.float32, np.float64):
            raise unfit_numbers(source, key, str(array.dtype))
        if not np.isfinite(array).all():
            check_finite({key: torch.tensor(float("nan"))}, source)
    kernels = [key for key in arrays if re.fullmatch(r"(opt/target/|params/|params/img/)?embedding/kernel", key)]
    load, pos_embed = getattr(vit, "load_pretrained", None), getattr(vit, "pos_embed", None)
    if len(kernels) != 1 or load is None or pos_embed is None:
        found = "no embedding/kernel in it" if load is not None else f"{arch}, which has no loader for it"
        raise CheckpointError(
            f"{source}: expected a JAX vision transformer (augreg layout) and a ViT for it, found {found}. "
            "Give a PyTorch checkpoint, or a ViT's name."
        )
    prefix = kernels[0].removesuffix("embedding/kernel")
    arrays = {key.removeprefix(prefix): array for key, array in arrays.items() if key.startswith(prefix)}
    classes, own_classes = jax_class_count(arrays), getattr(vit, "num_classes", None)
    if classes is not None and own_classes is not None and classes != own_classes:
        raise class_count_error(source, classes, own_classes)
    position = arrays.get("Transformer/posembed_input/pos_embedding", arrays.get("pos_embedding"))
    if position is not None and position.shape[1:-1] != pos_embed.shape[1:-1]:
        raise _image_size_error(source, arch, position.shape, pos_embed.shape)
    given_size = sum(array.size for array in arrays.values())
    own_size = sum(parameter.numel() for parameter in vit.parameters())
    mismatch = f"expected {own_size} numbers, found {given_size}" if given_size != own_size else ""
    if not mismatch:
        try:
            load(str(path))
        except (LookupError, RuntimeError, TypeError, ValueError, AttributeError, AssertionError) as error:
            mismatch = f"expected its tensors, found {type(error).__name__}: {error}"
    if mismatch:
        raise CheckpointError(f"{source} does not fit {arch}: {mismatch}. Name the architecture it was trained with.")
