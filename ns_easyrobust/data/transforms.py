"""Transforms to pixels in [0, 1]: for evaluation, with their descriptions for records, and for training."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from PIL import Image

from ..errors import OptionError
from ..utils import replaced_attributes, torch, transforms
from .augmix import AugMix

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


class Views:
    """An image -> ``splits`` views (3, H, W): the first with the crop and flip alone, the others augmented too.

    As timm's ``AugMixDataset`` (0.5.4: data/dataset.py:143-149): a loader's batch is [clean, augmented, ...].

    Args:
        shared: crop and flips, which all views of an image share.
        augment: drawn anew for each view but the first.
        clean, finish: the last steps of the first view, and of the others.
    """

    def __init__(self, splits: int, shared: Any, augment: Any, clean: Any, finish: Any) -> None:
        self.splits, self.shared, self.augment, self.clean, self.finish = splits, shared, augment, clean, finish

    def __call__(self, image: Image.Image) -> tuple[torch.Tensor, ...]:
        base = self.shared(image)
        augmented = [self.finish(self.augment(base)) for _ in range(self.splits - 1)]
        return (self.clean(base), *augmented)


def _to_pixels(image: Image.Image | torch.Tensor) -> torch.Tensor:
    """Pixels in [0, 1] of an image; of AugMix, which makes pixels, themselves."""
    return image if isinstance(image, torch.Tensor) else transforms.functional.to_tensor(image)


def _own_policy(auto_augment: str | None, augmix_ops: str, mean: Sequence[float], interpolation: str) -> Any:
    """The augmentation that ``auto_augment`` names if it is none of timm's, else None."""
    if auto_augment == "trivial":
        # As timm's policies, it fills with the mean, where the published code leaves black.
        fill = [min(255, round(255 * value)) for value in mean]
        mode = transforms.InterpolationMode("nearest" if interpolation == "random" else interpolation)
        return transforms.TrivialAugmentWide(interpolation=mode, fill=fill)
    if auto_augment is not None and auto_augment.startswith("augmix") and augmix_ops == "published":
        return AugMix.from_policy(auto_augment)
    return None


def training_transform(
    size: int,
    mean: Sequence[float],
    std: Sequence[float],
    *,
    erase_prob: float = 0.0,
    erase_mode: str = "pixel",
    erase_count: int = 1,
    erase_outside: bool = False,
    erase_clean: bool = True,
    splits: int = 0,
    auto_augment: str | None = None,
    augmix_ops: str = "timm",
    no_aug: bool = False,
    interpolation: str = "bilinear",
    **augmentation: Any,
) -> transforms.Compose | Views:
    """timm's training augmentation, ending in pixels (3, size, size) in [0, 1].

    Args:
        mean, std: of the model's normalisation; they determine the colours that augmentation fills in.
        erase_outside: fill erased rectangles with unconverted N(0, 1) values, which leave [0, 1], as
            the paper's code does.
        erase_clean: with ``splits``, erase from the first view too.
        splits: make this many views of an image, see :class:`Views`; 0: the image alone.
        auto_augment: a policy of timm's; ``trivial``, torchvision's TrivialAugmentWide (Mueller and Hutter 2021,
            arXiv:2103.10158) in its place; or ``augmix...``.
        augmix_ops: of ``augmix...``: ``timm``'s operations, or the ``published`` ones (:class:`~.augmix.AugMix`).
        interpolation: of the crop and of what policies turn and shift; ``random``: bilinear or bicubic, drawn anew each
            time, but the nearest pixel for ``trivial``, as published.
        augmentation: further arguments of timm's ``create_transform``.

    Raises:
        OptionError: a policy of this package's cannot be read. timm asserts that its own can.
    """
    from timm.data import auto_augment as policies
    from timm.data import create_transform
    from timm.data.random_erasing import RandomErasing

    options: dict[str, Any] = {"is_training": True, "mean": mean, "std": std, "interpolation": interpolation}
    erase: list[Any] = []
    if erase_prob > 0:
        erasing = RandomErasing(erase_prob, mode=erase_mode, max_count=erase_count, device="cpu")
        erase = [erasing if erase_outside else PixelErasing(erasing, mean, std)]
    if no_aug:
        steps = create_transform((3, size, size), no_aug=True, **options).transforms
        return transforms.Compose([*(step for step in steps if not isinstance(step, transforms.Normalize)), *erase])
    own = _own_policy(auto_augment, augmix_ops, mean, interpolation)
    if own is not None:  # in the place of timm's, which jitters colours only where there is no policy
        augmentation |= {"color_jitter": None}
        auto_augment = None
    posterizing = {name: _posterize for name in policies.NAME_TO_OP if name.startswith("Posterize")}
    with replaced_attributes(policies, NAME_TO_OP=policies.NAME_TO_OP | posterizing):
        shared, timms, _ = create_transform(
            (3, size, size), separate=True, auto_augment=auto_augment, **options, **augmentation
        )
    augment = timms.transforms if own is None else [own]
    finish = [_to_pixels, *erase]
    if not splits:
        return transforms.Compose([*shared.transforms, *augment, *finish])
    clean = finish if erase_clean else finish[:1]
    return Views(splits, shared, *(transforms.Compose(part) for part in (augment, clean, finish)))
