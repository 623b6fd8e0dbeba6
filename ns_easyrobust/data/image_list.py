"""The labelled images of one evaluation as a list, and subsets of it."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ..errors import DataError, OptionError
from ..utils import torch
from . import imagenet
from .image_reading import read_image
from .listing import stem

_SIZES = 100  # roughly how many file sizes a digest reads: all 50,000 take minutes on a network disk


class MissingImages(DataError):
    """Some of RobustBench's images are missing from the folder."""


@dataclass(frozen=True, eq=False)
class ImageList:
    """Images of one evaluation; an item is (``transform`` of the image, label).

    Attributes:
        root: the folder that holds them.
        paths: (n,) relative to ``root``, separated by '/', distinct.
        labels: (n,) the correct output of the model, or what ``answers`` maps it to.
        outputs: number of the model's outputs.
        transform: applied to the RGB image; None: the image itself.
        classes: the outputs from which the top-1 is taken; None: all.
        answers: output -> label; an output without an entry is always wrong. None: the output is the label.
        border: pixels cropped from each side before ``transform``.
        labelled: where the labels come from, in words: "by val.txt".
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
        image = read_image(f"{self.root}/{self.paths[item]}")  # pathlib is slower than reading a small image
        if self.border:
            if min(image.size) <= 2 * self.border:
                raise DataError(
                    f"{self.root}/{self.paths[item]}: expected an image with a border of {self.border} pixels around "
                    f"it, found {image.width}x{image.height}. Replace the file or take it out of the folder."
                )
            image = image.crop((self.border, self.border, image.width - self.border, image.height - self.border))
        return (image if self.transform is None else self.transform(image)), self.labels[item]

    def task(self) -> str:
        """SHA-256 (hex) of the labels, the rules for a correct prediction, and the sizes of some of the files.

        Equal paths alone may hide changed labels (a corrected label file) or changed files.
        """
        step = max(1, len(self) // _SIZES)
        sizes = [_file_size(self.root / path) for path in self.paths[::step]]
        answers = sorted(self.answers.items()) if self.answers is not None else None
        contents = (self.labels, self.classes, answers, self.border, sizes)
        return hashlib.sha256(repr(contents).encode()).hexdigest()

    def with_transform(self, transform: Any) -> ImageList:
        """The same images under another transform."""
        return replace(self, transform=transform)

    def take(self, items: Sequence[int]) -> ImageList:
        """The images at these positions, in this order."""
        paths = tuple(self.paths[i] for i in items)
        return replace(self, paths=paths, labels=tuple(self.labels[i] for i in items))

    def correct_predictions(self, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """(B,) bool: whether the top-1 prediction of ``logits`` (B, outputs) is correct for ``labels`` (B,)."""
        if self.classes is None:
            predicted = logits.argmax(-1)
        else:
            classes = torch.tensor(self.classes, device=logits.device)
            predicted = classes[logits[:, classes].argmax(-1)]
        if self.answers is not None:
            table = torch.tensor([self.answers.get(output, -1) for output in range(self.outputs)])
            predicted = table.to(logits.device)[predicted]
        return predicted == labels


def _file_size(path: Path) -> int:
    try:
        return os.stat(path).st_size
    except OSError as error:
        raise DataError(f"{path}: expected an image, found: {error.strerror}. Mend the link, or delete it.") from error


@dataclass(frozen=True)
class Subset:
    """A subset of a list: all, the first ``n``, a random ``n``, or RobustBench's 5000 of the validation set."""

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
        match = re.fullmatch(r"(first):([1-9][0-9]{,17})|(random):([1-9][0-9]{,17})(?::([0-9]{1,19}))?", text)
        if match is None or int(match[5] or 0) >= 2**63:
            raise OptionError(
                f"subset: expected all, first:N, random:N, random:N:SEED or robustbench with N >= 1, found {text!r}."
            )
        return cls(match[1] or match[3], int(match[2] or match[4]), int(match[5] or 0))

    def __str__(self) -> str:
        size = f":{self.n}" if self.n else ""
        return f"{self.kind}{size}{f':{self.seed}' if self.seed else ''}"

    def of(self, images: ImageList) -> ImageList:
        """This subset of ``images``: RobustBench's in the order of its list, any other in the order of ``images``.

        Raises:
            MissingImages: some of RobustBench's images are missing.
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
    """Positions of RobustBench's images, found by class folder and file, or in a flat folder by file."""
    wanted = [stem(name) for name in imagenet.robustbench_ids()]
    if not any("/" in path for path in images.paths):
        wanted = [name.split("/")[1] for name in wanted]
    position = {stem(path): index for index, path in enumerate(images.paths)}
    missing = [name for name in wanted if name not in position]
    if missing:
        raise MissingImages(
            f"{images.root}: expected the {len(wanted)} images of RobustBench's list, found "
            f"{len(wanted) - len(missing)} of them (missing: {missing[0]}{', ...' if len(missing) > 1 else ''}). "
            "Use the whole ImageNet validation set, or another subset."
        )
    return [position[name] for name in wanted]
