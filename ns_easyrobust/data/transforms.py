"""Image folders in EasyRobust's layout, and transforms that give pixels in [0, 1]."""

from __future__ import annotations

import logging
import re
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image, UnidentifiedImageError
from timm.data import create_transform
from timm.data.random_erasing import RandomErasing
from torch.utils.data import Dataset
from torchvision import transforms
from torchvision.datasets import ImageFolder
from torchvision.datasets.folder import IMG_EXTENSIONS

from ..errors import DataError, OptionError

_logger = logging.getLogger(__name__)
INTERPOLATIONS = {
    "bilinear": transforms.InterpolationMode.BILINEAR,
    "bicubic": transforms.InterpolationMode.BICUBIC,
    "nearest": transforms.InterpolationMode.NEAREST,
}


def read_image(path: str) -> Image.Image:
    """The image as RGB.

    Raises:
        DataError: the file is not an image that can be decoded.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # ImageNet has dozens of files with odd EXIF
            with Image.open(path) as image:
                return image.convert("RGB")
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError) as error:
        raise DataError(
            f"{path}: expected an image, found one that cannot be decoded ({type(error).__name__}). "
            "Replace the file or take it out of the folder."
        ) from error


def image_folder(root: str | Path, transform: Any = None) -> ImageFolder:
    """``root/<class>/<image>`` as a dataset of (image, label); labels follow the sorted class names.

    Raises:
        DataError: the folder is missing, has no class folders, or a class has no images.
    """
    root = Path(root)
    if not root.is_dir():
        raise DataError(f"{root}: expected a folder with one folder a class, found nothing. Check --data_dir.")
    classes = sorted(entry for entry in root.iterdir() if entry.is_dir())
    if not classes:
        raise DataError(f"{root}: expected one folder a class, found no folders. Check --data_dir.")
    try:
        return ImageFolder(str(root), transform=transform, loader=read_image)
    except FileNotFoundError:  # torchvision's own message runs over several lines
        empty = [c.name for c in classes if not any(p.suffix.lower() in IMG_EXTENSIONS for p in c.rglob("*"))]
        raise DataError(
            f"{root}: expected images in every class folder, found {len(empty)} without: "
            f"{', '.join(empty[:5])}{', ...' if len(empty) > 5 else ''}. Labels would shift; fill or remove them."
        ) from None


def check_classes(dataset: ImageFolder, num_classes: int) -> None:
    """Raise DataError unless ``dataset`` has ``num_classes`` class folders."""
    if len(dataset.classes) != num_classes:
        raise DataError(
            f"{dataset.root}: expected {num_classes} class folders for --num-classes {num_classes}, "
            f"found {len(dataset.classes)}. Pass --num-classes {len(dataset.classes)} or another folder."
        )


@dataclass(frozen=True)
class Preprocessing:
    """How an evaluation image becomes pixels: shorter side to size / crop_pct, centre crop, [0, 1].

    ``int(size / crop_pct)`` is EasyRobust's and timm's rounding.
    """

    size: int = 224
    crop_pct: float = 0.875
    interpolation: str = "bicubic"

    def __post_init__(self) -> None:
        if self.size < 1 or not 0 < self.crop_pct <= 1 or self.interpolation not in INTERPOLATIONS:
            raise OptionError(
                f"preprocessing: expected size >= 1, 0 < crop_pct <= 1 and interpolation of "
                f"{', '.join(INTERPOLATIONS)}, found {self!r}."
            )

    @property
    def resize(self) -> int:
        return int(self.size / self.crop_pct)

    def __str__(self) -> str:
        return f"shorter side to {self.resize} {self.interpolation}, crop {self.size}"

    def transform(self) -> transforms.Compose:
        """PIL image -> (3, size, size) in [0, 1]."""
        return transforms.Compose(
            [
                transforms.Resize(self.resize, interpolation=INTERPOLATIONS[self.interpolation]),
                transforms.CenterCrop(self.size),
                transforms.ToTensor(),
            ]
        )


def is_described(transform: Any) -> bool:
    """Whether :func:`describe_transform` says all of it: a resize, a crop and ToTensor, each at most once."""
    steps = list(getattr(transform, "transforms", [transform]))
    plain = [
        isinstance(step, transforms.Resize) and step.max_size is None and step.antialias is True for step in steps[:1]
    ]
    steps = steps[1:] if plain == [True] else steps
    steps = steps[1:] if steps and isinstance(steps[0], transforms.CenterCrop) else steps
    return len(steps) == 1 and isinstance(steps[0], transforms.ToTensor)


def describe_transform(transform: Any) -> dict[str, Any]:
    """What a record says of an evaluation transform: resize, crop and interpolation, or its own words."""
    if not is_described(transform):
        words = re.sub(r" at 0x[0-9a-f]+", "", " ".join(repr(transform).split()))
        return {"resize": None, "crop": None, "transform": words}
    protocol: dict[str, Any] = {"resize": None, "crop": None}
    for step in getattr(transform, "transforms", [transform]):
        if isinstance(step, transforms.Resize):
            protocol |= {"resize": step.size, "interpolation": step.interpolation.value}
        elif isinstance(step, transforms.CenterCrop):
            protocol["crop"] = step.size[0] if step.size[0] == step.size[1] else list(step.size)
    return protocol


class PixelErasing:
    """timm's random erasing, for pixels in [0, 1]: the erased values are clipped to that range.

    timm draws them from N(0, 1), meant for normalised images. Here the draw is taken as a
    normalised value and brought back to pixels. Pixels outside the rectangles stay bit for bit.
    """

    def __init__(self, erase: RandomErasing, mean: Sequence[float], std: Sequence[float]) -> None:
        self.erase = erase
        self.mean, self.std = (torch.tensor(v).view(-1, 1, 1) for v in (mean, std))

    def __call__(self, pixels: torch.Tensor) -> torch.Tensor:
        untouched = torch.full_like(pixels, torch.inf)  # a value that erasing never draws
        erased = self.erase(untouched.clone())
        return torch.where(erased == untouched, pixels, (erased * self.std + self.mean).clamp(0, 1))


def training_transform(
    size: int,
    mean: Sequence[float],
    std: Sequence[float],
    *,
    erase_prob: float = 0.0,
    erase_mode: str = "pixel",
    erase_count: int = 1,
    erase_outside: bool = False,
    **augmentation: Any,
) -> transforms.Compose:
    """timm's training augmentation, ending in pixels (3, size, size) in [0, 1].

    Args:
        mean, std: the model's; they colour what augmentation fills in.
        erase_outside: erase with N(0, 1) as it is, leaving [0, 1], as the paper's code does.
        augmentation: further arguments of timm's ``create_transform``.
    """
    steps = create_transform((3, size, size), is_training=True, mean=mean, std=std, **augmentation).transforms
    steps = [step for step in steps if not isinstance(step, transforms.Normalize)]
    if erase_prob > 0:
        erase = RandomErasing(erase_prob, mode=erase_mode, max_count=erase_count, device="cpu")
        steps.append(erase if erase_outside else PixelErasing(erase, mean, std))
    return transforms.Compose(steps)


class FolderPart(Dataset[Any]):
    """The items ``indices`` of an image folder under ``transform``, to use one folder in two ways.

    Args:
        replace_bad: take the next image that can be decoded instead of one that cannot; else DataError.

    Attributes:
        replaced: (images of the folder,), 1 where that was done, by any data worker.
    """

    def __init__(
        self, dataset: ImageFolder, indices: Sequence[int], transform: Any, *, replace_bad: bool = False
    ) -> None:
        self.dataset, self.indices, self.transform = dataset, list(indices), transform
        self.replace_bad, self.replaced = replace_bad, torch.zeros(len(dataset), dtype=torch.uint8).share_memory_()

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, item: int) -> tuple[Any, int]:
        for other in range(len(self)):
            index = self.indices[(item + other) % len(self)]
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
