"""Label files of flat folders: val.txt, Kaggle's LOC_val_solution.csv, or a CSV of file and class."""

from __future__ import annotations

import csv
import io
import os
import re
from collections.abc import Iterable
from pathlib import Path

from ..errors import DataError
from ..utils import read_bounded
from . import imagenet
from .listing import list_folder, stem

NAMED = ("val.txt", "LOC_val_solution.csv")  # label files that are looked for first, in this order
_FILE_COLUMNS = {"imageid", "image_id", "image", "file", "filename", "file_name", "path", "name", "stem"}
_CLASS_COLUMNS = {"predictionstring", "label", "class", "class_id", "class_index", "index", "target", "wnid", "synset"}
_MOST_BYTES = 2**28  # of a label file; Kaggle's list of ImageNet's training set has a quarter


def _parse_class(text: str) -> int | None:
    """The class index that a cell begins with, as a number or a WordNet id; None if it begins with neither."""
    word = text.split()[0] if text.split() else ""
    return int(word) if re.fullmatch(r"[0-9]{1,9}", word) else imagenet.wnid_index().get(word)


def _read_rows(path: Path) -> list[list[str]]:
    content = read_bounded(path, _MOST_BYTES)
    lines = io.StringIO(content.decode("utf-8-sig", "surrogateescape"), newline=None)  # as Python decodes files' names
    if path.suffix.lower() == ".csv":
        return [row for row in csv.reader(lines) if any(cell.strip() for cell in row)]
    return [line.split() for line in lines if line.strip()]


def read_labels(path: Path) -> dict[str, int] | None:
    """Image stem -> class index (0-based) from a label file; None if it is not a label file.

    A header may name the two columns; otherwise they are the first two. Only the first word of
    the class cell counts (in Kaggle's file, boxes follow it).

    Raises:
        DataError: an image has two classes.
    """
    try:
        rows = _read_rows(path)
    except (OSError, csv.Error):
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


def _files_of(place: Path) -> list[str]:
    try:
        return list_folder(place)[1]
    except DataError:  # the folder above the images may be closed
        return []


def find_labels(places: Iterable[Path], stems: set[str]) -> tuple[Path, dict[str, int]]:
    """The first label file in the folders ``places`` that labels some of ``stems``, and its labels.

    Files named in ``NAMED`` come before any other CSV.

    Raises:
        DataError: there is none, or several CSVs of other names disagree on an image.
    """
    places = list(places)
    passed_over = []
    for name in NAMED:
        for path in (place / name for place in places):
            labels = read_labels(path) if os.path.isfile(path) else None
            if labels and not stems.isdisjoint(labels):
                return path, labels
            passed_over += [path] if os.path.lexists(path) else []
    candidates: list[tuple[Path, dict[str, int]]] = []
    for path in (place / name for place in places for name in _files_of(place) if name.lower().endswith(".csv")):
        labels = read_labels(path) if os.path.isfile(path) else None
        if labels and not stems.isdisjoint(labels):
            candidates.append((path, labels))
    if not candidates:
        unlike = f", and in {passed_over[0]} no list of them with one image and class a line" if passed_over else ""
        raise DataError(
            f"{places[0]}: expected class folders, or beside these {len(stems)} images a label file "
            f"({' or '.join(NAMED)}), found neither{unlike}. Put one there, or sort the images into class folders."
        )
    first, labels = candidates[0]
    for other, other_labels in candidates[1:]:
        if any(other_labels.get(name, labels[name]) != labels[name] for name in stems & labels.keys()):
            raise DataError(f"{first} and {other}: expected the same labels in both, found others. Remove one.")
    return first, labels
