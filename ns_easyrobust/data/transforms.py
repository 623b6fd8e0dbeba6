"""Transforms to pixels in [0, 1]: for evaluation, with their descriptions for records, and for training."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from PIL import Image

from ..errors import OptionError
from ..utils import replaced_attributes, torch, transforms

if TYPE_CHECKING:
    from timm.data.random_erasing import RandomErasing

LARGEST_SIZE = 4096  # of a model's images, in pixels: a batch of larger ones fits into no memory
INTERPOLATIONS = ("bilinear", "bicubic", "nearest")  # torchvision's names


@dataclass(frozen=True)
class Preprocessing:
    """How an evaluation image becomes pixels: shorter side to size / crop_pct, centre crop, [0, 1].

    The shorter side is ``int(size / crop_pct)``, rounded as in EasyRobust and timm.
    """

    size: int = 224
    crop_pct: float = 0.875
    interpolation: str = "bicubic"

    def __post_init__(self) -> None:
        sizes_fit = 1 <= self.size <= LARGEST_SIZE and 0.01 <= self.crop_pct <= 1 and self.resize <= 4 * LARGEST_SIZE
        if not sizes_fit or self.interpolation not in INTERPOLATIONS:
            percent = " Divide crop_pct by 100." if 1 < self.crop_pct <= 100 else ""
            raise OptionError(
                f"preprocessing: expected size from 1 to {LARGEST_SIZE}, crop_pct from 0.01 to 1 and interpolation of "
                f"{', '.join(INTERPOLATIONS)}, found {self!r}.{percent}"
            )

    @property
    def resize(self) -> int:
        return int(self.size / self.crop_pct)

    def __str__(self) -> str:
        return f"shorter side to {self.resize} {self.interpolation}, crop {self.size}"

    def crop(self) -> transforms.Compose:
        """PIL image -> PIL image of size x size."""
        interpolation = transforms.InterpolationMode(self.interpolation)
        return transforms.Compose(
            [transforms.Resize(self.resize, interpolation=interpolation), transforms.CenterCrop(self.size)]
        )

    def transform(self) -> transforms.Compose:
        """PIL image -> (3, size, size) in [0, 1]."""
        return transforms.Compose([*self.crop().transforms, transforms.ToTensor()])


def is_described(transform: Any) -> bool:
    """Whether :func:`describe_transform` is complete: at most one resize and one centre crop, then ToTensor."""
    steps = list(getattr(transform, "transforms", [transform]))
    starts_with_resize = [
        isinstance(step, transforms.Resize) and step.max_size is None and step.antialias is True for step in steps[:1]
    ]
    steps = steps[1:] if starts_with_resize == [True] else steps
    steps = steps[1:] if steps and isinstance(steps[0], transforms.CenterCrop) else steps
    return len(steps) == 1 and isinstance(steps[0], transforms.ToTensor)


def describe_transform(transform: Any) -> dict[str, Any]:
    """An evaluation transform for a record: resize, crop and interpolation, or else its ``repr`` without addresses."""
    if not is_described(transform):
        description = re.sub(r" at 0x[0-9a-f]+", "", " ".join(repr(transform).split()))
        return {"resize": None, "crop": None, "transform": description}
    protocol: dict[str, Any] = {"resize": None, "crop": None}
    for step in getattr(transform, "transforms", [transform]):
        if isinstance(step, transforms.Resize):
            protocol |= {"resize": step.size, "interpolation": step.interpolation.value}
        elif isinstance(step, transforms.CenterCrop):
            protocol["crop"] = step.size[0] if step.size[0] == step.size[1] else list(step.size)
    return protocol


class PixelErasing:
    """timm's random erasing for pixels in [0, 1]; the values it fills in are clamped to that range.

    timm draws them from N(0, 1), for normalised images. Here each draw is taken as a normalised
    value and converted to a pixel value. Pixels outside the rectangles are bitwise unchanged.
    """

    def __init__(self, erase: RandomErasing, mean: Sequence[float], std: Sequence[float]) -> None:
        self.erase = erase
        self.mean, self.std = (torch.tensor(values).view(-1, 1, 1) for values in (mean, std))

    def __call__(self, pixels: torch.Tensor) -> torch.Tensor:
        untouched = torch.full_like(pixels, torch.inf)  # a value that random erasing never draws
        erased = self.erase(untouched.clone())
        return torch.where(erased == untouched, pixels, (erased * self.std + self.mean).clamp(0, 1))


def _posterize(image: Image.Image, bits: int, **options: Any) -> Image.Image:
    """timm's operation; no bits leave a black image, as before Pillow 13, which refuses to take all of them away."""
    from timm.data.auto_augment import posterize

    posterized: Image.Image = posterize(image, bits, **options) if bits > 0 else Image.new(image.mode, image.size)
    return posterized


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
        mean, std: of the model's normalisation; they determine the colours that augmentation fills in.
        erase_outside: fill erased rectangles with unconverted N(0, 1) values, which leave [0, 1], as
            the paper's code does.
        augmentation: further arguments of timm's ``create_transform``.
    """
    from timm.data import auto_augment, create_transform
    from timm.data.random_erasing import RandomErasing

    posterizing = {name: _posterize for name in auto_augment.NAME_TO_OP if name.startswith("Posterize")}
    with replaced_attributes(auto_augment, NAME_TO_OP=auto_augment.NAME_TO_OP | posterizing):
        steps = create_transform((3, size, size), is_training=True, mean=mean, std=std, **augmentation).transforms
    steps = [step for step in steps if not isinstance(step, transforms.Normalize)]
    if erase_prob > 0:
        erase = RandomErasing(erase_prob, mode=erase_mode, max_count=erase_count, device="cpu")
        steps.append(erase if erase_outside else PixelErasing(erase, mean, std))
    return transforms.Compose(steps)
