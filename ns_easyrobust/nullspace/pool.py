"""Batches with what the model makes of them, kept and used again: a step then costs no clean forward."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch

_logger = logging.getLogger(__name__)


class Seen(NamedTuple):
    """A batch as the model sees it without noise.

    Attributes:
        images: (B, C, H, W); hollow where the embedding is kept instead.
        embedding: what the patch embedding makes of them; None where the images are kept.
        logits: (B, K).
    """

    images: torch.Tensor
    embedding: Any
    logits: torch.Tensor

    @property
    def memory(self) -> int:
        """In bytes."""
        return sum(map(memory_of, self))


def memory_of(part: Any) -> int:
    """Bytes of a tensor, or of a tuple's; nothing for zeros that are not stored."""
    if isinstance(part, tuple):
        return sum(map(memory_of, part))
    if not isinstance(part, torch.Tensor):
        return 0
    return min(part.numel() * part.element_size(), part.untyped_storage().nbytes())


@dataclass
class _Kept:
    seen: Seen
    uses: int = 1


def seen_batches(
    batches: Iterator[torch.Tensor], see: Callable[[torch.Tensor], Seen], size: int, reuse: int
) -> Iterator[Seen]:
    """``see(images)`` without end, from a pool of ``size`` batches that are gone through in turn.

    A kept batch keeps the augmentation it was drawn with. The memory, on the images' device, is said in the log
    when the pool is full.

    Args:
        size: batches kept; with 0 each is used once.
        reuse: uses of a batch before a fresh one takes its place; 0 keeps the first ``size`` for good.
    """
    if not size:
        yield from map(see, batches)
        return
    pool: list[_Kept] = []
    for _ in range(size):
        pool.append(_Kept(see(next(batches))))
        yield pool[-1].seen
    held = sum(kept.seen.memory for kept in pool)
    _logger.info("synthesis keeps %d batches with their clean logits: %.1f MiB", size, held / 2**20)
    while True:
        for place, kept in enumerate(pool):
            if reuse and kept.uses >= reuse:
                pool[place] = _Kept(see(next(batches)))
            else:
                kept.uses += 1
            yield pool[place].seen
