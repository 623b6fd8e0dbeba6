"""Nullspace-noise finetuning of vision transformers (arXiv:2403.10476) for EasyRobust.

The public names are listed in ``__all__``; importing the package does nothing else.

The examples of their docstrings follow ``import torch`` and ``from ns_easyrobust import *``. They use

- ``model``, a ``vit_micro_patch8_32`` with its normalisation in front, trained to tell handwritten zeros from ones,
- ``images`` (8, 3, 32, 32) of them in [0, 1] with ``labels`` (8,), and ``loader``, a DataLoader of 40,
- ``imagenet_model``, which has ImageNet's 1000 classes,
- ``data_dir``, which holds EasyRobust's benchmark folders and, in ``val``, those 40 images.

``tests/test_examples.py`` makes these and runs the examples.
"""

from typing import TYPE_CHECKING

from . import errors

if TYPE_CHECKING:
    from .attacks import Attack, PatchFoolConfig, patchfool, register_attack
    from .data import Benchmark, register_benchmark
    from .evaluation import (
        Recorder,
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
        read_records,
    )
    from .integration import nullspace_augmented, register
    from .models import encoder_noise, load_model, save_model
    from .nullspace import (
        Influence,
        Noise,
        NoiseConfig,
        measure,
        patch_nullspace,
        register_solver,
        synthesize,
        valid_nullspace_noise,
    )
    from .report import ResultsTable
    from .training import NullspaceAugmentation, add_nullspace_args, register_augmentation

__version__ = "0.2.0"
__all__ = [
    "Attack",
    "Benchmark",
    "Influence",
    "Noise",
    "NoiseConfig",
    "NullspaceAugmentation",
    "PatchFoolConfig",
    "Recorder",
    "ResultsTable",
    "add_nullspace_args",
    "encoder_noise",
    "errors",
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
    "read_records",
    "register",
    "register_attack",
    "register_augmentation",
    "register_benchmark",
    "register_solver",
    "save_model",
    "synthesize",
    "valid_nullspace_noise",
]

if not TYPE_CHECKING:
    from .utils import lazy_names

    __getattr__, __dir__ = lazy_names(__name__)
