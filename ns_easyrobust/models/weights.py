"""Weights by the bare transformer's names, extracted from a checkpoint, and the normalisation beside them."""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any

from ..errors import CheckpointError, OptionError
from ..utils import np, torch

LAYOUTS = ("easyrobust", "timm")  # layouts that can be written
RAW = ("state_dict", "model", "model_state_dict")  # entries that may hold the weights, in timm's order of precedence
EMA = ("state_dict_ema", "model_ema")
NORMALIZATION = ("mean", "std", "mean_ema", "std_ema")
_MOST_CHANNELS = 1000
_FLOATS = ("float16", "bfloat16", "float32", "float64")
_WHOLE = ("bool", "uint8", "int8", "int16", "int32", "int64")  # types of buffers, such as num_batches_tracked
_WEIGHT_NAMES = re.compile(r"(^|[._])(weight|bias|gamma|token|embed)$")
OF_IMAGE_SIZE = re.compile(r"pos_embed|relative_position|rel_pos|attn_mask")  # tensors whose shape depends on it
# What PyTorch puts between names: torch.compile, FSDP and checkpoint_wrapper.
_WRAPPERS = re.compile(r"(^|\.)(?:(?:_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.)+")


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

    What PyTorch's own wrappers put before names (DistributedDataParallel, ``torch.compile``, FSDP, checkpoint
    wrappers, AveragedModel with its ``n_averaged``) is removed, however often it is repeated, outside and inside
    EasyRobust's ``0.mean``, ``0.std``, ``1.*``.

    Args:
        entry: the state dict.
        name: which entry of the checkpoint it is.
        source: what errors call the checkpoint.
        mean, std: those beside the state dict in the checkpoint; ``0.mean`` and ``0.std`` take precedence.

    Raises:
        CheckpointError: no tensors, an entry that is not a tensor, two that would get the same name, two
            normalisations, or one that is not in units of pixels in [0, 1].
    """
    for key, value in entry.items():
        if not isinstance(key, str) or not isinstance(value, torch.Tensor):
            raise CheckpointError(
                f"{source}: expected only tensors in {name}, found {str(key)[:80]!r} of type {type(value).__name__}. "
                "Save model.state_dict()."
            )
    state = _named_once(_unwrapped((key, value.detach()) for key, value in entry.items()), name, source)
    if {"0.mean", "0.std"} <= state.keys():
        mean, std = state.pop("0.mean"), state.pop("0.std")
        state = _named_once(_unwrapped((key.removeprefix("1."), state[key]) for key in state), name, source)
    if {"0.mean", "0.std"} <= state.keys():
        raise CheckpointError(
            f"{source}: expected one normalisation in front, found two in {name}. Save the weights of the model inside "
            "the outer one: model[1].state_dict()."
        )
    if not state:
        raise CheckpointError(f"{source}: expected weights in {name}, found none. Save model.state_dict().")
    return Weights(state, *_normalization(mean, std, source), name)


def _unwrapped(items: Iterable[tuple[str, torch.Tensor]]) -> list[tuple[str, torch.Tensor]]:
    """The tensors with their names without what PyTorch's wrappers put before them."""
    bare = [(_WRAPPERS.sub(r"\1", key), value) for key, value in items]
    while True:
        inner = [(key, value) for key, value in bare if key != "n_averaged"]  # AveragedModel's number of updates
        if not inner or not all(key.startswith("module.") for key, _ in inner):  # "module" is a submodule's own name
            return bare
        bare = [(key.removeprefix("module."), value) for key, value in inner]


def _named_once(items: Sequence[tuple[str, torch.Tensor]], name: str, source: str) -> dict[str, torch.Tensor]:
    state = dict(items)
    if len(state) < len(items):
        raise CheckpointError(
            f"{source}: expected each name once in {name}, found some both with and without a wrapper's prefix "
            "(module., _orig_mod., 1.). Save model.state_dict() of one model."
        )
    return state


def _normalization(mean: Any, std: Any, source: str) -> tuple[tuple[float, ...] | None, tuple[float, ...] | None]:
    """Mean and std as numbers, None for a checkpoint without them; CheckpointError for what cannot be meant."""
    mean, std = _as_floats(mean, "mean", source), _as_floats(std, "std", source)
    if (mean is None) != (std is None):
        raise CheckpointError(
            f"{source}: expected mean and std, found only {'mean' if std is None else 'std'}. Save both."
        )
    if mean is not None and std is not None:
        check_finite({"mean": torch.tensor(mean), "std": torch.tensor(std)}, source)
        if problem := unit_problem(mean, std):
            raise CheckpointError(f"{source}: {problem}")
    return mean, std


