"""Registry of the augmentations that ``--aug`` can name."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from ...utils import Registry

if TYPE_CHECKING:
    from .base import Augmentation

AUGMENTATIONS: Registry[type[Augmentation]] = Registry("augmentation", __package__)


def register_augmentation(name: str) -> Callable[[type[Augmentation]], type[Augmentation]]:
    """Class decorator: make an augmentation available as ``--aug NAME``.

    Raises:
        OptionError: the name is taken.

    Example:
        >>> from dataclasses import replace
        >>> @register_augmentation("half")
        ... class HalfNoise(NullspaceAugmentation):
        ...     def make_noise(self):
        ...         noise = super().make_noise()
        ...         return self.measured_anew(replace(noise, value=noise.value / 2))
        >>> kinds, config = (HalfNoise, NullspaceAugmentation), NoiseConfig(max_steps=5)
        >>> half, whole = (kind(model, loader, config).refresh().norm for kind in kinds)
        >>> round(half / whole, 3)
        0.5
    """
    AUGMENTATIONS.require_name(name)

    def register(cls: type[Augmentation]) -> type[Augmentation]:
        cls.name, cls.prefix = name, cls.prefix or f"{name}-"
        AUGMENTATIONS.add(name, cls, f"{cls.__module__}.{cls.__qualname__}")
        return cls

    return register


def augmentations() -> dict[str, type[Augmentation]]:
    """Every augmentation by name: those of this folder's files, and others that were registered."""
    return AUGMENTATIONS.complete()


def augmentation_names() -> tuple[str, ...]:
    """The values that ``--aug`` accepts."""
    return ("none", *augmentations())
