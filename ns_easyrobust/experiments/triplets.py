"""Sources and targets of transformed images: pairs that the model tells apart, or photographs of the user's choice."""

from __future__ import annotations

import argparse
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from .. import nullspace
from ..errors import DataError, OptionError
from ..utils import file_or_folder, torch
from .photographs import read_photographs

if TYPE_CHECKING:
    from torch import nn

    from .image_set import ImageSet


def add_photograph_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flag of photographs that are shown."""
    parser.add_argument(
        "--photographs", nargs="+", type=file_or_folder, default=[], metavar="FILE",
        help="image files to show in pairs: source, target, source, target (default: the first pairs of the images)",
    )  # fmt: skip


@dataclass(frozen=True)
class Pairs:
    """Sources and targets.

    Attributes:
        sources, targets: (n, 3, H, W) in [0, 1], on one device.
        names: (source, target) of each pair.
    """

    sources: torch.Tensor
    targets: torch.Tensor
    names: list[tuple[str, str]]

    def __len__(self) -> int:
        return len(self.sources)

    @property
    def digest(self) -> str:
        """SHA-256 of the pixels."""
        both = torch.stack((self.sources, self.targets)).cpu().contiguous()
        return hashlib.sha256(both.numpy().tobytes()).hexdigest()

    def take(self, start: int, stop: int) -> Pairs:
        """Those from ``start`` up to ``stop``."""
        return Pairs(self.sources[start:stop], self.targets[start:stop], self.names[start:stop])

    def among(self, numbers: Sequence[int]) -> Pairs:
        """Those of these numbers."""
        where = torch.tensor(numbers, dtype=torch.int64, device=self.sources.device)
        return Pairs(self.sources[where], self.targets[where], [self.names[number] for number in numbers])


def pair_images(model: nn.Module, images: ImageSet, batch_size: int, seed: int) -> Pairs:
    """Each image as a source, with that of :func:`draw_targets` as its target."""
    return paired(images, draw_targets(model, images, batch_size, seed))


def paired(images: ImageSet, targets: Sequence[int]) -> Pairs:
    """Each image as a source; ``targets`` are the numbers of theirs."""
    names = [(f"image {number + 1}", f"image {other + 1}") for number, other in enumerate(targets)]
    return Pairs(images.pixels, images.pixels[torch.tensor(targets, device=images.pixels.device)], names)


def draw_targets(model: nn.Module, images: ImageSet, batch_size: int, seed: int) -> list[int]:
    """For each image the number of a random other one that the model predicts another class for.

    Each is drawn alone: an image may be the target of several.

    Raises:
        DataError: the model predicts the same class for all images.
    """
    logits = torch.cat([nullspace.pixel_logits(model, batch) for batch in images.batches(batch_size)])
    predictions = logits.argmax(-1).cpu()
    generator = torch.Generator().manual_seed(seed)
    chosen = []
    for prediction in predictions:
        others = (predictions != prediction).nonzero()[:, 0]
        if not len(others):
            raise DataError(
                f"images: expected some that the model tells apart, to pair them, found class {int(prediction)} "
                f"predicted for all {len(images)}. Give others, or more."
            )
        chosen.append(int(others[torch.randint(len(others), (), generator=generator)]))
    return chosen


def pair_photographs(args: argparse.Namespace, device: torch.device, most: int = 4) -> Pairs | None:
    """The pairs of ``--photographs``, read as the images are; None without any.

    Raises:
        OptionError: an odd number, or more than ``most`` pairs.
        DataError: a file cannot be read, or a pair is one picture twice.
    """
    files: list[Any] = args.photographs
    if not files:
        return None
    if len(files) % 2 or len(files) > 2 * most:
        raise OptionError(
            f"--photographs: expected pairs of source and target, at most {most}, found {len(files)} files. Give an "
            "even number."
        )
    pixels, names = read_photographs(args, device)
    pairs = Pairs(pixels[::2], pixels[1::2], list(zip(names[::2], names[1::2], strict=True)))
    for source, target, (name, _) in zip(pairs.sources, pairs.targets, pairs.names, strict=True):
        if torch.equal(source, target):
            raise DataError(f"--photographs: expected pairs of different pictures, found {name} twice. Give another.")
    return pairs