def _as_floats(values: Any, name: str, source: str) -> tuple[float, ...] | None:
    """The numbers of a tensor or list; None for another type, which is metadata that happens to bear the name."""
    if isinstance(values, torch.Tensor):
        check_dense({name: values}, source)
        values = values.detach().flatten()[: _MOST_CHANNELS + 1].tolist()
    if not isinstance(values, list | tuple) or not values:
        return None
    if len(values) > _MOST_CHANNELS or not all(isinstance(value, int | float) for value in values):
        raise CheckpointError(
            f"{source}: expected {name} as one number a channel, found {str(values[:4])[:80]}. Save numbers."
        )
    # A whole number may be too long for a float. Comparisons with nan are false, so that it stays.
    return tuple(1e30 if value > 1e30 else -1e30 if value < -1e30 else float(value) for value in values)


def unit_problem(mean: Sequence[float], std: Sequence[float]) -> str | None:
    """What is wrong with a normalisation of pixels in [0, 1]; None if it can be meant.

    Args:
        mean, std: numbers in units of pixels in [0, 1], std > 0; a moving average may have rounded them.
    """
    most = 1 + 1e-3
    if all(-1e-3 <= value <= most for value in mean) and all(0 < value <= most for value in std):
        return None
    shown = " ".join(f"{name}={[float(f'{v:.6g}') for v in values]}" for name, values in (("mean", mean), ("std", std)))
    return (
        f"expected mean and std of pixels in [0, 1], which lie in [0, 1] with std > 0, found {shown}. "
        "If they are those of pixels in 0..255, divide by 255."
    )


def check_dense(state: Mapping[str, torch.Tensor], source: str) -> None:
    """Refuse sparse, quantized, nested and meta tensors.

    Raises:
        CheckpointError: with the name of the first such tensor.
    """
    for name, value in state.items():
        if value.layout is not torch.strided or value.is_meta or value.is_quantized or value.is_nested:
            raise CheckpointError(
                f"{source}: expected dense weights, found {name[:80]} sparse, quantized or without values. "
                "Save the model's plain state dict."
            )


def check_finite(state: Mapping[str, torch.Tensor], source: str) -> None:
    """Refuse weights with NaN or infinity, which a diverged run leaves, and numbers that would be cast without a word.

    Complex numbers would lose a part; whole numbers in place of weights, and floats of 8 bits, go with a scale that
    nothing here applies. Half precision and double are weights.

    Raises:
        CheckpointError: with the name of the first such tensor, or of one that :func:`check_dense` refuses.
    """
    check_dense(state, source)
    for name, value in state.items():
        kind = _kind(value)
        if (kind in _FLOATS or kind.startswith("float8")) and not bool(value.float().isfinite().all()):
            raise CheckpointError(
                f"{source}: expected finite weights, found NaN or infinity in {name[:80]}. "
                "The run that wrote it diverged; take an earlier checkpoint."
            )
        if kind not in _FLOATS and (kind not in _WHOLE or _WEIGHT_NAMES.search(name)):
            raise unfit_numbers(source, name, kind)


def _kind(value: torch.Tensor) -> str:
    return str(value.dtype).removeprefix("torch.")


def unfit_numbers(source: str, name: str, kind: str) -> CheckpointError:
    """The error for a tensor whose numbers, of the type ``kind``, are not what its name stands for."""
    return CheckpointError(
        f"{source}: expected floating-point weights of 16 bits or more, found {name[:80]} of {kind}. Nothing is cast; "
        "give them as float32, with their scale applied."
    )


def class_count(state: Mapping[str, torch.Tensor]) -> int | None:
    """Number of classes of the head, if it has one of timm's usual names; else None."""
    for name in ("head.weight", "head.fc.weight", "fc.weight", "classifier.weight"):
        if name in state and state[name].ndim:
            return int(state[name].shape[0])
    return None


def channel_count(state: Mapping[str, torch.Tensor]) -> int:
    """Number of image channels, from the first convolution, which is the patch embedding's; 3 if there is none."""
    kernels = (value for name, value in state.items() if name.endswith("weight") and value.ndim == 4)
    return next((int(kernel.shape[1]) for kernel in kernels), 3)


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
    if type(value) is str:
        return sys.intern(value)  # so that equal values make equal pickles
    if value is None or type(value) in (bool, int, float, bytes):
        return value
    where = where[:200]
    if not depth:
        raise OptionError(f"{where}: expected values nested 50 deep at most, found more. Leave it out.")
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
        return sys.intern(str(value))
    if isinstance(value, Enum):
        return to_plain_values(value.value, where)
    for kind in (int, float, str):  # a subclass would be pickled under its own name
        if isinstance(value, kind):
            return to_plain_values(kind(value), where)
    raise OptionError(
        f"{where}: expected tensors and plain values (numbers, strings, lists, dicts), found "
        f"{type(value).__name__}. Convert it before saving."
    )
