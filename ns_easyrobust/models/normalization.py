"""Input normalisation in front of a transformer: the layer, and the choice of its mean and std."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import timm.data
import torch
from torch import nn

from ..errors import ModelError, OptionError
from .description import Description
from .weights import Weights, channel_count, unit_problem

_logger = logging.getLogger(__name__)


class Normalize(nn.Module):
    """Channel-wise (x - mean) / std on (B, C, H, W), with EasyRobust's buffer names.

    Args:
        mean, std: one number per channel, in units of pixels in [0, 1].

    Raises:
        OptionError: not as many of the one as of the other, or outside [0, 1], or std that is 0.
    """

    mean: torch.Tensor
    std: torch.Tensor

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        if len(mean) != len(std) or not all(s > 0 for s in std):
            raise OptionError(
                f"mean and std: expected one number a channel and std > 0, found mean={list(mean)} "
                f"std={list(std)}. Give both with as many numbers as the model has channels."
            )
        if problem := unit_problem(mean, std):
            raise OptionError(f"mean and std: {problem}")
        self.register_buffer("mean", torch.tensor([float(m) for m in mean]))
        self.register_buffer("std", torch.tensor([float(s) for s in std]))

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        return (pixels - self.mean[:, None, None]) / self.std[:, None, None]

    def extra_repr(self) -> str:
        return f"mean={self.mean.tolist()}, std={self.std.tolist()}"


class NormalizedModel(nn.Sequential):
    """``Sequential(Normalize, vit)``: pixels in [0, 1] to logits, with the keys ``0.mean``, ``0.std``, ``1.*``.

    An ``nn.Sequential`` hides the transformer's hints to timm's optimizers, which would then
    apply weight decay to the class token and the position embedding. This class passes them on.

    Attributes:
        normalization_origin: where mean and std come from, set by ``load_model``.
        weights_name: the checkpoint entry that was loaded, set by ``load_model``.
        arch: name of the architecture, set by ``load_model``.
        image_size: side in pixels of the square images that it is for, set by ``load_model``.
        described: the settings (``model_kwargs``, ``img_size``, ``mean``, ``std``) that a file told of, in no weights.
        new_head_tensors: names of the bare transformer's tensors in a head in place of the checkpoint's; () without.
    """

    normalization_origin: str
    weights_name: str
    arch: str
    image_size: int
    described: Mapping[str, Any]
    new_head_tensors: tuple[str, ...] = ()

    @property
    def num_classes(self) -> int | None:
        """The transformer's number of classes; None if it does not say."""
        return getattr(self[1], "num_classes", None)

    @property
    def mean(self) -> list[float]:
        """The normalisation's mean, one number per channel."""
        return list(self[0].get_buffer("mean").tolist())

    @property
    def std(self) -> list[float]:
        """The normalisation's standard deviation, one number per channel."""
        return list(self[0].get_buffer("std").tolist())

    @torch.jit.ignore
    def no_weight_decay(self) -> set[str]:
        inner = getattr(self[1], "no_weight_decay", None)
        return {f"1.{name}" for name in inner()} if inner is not None else set()

    @torch.jit.ignore
    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """timm 1.x's layer groups, with each pattern prefixed by ``1.``."""
        inner: dict[str, Any] = self[1].group_matcher(coarse=coarse)  # type: ignore[operator]
        return {group: _prefix_patterns(patterns) for group, patterns in inner.items()}


def _prefix_patterns(patterns: Any) -> Any:
    if isinstance(patterns, str):
        unanchored = re.sub(r"(^|[|(])\^", r"\1", patterns)  # timm anchors patterns, or some of their branches
        return rf"^1\.(?:{unanchored})"
    return [(_prefix_patterns(pattern), *rest) for pattern, *rest in patterns]


def with_normalization(vit: nn.Module, mean: Sequence[float], std: Sequence[float]) -> NormalizedModel:
    """``vit`` with its input normalisation in front: the model that every command works on."""
    return NormalizedModel(Normalize(mean, std), vit)


