"""A transformer built as a checkpoint's weights need it: for their number of classes and their image size."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import timm.data
import torch
from torch import nn

from ..errors import ModelError
from .architectures import build
from .heads import classes_beside
from .strict_load import jax_class_count, jax_position, load_jax_strictly, load_strictly, misfit
from .vit import required_image_size
from .weights import OF_IMAGE_SIZE, Weights, class_count

if TYPE_CHECKING:
    from .checkpoints import Checkpoint

_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Fitted:
    """A bare transformer with a checkpoint's weights.

    Attributes:
        num_classes: outputs of the checkpoint's head, 0 without one; None if it could not be told.
        image_size: side of the square images in pixels that it was built for.
        described_size: that side if the file told of it; None: it was given, or is the architecture's own.
    """

    vit: nn.Module
    weights: Weights
    num_classes: int | None
    image_size: int
    described_size: int | None


def image_size_for(vit: nn.Module) -> int:
    """Side in pixels of the images for a bare transformer: what it requires, or else what timm's config says."""
    required = required_image_size(vit)
    if required is not None:
        return required[-1]
    return int(timm.data.resolve_data_config({}, model=vit)["input_size"][-1])


def side_of(size: Any) -> int:
    """The last side in pixels of an ``img_size``, a number or (H, W); 0 for None."""
    return int(size[-1] if isinstance(size, list | tuple) else size or 0)


def build_sized(arch: str, options: Mapping[str, Any], **more: Any) -> nn.Module:
    """:func:`build` with ``options``; a model of any size is built without ``img_size``, the size of its images alone.

    Raises:
        ModelError: unknown architecture or arguments.
        CheckpointError: pretrained weights that cannot be had.
    """
    try:
        return build(arch, **options, **more)
    except ModelError:
        if options.get("img_size") is None:
            raise
        vit = build(arch, **{name: value for name, value in options.items() if name != "img_size"}, **more)
        if required_image_size(vit) is not None:
            raise
        return vit


def fit_to(
    checkpoint: Checkpoint, ema: bool, arch: str, *, num_classes: int | None, options: Mapping[str, Any]
) -> Fitted:
    """Build ``arch`` with as many classes as the checkpoint has, and load its weights strictly.

    Without ``img_size`` among the ``options`` it is built for the images that the file tells of, or its position
    embedding. With it, a ViT's position embedding is resized by timm's own function.

    Args:
        ema: the exponential moving average of the weights.
        num_classes: for a checkpoint whose head cannot be found; None: timm's 1000.
        options: arguments of the architecture; those that are None are left out.

    Raises:
        CheckpointError: the weights are missing, or for another architecture or image size.
        ModelError: unknown architecture or arguments.
    """
    options = {name: value for name, value in options.items() if value is not None}
    asked = options.pop("img_size", None)
    is_jax = checkpoint.form == "npz"
    if is_jax and ema:
        raise checkpoint.missing_weights_error(ema)
    weights = None if is_jax else checkpoint.weights(ema)
    count = jax_class_count(checkpoint.content) if weights is None else class_count(weights.state)

    def make(size: Any) -> nn.Module:
        classes = num_classes if count is None else count
        return build_sized(arch, {**options, "img_size": size}, num_classes=1000 if classes is None else classes)

    source = checkpoint.source
    if weights is None:
        position = jax_position(checkpoint.content)
        vit, size = _of_its_size(make, None if position is None else position.shape, checkpoint, None)
        load_jax_strictly(vit, checkpoint.content, checkpoint.path, arch, source)
        weights = Weights(vit.state_dict(), None, None, "npz")
    else:
        if count is None and (found := classes_beside(make(asked), weights.state)) is not None:
            count = found
        if asked is None:
            position = weights.state.get("pos_embed")
            vit, size = _of_its_size(make, None if position is None else position.shape, checkpoint, weights)
            load_strictly(vit, weights, arch, source)
    if asked is not None:
        vit, size = make(asked), None
        load_strictly(vit, replace(weights, state=_resized(vit, weights.state, source)), arch, source)
    _log_loaded(checkpoint, weights.name)
    return Fitted(vit, weights, count, int(side_of(asked) or size or image_size_for(vit)), size)


def load_into(vit: nn.Module, checkpoint: Checkpoint, ema: bool, arch: str) -> tuple[Weights | None, str]:
    """Load the chosen weights into a bare ``vit``, strictly; returns them (None for npz) and their name.

    Raises:
        CheckpointError: they are missing, or for another model.
    """
    weights, name = None, "npz"
    if checkpoint.form != "npz":
        weights = checkpoint.weights(ema)
        load_strictly(vit, weights, arch, checkpoint.source)
        name = weights.name
    elif ema:
        raise checkpoint.missing_weights_error(ema)
    else:
        load_jax_strictly(vit, checkpoint.content, checkpoint.path, arch, checkpoint.source)
    _log_loaded(checkpoint, name)
    return weights, name


