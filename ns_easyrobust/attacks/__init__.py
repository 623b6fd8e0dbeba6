"""Attacks: pixels and labels in, adversarial pixels out."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .base import Attack, Quantity, SecondVerdict, known_attacks, register_attack, require_adversarial
    from .gradient import CW, FGSM, PGD
    from .inputs import require_input, require_outputs
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
    "known_attacks",
    "patchfool",
    "register_attack",
    "require_adversarial",
    "require_input",
    "require_outputs",
]

if not TYPE_CHECKING:
    from ..utils import lazy_names

    __getattr__, __dir__ = lazy_names(__name__)
