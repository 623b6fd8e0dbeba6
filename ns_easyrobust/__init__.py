"""Nullspace-noise finetuning of vision transformers (arXiv:2403.10476) for EasyRobust.

The public names are listed in ``__all__``; importing the package does nothing else.
"""

__version__ = "0.1.0"

from .attacks.patch_fool import PatchFoolConfig, patchfool
from .evaluation.easyrobust_api import (
    evaluate_damagenet,
    evaluate_imagenet_a,
    evaluate_imagenet_autoattack,
    evaluate_imagenet_c,
    evaluate_imagenet_cw,
    evaluate_imagenet_fgsm,
    evaluate_imagenet_patchfool,
    evaluate_imagenet_pgd,
    evaluate_imagenet_r,
    evaluate_imagenet_sketch,
    evaluate_imagenet_v2,
    evaluate_imagenet_val,
    evaluate_objectnet,
    evaluate_stylized_imagenet,
)
from .integration.companion_loss import nullspace_augmented
from .integration.registration import register
from .models.checkpoints import load_model, save_model
from .models.vit import encoder_noise
from .nullspace.exact import patch_nullspace
from .nullspace.noise import Influence, Noise, NoiseConfig
from .nullspace.synthesis import measure, synthesize
from .training.augmentations.nullspace import NullspaceAugmentation, add_nullspace_args

__all__ = [
    "Influence",
    "Noise",
    "NoiseConfig",
    "NullspaceAugmentation",
    "PatchFoolConfig",
    "add_nullspace_args",
    "encoder_noise",
    "evaluate_damagenet",
    "evaluate_imagenet_a",
    "evaluate_imagenet_autoattack",
    "evaluate_imagenet_c",
    "evaluate_imagenet_cw",
    "evaluate_imagenet_fgsm",
    "evaluate_imagenet_patchfool",
    "evaluate_imagenet_pgd",
    "evaluate_imagenet_r",
    "evaluate_imagenet_sketch",
    "evaluate_imagenet_v2",
    "evaluate_imagenet_val",
    "evaluate_objectnet",
    "evaluate_stylized_imagenet",
    "load_model",
    "measure",
    "nullspace_augmented",
    "patch_nullspace",
    "patchfool",
    "register",
    "save_model",
    "synthesize",
]
