"""``register()``: our evaluations and the training hook where EasyRobust's users look for them."""

from __future__ import annotations

from types import ModuleType
from typing import Any

from ..evaluation import easyrobust_api as evaluate
from ..training.augmentations import nullspace as augment
from . import companion_loss as companion

ADDED = (
    "evaluate_damagenet",
    "evaluate_imagenet_cw",
    "evaluate_imagenet_fgsm",
    "evaluate_imagenet_patchfool",
    "evaluate_imagenet_pgd",
)
HOOKS = {
    "NullspaceAugmentation": augment.NullspaceAugmentation,
    "add_nullspace_args": augment.add_nullspace_args,
    "nullspace_augmented": companion.nullspace_augmented,
}


def register() -> None:
    """Add what EasyRobust lacks to ``easyrobust.benchmarks`` and ``easyrobust.augmentations``; replace nothing.

    ``from easyrobust.benchmarks import *`` gives them too. Calling it again changes nothing.
    """
    import easyrobust.augmentations as augmentations
    import easyrobust.benchmarks as benchmarks

    _add(benchmarks, {name: getattr(evaluate, name) for name in ADDED})
    _add(augmentations, HOOKS)


def _add(host: ModuleType, names: dict[str, Any]) -> None:
    for name, value in names.items():
        if not hasattr(host, name):
            setattr(host, name, value)
    public = getattr(host, "__all__", None)
    if public is not None:
        host.__all__ = [*public, *(name for name in names if name not in public)]  # type: ignore[attr-defined]
