"""An evaluation's folder on its way to the judge: is it there, what transform, how many outputs has the model."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from torch import nn

from ..data.image_folder import images_below, is_image, list_folder
from ..data.image_list import ImageList, Subset
from ..data.transforms import read_image
from ..errors import DataError, ModelError
from ..models.vit import built_size, find_normalize, unwrap
from .judging import outputs_of
from .task import Part, Trial

_logger = logging.getLogger(__name__)
Load = Callable[[Path, int, Any], ImageList]


def exists(root: Path) -> bool:
    """Whether ``root`` is there; a warning names it if not."""
    if not root.exists():
        _logger.warning("%s does not exist: skipped", root)
    return root.exists()


def transform_for(model: nn.Module, given: Any, default: Callable[[int], Any]) -> Any:
    """``given``, or ``default`` of the model's image size if the model normalises its input itself."""
    if given is None and find_normalize(model) is None:
        raise ModelError(
            "the model has no normalisation inside and no test_transform was given: expected one of both. "
            "Wrap it (load_model does), or pass the transform that its weights were trained with."
        )
    return given or default((built_size(model) or (224, 224))[-1])


def outputs_on(model: nn.Module, root: Path, transform: Any) -> int:
    """How many logits the model gives: its ``num_classes``, else tried on the first image in ``root`` or below it.

    The judge refuses logits of another number.
    """
    core = unwrap(model)[1] if find_normalize(model) is not None else unwrap(model)  # type: ignore[index]
    declared = getattr(core, "num_classes", None)
    if isinstance(declared, int) and declared > 0:
        return declared
    folders, files = list_folder(root)
    paths = itertools.chain(filter(is_image, files), *(images_below(root, name) for name in folders))
    first = next(paths, None)
    if first is None:
        raise DataError(f"{root}: expected images, found none. Check --data-dir.")
    return outputs_of(model, transform(read_image(str(root / first))))


def part_of(
    root: Path, load: Load, outputs: int, transform: Any, batch_size: int, subset: Subset, tried: Sequence[Trial]
) -> Part:
    """``tried`` on the images under ``root``, opened when their turn comes."""
    return Part(lambda: subset.of(load(root, outputs, None)), transform, batch_size, tried, {"subset": str(subset)})
