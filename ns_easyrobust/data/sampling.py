"""Endless, reproducible minibatches: the same images whatever the number of ranks and workers.

A sample's augmentation is seeded by (seed, epoch, index), so it depends neither on the
worker that happens to load it nor on what the training loop drew before; and the global
batch is cut before it is dealt to ranks, so two ranks with batch B see together what one
process with batch 2B sees.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    DistributedSampler,
    IterableDataset,
    RandomSampler,
    Sampler,
    SequentialSampler,
)

from ..errors import DataError
from ..utils.seeding import isolated, mix

Key = tuple[int, int]  # (position, epoch): what a Stream yields and SeededSamples takes


class LeaveSigterm:
    """A loader's ``worker_init_fn``: its workers end on their parent's SIGTERM and on nobody else's.

    torchrun and SLURM send it to all processes, and the parent needs its workers until it has saved.
    """

    def __init__(self, first: Callable[[int], None] | None = None) -> None:
        self.first = first

    def __call__(self, worker: int) -> None:
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})  # in threads that start later too
        threading.Thread(target=self._watch, args=(os.getppid(),), daemon=True).start()
        if self.first is not None:
            self.first(worker)

    @staticmethod
    def _watch(parent: int) -> None:
        while signal.sigwaitinfo({signal.SIGTERM}).si_pid != parent:
            pass
        os._exit(0)


class SeededSamples(Dataset[Any]):
    """``dataset``, or its items ``indices``, with every random augmentation drawn from a seed of its own.

    Items are asked for by (position, epoch); Python's, numpy's and torch's global generators
    are seeded for the call and restored after it. Other attributes are the dataset's, for
    a ``worker_init_fn`` that looks for them.
    """

    def __init__(self, dataset: Any, seed: int, indices: Sequence[int] | None = None) -> None:
        self.dataset, self.seed = dataset, seed
        self.indices = range(len(dataset)) if indices is None else indices

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, key: Key) -> Any:
        position, epoch = key
        index = self.indices[position]
        with isolated(mix(self.seed, epoch, index)):
            return self.dataset[index]

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or name == "dataset":  # __getitems__ knows no keys; unpickling has no dataset yet
            raise AttributeError(name)
        return getattr(self.dataset, name)


class Stream(Sampler[list[Key]]):
    """An endless batch sampler: epoch after epoch, each a fresh permutation, short tails dropped.

    Args:
        size: number of items.
        batch_size: items a rank gets in one batch.
        seed: the same on every rank.
        rank, world_size: which share of each global batch is ours.
        start: number of batches to skip, to go on where an earlier stream stopped.
    """

    def __init__(
        self, size: int, batch_size: int, *, seed: int, rank: int = 0, world_size: int = 1, start: int = 0
    ) -> None:
        self.size, self.batch_size, self.seed = size, batch_size, seed
        self.rank, self.world_size, self.start = rank, world_size, start
        self.batches_per_epoch = size // (batch_size * world_size)
        if self.batches_per_epoch < 1:
            raise DataError(
                f"too few images for one batch: expected at least {batch_size} x {world_size} processes, "
                f"found {size}. Lower the batch size."
            )

    def __iter__(self) -> Iterator[list[Key]]:
        epoch, step = divmod(self.start, self.batches_per_epoch)
        share = self.batch_size * self.world_size
        while True:
            generator = torch.Generator().manual_seed(mix(self.seed, epoch))
            order = torch.randperm(self.size, generator=generator).tolist()
            for batch in range(step, self.batches_per_epoch):
                members = order[batch * share : (batch + 1) * share][self.rank :: self.world_size]
                yield [(index, epoch) for index in members]
            epoch, step = epoch + 1, 0


class Parts(NamedTuple):
    """What a private copy of a loader is made of."""

    dataset: Any
    indices: Sequence[int]  # the items that the loader's sampler can reach
    batch_size: int  # of one rank
    ignored: str | None  # a sampler of the user's that a copy does not follow


def parts_of(loader: DataLoader[Any]) -> Parts:
    """What a user's loader reads: a sampler that is restricted to ``indices`` keeps its restriction.

    Raises:
        DataError: an iterable dataset, or batches of no fixed size.
    """
    dataset: Any = loader.dataset
    size = loader.batch_size if loader.batch_size is not None else getattr(loader.batch_sampler, "batch_size", None)
    if isinstance(dataset, IterableDataset) or not isinstance(size, int):
        raise DataError(
            "the loader cannot be copied: expected a map-style dataset and a fixed batch size, found "
            f"{type(dataset).__name__} with batch size {size}. Pass a list of batches instead."
        )
    if isinstance(dataset, SeededSamples):
        return Parts(dataset.dataset, dataset.indices, size, None)
    chooses: Any = loader.sampler
    if isinstance(loader.batch_sampler, BatchSampler):
        chooses = loader.batch_sampler.sampler
    elif loader.batch_sampler is not None:
        chooses = loader.batch_sampler
    reachable = getattr(chooses, "indices", None)  # SubsetRandomSampler, the usual split into train and val
    plain = isinstance(chooses, RandomSampler | SequentialSampler | DistributedSampler)
    ignored = None if plain or reachable is not None else type(chooses).__name__
    return Parts(dataset, range(len(dataset)) if reachable is None else list(reachable), size, ignored)


def split_indices(items: Sequence[int], part: int, seed: int) -> tuple[list[int], list[int]]:
    """A seeded random ``part`` of ``items``, and the rest, both sorted."""
    generator = torch.Generator().manual_seed(mix(seed, len(items)))
    order = [items[i] for i in torch.randperm(len(items), generator=generator).tolist()]
    return sorted(order[:part]), sorted(order[part:])


def endless(
    loader: DataLoader[Any],
    *,
    seed: int,
    rank: int = 0,
    world_size: int = 1,
    start: int = 0,
    indices: Sequence[int] | None = None,
) -> Iterator[Any]:
    """Batches like ``loader``'s own (dataset, collate function, batch size, workers), without touching it.

    Iterating a loader twice at a time is not safe: a second iterator of a loader with
    persistent workers resets the first. This builds a private one, with a private generator.

    Args:
        indices: restrict to these items of the dataset.
    """
    parts = parts_of(loader)
    samples = SeededSamples(parts.dataset, seed, parts.indices if indices is None else indices)
    batch_size = max(1, min(parts.batch_size, len(samples) // world_size))
    stream = Stream(len(samples), batch_size, seed=seed, rank=rank, world_size=world_size, start=start)
    return iter(
        DataLoader(
            samples,
            batch_sampler=stream,
            num_workers=loader.num_workers,
            collate_fn=loader.collate_fn,
            pin_memory=loader.pin_memory,
            worker_init_fn=LeaveSigterm(loader.worker_init_fn),
            multiprocessing_context=loader.multiprocessing_context,
            generator=torch.Generator().manual_seed(seed),
        )
    )


def fixed_batches(loader: DataLoader[Any], indices: Sequence[int], *, seed: int) -> list[Any]:
    """The items ``indices`` of ``loader``'s dataset as a list of batches, one fixed augmentation each."""
    parts = parts_of(loader)
    samples = SeededSamples(parts.dataset, seed, indices)
    collate: Any = loader.collate_fn
    starts = range(0, len(indices), parts.batch_size)
    with isolated(seed):  # a collate function may draw too
        return [
            collate([samples[position, 0] for position in range(s, min(s + parts.batch_size, len(indices)))])
            for s in starts
        ]


