"""Listing image folders: what counts as an image, a class folder, or neither; one rule for training and evaluation."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from ..errors import DataError

IMAGE_ENDINGS = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")  # torchvision's
# Folders that systems and file servers leave among a user's: thumbnails, bins, parts of archives.
_SYSTEM_FOLDERS = frozenset(
    ("@eadir", "#recycle", "__macosx", "$recycle.bin", "lost+found", "system volume information")
)
_MOST_FOLDERS = 100_000  # links to shared folders can multiply a few to billions


def stem(name: str) -> str:
    """``name`` without its extension, if that is an image file's."""
    head, dot, ending = name.rpartition(".")
    return head if dot and f".{ending.lower()}" in IMAGE_ENDINGS else name


def is_hidden(name: str) -> bool:
    """Whether a file or folder of this name is left out everywhere: ``.ipynb_checkpoints``, ``._x.png``, ``@eaDir``."""
    return name.startswith(".") or name.lower() in _SYSTEM_FOLDERS


def is_image(name: str) -> bool:
    """Whether a file of this name counts as an image; hidden files (macOS writes ``._x.jpg``) do not."""
    return name.lower().endswith(IMAGE_ENDINGS) and not is_hidden(name)


def list_folder(folder: str | Path, *, hidden: bool = False) -> tuple[list[str], list[str]]:
    """Names of the folders and of the files in ``folder``, each sorted; hidden ones only if asked.

    Raises:
        DataError: ``folder`` is missing or cannot be read.
    """
    folders: list[str] = []
    files: list[str] = []
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                if hidden or not is_hidden(entry.name):
                    (folders if _is_folder(entry) else files).append(entry.name)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise DataError(
            f"{folder}: expected a folder of images, found none that can be read ({reason}). Check the path."
        ) from error
    return sorted(folders), sorted(files)


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link that leads in a circle, or where one may not look: whoever opens it says so
        return False


def walk(root: str | Path, *, everything: bool = False) -> Iterator[tuple[str, list[str], list[str]]]:
    """Each folder below ``root``, links followed: its path relative to ``root`` ("" first), its folders and its files.

    As with ``os.walk``, what the caller removes from the list of folders is not visited.

    Args:
        everything: list hidden entries too, and pass over folders that cannot be read and links that lead back.

    Raises:
        DataError: a folder cannot be read, a link leads back to a folder around it, or there are more than 100,000.
    """
    waiting: list[tuple[str, frozenset[tuple[int, int]]]] = [("", frozenset())]
    visited = 0
    while waiting:
        relative, around = waiting.pop()
        path = f"{root}/{relative}" if relative else str(root)
        visited += 1
        try:
            folders, files = list_folder(path, hidden=everything)
            itself = _identity(path)
            if itself in around or visited > _MOST_FOLDERS:
                found = "a link back to a folder around it" if itself in around else f"over {_MOST_FOLDERS} folders"
                raise DataError(f"{path}: expected folders of images, found {found}. Remove the link.")
        except DataError:
            if everything and visited <= _MOST_FOLDERS:
                continue
            raise
        yield relative, folders, files
        waiting += [(f"{relative}/{name}" if relative else name, around | {itself}) for name in reversed(folders)]


def _identity(folder: str) -> tuple[int, int]:
    try:
        status = os.stat(folder)
    except OSError as error:  # removed just now
        raise DataError(f"{folder}: expected a folder of images, found none ({error.strerror}).") from error
    return status.st_dev, status.st_ino


def images_below(folder: str | Path, name: str) -> Iterator[str]:
    """Paths 'name/.../image', relative to ``folder``, of all images below ``folder/name``; errors as :func:`walk`."""
    for relative, _, files in walk(f"{folder}/{name}"):
        prefix = f"{name}/{relative}" if relative else name
        yield from (f"{prefix}/{file}" for file in files if is_image(file))


def sorted_images_below(folder: str | Path, name: str) -> list[str]:
    """:func:`images_below` in the order of torchvision's ImageFolder: by folder, then by file."""
    return sorted(images_below(folder, name), key=os.path.split)


def is_flat(folder: Path) -> bool:
    """Whether the images are in ``folder`` itself; a few stray ones next to class folders do not count."""
    folders, files = list_folder(folder)
    return sum(map(is_image, files)) > len(folders)


def first_few(names: list[str], most: int = 5) -> str:
    """The first ``most`` of ``names``, comma-separated."""
    return ", ".join(names[:most]) + (", ..." if len(names) > most else "")
