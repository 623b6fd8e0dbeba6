"""Image folders: listing and reading their images, labels from folder names or a label file, and datasets."""

from __future__ import annotations

import csv
import logging
import os
import warnings
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image, UnidentifiedImageError

from ..errors import DataError
from ..utils import torch
from . import imagenet

if TYPE_CHECKING:
    from torchvision.datasets import ImageFolder

_logger = logging.getLogger(__name__)
IMAGE_ENDINGS = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")  # torchvision's


def stem(name: str) -> str:
    """``name`` without its extension, if that is an image file's."""
    head, dot, ending = name.rpartition(".")
    return head if dot and f".{ending.lower()}" in IMAGE_ENDINGS else name


def is_image(name: str) -> bool:
    """Whether a file of this name counts as an image; hidden files (macOS writes ``._x.jpg``) do not."""
    return name.lower().endswith(IMAGE_ENDINGS) and not name.startswith(".")


def list_folder(folder: str | Path) -> tuple[list[str], list[str]]:
    """Names of the folders and of the files in ``folder``, each sorted, without hidden ones.

    Raises:
        DataError: ``folder`` is missing or cannot be read.
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
    """Paths 'name/.../image', relative to ``folder``, of all images below ``folder/name``."""
    subfolders, files = list_folder(f"{folder}/{name}")
    yield from (f"{name}/{file}" for file in files if is_image(file))
    for subfolder in subfolders:
        yield from images_below(folder, f"{name}/{subfolder}")


def is_flat(folder: Path) -> bool:
    """Whether the images are in ``folder`` itself; a few stray ones next to class folders do not count."""
    folders, files = list_folder(folder)
    return sum(map(is_image, files)) > len(folders)


def read_image(path: str) -> Image.Image:
    """The image as RGB.

    Raises:
        DataError: the file is not an image that can be decoded.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # dozens of ImageNet's files have malformed EXIF data
            with Image.open(path) as image:
                return image.convert("RGB")
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError) as error:
        raise DataError(
            f"{path}: expected an image, found one that cannot be decoded ({type(error).__name__}). "
            "Replace the file or take it out of the folder."
        ) from error


def open_image_folder(root: str | Path, transform: Any = None) -> ImageFolder:
    """``root/<class>/<image>`` as a dataset of (image, label); labels follow the sorted class names.

    Raises:
        DataError: ``root`` is missing or has no class folders, or a class has no images.
    """
    from torchvision.datasets import ImageFolder

    root = Path(root)
    if not root.is_dir():
        raise DataError(f"{root}: expected a folder with one folder a class, found nothing. Check the path.")
    classes = sorted(entry for entry in root.iterdir() if entry.is_dir())
    if not classes:
        raise DataError(f"{root}: expected one folder a class, found no folders. Check the path.")
    try:
        return ImageFolder(str(root), transform=transform, loader=read_image)
    except FileNotFoundError:  # torchvision's own message takes several lines
        empty = [c.name for c in classes if not any(p.suffix.lower() in IMAGE_ENDINGS for p in c.rglob("*"))]
        raise DataError(
            f"{root}: expected images in every class folder, found {len(empty)} without: "
            f"{', '.join(empty[:5])}{', ...' if len(empty) > 5 else ''}. Labels would shift; fill or remove them."
        ) from None


def check_classes(dataset: ImageFolder, num_classes: int) -> None:
    """Raise DataError unless ``dataset`` has ``num_classes`` class folders."""
    if len(dataset.classes) != num_classes:
        raise DataError(
            f"{dataset.root}: expected {num_classes} class folders for num_classes={num_classes}, "
            f"found {len(dataset.classes)}. Pass num_classes={len(dataset.classes)} or another folder."
        )


