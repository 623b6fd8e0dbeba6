"""Attacks: pixels and labels in, adversarial pixels out."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .base import (
        Attack,
        Quantity,
        SecondVerdict,
        known_attacks,
        register_attack,
        require_adversarial,
        require_radius,
    )
    from .gradient import CW, FGSM, PGD
    from .inputs import gradient_error, require_input, require_outputs, require_pixels
    from .patch_fool import PatchFool, PatchFoolConfig, patchfool
    from .standard_auto_attack import AutoAttack

__all__ = [
    "CW",
    "FGSM",
    "PGD",
    "Attack",
    "AutoAttack",
    "PatchFool",
    "PatchFoolConfig",
    "Quantity",
    "SecondVerdict",
    "gradient_error",
    "known_attacks",
    "patchfool",
    "register_attack",
    "require_adversarial",
    "require_input",
    "require_outputs",
    "require_pixels",
    "require_radius",
]

if not TYPE_CHECKING:
    from ..utils import lazy_names

    __getattr__, __dir__ = lazy_names(__name__)
