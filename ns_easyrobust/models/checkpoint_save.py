"""Saving checkpoints atomically, in EasyRobust's layout or timm's.

EasyRobust's ``benchmark.py`` loads the one, ``timm.models.load_checkpoint`` the other; no single file works for both.
"""

from __future__ import annotations

import logging
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..errors import CheckpointError, ModelError, OptionError
from ..utils import save_tensors
from .architectures import build
from .checkpoints import Checkpoint, read_checkpoint
from .fitting import fit_to
from .normalization import resolve_normalization
from .strict_load import load_strictly, misfit
from .weights import (
    EMA,
    LAYOUTS,
    NORMALIZATION,
    OF_IMAGE_SIZE,
    RAW,
    Weights,
    channel_count,
    class_count,
    cpu_copy,
    to_plain_values,
    weights_of_state_dict,
)

_logger = logging.getLogger(__name__)


def write_layout(
    path: str | Path, layout: str, weights: Weights, ema: Weights | None, extra: Mapping[str, Any]
) -> Path:
    """Write weights, EMA weights and the entries ``extra`` to one file, atomically.

    ``easyrobust``: ``state_dict`` and ``state_dict_ema`` with ``0.mean``, ``0.std``, ``1.*``,
    which EasyRobust's ``benchmark.py`` loads. ``timm``: both with bare names, which
    ``timm.models.load_checkpoint`` loads, and beside them the lists ``mean`` and ``std``.

    Raises:
        ModelError: layout ``easyrobust`` and weights without normalisation.
        OptionError: unknown layout, or an ``extra`` that is not a plain value or has a reserved name.
        OutputError: the file cannot be written; an existing one is then untouched.
    """
    if layout not in LAYOUTS:
        raise OptionError(f"layout: expected {' or '.join(LAYOUTS)}, found {layout!r}. Choose one.")
    if reserved := [key for key in extra if key in (*RAW, *EMA, *NORMALIZATION)]:
        raise OptionError(f"extra: expected names beside the weights, found {reserved[0]}. Rename it.")
    content: dict[str, Any] = {"state_dict": _to_layout(weights, layout)}
    if ema is not None:
        content["state_dict_ema"] = _to_layout(ema, layout)
    if layout == "timm":
        content |= _normalization_lists(weights, "")
        if ema is not None and (ema.mean, ema.std) != (weights.mean, weights.std):
            content |= _normalization_lists(ema, "_ema")  # averaging the buffers changed their last bits
    content |= {key: to_plain_values(value, key) for key, value in extra.items()}
    return save_tensors(path, content)


def _to_layout(weights: Weights, layout: str) -> dict[str, torch.Tensor]:
    """A copy of the tensors on the CPU, with the layout's names.

    Names and other strings are interned: pickle writes a string again unless it is the same object, so that files of
    equal contents would differ.
    """
    state = {sys.intern(name): cpu_copy(value) for name, value in weights.state.items()}
    if layout == "timm":
        return state
    if weights.mean is None or weights.std is None:
        raise ModelError(
            "layout easyrobust: expected a model with its input normalisation in front, found a bare one. "
            "Wrap it (load_model, with_normalization), or save it in layout timm."
        )
    normalization = {"0.mean": torch.tensor(weights.mean), "0.std": torch.tensor(weights.std)}
    return normalization | {sys.intern(f"1.{name}"): value for name, value in state.items()}


def _normalization_lists(weights: Weights, suffix: str) -> dict[str, list[float]]:
    if weights.mean is None or weights.std is None:
        return {}
    return {f"mean{suffix}": list(weights.mean), f"std{suffix}": list(weights.std)}


def save_model(
    model: nn.Module,
    path: str | Path,
    *,
    ema: nn.Module | None = None,
    layout: str = "easyrobust",
    **extra: Any,
) -> None:
    """Save a model so that EasyRobust or timm can load it with torch's safe default, ``weights_only=True``.

    Args:
        model: the model with its normalisation in front, wrapped or not (DistributedDataParallel,
            ``torch.compile``, timm's ModelEmaV2); for layout ``timm`` a bare transformer is enough.
        path: the file; an existing one is replaced atomically.
        ema: the averaged model, of the same form as ``model``.
        layout: ``easyrobust`` or ``timm``, see :func:`ns_easyrobust.models.checkpoint_save.write_layout`.
        extra: stored beside the weights (``arch``, ``epoch``, ``args``, ...) as tensors and plain values.

    Raises:
        ModelError: no normalisation in front for layout ``easyrobust``.
        OptionError: unknown layout, or an ``extra`` that is not a plain value or has a reserved name.
        OutputError: the file cannot be written; an existing one is then untouched.

    Example:
        >>> save_model(model, "vit.pth.tar", arch="vit_micro_patch8_32", epoch=3)
        >>> content = torch.load("vit.pth.tar", weights_only=True)
        >>> content["epoch"], content["state_dict"]["0.mean"]
        (3, tensor([0.5000, 0.5000, 0.5000]))
    """
    weights = weights_of_state_dict(model.state_dict(), "state_dict", type(model).__name__)
    averaged = None if ema is None else weights_of_state_dict(ema.state_dict(), "state_dict_ema", type(ema).__name__)
    write_layout(path, layout, weights, averaged, extra)


@dataclass(frozen=True)
class Exported:
    """What :func:`export_checkpoint` wrote."""

    path: Path
    layout: str
    entries: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    normalization_origin: str


