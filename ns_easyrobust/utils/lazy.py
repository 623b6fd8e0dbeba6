"""Lazy imports: importing this package, or running a command with ``--help``, does not load torch.

A package's ``__init__`` states under ``if TYPE_CHECKING:`` which module defines each of its names, for readers,
editors and mypy, and takes ``__getattr__`` and ``__dir__`` from :func:`lazy_names`. Modules that are imported to
define the commands' flags take ``np``, ``torch``, ``transforms`` and the other names of ``__all__`` from here.
"""

from __future__ import annotations

import ast
import importlib
import inspect
import pkgutil
import sys
from collections.abc import Callable
from types import ModuleType
from typing import TYPE_CHECKING, Any

__all__ = ["cv2", "dist", "lazy_names", "ndimage", "nn", "np", "timm", "torch", "transforms"]


def lazy_names(package: str) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """``__getattr__`` and ``__dir__`` (PEP 562) for ``package``, which import its names and folders on first use.

    The package's own ``if TYPE_CHECKING:`` block states where each name is defined; ``dir`` lists ``__all__``.
    """
    module = sys.modules[package]
    defining_module = {
        alias.asname or alias.name: statement.module
        for block in ast.parse(inspect.getsource(module)).body
        if isinstance(block, ast.If) and ast.unparse(block.test) == "TYPE_CHECKING"
        for statement in block.body
        if isinstance(statement, ast.ImportFrom)
        for alias in statement.names
    }

    folders = {file.name for file in pkgutil.iter_modules(module.__path__) if file.ispkg}

    def getter(name: str) -> Any:
        if name in folders:
            return importlib.import_module(f"{package}.{name}")
        if name not in defining_module:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        value = getattr(importlib.import_module(f".{defining_module[name]}", package), name)
        setattr(module, name, value)  # later look-ups do not reach this function
        return value

    return getter, lambda: sorted(module.__all__)


class _LazyModule(ModuleType):
    """Stand-in for the module of the same name, which is imported when an attribute is first used."""

    def __getattr__(self, name: str) -> Any:
        return getattr(importlib.import_module(self.__name__), name)


if TYPE_CHECKING:
    import cv2
    import numpy as np
    import timm
    import torch
    from scipy import ndimage
    from torch import distributed as dist
    from torch import nn
    from torchvision import transforms
else:
    np, timm, torch, dist, nn, transforms = map(
        _LazyModule, ("numpy", "timm", "torch", "torch.distributed", "torch.nn", "torchvision.transforms")
    )
    cv2, ndimage = map(_LazyModule, ("cv2", "scipy.ndimage"))
