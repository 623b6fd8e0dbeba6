"""Registry of the augmentations that ``--aug`` can name."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .nullspace import NullspaceAugmentation

AUGMENTATIONS: dict[str, type[NullspaceAugmentation]] = {}  # by name; complete after augmentations()


def register_augmentation(name: str) -> Callable[[type[NullspaceAugmentation]], type[NullspaceAugmentation]]:
    """Class decorator: make an augmentation available as ``--aug NAME``."""

    def register(cls: type[NullspaceAugmentation]) -> type[NullspaceAugmentation]:
        AUGMENTATIONS[name] = cls
        return cls

    return register


def augmentations() -> dict[str, type[NullspaceAugmentation]]:
    """All augmentations by name: those of this folder's modules, which are imported, and any others registered."""
    package = importlib.import_module(__package__)
    for module in pkgutil.iter_modules(package.__path__):
        importlib.import_module(f"{__package__}.{module.name}")
    return AUGMENTATIONS


def augmentation_names() -> tuple[str, ...]:
    """The values that ``--aug`` accepts."""
    return ("none", *augmentations())
