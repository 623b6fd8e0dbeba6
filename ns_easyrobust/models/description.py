"""What a checkpoint says of the model that it is for, beside the weights: its name, arguments, size, mean and std."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ..utils import FLAGGED_ARGUMENTS, KEPT_ARGUMENTS
from .factories import is_factory
from .weights import unit_problem

_logger = logging.getLogger(__name__)
_LARGEST_SIDE = 8192  # pixels
_FROM_FLAGS = (*KEPT_ARGUMENTS, *FLAGGED_ARGUMENTS)  # the size is told beside them, the rest is the user's


@dataclass(frozen=True)
class Description:
    """What a file says of its model.

    Attributes:
        arch: the architecture as the file names it, for a reader; see :attr:`registered_arch`.
        image_size: side of the square images in pixels; None: not said.
        mean, std: the input normalisation, in units of pixels in [0, 1]; None: not said, or not in these units.
        model_kwargs: further arguments of the architecture, plain values by name.
        place: where it is said, as logs and records call it.
    """

    arch: str | None = None
    image_size: int | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    model_kwargs: Mapping[str, Any] = field(default_factory=dict)
    place: str = "checkpoint args"

    @property
    def registered_arch(self) -> str | None:
        """:attr:`arch` if it can be a name in timm's registry.

        A file must not choose what code is run: factories (``pkg.module:function``) and addresses are the user's.
        """
        return self.arch if self.arch is not None and re.fullmatch(r"[\w.-]+", self.arch) else None

    def kwargs_for(self, arch: str) -> dict[str, Any]:
        """:attr:`model_kwargs` if ``arch``, or the factory of that file and name, is what the file names; else none.

        A factory of the user's own gets numbers, truth values and None alone: a text may be a path.
        """
        if self.arch is None or self.arch.rsplit("/", 1)[-1] != arch.rsplit("/", 1)[-1]:
            return {}
        if not is_factory(arch):
            return dict(self.model_kwargs)
        kept = {name: value for name, value in self.model_kwargs.items() if isinstance(value, int | float | None)}
        if left := sorted(self.model_kwargs.keys() - kept.keys()):
            _logger.warning("%s: the file's arguments %.200s are not used; give them if they are meant", arch, left)
        return kept


def describe(metadata: Mapping[str, Any]) -> Description:
    """The description in a checkpoint's entries beside the weights: timm's ``args``, and ``arch``.

    Args:
        metadata: plain values by name, with ``args`` as a dict.
    """
    args = metadata.get("args")
    args = args if isinstance(args, dict) else {}
    mean, std = normalization_of(args)
    return Description(
        arch=named_arch(metadata, args),
        image_size=image_size_of(args),
        mean=mean,
        std=std,
        model_kwargs=kwargs_of(args.get("model_kwargs")),
    )


def named_arch(metadata: Mapping[str, Any], args: Mapping[str, Any]) -> str | None:
    """The architecture that a checkpoint names, first of all in timm's ``args``; else None."""
    names = [args.get("model"), *(metadata.get(key) for key in ("arch", "model_name", "model"))]
    return next((name for name in names if isinstance(name, str) and 0 < len(name) < 200), None)


def image_size_of(args: Mapping[str, Any]) -> int | None:
    """The side of square images in timm's ``input_size`` (C, H, W), else ``img_size``, else in ``model_kwargs``."""
    shape, kwargs = args.get("input_size"), args.get("model_kwargs")
    sizes = [shape[-1] if isinstance(shape, list | tuple) and len(shape) == 3 and shape[1] == shape[2] else None]
    sizes += [args.get("img_size"), kwargs.get("img_size") if isinstance(kwargs, dict) else None]
    return next((size for size in sizes if type(size) is int and 0 < size <= _LARGEST_SIDE), None)


def normalization_of(args: Mapping[str, Any]) -> tuple[tuple[float, ...] | None, tuple[float, ...] | None]:
    """``mean`` and ``std`` where both are there, in units of pixels in [0, 1]; else None twice."""
    mean, std = listed(args.get("mean")), listed(args.get("std"))
    if not mean or len(mean) != len(std) or not all(isinstance(value, int | float) for value in (*mean, *std)):
        return None, None
    return (None, None) if unit_problem(mean, std) else (tuple(map(float, mean)), tuple(map(float, std)))


def kwargs_of(given: Any) -> dict[str, Any]:
    """Arguments for an architecture from a file: of plain names, without those that are the user's or have a flag."""
    items = given.items() if isinstance(given, dict) else ()
    return {
        name: value
        for name, value in items
        if isinstance(name, str) and name.isidentifier() and name not in _FROM_FLAGS
    }


def listed(value: Any) -> list[Any]:
    """A number or several as a list; nothing of anything else."""
    if isinstance(value, int | float):
        return [value]
    return list(value) if isinstance(value, list | tuple) else []