def export_checkpoint(
    source: str | Path | Checkpoint,
    destination: str | Path,
    layout: str,
    *,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    arch: str | None = None,
    model_kwargs: Mapping[str, Any] | None = None,
) -> Exported:
    """Convert a checkpoint to a layout: weights, EMA weights and metadata, without training state.

    Args:
        source: a file or URL in any form that :func:`read_checkpoint` accepts, or a checkpoint already read.
        destination: the file to write, replaced if it exists.
        layout: ``easyrobust`` or ``timm``.
        mean, std: input normalisation for a checkpoint that does not contain one.
        arch: the architecture; None: the one that the file names. It is needed for ``.npz``, and to
            take mean and std from timm.
        model_kwargs: arguments of the architecture; None: those that the file tells of.

    The weights must fit the architecture; where neither is known, they must have the names of one bare transformer.

    Raises:
        CheckpointError: nothing to load, unsafe, damaged, for another architecture, or names that no host loads.
        ModelError: neither the file nor the arguments give the normalisation.
        OutputError: the file cannot be written.
    """
    checkpoint = source if isinstance(source, Checkpoint) else read_checkpoint(source)
    is_given, told = arch is not None, checkpoint.description
    arch, vit, ema = arch or told.registered_arch, None, None
    options = {**(told.kwargs_for(arch) if arch else {}), **(model_kwargs or {})}
    if checkpoint.form == "npz":
        if arch is None:
            raise CheckpointError(
                f"{checkpoint.source}: expected the architecture of a JAX .npz, found none. Name the model."
            )
        fitted = fit_to(checkpoint, False, arch, num_classes=None, options=options)
        vit, weights = fitted.vit, fitted.weights
    else:
        weights = checkpoint.weights()
        ema = checkpoint.weights(ema=True) if checkpoint.has_ema else None
        has_normalization = any(each is not None for each in (weights.mean, mean, told.mean))
        if arch is not None:
            vit = _built_for(weights.state, arch, options, required=is_given or not has_normalization)
        for each in (weights,) if ema is None else (weights, ema):
            if vit is None or arch is None:
                _require_bare_names(each.state, checkpoint.source)
            else:  # another architecture's mean and std would be wrong
                _require_fit(vit, each, arch, checkpoint.source, sizes_may_differ=has_normalization)
    used_mean, used_std, origin = resolve_normalization(vit, weights, mean=mean, std=std, described=told)
    if origin not in ("checkpoint", "caller"):
        checkpoint.warn_of_other_normalization(used_mean, used_std)
    weights = replace(weights, mean=used_mean, std=used_std)
    if ema is not None and ema.mean is None:
        ema = replace(ema, mean=used_mean, std=used_std)
    extra = checkpoint.metadata | ({"arch": arch} if arch else {})
    path = write_layout(destination, layout, weights, ema, extra)
    entries = ("state_dict",) if ema is None else ("state_dict", "state_dict_ema")
    return Exported(path, layout, entries, used_mean, used_std, origin)


def _built_for(
    state: Mapping[str, torch.Tensor], arch: str, options: Mapping[str, Any], required: bool
) -> nn.Module | None:
    """The architecture with as many classes and channels as the weights; None if it cannot be built and need not be."""
    has_head = any(re.search(r"head|fc|classifier", name.split(".")[0]) for name in state)
    channels = channel_count(state)
    try:
        return build(
            arch,
            num_classes=class_count(state) or (1000 if has_head else 0),
            **{"in_chans": None if channels == 3 else channels, **options},
        )
    except ModelError as error:
        if required:
            raise
        _logger.warning("the architecture that the file names could not be compared: %s", error.line)
        return None


def _require_fit(vit: nn.Module, weights: Weights, arch: str, source: str, sizes_may_differ: bool) -> None:
    """Refuse weights that ``arch`` does not load; with ``sizes_may_differ`` it may be built for other images."""
    reshaped = misfit(vit, weights.state).reshaped
    if sizes_may_differ and reshaped and all(OF_IMAGE_SIZE.search(name) for name in reshaped):
        _logger.warning(
            "%s: %s has another shape than in %s by default: give the host the image size that it was trained for",
            source, reshaped[0], arch,
        )  # fmt: skip
        own = vit.state_dict()
        weights = replace(weights, state=weights.state | {name: own[name] for name in reshaped})
    load_strictly(vit, weights, arch, source)


def _require_bare_names(state: Mapping[str, torch.Tensor], source: str) -> None:
    """Refuse names that cannot be those of one bare transformer: behind a prefix, or of a wrapper's own entries."""
    embeddings = {found[0] for name in state if (found := re.match(r"(.*\.)?patch_embed\.", name))}
    first = {name.split(".")[0] for name in state}
    foreign = [name for name in state if not name.split(".")[0].isidentifier() or name.split(".")[0] == "module"]
    foreign += [name for name in state if name == "n_averaged"]
    foreign += [name for name in state for prefix in embeddings - {"patch_embed."} if name.startswith(prefix)]
    if len(first) == 1 and len(state) > 1:
        foreign += list(state)
    if foreign:
        raise CheckpointError(
            f"{source}: expected the names of one bare transformer (patch_embed.proj.weight, ...), found "
            f"{foreign[0][:160]}. Save that model's own state_dict(), or name its architecture."
        )
