"""Connects this package to code it does not own: EasyRobust's training scripts and modules."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .companion_loss import nullspace_augmented
    from .launch import run_script
    from .registration import register

__all__ = [
    "nullspace_augmented",
    "register",
    "run_script",
]

if not TYPE_CHECKING:
    from ..utils import lazy_names

    __getattr__, __dir__ = lazy_names(__name__)