class FolderView:
    """The items ``indices`` of an image folder under ``transform``, so that one folder can be used in two ways.

    Args:
        replace_bad: replace an image that cannot be decoded by the next that can; else raise DataError.

    Attributes:
        replaced: (images in the folder,) uint8, 1 where an image was replaced, by any data worker.
    """

    def __init__(
        self, dataset: ImageFolder, indices: Sequence[int], transform: Any, *, replace_bad: bool = False
    ) -> None:
        self.dataset, self.indices, self.transform = dataset, list(indices), transform
        self.replace_bad, self.replaced = replace_bad, torch.zeros(len(dataset), dtype=torch.uint8).share_memory_()

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, item: int) -> tuple[Any, int]:
        for offset in range(len(self)):
            index = self.indices[(item + offset) % len(self)]
            path, label = self.dataset.samples[index]
            try:
                return self.transform(self.dataset.loader(path)), label
            except DataError as error:
                if not self.replace_bad:
                    raise
                if not self.replaced[index]:
                    _logger.warning("%s Took the next one.", error.line)
                self.replaced[index] = 1
        raise DataError(f"{self.dataset.root}: expected images, found none that can be decoded. Mend the folder.")


NAMED = ("val.txt", "LOC_val_solution.csv")  # label files that are looked for first, in this order
_FILE_COLUMNS = {"imageid", "image_id", "image", "file", "filename", "file_name", "path", "name", "stem"}
_CLASS_COLUMNS = {"predictionstring", "label", "class", "class_id", "class_index", "index", "target", "wnid", "synset"}


def _parse_class(text: str) -> int | None:
    """The class index that a cell begins with, as a number or a WordNet id; None if it begins with neither."""
    word = text.split()[0] if text.split() else ""
    return int(word) if word.isascii() and word.isdigit() else imagenet.wnid_index().get(word)


def _read_rows(path: Path) -> list[list[str]]:
    text = path.read_text(encoding="utf-8-sig")
    if path.suffix.lower() == ".csv":
        return [row for row in csv.reader(text.splitlines()) if row]
    return [line.split() for line in text.splitlines() if line.strip()]


def read_labels(path: Path) -> dict[str, int] | None:
    """Image stem -> class index (0-based) from a label file; None if it is not a label file.

    A header may name the two columns; otherwise they are the first two. Only the first word of
    the class cell counts (in Kaggle's file, boxes follow it).

    Raises:
        DataError: an image has two classes.
    """
    try:
        rows = _read_rows(path)
    except (OSError, UnicodeDecodeError, csv.Error):
        return None
    if not rows or len(rows[0]) < 2:
        return None
    file_column, class_column = 0, 1
    if _parse_class(rows[0][1]) is None:  # a header
        header = [cell.strip().lower() for cell in rows[0]]
        file_column = next((i for i, cell in enumerate(header) if cell in _FILE_COLUMNS), file_column)
        class_column = next(
            (i for i, cell in enumerate(header) if cell in _CLASS_COLUMNS and i != file_column), class_column
        )
        rows = rows[1:]
    labels: dict[str, int] = {}
    for row in rows:
        label = _parse_class(row[class_column]) if len(row) > max(file_column, class_column) else None
        if label is None:
            return None
        name = stem(row[file_column].strip().replace("\\", "/").rpartition("/")[2])
        if labels.setdefault(name, label) != label:
            raise DataError(f"{path}: expected one class an image, found {labels[name]} and {label} for {name}.")
    return labels


def find_labels(places: Iterable[Path], stems: set[str]) -> tuple[Path, dict[str, int]]:
    """The first label file in the folders ``places`` that labels some of ``stems``, and its labels.

    Files named in ``NAMED`` come before any other CSV.

    Raises:
        DataError: there is none, or several CSVs of other names disagree on an image.
    """
    places = list(places)
    for name in NAMED:
        for path in (place / name for place in places):
            labels = read_labels(path) if path.is_file() else None
            if labels and not stems.isdisjoint(labels):
                return path, labels
    candidates: list[tuple[Path, dict[str, int]]] = []
    for path in (path for place in places for path in sorted(place.glob("*.csv"))):
        labels = read_labels(path)
        if labels and not stems.isdisjoint(labels):
            candidates.append((path, labels))
    if not candidates:
        raise DataError(
            f"{places[0]}: expected class folders, or beside these {len(stems)} images a label file "
            f"({' or '.join(NAMED)}), found neither. Put one there, or sort the images into class folders."
        )
    first, labels = candidates[0]
    for other, other_labels in candidates[1:]:
        if any(other_labels.get(name, labels[name]) != labels[name] for name in stems & labels.keys()):
            raise DataError(f"{first} and {other}: expected the same labels in both, found others. Remove one.")
    return first, labels
