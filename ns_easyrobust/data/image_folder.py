"""What lies in an image folder: its folders and image files, in ImageFolder's order, without hidden ones."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from torchvision.datasets.folder import IMG_EXTENSIONS

from ..errors import DataError


def stem(name: str) -> str:
    """``name`` without the ending of an image file."""
    head, dot, ending = name.rpartition(".")
    return head if dot and f".{ending.lower()}" in IMG_EXTENSIONS else name


def is_image(name: str) -> bool:
    """Whether a file of this name is taken for an image; hidden files (macOS writes ``._x.jpg``) are not."""
    return name.lower().endswith(IMG_EXTENSIONS) and not name.startswith(".")


def list_folder(folder: str | Path) -> tuple[list[str], list[str]]:
    """Names of the folders and of the files in ``folder``, each sorted, without hidden ones.

    Raises:
        DataError: there is no such folder.
    """
    folders: list[str] = []
    files: list[str] = []
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                if not entry.name.startswith("."):
                    (folders if entry.is_dir() else files).append(entry.name)
    except OSError as error:
        raise DataError(
            f"{folder}: expected a folder of images, found none that can be read ({type(error).__name__}). "
            "Check the path."
        ) from error
    return sorted(folders), sorted(files)


def images_below(folder: str | Path, name: str) -> Iterator[str]:
    """Paths 'name/.../image', relative to ``folder``, of the images below ``folder/name``."""
    deeper, files = list_folder(f"{folder}/{name}")
    yield from (f"{name}/{file}" for file in files if is_image(file))
    for inner in deeper:
        yield from images_below(folder, f"{name}/{inner}")


def is_flat(folder: Path) -> bool:
    """Whether the images lie in ``folder`` itself; a few strays beside class folders do not count."""
    folders, files = list_folder(folder)
    return sum(map(is_image, files)) > len(folders)
