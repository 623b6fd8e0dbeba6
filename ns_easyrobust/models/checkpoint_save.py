"""The two layouts that are written: EasyRobust's and timm's."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from enum import Enum
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..errors import ModelError, OptionError
from ..utils.files import write_atomically
from .weights import Weights

LAYOUTS = ("easyrobust", "timm")
RAW = (
    "state_dict",
    "model",
    "model_state_dict",
)  # where weights may lie; looked for in this order, as timm does
EMA = ("state_dict_ema", "model_ema")
NORMALIZATION = ("mean", "std", "mean_ema", "std_ema")


def write_layout(
    path: str | Path, layout: str, weights: Weights, ema: Weights | None, extra: Mapping[str, Any]
) -> Path:
    """Write weights, averaged weights and ``extra`` beside them, at once or not at all.

    ``easyrobust``: ``state_dict`` and ``state_dict_ema`` with ``0.mean``, ``0.std``, ``1.*``,
    which EasyRobust's ``benchmark.py`` loads. ``timm``: both with bare names, which
    ``timm.models.load_checkpoint`` loads, and lists ``mean`` and ``std`` beside them.

    Raises:
        ModelError: layout ``easyrobust`` and weights without normalisation.
        OptionError: unknown layout, or an ``extra`` that is not plain or has a taken name.
        OutputError: the file cannot be written; an older one is then untouched.
    """
    if layout not in LAYOUTS:
        raise OptionError(f"layout: expected {' or '.join(LAYOUTS)}, found {layout!r}. Choose one.")
    if taken := [key for key in extra if key in (*RAW, *EMA, *NORMALIZATION)]:
        raise OptionError(f"extra: expected names beside the weights, found {taken[0]}. Rename it.")
    content: dict[str, Any] = {"state_dict": _laid_out(weights, layout)}
    if ema is not None:
        content["state_dict_ema"] = _laid_out(ema, layout)
    if layout == "timm":
        content |= _lists(weights, "")
        if ema is not None and (ema.mean, ema.std) != (weights.mean, weights.std):
            content |= _lists(ema, "_ema")  # averaging the buffers moved their last bits
    content |= {key: plain(value, key) for key, value in extra.items()}
    return write_atomically(path, lambda temporary: torch.save(content, temporary))


def _laid_out(weights: Weights, layout: str) -> dict[str, torch.Tensor]:
    """A copy of the tensors on the CPU, under the layout's names."""
    state = {name: _copy(value) for name, value in weights.state.items()}
    if layout == "timm":
        return state
    if weights.mean is None or weights.std is None:
        raise ModelError(
            "layout easyrobust: expected a model with its input normalisation in front, found a bare one. "
            "Wrap it (load_model, with_normalization), or save it in layout timm."
        )
    front = {"0.mean": torch.tensor(weights.mean), "0.std": torch.tensor(weights.std)}
    return front | {f"1.{name}": value for name, value in state.items()}


def _lists(weights: Weights, suffix: str) -> dict[str, list[float]]:
    if weights.mean is None or weights.std is None:
        return {}
    return {f"mean{suffix}": list(weights.mean), f"std{suffix}": list(weights.std)}


def _copy(value: torch.Tensor) -> torch.Tensor:
    """On the CPU and by itself: a view would be saved with all of its storage."""
    return value.detach().cpu().contiguous().clone()


def plain(value: Any, where: str, *, tensors: bool = True, depth: int = 50) -> Any:
    """``value`` in types that ``torch.load(weights_only=True)`` knows without an allow-list.

    Namespaces become dicts, numpy scalars Python's, paths and devices strings.

    Args:
        value: what to store, nested at will.
        where: its name in errors.
        tensors: whether tensors count as plain.
        depth: how far it may nest; a value that holds itself never ends.

    Raises:
        OptionError: naming what in it cannot be stored.
    """
    if value is None or type(value) in (bool, int, float, str, bytes):
        return value
    if not depth:
        raise OptionError(f"{where[:80]}: expected values nested 50 deep at most, found more. Leave it out.")
    if isinstance(value, np.generic):  # before float: np.float64 is one
        return plain(value.item(), where)
    if isinstance(value, torch.Tensor) and tensors:
        return _copy(value)
    if isinstance(value, argparse.Namespace):
        value = vars(value)
    if isinstance(value, Mapping):
        return {plain(k, where): plain(v, f"{where}.{k}", tensors=tensors, depth=depth - 1) for k, v in value.items()}
    if isinstance(value, list | tuple):
        items = [plain(item, f"{where}[{i}]", tensors=tensors, depth=depth - 1) for i, item in enumerate(value)]
        return items if isinstance(value, list) else tuple(items)
    if isinstance(value, Path | torch.device | torch.dtype):
        return str(value)
    if isinstance(value, Enum):
        return plain(value.value, where)
    for kind in (int, float, str):  # a subclass, pickled under its own name
        if isinstance(value, kind):
            return kind(value)
    raise OptionError(
        f"{where}: expected tensors and plain values (numbers, strings, lists, dicts), found "
        f"{type(value).__name__}. Convert it before saving."
    )
