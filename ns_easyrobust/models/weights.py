"""Weights by the bare transformer's names: extracting them from a checkpoint and loading them strictly."""

from __future__ import annotations

import argparse
import logging
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any

from ..errors import CheckpointError, OptionError
from ..utils import nn, np, torch

LAYOUTS = ("easyrobust", "timm")  # layouts that can be written
RAW = ("state_dict", "model", "model_state_dict")  # entries that may hold the weights, in timm's order of precedence
EMA = ("state_dict_ema", "model_ema")
NORMALIZATION = ("mean", "std", "mean_ema", "std_ema")
_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Weights:
    """One state dict of a checkpoint.

    Attributes:
        state: tensors by the bare transformer's names (``cls_token``, ``blocks.0...``).
        mean, std: the input normalisation in the checkpoint, one number per channel
            in units of pixels in [0, 1]; None if it contains none.
        name: the entry they come from, such as ``state_dict_ema``; ``raw`` for a bare state dict.
    """

    state: dict[str, torch.Tensor]
    mean: tuple[float, ...] | None
    std: tuple[float, ...] | None
    name: str


def weights_of_state_dict(
    entry: Mapping[str, Any], name: str, source: str, mean: Any = None, std: Any = None
) -> Weights:
    """Rename one state dict to the bare transformer's names, and separate its normalisation.

    The prefixes of DistributedDataParallel (``module.``) and ``torch.compile``
    (``_orig_mod.``) are removed, however often they are repeated, outside and inside
    EasyRobust's ``0.mean``, ``0.std``, ``1.*``.

    Args:
        entry: the state dict.
        name: which entry of the checkpoint it is.
        source: what errors call the checkpoint.
        mean, std: those beside the state dict in the checkpoint; ``0.mean`` and ``0.std`` take precedence.

    Raises:
        CheckpointError: no tensors, an entry that is not a tensor, or two that would get the same name.
    """
    for key, value in entry.items():
        if not isinstance(key, str) or not isinstance(value, torch.Tensor):
            raise CheckpointError(
                f"{source}: expected only tensors in {name}, found {key!r} of type {type(value).__name__}. "
                "Save model.state_dict()."
            )
    state, expected_count = _renamed(entry, _without_wrapper_prefixes(entry)), len(entry)
    if {"0.mean", "0.std"} <= state.keys():
        mean, std, expected_count = state.pop("0.mean"), state.pop("0.std"), expected_count - 2
        state = _renamed(state, [key.removeprefix("1.") for key in state])
        state = _renamed(state, _without_wrapper_prefixes(state))
    if len(state) < expected_count:
        raise CheckpointError(
            f"{source}: expected each name once in {name}, found some both with and without the prefix "
            "module., _orig_mod. or 1. Save model.state_dict() of one model."
        )
    if not state:
        raise CheckpointError(f"{source}: expected weights in {name}, found none. Save model.state_dict().")
    return Weights(state, _as_floats(mean), _as_floats(std), name)


def _without_wrapper_prefixes(names: Iterable[str]) -> list[str]:
    bare = [re.sub(r"(^|\.)(_orig_mod\.)+", r"\1", name) for name in names]
    while bare and all(name.startswith("module.") for name in bare):  # otherwise "module" is a submodule's own name
        bare = [name.removeprefix("module.") for name in bare]
    return bare


def _renamed(state: Mapping[str, torch.Tensor], names: Iterable[str]) -> dict[str, torch.Tensor]:
    return {name: value.detach() for name, value in zip(names, state.values(), strict=True)}


def _as_floats(values: Any) -> tuple[float, ...] | None:
    if isinstance(values, torch.Tensor):
        values = values.flatten().tolist()
    if isinstance(values, list | tuple) and values and all(isinstance(v, int | float) for v in values):
        return tuple(float(v) for v in values)
    return None


def check_finite(state: Mapping[str, torch.Tensor], source: str) -> None:
    """Refuse weights with NaN or infinity, which a diverged run leaves, and sparse, quantized or meta tensors.

    Raises:
        CheckpointError: with the name of the first such tensor.
    """
    for name, value in state.items():
        if value.layout is not torch.strided or value.is_meta or value.is_quantized:
            raise CheckpointError(
                f"{source}: expected dense weights, found {name} sparse, quantized or without values. "
                "Save the model's plain state dict."
            )
        if value.is_floating_point() and not bool(value.float().isfinite().all()):
            raise CheckpointError(
                f"{source}: expected finite weights, found NaN or infinity in {name}. "
                "The run that wrote it diverged; take an earlier checkpoint."
            )


def class_count(state: Mapping[str, torch.Tensor]) -> int | None:
    """Number of classes of the head, if it has one of timm's usual names; else None."""
    for name in ("head.weight", "head.fc.weight", "fc.weight", "classifier.weight"):
        if name in state:
            return int(state[name].shape[0])
    return None


def channel_count(state: Mapping[str, torch.Tensor]) -> int:
    """Number of image channels, from the first convolution, which is the patch embedding's; 3 if there is none."""
    kernels = (value for name, value in state.items() if name.endswith("weight") and value.ndim == 4)
    return next((int(kernel.shape[1]) for kernel in kernels), 3)


