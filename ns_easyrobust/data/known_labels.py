"""What names say of labels: the classes of folders, and those that ImageNet's files state, to compare labels with."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from pathlib import Path

from ..errors import DataError
from . import imagenet
from .listing import first_few, list_folder, stem


class OtherClasses(DataError):
    """An evaluation set of other classes than the model's."""


def folder_labels(root: Path, names: Sequence[str], outputs: int) -> dict[str, int] | None:
    """The class that each folder's name identifies; None where names identify none and only their order counts.

    Raises:
        DataError: most names are WordNet ids but some are not, or numbers are not distinct class indices.
    """
    if outputs != imagenet.CLASSES:
        return None  # trained on another dataset: labels follow the sorted order, whatever the names
    index = imagenet.wnid_index()
    strays = [name for name in names if name not in index]
    if len(strays) < len(names) / 2:
        if strays:
            raise DataError(
                f"{root}: expected only folders named by ImageNet's 1000 WordNet ids, found {len(strays)} others: "
                f"{first_few(strays)}. Take them out of the folder."
            )
        return {name: index[name] for name in names}
    if not all(re.fullmatch("[0-9]{1,9}", name) for name in names):
        return None
    numbers = {name: int(name) for name in names}
    if max(numbers.values()) >= outputs or len(set(numbers.values())) < len(names):
        from_one = " They seem to count from 1." if sorted(numbers.values()) == list(range(1, outputs + 1)) else ""
        raise DataError(
            f"{root}: expected folders named by distinct class indices 0 to {outputs - 1}, found "
            f"{max(numbers.values())} as the largest of {len(names)}.{from_one} Rename the folders."
        )
    return numbers


def class_labels(root: Path, outputs: int) -> tuple[list[str], dict[str, int] | None]:
    """The class folders in ``root``, and the label of each if their names identify it, else None.

    Raises DataError for no such folder, no class folders, or not one for each output where only their order counts; and
    if ``train/`` beside ``root`` says that these are other classes than the model's, or in another order.
    """
    names, files = list_folder(root)
    if not names:
        raise DataError(f"{root}: expected one folder a class, found no folders. Check the path.")
    if outputs == imagenet.CLASSES and (broken := [name for name in files if name in imagenet.wnid_index()]):
        raise DataError(f"{root}: expected class folders, found files or broken links: {first_few(broken)}. Mend them.")
    labels = folder_labels(root, names, outputs)
    if labels is None and len(names) != outputs:
        raise OtherClasses(
            f"{root}: expected one class folder for each of the model's {outputs} outputs, found {len(names)}. "
            "Labels follow the sorted folders, so they would be wrong."
        )
    train = root.parent / "train"
    if labels is None:
        require_names_of(train, root, names)
    elif names[0].isdigit() and 0 < len(own := _class_names(train)) <= outputs / 2 and all(map(str.isdigit, own)):
        raise OtherClasses(
            f"{root}: expected classes of the model's {outputs} outputs, found numbers of a dataset of its own: "
            f"{train} holds {len(own)} classes. Evaluate a model of {len(own)} outputs."
        )
    return names, labels


def require_names_of(other: Path, root: Path, names: Sequence[str]) -> None:
    """Raise DataError unless the class folders ``names`` in ``root``, labelled by their order, are those of ``other``.

    Nothing is known from an ``other`` that is missing, holds no class folders, or another number of them.
    """
    expected = _class_names(other)
    if len(expected) == len(names) and set(expected) != set(names):
        raise DataError(
            f"{root}: expected the class folders of {other}, since their order gives the labels, found "
            f"{first_few(sorted(set(names) - set(expected)))} in place of "
            f"{first_few(sorted(set(expected) - set(names)))}. Rename them."
        )


def _class_names(folder: Path) -> list[str]:
    return list_folder(folder)[0] if os.path.isdir(folder) else []


@cache
def _robustbench_classes() -> Mapping[str, int]:
    """Stem -> class of RobustBench's 5000 images of the validation set; DamageNet's and others' bear the same stems."""
    pairs = (name.split("/") for name in imagenet.robustbench_ids())
    return {stem(file): imagenet.wnid_index()[wnid] for wnid, file in pairs}


def class_in_name(path: str) -> int | None:
    """The class (0 to 999) that an ImageNet file's name states, or None.

    It is one of RobustBench's images, or has a WordNet id in front (``n01440764_10026.JPEG``) or, as in Hugging Face's
    copy of the validation set, at the end (``ILSVRC2012_val_00000293_n01440764.JPEG``).
    """
    name, index = stem(path.rpartition("/")[2]), imagenet.wnid_index()
    known = _robustbench_classes().get(name)
    if known is None and "_" in name:
        known = index.get(name.partition("_")[0])
        if known is None and name.startswith("ILSVRC2012_"):
            known = index.get(name.rpartition("_")[2])
    return known


def contradiction(pairs: Iterable[tuple[str, int]]) -> str | None:
    """What is wrong with labels of ImageNet's 1000 classes, in words; None if no file's name contradicts its label.

    Args:
        pairs: path of each image, and its label.
    """
    stated = [(path, label, known) for path, label in pairs if (known := class_in_name(path)) is not None]
    wrong = [(path, label, known) for path, label, known in stated if label != known]
    if not wrong:
        return None
    path, label, known = wrong[0]
    return (
        f"expected the classes that the files' names state, found another for {len(wrong)} of {len(stated)}, "
        f"the first {path}: {label}, not {known} ({imagenet.wnids()[known]}). {_cause(wrong, len(stated))}"
    )


def _cause(wrong: list[tuple[str, int, int]], stated: int) -> str:
    if len(wrong) < stated / 2:
        return "Correct these labels."
    if all(label == known + 1 for _, label, known in wrong):
        return "These count from 1: subtract 1."
    labels_by_class: dict[int, set[int]] = {}
    for _, label, known in wrong:
        labels_by_class.setdefault(known, set()).add(label)
    labels = [label for of_class in labels_by_class.values() for label in of_class]
    if len(labels) == len(set(labels)) == len(labels_by_class):
        return (
            "These are classes in another order, such as the ids of ILSVRC2012's devkit, which also count from 1: "
            "give each the position of its WordNet id among the sorted 1000."
        )
    return "These may be labels of other images, as after a shift of the lines."


def require_known_classes(root: Path, pairs: Iterable[tuple[str, int]], labelled: str) -> None:
    """Raise DataError if a file's name contradicts its label; one is enough, for the released sets have none.

    Args:
        labelled: where the labels come from, in words.
    """
    problem = contradiction(pairs)
    if problem is not None:
        raise DataError(f"{root}, labelled {labelled}: {problem}")
