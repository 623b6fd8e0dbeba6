"""Photographs with masks of their foreground: from ImageNet-S's files, or by TokenCut from a model's own keys."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .mask_files import read_ids, write_mask
    from .masked_images import MaskedImage, MaskedImages, MaskedPair
    from .opening import open_masks
    from .sheet import write_sheet
    from .token_cut import token_cut

__all__ = [
    "MaskedImage",
    "MaskedImages",
    "MaskedPair",
    "open_masks",
    "read_ids",
    "token_cut",
    "write_mask",
    "write_sheet",
]

if not TYPE_CHECKING:
    from ...utils import lazy_names

    __getattr__, __dir__ = lazy_names(__name__)
