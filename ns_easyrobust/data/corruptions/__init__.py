"""ImageNet-C's corruptions of images (arXiv:1903.12261), for images of any size; a file for each family of them."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .frost_pictures import FrostPictures
    from .registry import CORRUPTION_GROUPS, Corruption, corrupt, known_corruptions, register_corruption

__all__ = [
    "CORRUPTION_GROUPS",
    "Corruption",
    "FrostPictures",
    "corrupt",
    "known_corruptions",
    "register_corruption",
]

if not TYPE_CHECKING:
    from ...utils import lazy_names

    __getattr__, __dir__ = lazy_names(__name__)
