"""Folders of images in name only, and what their labels are."""

from __future__ import annotations

from pathlib import Path

from ns_easyrobust.data.image_list import ImageList


def fill(root: Path, *paths: str) -> Path:
    """Empty files: what they are called is all that a list looks at."""
    for path in paths:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).touch()
    return root


def labels_of(listed: ImageList) -> dict[str, int]:
    return dict(zip(listed.paths, listed.labels, strict=True))
