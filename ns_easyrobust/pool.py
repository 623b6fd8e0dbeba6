"""Batches with their clean logits, kept and used again: a step then costs no clean forward."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch

_logger = logging.getLogger(__name__)


@dataclass
class _Kept:
    images: torch.Tensor
    clean: torch.Tensor
    uses: int = 0


def with_clean_logits(
    batches: Iterator[torch.Tensor], clean: Callable[[torch.Tensor], torch.Tensor], size: int, reuse: int
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """``(images, clean(images))`` without end, from a pool of ``size`` batches that are gone through in turn.

    A kept batch keeps the augmentation it was drawn with. The memory is that of ``size`` batches of images and
    logits, on the images' device; it is said in the log when the pool is full.

    Args:
        size: batches kept; with 0 each is used once.
        reuse: uses of a batch before a fresh one takes its place; 0 keeps the first ``size`` for good.
    """
    if not size:
        for images in batches:
            yield images, clean(images)
        return
    pool: list[_Kept] = []
    for turn in range(size):
        images = next(batches)
        pool.append(_Kept(images, clean(images), uses=1))
        yield images, pool[turn].clean
    _say_memory(pool)
    while True:
        for place, kept in enumerate(pool):
            if reuse and kept.uses >= reuse:
                images = next(batches)
                kept = pool[place] = _Kept(images, clean(images))
            kept.uses += 1
            yield kept.images, kept.clean


def _say_memory(pool: list[_Kept]) -> None:
    held = sum(tensor.numel() * tensor.element_size() for kept in pool for tensor in (kept.images, kept.clean))
    _logger.info("synthesis keeps %d batches with their clean logits: %.1f MiB", len(pool), held / 2**20)
