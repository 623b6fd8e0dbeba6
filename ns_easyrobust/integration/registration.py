"""``register()`` makes this package's evaluations and training hook available in EasyRobust's own modules."""

from __future__ import annotations

from types import ModuleType
from typing import Any

from .. import evaluation
from ..models import register_small_models
from ..training import NullspaceAugmentation, add_nullspace_args
from ..utils import import_package
from .training_function import nullspace_augmented

ADDED_EVALUATIONS = (
    "evaluate_damagenet",
    "evaluate_imagenet_cw",
    "evaluate_imagenet_fgsm",
    "evaluate_imagenet_patchfool",
    "evaluate_imagenet_pgd",
)
TRAINING_HOOKS = {
    "NullspaceAugmentation": NullspaceAugmentation,
    "add_nullspace_args": add_nullspace_args,
    "nullspace_augmented": nullspace_augmented,
}


def register() -> None:
    """Add what EasyRobust lacks to ``easyrobust.benchmarks`` and ``easyrobust.augmentations``; replace nothing.

    ``from easyrobust.benchmarks import *`` then imports them too. Calling it again changes nothing.

    Raises:
        MissingPackageError: easyrobust is not installed.

    Example:
        >>> register()
        >>> import easyrobust.benchmarks
        >>> easyrobust.benchmarks.evaluate_imagenet_fgsm is evaluate_imagenet_fgsm
        True
    """
    augmentations = import_package("easyrobust.augmentations", "register()")
    benchmarks = import_package("easyrobust.benchmarks", "register()")
    register_small_models()
    _add(benchmarks, {name: getattr(evaluation, name) for name in ADDED_EVALUATIONS})
    _add(augmentations, TRAINING_HOOKS)


def _add(host: ModuleType, names: dict[str, Any]) -> None:
    for name, value in names.items():
        if not hasattr(host, name):
            setattr(host, name, value)
    public = getattr(host, "__all__", None)
    if public is not None:
        host.__all__ = [*public, *(name for name in names if name not in public)]  # type: ignore[attr-defined]
