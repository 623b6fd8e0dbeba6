"""Label files of flat image folders: val.txt, Kaggle's LOC_val_solution.csv, other CSVs of file and class."""

from __future__ import annotations

import csv
from collections.abc import Iterable
from pathlib import Path

from ..errors import DataError
from . import imagenet
from .image_folder import stem

NAMED = ("val.txt", "LOC_val_solution.csv")  # looked for first, in this order
_FILE_COLUMNS = {"imageid", "image_id", "image", "file", "filename", "file_name", "path", "name", "stem"}
_CLASS_COLUMNS = {"predictionstring", "label", "class", "class_id", "class_index", "index", "target", "wnid", "synset"}


def _class(text: str) -> int | None:
    """The class that a cell begins with: an index, or a WordNet id's; None if it says neither."""
    word = text.split()[0] if text.split() else ""
    return int(word) if word.isascii() and word.isdigit() else imagenet.wnid_index().get(word)


def _rows(path: Path) -> list[list[str]]:
    text = path.read_text(encoding="utf-8-sig")
    if path.suffix.lower() == ".csv":
        return [row for row in csv.reader(text.splitlines()) if row]
    return [line.split() for line in text.splitlines() if line.strip()]


def read_labels(path: Path) -> dict[str, int] | None:
    """Image stem -> class index (0-based) of a label file; None if it is another kind of file.

    A header may name the two columns; otherwise they are the first two. Of the class cell the
    first word counts (Kaggle's goes on with boxes).

    Raises:
        DataError: one image with two classes.
    """
    try:
        rows = _rows(path)
    except (OSError, UnicodeDecodeError, csv.Error):
        return None
    if not rows or len(rows[0]) < 2:
        return None
    files, classes = 0, 1
    if _class(rows[0][1]) is None:  # a header
        header = [cell.strip().lower() for cell in rows[0]]
        files = next((i for i, cell in enumerate(header) if cell in _FILE_COLUMNS), files)
        classes = next((i for i, cell in enumerate(header) if cell in _CLASS_COLUMNS and i != files), classes)
        rows = rows[1:]
    labels: dict[str, int] = {}
    for row in rows:
        label = _class(row[classes]) if len(row) > max(files, classes) else None
        if label is None:
            return None
        name = stem(row[files].strip().replace("\\", "/").rpartition("/")[2])
        if labels.setdefault(name, label) != label:
            raise DataError(f"{path}: expected one class an image, found {labels[name]} and {label} for {name}.")
    return labels


def find_labels(places: Iterable[Path], stems: set[str]) -> tuple[Path, dict[str, int]]:
    """The first label file in ``places`` that speaks of some of ``stems``, and its labels.

    Raises:
        DataError: there is none, or several CSVs of unknown name disagree.
    """
    places = list(places)
    for name in NAMED:
        for path in (place / name for place in places):
            labels = read_labels(path) if path.is_file() else None
            if labels and not stems.isdisjoint(labels):
                return path, labels
    fitting: list[tuple[Path, dict[str, int]]] = []
    for path in (path for place in places for path in sorted(place.glob("*.csv"))):
        labels = read_labels(path)
        if labels and not stems.isdisjoint(labels):
            fitting.append((path, labels))
    if not fitting:
        raise DataError(
            f"{places[0]}: expected class folders, or beside these {len(stems)} images a label file "
            f"({' or '.join(NAMED)}), found neither. Put one there, or sort the images into class folders."
        )
    first, labels = fitting[0]
    for other, others in fitting[1:]:
        if any(others.get(name, labels[name]) != labels[name] for name in stems & labels.keys()):
            raise DataError(f"{first} and {other}: expected the same labels in both, found others. Remove one.")
    return first, labels