def _log_loaded(checkpoint: Checkpoint, name: str) -> None:
    others = ", ".join(entry for entry in checkpoint.entries if entry != name)
    _logger.info("%s: loaded %s%s", checkpoint.source, name, f" (it also holds {others})" if others else "")


def _of_its_size(
    make: Callable[[Any], nn.Module], position: Sequence[int] | None, checkpoint: Checkpoint, weights: Weights | None
) -> tuple[nn.Module, int | None]:
    """The model built for the images that the checkpoint is for, and their size; None: the architecture's own.

    Args:
        make: builds it for images of a size, None for its own; ModelError for one that it does not take.
        position: shape of the checkpoint's position embedding; None: it has none.
        weights: a PyTorch checkpoint's weights, which must fit; None for another form.
    """

    def sized(size: int) -> nn.Module | None:
        try:
            candidate = make(size)
        except ModelError:
            return None
        return candidate if _is_of_size(candidate, position, weights) else None

    vit, said = make(None), checkpoint.description.image_size
    is_own = _is_of_size(vit, position, weights)
    if said not in (None, image_size_for(vit)) and (other := sized(said)) is not None:
        _logger.info("%s: for images of %d x %d pixels, as it says", checkpoint.source, said, said)
        return other, said
    if not is_own and (size := _size_of_position(vit, position)) is not None and (other := sized(size)) is not None:
        _logger.info("%s: for images of %d x %d pixels, by its position embedding", checkpoint.source, size, size)
        return other, size
    return vit, None


def _is_of_size(vit: nn.Module, position: Sequence[int] | None, weights: Weights | None) -> bool:
    """Whether the tensors whose shape depends on the image size have that of ``vit``'s, as far as both have them."""
    if weights is not None:
        return not any(OF_IMAGE_SIZE.search(name) for name in misfit(vit, weights.state).reshaped)
    own = getattr(vit, "pos_embed", None)
    return position is None or not isinstance(own, torch.Tensor) or tuple(position) == tuple(own.shape)


def _grid_of_position(vit: nn.Module, position: Sequence[int]) -> tuple[int, int] | None:
    """(tokens that are no patches, patches a side) of a position embedding's shape for a ViT; None: not of its kind."""
    own, embedding = getattr(vit, "pos_embed", None), getattr(vit, "patch_embed", None)
    patches = getattr(embedding, "num_patches", None)
    if not isinstance(own, torch.Tensor) or own.ndim != 3 or not isinstance(patches, int) or len(position) != 3:
        return None
    prefix = own.shape[1] - patches
    side = math.isqrt(max(0, position[1] - prefix))
    fits = prefix >= 0 and side > 0 and prefix + side**2 == position[1] and position[2] == own.shape[2]
    return (prefix, side) if fits else None


def _size_of_position(vit: nn.Module, position: Sequence[int] | None) -> int | None:
    """Side in pixels of the square images that a position embedding of this shape is for; None: it cannot be told."""
    grid = None if position is None else _grid_of_position(vit, position)
    patch = getattr(getattr(vit, "patch_embed", None), "patch_size", None)
    patch = patch[0] if isinstance(patch, tuple) and len({*patch}) == 1 else patch
    return grid[1] * patch if grid is not None and isinstance(patch, int) else None


def _resized(vit: nn.Module, state: Mapping[str, torch.Tensor], source: str) -> dict[str, torch.Tensor]:
    """``state`` with its position embedding resized to that of the ViT by timm's function, if only that differs."""
    state, reshaped = dict(state), misfit(vit, state).reshaped
    grid = _grid_of_position(vit, state["pos_embed"].shape) if reshaped == ["pos_embed"] else None
    new = getattr(getattr(vit, "patch_embed", None), "grid_size", None)
    if grid is None or new is None:
        return state
    prefix, side = grid
    given, own = state["pos_embed"], vit.get_parameter("pos_embed")
    try:
        from timm.layers import resample_abs_pos_embed  # timm 1.x
    except ImportError:
        from timm.models.vision_transformer import resize_pos_embed

        state["pos_embed"] = resize_pos_embed(given, own, prefix, new)
    else:
        state["pos_embed"] = resample_abs_pos_embed(given, list(new), [side, side], prefix)
    _logger.info(
        "%s: position embedding resized by timm from %d x %d patches to %d x %d, for the image size that was given",
        source, side, side, *new,
    )  # fmt: skip
    return state
