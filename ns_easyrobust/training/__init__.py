"""The finetuning run, and the companion losses that it may add."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .augmentations.base import Augmentation
    from .augmentations.flags import (
        add_noise_args,
        add_nullspace_args,
        augmentation_from_args,
        check_augmentation_args,
        chosen_names,
        config_from_args,
    )
    from .augmentations.joined import part_loss
    from .augmentations.madry import Madry, MadrySettings
    from .augmentations.negative_patches import NegativePatches, NegativeSettings
    from .augmentations.noise_use import NoiseUse
    from .augmentations.nullspace import NullspaceAugmentation
    from .augmentations.pixel_noise import PixelNoise, PixelNoiseSettings
    from .augmentations.registry import augmentation_names, register_augmentation
    from .augmentations.relevance import RelevanceAugmentation, RelevanceSettings
    from .augmentations.trades import Trades, TradesSettings
    from .costs import TrainingCost, training_cost
    from .image_flags import clean_forward_equivalents
    from .options import build_parser, defaults, parse_with
    from .recipes import recipe_path
    from .resume import MAY_CHANGE_ON_RESUME
    from .run_folder import kept_checkpoints
    from .sam import SamSettings, perturbed_weights, sam_from_args
    from .trainer import train

__all__ = [
    "MAY_CHANGE_ON_RESUME",
    "Augmentation",
    "Madry",
    "MadrySettings",
    "NegativePatches",
    "NegativeSettings",
    "NoiseUse",
    "NullspaceAugmentation",
    "PixelNoise",
    "PixelNoiseSettings",
    "RelevanceAugmentation",
    "RelevanceSettings",
    "SamSettings",
    "Trades",
    "TradesSettings",
    "TrainingCost",
    "add_noise_args",
    "add_nullspace_args",
    "augmentation_from_args",
    "augmentation_names",
    "build_parser",
    "check_augmentation_args",
    "chosen_names",
    "clean_forward_equivalents",
    "config_from_args",
    "defaults",
    "kept_checkpoints",
    "parse_with",
    "part_loss",
    "perturbed_weights",
    "recipe_path",
    "register_augmentation",
    "sam_from_args",
    "train",
    "training_cost",
]

if not TYPE_CHECKING:
    from ..utils import lazy_names

    __getattr__, __dir__ = lazy_names(__name__)
