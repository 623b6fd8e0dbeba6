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


def few_digits(digits_dir: Path, root: Path, count: int) -> Path:
    """``root`` with ``digits_dir``'s folders, but ``count`` validation images, not as many of each class."""
    root.mkdir()
    (root / "imagenet-val").symlink_to("val")
    for name in ("train", "imagenet-c"):
        (root / name).symlink_to(digits_dir / name)
    for path in sorted((digits_dir / "val").glob("*/*"), key=lambda path: path.name)[:count]:
        link = root / "val" / path.parent.name / path.name
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(path)
    return root