def load_strictly(vit: nn.Module, weights: Weights, arch: str, source: str) -> None:
    """Load ``weights`` into the bare transformer ``vit``, strictly: each name and each shape must match.

    No position embedding is resized and no head dropped.

    Raises:
        CheckpointError: another class count, image size or architecture.
    """
    own, given = vit.state_dict(), weights.state
    missing = [name for name in own if name not in given]
    unexpected = [name for name in given if name not in own]
    reshaped = [name for name in own if name in given and own[name].shape != given[name].shape]
    if not (missing or unexpected or reshaped):
        vit.load_state_dict(given)
        return
    if reshaped and not missing and not unexpected:
        head_sizes = {(own[name].shape[0], given[name].shape[0]) for name in reshaped if own[name].ndim in (1, 2)}
        same_width = all(own[name].shape[1:] == given[name].shape[1:] for name in reshaped)
        if same_width and len(head_sizes) == 1 and (sizes := head_sizes.pop())[0] == getattr(vit, "num_classes", None):
            raise _class_count_error(source, sizes[1], sizes[0])
        if all("pos_embed" in name for name in reshaped):
            raise _image_size_error(source, arch, given[reshaped[0]].shape, own[reshaped[0]].shape)
    shapes = [f"{name} {tuple(given[name].shape)} not {tuple(own[name].shape)}" for name in reshaped]
    mismatches = [
        f"{len(names)} {kind} ({', '.join(names[:3])}{', ...' if len(names) > 3 else ''})"
        for kind, names in (("missing", missing), ("unexpected", unexpected), ("of another shape", shapes))
        if names
    ]
    raise CheckpointError(
        f"{source} does not fit {arch}: expected its {len(own)} tensors, found {', '.join(mismatches)}. "
        "Name the architecture it was trained with."
    )


def _class_count_error(source: str, given: int, expected: int) -> CheckpointError:
    return CheckpointError(f"{source}: checkpoint has {given} classes, the model {expected}: pass num_classes={given}.")


def _image_size_error(source: str, arch: str, given: Sequence[int], expected: Sequence[int]) -> CheckpointError:
    return CheckpointError(
        f"{source} is for another image size than {arch}: expected a position embedding of {tuple(expected)}, "
        f"found {tuple(given)}. Build the model for that size (img_size=...); nothing is resized silently."
    )


def jax_class_count(arrays: Mapping[str, Any]) -> int | None:
    """Number of classes of an augreg ``.npz``; None if it does not hold exactly one head."""
    heads = [array for key, array in arrays.items() if re.fullmatch(r"(.*/)?head/bias", key)]
    return int(heads[0].shape[-1]) if len(heads) == 1 else None


def load_jax_strictly(vit: nn.Module, arrays: Mapping[str, Any], path: Path, arch: str, source: str) -> None:
    """Load an augreg ``.npz`` through timm's own ``load_pretrained``, strictly.

    timm silently resizes position and patch embeddings, skips a head of another size and reads
    only as many blocks as the model has; all such files are refused here.

    Raises:
        CheckpointError: not the JAX layout, NaN or infinity, or another class count, image size or architecture.
    """
    for key, array in arrays.items():
        if np.issubdtype(array.dtype, np.floating) and not np.isfinite(array).all():
            check_finite({key: torch.from_numpy(array)}, source)
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
        raise _class_count_error(source, classes, own_classes)
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


def cpu_copy(value: torch.Tensor) -> torch.Tensor:
    """A copy on the CPU with storage of its own: a view would be saved with all of the storage that it shares."""
    return value.detach().cpu().contiguous().clone()


def to_plain_values(value: Any, where: str, *, tensors: bool = True, depth: int = 50) -> Any:
    """Convert ``value`` to plain types, which ``torch.load(weights_only=True)`` knows without an allow-list.

    Namespaces become dicts, numpy scalars Python numbers, enums their values, and paths,
    devices and dtypes strings.

    Args:
        value: what to store, possibly nested.
        where: what errors call it.
        tensors: whether tensors are accepted.
        depth: how deep it may be nested; a value that contains itself would never end.

    Raises:
        OptionError: with the name of what cannot be stored.
    """
    if value is None or type(value) in (bool, int, float, str, bytes):
        return value
    if not depth:
        raise OptionError(f"{where[:80]}: expected values nested 50 deep at most, found more. Leave it out.")
    if isinstance(value, np.generic):  # before float: np.float64 is a subclass of it
        return to_plain_values(value.item(), where)
    if isinstance(value, torch.Tensor) and tensors:
        return cpu_copy(value)
    if isinstance(value, argparse.Namespace):
        value = vars(value)
    if isinstance(value, Mapping):
        return {
            to_plain_values(k, where): to_plain_values(v, f"{where}.{k}", tensors=tensors, depth=depth - 1)
            for k, v in value.items()
        }
    if isinstance(value, list | tuple):
        items = [
            to_plain_values(item, f"{where}[{i}]", tensors=tensors, depth=depth - 1) for i, item in enumerate(value)
        ]
        return items if isinstance(value, list) else tuple(items)
    if isinstance(value, Path | torch.device | torch.dtype):
        return str(value)
    if isinstance(value, Enum):
        return to_plain_values(value.value, where)
    for kind in (int, float, str):  # a subclass would be pickled under its own name
        if isinstance(value, kind):
            return kind(value)
    raise OptionError(
        f"{where}: expected tensors and plain values (numbers, strings, lists, dicts), found "
        f"{type(value).__name__}. Convert it before saving."
    )
