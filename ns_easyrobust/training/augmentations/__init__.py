"""Companion losses: the methods that ``--aug`` offers, each a class in a file here."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .base import Augmentation
    from .joined import JoinedAugmentation
    from .madry import Madry, MadrySettings
    from .negative_patches import NegativePatches, NegativeSettings
    from .noise_use import NoiseUse
    from .nullspace import NullspaceAugmentation
    from .pixel_noise import PixelNoise, PixelNoiseSettings
    from .registry import augmentations, register_augmentation
    from .relevance import RelevanceAugmentation, RelevanceSettings
    from .trades import Trades, TradesSettings

__all__ = [
    "Augmentation",
    "JoinedAugmentation",
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
    "Trades",
    "TradesSettings",
    "augmentations",
    "register_augmentation",
]

if not TYPE_CHECKING:
    from ...utils import lazy_names

    __getattr__, __dir__ = lazy_names(__name__)
