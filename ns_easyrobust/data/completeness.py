"""Whether all folders of corrupted images hold as many images as they should."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from .corrupt_record import images_made
from .listing import first_few


def short_folders(root: str | Path, counts: Mapping[str, int]) -> str:
    """Which of the folders ``<corruption>/<severity>`` in ``root`` lack images, in words; "" if none does.

    Each should hold what its ``corrupt.json`` says; without that, as many as the largest.

    Args:
        counts: images in each folder, by its name.

    Example:
        >>> short_folders(data_dir / "imagenet-c", {"fog/5": 12, "contrast/5": 9})
        '1 of 2 folders have fewer than 12 images: contrast/5 (9)'
    """
    expected = images_made(root) or max(counts.values(), default=0)
    short = [f"{name} ({count})" for name, count in counts.items() if count < expected]
    if not short:
        return ""
    return f"{len(short)} of {len(counts)} folders have fewer than {expected} images: {first_few(short, 3)}"
