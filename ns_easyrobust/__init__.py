"""Nullspace-noise finetuning of vision transformers (arXiv:2403.10476) for EasyRobust.

The public names are listed in ``__all__``; importing the package does nothing else.
"""

__version__ = "0.1.0"

from .augment import NullspaceAugmentation, add_nullspace_args
from .checkpoints import load_model, save_model
from .linear import patch_nullspace
from .noise import Influence, Noise, NoiseConfig, measure, synthesize
from .vit import encoder_noise

__all__ = [
    "Influence",
    "Noise",
    "NoiseConfig",
    "NullspaceAugmentation",
    "add_nullspace_args",
    "encoder_noise",
    "load_model",
    "measure",
    "patch_nullspace",
    "save_model",
    "synthesize",
]
