"""Connects this package to code it does not own: EasyRobust's training scripts and modules."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .launch import run_script
    from .registration import register
    from .training_function import nullspace_augmented

__all__ = [
    "nullspace_augmented",
    "register",
    "run_script",
]

if not TYPE_CHECKING:
    from ..utils import lazy_names

    __getattr__, __dir__ = lazy_names(__name__)
