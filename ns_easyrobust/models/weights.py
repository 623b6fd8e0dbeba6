"""Weights under the bare transformer's names, their strict way into a model, and its normalisation."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import timm.data
import torch
from torch import nn

from ..errors import CheckpointError, ModelError, OptionError

_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Weights:
    """One state dict of a checkpoint.

    Attributes:
        state: tensors by the bare transformer's names (``cls_token``, ``blocks.0...``).
        mean, std: the input normalisation that the checkpoint carries, one number a
            channel in units of pixels in [0, 1]; None where it carries none.
        name: the entry they come from, such as ``state_dict_ema``; ``raw`` for a bare state dict.
    """

    state: dict[str, torch.Tensor]
    mean: tuple[float, ...] | None
    std: tuple[float, ...] | None
    name: str


def weights_from(entry: Mapping[str, Any], name: str, source: str, mean: Any = None, std: Any = None) -> Weights:
    """Bring one state dict to bare names, and its normalisation beside them.

    The prefixes of DistributedDataParallel (``module.``) and ``torch.compile``
    (``_orig_mod.``) go, however often they are repeated, outside and inside of
    EasyRobust's ``0.mean``, ``0.std``, ``1.*``.

    Args:
        entry: the state dict.
        name: which entry of the checkpoint it is.
        source: what to call the checkpoint in errors.
        mean, std: the checkpoint's own beside the state dict; ``0.mean`` and ``0.std`` come first.

    Raises:
        CheckpointError: an entry that is not a tensor, or two that end up under one name.
    """
    for key, value in entry.items():
        if not isinstance(key, str) or not isinstance(value, torch.Tensor):
            raise CheckpointError(
                f"{source}: expected only tensors in {name}, found {key!r} of type {type(value).__name__}. "
                "Save model.state_dict()."
            )
    state, expected = _renamed(entry, _without_wrappers(entry)), len(entry)
    if {"0.mean", "0.std"} <= state.keys():
        mean, std, expected = state.pop("0.mean"), state.pop("0.std"), expected - 2
        state = _renamed(state, [key.removeprefix("1.") for key in state])
        state = _renamed(state, _without_wrappers(state))
    if len(state) < expected:
        raise CheckpointError(
            f"{source}: expected each name once in {name}, found some both with and without the prefix "
            "module., _orig_mod. or 1. Save model.state_dict() of one model."
        )
    if not state:
        raise CheckpointError(f"{source}: expected weights in {name}, found none. Save model.state_dict().")
    return Weights(state, _numbers(mean), _numbers(std), name)


def _without_wrappers(names: Iterable[str]) -> list[str]:
    bare = [re.sub(r"(^|\.)(_orig_mod\.)+", r"\1", name) for name in names]
    while bare and all(name.startswith("module.") for name in bare):  # some model may own a "module" of its own
        bare = [name.removeprefix("module.") for name in bare]
    return bare


def _renamed(state: Mapping[str, torch.Tensor], names: Iterable[str]) -> dict[str, torch.Tensor]:
    return {name: value.detach() for name, value in zip(names, state.values(), strict=True)}


def _numbers(values: Any) -> tuple[float, ...] | None:
    if isinstance(values, torch.Tensor):
        values = values.flatten().tolist()
    if isinstance(values, list | tuple) and values and all(isinstance(v, int | float) for v in values):
        return tuple(float(v) for v in values)
    return None


def check_finite(state: Mapping[str, torch.Tensor], source: str) -> None:
    """Refuse weights with NaN or infinity, as a diverged run leaves them, and tensors without numbers.

    Raises:
        CheckpointError: with the name of the first.
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
    """How many classes the weights tell apart, where the head has one of timm's usual names."""
    for name in ("head.weight", "head.fc.weight", "fc.weight", "classifier.weight"):
        if name in state:
            return int(state[name].shape[0])
    return None


def channel_count(state: Mapping[str, torch.Tensor]) -> int:
    """How many image channels the weights take: those of the first convolution, the patch embedding's."""
    kernels = (value for name, value in state.items() if name.endswith("weight") and value.ndim == 4)
    return next((int(kernel.shape[1]) for kernel in kernels), 3)


def fit(vit: nn.Module, weights: Weights, arch: str, source: str) -> None:
    """Load ``weights`` into the bare transformer ``vit``, strictly: each name, each shape.

    No position embedding is resized, no head dropped.

    Raises:
        CheckpointError: another class count, image size or architecture.
    """
    own, theirs = vit.state_dict(), weights.state
    missing = [name for name in own if name not in theirs]
    unexpected = [name for name in theirs if name not in own]
    reshaped = [name for name in own if name in theirs and own[name].shape != theirs[name].shape]
    if not (missing or unexpected or reshaped):
        vit.load_state_dict(theirs)
        return
    if reshaped and not missing and not unexpected:
        heads = {(own[name].shape[0], theirs[name].shape[0]) for name in reshaped if own[name].ndim in (1, 2)}
        same_width = all(own[name].shape[1:] == theirs[name].shape[1:] for name in reshaped)
        if same_width and len(heads) == 1 and (ours := heads.pop())[0] == getattr(vit, "num_classes", None):
            raise _other_classes(source, ours[1], ours[0])
        if all("pos_embed" in name for name in reshaped):
            raise _other_image_size(source, arch, theirs[reshaped[0]].shape, own[reshaped[0]].shape)
    shapes = [f"{name} {tuple(theirs[name].shape)} not {tuple(own[name].shape)}" for name in reshaped]
    found = [
        f"{len(names)} {kind} ({', '.join(names[:3])}{', ...' if len(names) > 3 else ''})"
        for kind, names in (("missing", missing), ("unexpected", unexpected), ("of another shape", shapes))
        if names
    ]
    raise CheckpointError(
        f"{source} does not fit {arch}: expected its {len(own)} tensors, found {', '.join(found)}. "
        "Name the architecture it was trained with (--model)."
    )


