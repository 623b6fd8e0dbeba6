"""Iterating over batches, and the images in them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from ..errors import DataError
from ..utils import torch


def cycle(batches: Iterable[Any], start: int = 0) -> Iterator[Any]:
    """``batches`` repeated endlessly, without the first ``start`` batches.

    Raises:
        DataError: ``batches`` is empty, or a one-shot iterator that ran out.
    """
    position = 0
    while True:
        before = position
        for batch in batches:
            position += 1
            if position > start:
                yield batch
        if position == before:
            raise DataError(
                f"batches ran out after {position}: expected images that can be iterated again, found a one-shot "
                "or empty iterable. Pass a list or a DataLoader."
            )


class CountingIterator(Iterator[Any]):
    """Iterates over ``batches`` and counts them in ``taken``."""

    def __init__(self, batches: Iterator[Any]) -> None:
        self.batches, self.taken = batches, 0

    def __next__(self) -> Any:
        batch = next(self.batches)
        self.taken += 1
        return batch


def images_of(batch: Any, like: torch.Tensor) -> torch.Tensor:
    """The images (B, C, H, W) of ``batch``, on the device and in the dtype of ``like``.

    Args:
        batch: images or (images, labels, ...); of several views of the images, as from AugMix's
            loader, the first is taken.
        like: a parameter of the model.

    Raises:
        DataError: the images are not a floating-point tensor of four dimensions.
    """
    images = batch
    while isinstance(images, list | tuple) and len(images):
        images = images[0]
    if not (isinstance(images, torch.Tensor) and images.ndim == 4 and images.is_floating_point()):
        description = (
            f"{images.dtype} of shape {tuple(images.shape)}"
            if isinstance(images, torch.Tensor)
            else type(images).__name__
        )
        raise DataError(
            f"batches: expected images as a float tensor (B, C, H, W) or (images, labels), found {description}. "
            "Put ToTensor (and what else the model expects) into the transform."
        )
    return images.to(like.device, like.dtype, non_blocking=True)
