"""Images of an experiment, in memory: those that it measures on, and others for syntheses."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import DataError
from ..utils import torch

if TYPE_CHECKING:
    from ..data import ClassFolders, Preprocessing


@dataclass(frozen=True)
class ImageSet:
    """Images in memory.

    Attributes:
        pixels: (n, 3, H, W) in [0, 1].
        digest: SHA-256 of their relative paths.
        origin: where they come from, in words.
        labels: (n,) numbers of their class folders in sorted order; None where they are not known.
    """

    pixels: torch.Tensor
    digest: str
    origin: str
    labels: torch.Tensor | None = None

    def __len__(self) -> int:
        return len(self.pixels)

    @cached_property
    def pixels_digest(self) -> str:
        """SHA-256 of the pixels: other folders may have the same names."""
        return hashlib.sha256(self.pixels.cpu().contiguous().numpy().tobytes()).hexdigest()

    def batches(self, size: int) -> Sequence[torch.Tensor]:
        """In their order."""
        return self.pixels.split(size)

    def stream(self, size: int, seed: int) -> Iterator[torch.Tensor]:
        """Batches without end: all images in an order of ``seed``, again and again."""
        order = torch.randperm(len(self), generator=torch.Generator().manual_seed(seed))
        while True:
            yield from (self.pixels[part.to(self.pixels.device)] for part in order.split(size))

    def to(self, device: torch.device) -> ImageSet:
        """The same on another device."""
        labels = None if self.labels is None else self.labels.to(device)
        return ImageSet(self.pixels.to(device), self.digest, self.origin, labels)


def open_images(
    root: Path, preprocessing: Preprocessing, measured: int, searched: int, seed: int, workers: int
) -> tuple[ImageSet, ImageSet]:
    """At most ``measured`` images to measure on, and at most ``searched`` others to synthesize with.

    The former come from ``root/val`` and the latter from ``root/train`` where both are there; else all from ``root``
    itself, of which at most half is measured on.

    Args:
        seed: chooses them.
        workers: data loaders.

    Raises:
        DataError: no class folders, fewer than two images, or one that cannot be read.
    """
    from ..data import open_image_folder, split_indices

    if all(os.path.isdir(root / name) for name in ("val", "train")):
        val, train = open_image_folder(root / "val"), open_image_folder(root / "train")
        places = (
            (val, split_indices(range(len(val)), min(measured, len(val)), seed)[0], "val/"),
            (train, split_indices(range(len(train)), min(searched, len(train)), seed)[0], "train/"),
        )
    else:
        folder = open_image_folder(root)
        if len(folder) < 2:
            raise DataError(f"{root}: expected two images at least, to synthesize with and to measure on, found one.")
        first, rest = split_indices(range(len(folder)), min(measured, len(folder) // 2), seed)
        others = split_indices(rest, min(searched, len(rest)), seed)[0]
        places = ((folder, first, "the folder"), (folder, others, "the folder's others"))
    one, other = (_read(*place, preprocessing, workers) for place in places)
    return one, other


def open_image_set(root: Path, preprocessing: Preprocessing, most: int, seed: int, workers: int) -> ImageSet:
    """At most ``most`` random images of ``root/val``, or of ``root`` itself where there is no such folder.

    Raises:
        DataError: no class folders, or an image that cannot be read.
    """
    from ..data import open_image_folder, split_indices

    place = "val/" if os.path.isdir(root / "val") else "the folder"
    folder = open_image_folder(root / "val" if place == "val/" else root)
    return _read(
        folder, split_indices(range(len(folder)), min(most, len(folder)), seed)[0], place, preprocessing, workers
    )


def _read(
    folder: ClassFolders, indices: Sequence[int], place: str, preprocessing: Preprocessing, workers: int
) -> ImageSet:
    from torch.utils.data import DataLoader
    from tqdm.auto import tqdm

    from ..data import FolderView
    from ..evaluation import images_digest

    view: Any = FolderView(folder, indices, preprocessing.transform())
    loader: DataLoader[Any] = DataLoader(view, 64, num_workers=workers)
    batches = [batch[:2] for batch in tqdm(loader, desc=f"images of {place}", disable=None, leave=False)]
    pixels, labels = (torch.cat(each) for each in zip(*batches, strict=True))
    paths = [os.path.relpath(folder.samples[index][0], folder.root) for index in indices]
    return ImageSet(pixels, images_digest(paths), f"{len(paths)} random ones of {place}", labels)
