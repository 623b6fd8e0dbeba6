"""Attacks: pixels and labels in, adversarial pixels out."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .base import Attack, SecondVerdict
    from .gradient import CW, FGSM, PGD, AutoAttack, require_ten_outputs
    from .patch_fool import PatchFool, patchfool
    from .patch_fool_config import PatchFoolConfig

__all__ = [
    "CW",
    "FGSM",
    "PGD",
    "Attack",
    "AutoAttack",
    "PatchFool",
    "PatchFoolConfig",
    "SecondVerdict",
    "patchfool",
    "require_ten_outputs",
]

if not TYPE_CHECKING:
    from ..utils import lazy_names

    __getattr__, __dir__ = lazy_names(__name__)