def _other_classes(source: str, theirs: int, ours: int) -> CheckpointError:
    return CheckpointError(
        f"{source}: checkpoint has {theirs} classes, the model {ours}: pass --num-classes {theirs} "
        f"(num_classes={theirs})."
    )


def _other_image_size(source: str, arch: str, theirs: Sequence[int], ours: Sequence[int]) -> CheckpointError:
    return CheckpointError(
        f"{source} is for another image size than {arch}: expected a position embedding of {tuple(ours)}, "
        f"found {tuple(theirs)}. Build the model for that size (img_size=...); nothing is resized silently."
    )


def jax_class_count(arrays: Mapping[str, Any]) -> int | None:
    """How many classes an augreg ``.npz`` tells apart."""
    heads = [array for key, array in arrays.items() if re.fullmatch(r"(.*/)?head/bias", key)]
    return int(heads[0].shape[-1]) if len(heads) == 1 else None


def fit_jax(vit: nn.Module, arrays: Mapping[str, Any], path: Path, arch: str, source: str) -> None:
    """Load an augreg ``.npz`` through timm's own ``load_pretrained``, strictly.

    timm resizes position and patch embeddings, skips a head of another size and reads only
    as many blocks as the model has, all silently; what it would bend is refused here.

    Raises:
        CheckpointError: no JAX layout, or another class count, image size or architecture.
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
    classes, ours = jax_class_count(arrays), getattr(vit, "num_classes", None)
    if classes is not None and ours is not None and classes != ours:
        raise _other_classes(source, classes, ours)
    position = arrays.get("Transformer/posembed_input/pos_embedding", arrays.get("pos_embedding"))
    if position is not None and position.shape[1:-1] != pos_embed.shape[1:-1]:
        raise _other_image_size(source, arch, position.shape, pos_embed.shape)
    theirs = sum(array.size for array in arrays.values())
    own = sum(parameter.numel() for parameter in vit.parameters())
    misfit = f"expected {own} numbers, found {theirs}" if theirs != own else ""
    if not misfit:
        try:
            load(str(path))
        except (LookupError, RuntimeError, TypeError, ValueError, AttributeError, AssertionError) as error:
            misfit = f"expected its tensors, found {type(error).__name__}: {error}"
    if misfit:
        raise CheckpointError(
            f"{source} does not fit {arch}: {misfit}. Name the architecture it was trained with (--model)."
        )


def resolve_normalization(
    vit: nn.Module | None,
    weights: Weights | None = None,
    *,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
) -> tuple[tuple[float, ...], tuple[float, ...], str]:
    """The input normalisation: the checkpoint's, else the caller's, else timm's for the architecture.

    Args:
        vit: the bare transformer; None where timm is not to be asked.
        weights: what was loaded, None for random weights.
        mean, std: the caller's, one number or one a channel, in units of pixels in [0, 1].

    Returns:
        mean, std (one number a channel) and where they are from: ``checkpoint``, ``caller``,
        ``timm config``, or ``ImageNet default`` where timm has none for this architecture.

    Raises:
        OptionError: mean without std, or another number of them than the model has channels.
        ModelError: nothing says what the normalisation is.
    """
    if (mean is None) != (std is None):
        raise OptionError(f"mean and std: expected both or neither, found mean={mean} std={std}. Give both.")
    caller = (tuple(mean), tuple(std)) if mean is not None and std is not None else None
    chosen: tuple[Sequence[float], Sequence[float]]
    if weights is not None and weights.mean is not None and weights.std is not None:
        chosen, origin = (weights.mean, weights.std), "checkpoint"
        if caller is not None and not _close((*caller[0], *caller[1]), (*weights.mean, *weights.std)):
            _logger.warning("%s were given; the checkpoint's own are used: %s", _shown(*caller), _shown(*chosen))
    elif caller is not None:
        chosen, origin = caller, "caller"
    elif vit is not None:
        config = getattr(vit, "pretrained_cfg", None) or getattr(vit, "default_cfg", None) or {}
        # in_chans has no bearing on mean and std: timm 1.x refuses to resolve from nothing at all
        data = timm.data.resolve_data_config({"in_chans": 3}, config)
        chosen, origin = (data["mean"], data["std"]), "timm config"
        if not config.get("mean"):
            origin = "ImageNet default"
            _logger.warning("timm has no mean and std for %s: give them", type(vit).__name__)
    else:
        raise ModelError(
            "input normalisation: expected one in the checkpoint, found none. Give --mean and --std, or --model."
        )
    state = weights.state if weights is not None else vit.state_dict() if vit is not None else {}
    channels = channel_count(state)
    used_mean, used_std = (tuple(v) * (channels if len(v) == 1 else 1) for v in chosen)
    if (len(used_mean), len(used_std)) != (channels, channels):
        raise OptionError(
            f"mean and std: expected {channels} numbers each, one a channel, found mean={list(used_mean)} "
            f"std={list(used_std)} (from the {origin}). Give --mean and --std for this model."
        )
    _logger.info("input normalisation: %s, from the %s", _shown(used_mean, used_std), origin)
    return used_mean, used_std, origin


def _close(first: Sequence[float], second: Sequence[float]) -> bool:
    """Equal up to float32, in which checkpoints keep them."""
    return len(first) == len(second) and np.allclose(first, second, rtol=1e-5, atol=0)


def _shown(mean: Sequence[float], std: Sequence[float]) -> str:
    first, second = (" ".join(f"{value:.6g}" for value in values) for values in (mean, std))
    return f"mean {first}, std {second}"
