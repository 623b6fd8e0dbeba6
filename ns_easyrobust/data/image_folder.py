"""Folders with one subfolder a class as datasets for training, and views of them."""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

from PIL import Image

from ..errors import DataError
from ..utils import torch
from . import imagenet
from .image_reading import read_image
from .known_labels import contradiction
from .listing import first_few, list_folder, sorted_images_below

_logger = logging.getLogger(__name__)


class LabelledImages(Protocol):
    """A set of images with labels that an index finds: :class:`ClassFolders`, or a set by name."""

    root: str  # for messages
    classes: list[str]
    targets: list[int]

    def __len__(self) -> int: ...

    def read(self, index: int) -> Image.Image:
        """Image ``index`` as 8-bit RGB."""


class ClassFolders:
    """The images ``root/<class>/**/<image>`` as a dataset of (image, label); labels follow the sorted class names.

    What torchvision's ImageFolder is, by the rules of this package: hidden folders are no classes, hidden files no
    images, and images are read by :func:`~ns_easyrobust.data.image_reading.read_image`.

    Attributes:
        classes: names of the class folders, sorted; their positions are the labels (``class_to_idx``).
        samples: (path, label) of each image; ``targets``: the labels alone.
        loader: reads a path as an RGB image.

    Raises:
        DataError: ``root`` is missing or has no class folders, or a class has no images.
    """

    def __init__(self, root: str | Path, transform: Any = None) -> None:
        self.root, self.transform, self.loader = str(Path(root)), transform, read_image
        self.classes, _ = list_folder(root)
        if not self.classes:
            raise DataError(f"{root}: expected one folder a class, found no folders. Check the path.")
        self.class_to_idx = {name: label for label, name in enumerate(self.classes)}
        paths = {name: sorted_images_below(root, name) for name in self.classes}
        if empty := [name for name in self.classes if not paths[name]]:
            raise DataError(
                f"{root}: expected images in every class folder, found {len(empty)} without: {first_few(empty)}. "
                "Labels would shift; fill or remove them."
            )
        self.samples = [
            (f"{self.root}/{path}", self.class_to_idx[name]) for name in self.classes for path in paths[name]
        ]
        self.targets = [label for _, label in self.samples]

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        image = self.read(index)
        return (image if self.transform is None else self.transform(image)), self.targets[index]

    def read(self, index: int) -> Image.Image:
        """Image ``index`` as 8-bit RGB; raises the errors of :attr:`loader`."""
        return self.loader(self.samples[index][0])


def open_image_folder(root: str | Path, transform: Any = None) -> ClassFolders:
    """:class:`ClassFolders` of ``root``; raises its errors."""
    return ClassFolders(root, transform)


def check_class_count(root: str | Path, found: int, num_classes: int) -> None:
    """Raise DataError unless the ``found`` class folders in ``root`` are ``num_classes``, what the model has."""
    if found != num_classes:
        raise DataError(
            f"{root}: expected {num_classes} class folders, as many as the model has classes, found {found}. Pass "
            f"num_classes={found} (train --num-classes {found}: a new head where the checkpoint has another), or mend "
            "the folder."
        )


def check_classes(dataset: LabelledImages, num_classes: int) -> None:
    """Raise the error of :func:`check_class_count` unless ``dataset`` has ``num_classes`` classes.

    For ImageNet's 1000, labels that differ from what names say are logged as a warning: a model trained with them
    has its outputs in an order of its own.
    """
    check_class_count(dataset.root, len(dataset.classes), num_classes)
    if num_classes != imagenet.CLASSES or not isinstance(dataset, ClassFolders):
        return
    numbered = all(re.fullmatch("[0-9]{1,9}", name) for name in dataset.classes)
    if numbered and dataset.classes != sorted(dataset.classes, key=int):
        _logger.warning(
            "%s: labels follow the sorted names (%s), but a benchmark takes such numbers for the classes; rename the "
            "folders with leading zeros",
            dataset.root,
            first_few(dataset.classes, 3),
        )
    elif problem := contradiction(dataset.samples):
        _logger.warning("%s, labelled by the order of the folders: %s", dataset.root, problem)


class FolderView:
    """The items ``indices`` of an image set under ``transform``, so that one set can be used in two ways.

    Args:
        replace_bad: replace an image that cannot be decoded by the next that can; else raise DataError.

    Attributes:
        replaced: (images in the set,) uint8, 1 where an image was replaced, by any data worker.
    """

    def __init__(
        self, dataset: LabelledImages, indices: Sequence[int], transform: Any, *, replace_bad: bool = False
    ) -> None:
        self.dataset, self.indices, self.transform = dataset, list(indices), transform
        self.replace_bad, self.replaced = replace_bad, torch.zeros(len(dataset), dtype=torch.uint8).share_memory_()

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, item: int) -> tuple[Any, int]:
        for offset in range(len(self)):
            index = self.indices[(item + offset) % len(self)]
            try:
                return self.transform(self.dataset.read(index)), self.dataset.targets[index]
            except DataError as error:
                if not self.replace_bad:
                    raise
                if not self.replaced[index]:
                    _logger.warning("%s Took the next one.", error.line)
                self.replaced[index] = 1
        raise DataError(f"{self.dataset.root}: expected images, found none that can be decoded. Mend them.")
