"""The finetuning run, and the companion losses that it may add."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .augmentations.base import Augmentation
    from .augmentations.flags import (
        add_noise_args,
        add_nullspace_args,
        augmentation_from_args,
        chosen_names,
        config_from_args,
        forward_equivalents,
    )
    from .augmentations.joined import part_loss
    from .augmentations.nullspace import NullspaceAugmentation
    from .augmentations.registry import augmentation_names, register_augmentation
    from .image_flags import clean_forward_equivalents
    from .options import build_parser, parse_with
    from .recipes import recipe_path
    from .sam import SamSettings, perturbed_weights, sam_from_args
    from .trainer import train

__all__ = [
    "Augmentation",
    "NullspaceAugmentation",
    "SamSettings",
    "add_noise_args",
    "add_nullspace_args",
    "augmentation_from_args",
    "augmentation_names",
    "build_parser",
    "chosen_names",
    "clean_forward_equivalents",
    "config_from_args",
    "forward_equivalents",
    "parse_with",
    "part_loss",
    "perturbed_weights",
    "recipe_path",
    "register_augmentation",
    "sam_from_args",
    "train",
]

if not TYPE_CHECKING:
    from ..utils import lazy_names

    __getattr__, __dir__ = lazy_names(__name__)