def cycle(batches: Iterable[Any], start: int = 0) -> Iterator[Any]:
    """``batches`` over and over, without the first ``start``.

    Raises:
        DataError: it is empty, or a one-shot iterator that ran out.
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


class Counted(Iterator[Any]):
    """``batches``, and how many of them were taken."""

    def __init__(self, batches: Iterator[Any]) -> None:
        self.batches, self.taken = batches, 0

    def __next__(self) -> Any:
        batch = next(self.batches)
        self.taken += 1
        return batch


def images_of(batch: Any, like: torch.Tensor) -> torch.Tensor:
    """The images (B, C, H, W) of a batch, which is images or (images, labels, ...), where and as ``like`` is.

    Of several views of the images, as AugMix's loader gives them, the first.

    Args:
        like: a parameter of the model, for its device and dtype.

    Raises:
        DataError: it is not a floating-point tensor of four dimensions.
    """
    images = batch
    while isinstance(images, list | tuple) and len(images):
        images = images[0]
    if not (isinstance(images, torch.Tensor) and images.ndim == 4 and images.is_floating_point()):
        found = (
            f"{images.dtype} of shape {tuple(images.shape)}"
            if isinstance(images, torch.Tensor)
            else type(images).__name__
        )
        raise DataError(
            f"batches: expected images as a float tensor (B, C, H, W) or (images, labels), found {found}. "
            "Put ToTensor (and what else the model expects) into the transform."
        )
    return images.to(like.device, like.dtype, non_blocking=True)