def resolve_normalization(
    vit: nn.Module | None,
    weights: Weights | None = None,
    *,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    described: Description | None = None,
) -> tuple[tuple[float, ...], tuple[float, ...], str]:
    """The input normalisation: the weights' own, else the caller's, else what the file says, else timm's.

    Args:
        vit: the bare transformer; None: timm is not consulted.
        weights: the loaded weights; None if they do not come from a PyTorch checkpoint.
        mean, std: the caller's, one number in all or one per channel, in units of pixels in [0, 1].
        described: what the checkpoint says beside its weights.

    Returns:
        mean, std (one number per channel) and where they come from: ``checkpoint``, ``caller``,
        ``checkpoint args`` or another :attr:`~ns_easyrobust.models.description.Description.place`,
        ``timm config``, or ``ImageNet default`` if timm has none for this architecture.

    Raises:
        OptionError: mean without std, in other units, or neither one number nor as many as the model has channels.
        ModelError: none of the three gives a normalisation, or timm's is in other units.
    """
    if (mean is None) != (std is None):
        raise OptionError(f"mean and std: expected both or neither, found mean={mean} std={std}. Give both.")
    caller = (tuple(mean), tuple(std)) if mean is not None and std is not None else None
    if caller is not None and (problem := unit_problem(*caller)):  # also where the checkpoint's own are used
        raise OptionError(f"mean and std: {problem}")
    chosen: tuple[Sequence[float], Sequence[float]]
    if weights is not None and weights.mean is not None and weights.std is not None:
        chosen, origin = (weights.mean, weights.std), "checkpoint"
        if caller is not None and not _nearly_equal((*caller[0], *caller[1]), (*weights.mean, *weights.std)):
            _logger.warning("%s were given; the checkpoint's own are used: %s", _describe(*caller), _describe(*chosen))
    elif caller is not None:
        chosen, origin = caller, "caller"
    elif described is not None and described.mean is not None and described.std is not None:
        chosen, origin = (described.mean, described.std), described.place
    elif vit is not None:
        config = getattr(vit, "pretrained_cfg", None) or getattr(vit, "default_cfg", None) or {}
        # in_chans does not affect mean and std, but timm 1.x refuses to resolve an empty dict
        data = timm.data.resolve_data_config({"in_chans": 3}, config)
        chosen, origin = (data["mean"], data["std"]), str(config.get("normalization_origin", "timm config"))
        if not config.get("mean"):
            origin = "ImageNet default"
            _logger.warning("timm has no mean and std for %s: give them", type(vit).__name__)
        if problem := unit_problem(*chosen):
            raise ModelError(f"timm's config of {type(vit).__name__}: {problem}")
    else:
        raise ModelError(
            "input normalisation: expected one in the checkpoint, found none. Give mean and std, or name the model."
        )
    state = weights.state if weights is not None else vit.state_dict() if vit is not None else {}
    channels = channel_count(state)
    used_mean, used_std = (tuple(v) * (channels if len(v) == 1 else 1) for v in chosen)
    if (len(used_mean), len(used_std)) != (channels, channels):
        raise OptionError(
            f"mean and std: expected {channels} numbers each, one a channel, found mean={list(used_mean)} "
            f"std={list(used_std)} (from the {origin}). Give mean and std for this model."
        )
    _logger.info("input normalisation: %s, from the %s", _describe(used_mean, used_std), origin)
    return used_mean, used_std, origin


def _nearly_equal(first: Sequence[float], second: Sequence[float]) -> bool:
    """Whether both are equal up to float32 precision, in which checkpoints store them."""
    return len(first) == len(second) and np.allclose(first, second, rtol=1e-5, atol=0)


def _describe(mean: Sequence[float], std: Sequence[float]) -> str:
    mean_text, std_text = (" ".join(f"{value:.6g}" for value in values) for values in (mean, std))
    return f"mean {mean_text}, std {std_text}"
