"""EasyRobust's evaluation folders as lists of images with the labels that a model's outputs mean.

EasyRobust labels by the order of the folders found, so a missing or an oddly named folder
silently shifts every label behind it. Here labels come from the names where they say the
class, and a folder whose labels cannot be known is refused.
"""

from __future__ import annotations

import hashlib
import logging
import os
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import Dataset
from torchvision.datasets.folder import IMG_EXTENSIONS

from ..errors import DataError, OptionError
from . import imagenet
from .image_folder import images_below, is_flat, is_image, list_folder, stem
from .label_files import find_labels
from .transforms import read_image

_logger = logging.getLogger(__name__)
_SIZES = 100  # files whose size stands for all: a look at each of 50,000 takes minutes on a network's disk


class NotAllThere(DataError):
    """RobustBench's images are not all in the folder."""


@dataclass(frozen=True, eq=False)
class ImageList(Dataset[tuple[Any, int]]):
    """Images of one evaluation; an item is (``transform`` of the image, label).

    Attributes:
        root: the folder.
        paths: relative to ``root``, with '/', distinct.
        labels: (n,) what a right prediction is: an output of the model, or its entry in ``answers``.
        outputs: how many the model has.
        transform: of the RGB image; None: the image itself.
        classes: the outputs that a prediction is taken from; None: all.
        answers: output -> label; an output that is not in it is wrong. None: output and label are the same.
        border: pixels cut off each side before ``transform``.
        labelled: where the labels come from, in words.
    """

    root: Path
    paths: tuple[str, ...]
    labels: tuple[int, ...]
    outputs: int
    transform: Any = None
    classes: tuple[int, ...] | None = None
    answers: Mapping[int, int] | None = None
    border: int = 0
    labelled: str = ""

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, item: int) -> tuple[Any, int]:
        image = read_image(f"{self.root}/{self.paths[item]}")  # pathlib takes longer than a small image
        if self.border:
            image = image.crop((self.border, self.border, image.width - self.border, image.height - self.border))
        return (image if self.transform is None else self.transform(image)), self.labels[item]

    def task(self) -> str:
        """A digest of what is asked of the images, and of the sizes of some of their files.

        Equal lists of paths may stand for other labels (a mended label file) or other files.
        """
        step = max(1, len(self) // _SIZES)
        sizes = [_size(self.root / path) for path in self.paths[::step]]
        answers = sorted(self.answers.items()) if self.answers is not None else None
        asked = (self.labels, self.classes, answers, self.border, sizes)
        return hashlib.sha256(repr(asked).encode()).hexdigest()

    def with_transform(self, transform: Any) -> ImageList:
        """The same images under another transform."""
        return replace(self, transform=transform)

    def take(self, items: Sequence[int]) -> ImageList:
        """The images at these positions, in this order."""
        paths = tuple(self.paths[i] for i in items)
        return replace(self, paths=paths, labels=tuple(self.labels[i] for i in items))

    def predictions_right(self, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """(B,) bool: whether the top-1 of ``logits`` (B, outputs) is right for ``labels`` (B,)."""
        if self.classes is None:
            predicted = logits.argmax(-1)
        else:
            members = torch.tensor(self.classes, device=logits.device)
            predicted = members[logits[:, members].argmax(-1)]
        if self.answers is not None:
            table = torch.tensor([self.answers.get(output, -1) for output in range(self.outputs)])
            predicted = table.to(logits.device)[predicted]
        return predicted == labels


def _size(path: Path) -> int:
    try:
        return os.stat(path).st_size
    except OSError as error:
        raise DataError(f"{path}: expected an image, found: {error.strerror}. Mend the link, or delete it.") from error


@dataclass(frozen=True)
class Subset:
    """A part of a list: all, the first ``n``, a random ``n``, or RobustBench's 5000 of the validation set."""

    kind: str = "all"
    n: int = 0
    seed: int = 0

    @classmethod
    def parse(cls, text: str) -> Subset:
        """From 'all', 'first:500', 'random:500', 'random:500:SEED' or 'robustbench'.

        Raises:
            OptionError: anything else.
        """
        if text in ("all", "robustbench"):
            return cls(text)
        found = re.fullmatch(r"(first):([1-9][0-9]*)|(random):([1-9][0-9]*)(?::([0-9]+))?", text, re.ASCII)
        if found is None or int(found[5] or 0) >= 2**63:
            raise OptionError(
                f"subset: expected all, first:N, random:N, random:N:SEED or robustbench with N >= 1, found {text!r}."
            )
        return cls(found[1] or found[3], int(found[2] or found[4]), int(found[5] or 0))

    def __str__(self) -> str:
        size = f":{self.n}" if self.n else ""
        return f"{self.kind}{size}{f':{self.seed}' if self.seed else ''}"

    def of(self, images: ImageList) -> ImageList:
        """This part of ``images``; a random part keeps the list's order, RobustBench's has its own.

        Raises:
            NotAllThere: RobustBench's images are not all there.
        """
        if self.kind == "robustbench":
            return images.take(_robustbench(images))
        if self.kind == "all" or self.n >= len(images):
            return images
        if self.kind == "first":
            return images.take(range(self.n))
        order = torch.randperm(len(images), generator=torch.Generator().manual_seed(self.seed))
        return images.take(sorted(order[: self.n].tolist()))


def _robustbench(images: ImageList) -> list[int]:
    """Positions of RobustBench's images: by class folder and file, in a flat folder by file."""
    wanted = [stem(name) for name in imagenet.robustbench_ids()]
    if not any("/" in path for path in images.paths):
        wanted = [name.split("/")[1] for name in wanted]
    position = {stem(path): index for index, path in enumerate(images.paths)}
    missing = [name for name in wanted if name not in position]
    if missing:
        raise NotAllThere(
            f"{images.root}: expected the {len(wanted)} images of RobustBench's list, found "
            f"{len(wanted) - len(missing)} of them (missing: {missing[0]}{', ...' if len(missing) > 1 else ''}). "
            "Use the whole ImageNet validation set, or another subset."
        )
    return [position[name] for name in wanted]


def folder_labels(root: Path, names: Sequence[str], outputs: int) -> dict[str, int] | None:
    """The class that each folder's name says; None where names say nothing and only their order counts.

    Raises:
        DataError: names that say an ImageNet class beside others that say none, or numbers that are none.
    """
    if outputs != imagenet.CLASSES:
        return None  # trained on a folder of its own: labels are the sorted order, whatever the names
    index = imagenet.wnid_index()
    strays = [name for name in names if name not in index]
    if len(strays) < len(names) / 2:
        if strays:
            raise DataError(
                f"{root}: expected only folders named by ImageNet's 1000 WordNet ids, found {len(strays)} others: "
                f"{', '.join(strays[:5])}{', ...' if len(strays) > 5 else ''}. Take them out of the folder."
            )
        return {name: index[name] for name in names}
    if not all(name.isascii() and name.isdigit() for name in names):
        return None
    numbers = {name: int(name) for name in names}
    if max(numbers.values()) >= outputs or len(set(numbers.values())) < len(names):
        raise DataError(
            f"{root}: expected folders named by distinct class indices 0 to {outputs - 1}, found "
            f"{max(numbers.values())} as the largest of {len(names)}. Rename the folders."
        )
    return numbers


def class_labels(root: Path, outputs: int) -> tuple[list[str], dict[str, int] | None]:
    """The class folders in ``root``, and the label of each where their names say it, else None.

    Raises:
        DataError: no folder, no class folders, or not one for each output where only their order counts.
    """
    names, _ = list_folder(root)
    if not names:
        raise DataError(f"{root}: expected one folder a class, found no folders. Check --data-dir.")
    labels = folder_labels(root, names, outputs)
    if labels is None and len(names) != outputs:
        raise DataError(
            f"{root}: expected one class folder for each of the model's {outputs} outputs, found {len(names)}. "
            "Labels follow the sorted folders, so they would be wrong."
        )
    return names, labels


def class_folders(root: str | Path, outputs: int, transform: Any = None) -> ImageList:
    """``root/<class>/**/<image>``, in ImageFolder's order.

    With 1000 outputs, WordNet ids and class indices ("7" or "0007") as names give the labels,
    so some classes may be absent. Other names are labelled by their sorted order, as in
    training, and there must be one for each output.

    Raises:
        DataError: no folder, no images, or class folders that do not give every label.
    """
    root = Path(root)
    names, labels = class_labels(root, outputs)
    found = {name: sorted(images_below(root, name), key=os.path.split) for name in names}
    empty = [name for name in names if not found[name]]
    if labels is None and empty:
        raise DataError(
            f"{root}: expected images in every class folder, found {len(empty)} without: "
            f"{', '.join(empty[:5])}{', ...' if len(empty) > 5 else ''}. Labels would shift; fill or remove them."
        )
    labelled = "by the order of the folders" if labels is None else f"by {'index' if names[0].isdigit() else 'wnid'}"
    labels = labels or {name: label for label, name in enumerate(names)}
    pairs = [(path, labels[name]) for name in names for path in found[name]]
    return _image_list(root, pairs, outputs, transform, labelled)


def _image_list(root: Path, pairs: Sequence[tuple[str, int]], outputs: int, transform: Any, labelled: str) -> ImageList:
    if not pairs:
        raise DataError(f"{root}: expected images, found none ({', '.join(IMG_EXTENSIONS)}).")
    paths, labels = zip(*pairs, strict=True)
    return ImageList(root, paths, labels, outputs, transform, labelled=labelled)


def _needs_imagenet(root: str | Path, outputs: int) -> None:
    if outputs != imagenet.CLASSES:
        raise DataError(f"{root}: expected a model with ImageNet's 1000 outputs for this set, found {outputs}.")


def _among(images: ImageList, classes: tuple[int, ...], title: str) -> ImageList:
    outside = sorted(set(images.labels) - set(classes))
    if outside:
        raise DataError(
            f"{images.root}: expected only {title}'s {len(classes)} classes, found {len(outside)} others: "
            f"{', '.join(imagenet.wnids()[c] for c in outside[:5])}{', ...' if len(outside) > 5 else ''}."
        )
    return replace(images, classes=classes)


def imagenet_a(root: str | Path, outputs: int, transform: Any = None) -> ImageList:
    """ImageNet-A: predictions are taken from its 200 classes. Errors as :func:`class_folders`."""
    _needs_imagenet(root, outputs)
    return _among(class_folders(root, outputs, transform), imagenet.imagenet_a_classes(), "ImageNet-A")


def imagenet_r(root: str | Path, outputs: int, transform: Any = None) -> ImageList:
    """ImageNet-R: predictions are taken from its 200 classes. Errors as :func:`class_folders`."""
    _needs_imagenet(root, outputs)
    return _among(class_folders(root, outputs, transform), imagenet.imagenet_r_classes(), "ImageNet-R")


def objectnet(root: str | Path, outputs: int, transform: Any = None) -> ImageList:
    """ObjectNet's images of classes that ImageNet has, without their red border of 2 pixels (EasyRobust's way).

    Labels are the place of the folder among all 313; a prediction is any of 1000 outputs.

    Raises:
        DataError: not all 313 folders are there, no images, or a model of other than 1000 outputs.
    """
    root = Path(root)
    _needs_imagenet(root, outputs)
    names, _ = list_folder(root)
    if len(names) != imagenet.OBJECTNET_FOLDERS:
        raise DataError(
            f"{root}: expected all {imagenet.OBJECTNET_FOLDERS} folders of ObjectNet, found {len(names)}. "
            "Labels follow the sorted folders, so they would be wrong."
        )
    answers = imagenet.objectnet_classes()
    kept: Collection[int] = set(answers.values())
    pairs = [
        (path, label)
        for label, name in enumerate(names)
        if label in kept
        for path in sorted(images_below(root, name), key=os.path.split)
    ]
    labelled = f"by the order of the {len(names)} folders"
    return replace(_image_list(root, pairs, outputs, transform, labelled), answers=answers, border=2)


def imagenet_val(root: str | Path, outputs: int, transform: Any = None) -> ImageList:
    """The validation set: class folders, or a flat folder and a label file in it or beside it.

    The label file is val.txt, Kaggle's LOC_val_solution.csv, or a CSV of file and class (index
    or WordNet id).

    Raises:
        DataError: as :func:`class_folders`; for a flat folder: no label file, an image without
            a label, or a label that is none of the outputs.
    """
    return _folders_or_flat(Path(root), Path(root), outputs, transform)


def damagenet(root: str | Path, outputs: int, transform: Any = None) -> ImageList:
    """DamageNet, in ``root`` or ``root/val``: class folders, or flat images and a label file such as val.txt.

    Files are matched by stem: the labels speak of .JPEG, the images are .png.
    Errors as :func:`imagenet_val`.
    """
    root = Path(root)
    inner = root / "val"
    return _folders_or_flat(root, inner if inner.is_dir() else root, outputs, transform)


def _folders_or_flat(root: Path, place: Path, outputs: int, transform: Any) -> ImageList:
    if not is_flat(place):
        return class_folders(place, outputs, transform)
    names = [name for name in list_folder(place)[1] if is_image(name)]
    source, labels = find_labels(dict.fromkeys((place, root, root.parent)), {stem(name) for name in names})
    unlabelled = [name for name in names if stem(name) not in labels]
    outside = [name for name in names if not 0 <= labels.get(stem(name), 0) < outputs]
    for problem, found in (("without a label", unlabelled), (f"with a label outside 0 to {outputs - 1}", outside)):
        if found:
            raise DataError(
                f"{place}: expected a label in {source.name} for each of {len(names)} images, "
                f"found {len(found)} {problem}, the first {found[0]}."
            )
    if len(labels) > len(names):
        _logger.warning("%s: %d images for the %d labels of %s", place, len(names), len(labels), source)
    pairs = [(name, labels[stem(name)]) for name in names]
    return _image_list(place, pairs, outputs, transform, f"by {source.name}")
