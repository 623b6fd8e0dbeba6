"""Nullspace-noise finetuning of vision transformers (arXiv:2403.10476) for EasyRobust.

The public names are listed in ``__all__``; importing the package does nothing else.
"""

__version__ = "0.1.0"

from .augment import NullspaceAugmentation, add_nullspace_args
from .checkpoints import load_model, save_model
from .evaluate import (
    evaluate_imagenet_c,
    evaluate_imagenet_cw,
    evaluate_imagenet_fgsm,
    evaluate_imagenet_val,
)
from .linear import patch_nullspace
from .noise import Influence, Noise, NoiseConfig
from .synthesis import measure, synthesize
from .vit import encoder_noise

__all__ = [
    "Influence",
    "Noise",
    "NoiseConfig",
    "NullspaceAugmentation",
    "add_nullspace_args",
    "encoder_noise",
    "evaluate_imagenet_c",
    "evaluate_imagenet_cw",
    "evaluate_imagenet_fgsm",
    "evaluate_imagenet_val",
    "load_model",
    "measure",
    "patch_nullspace",
    "save_model",
    "synthesize",
]
