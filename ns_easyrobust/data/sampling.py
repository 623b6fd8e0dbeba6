"""Endless, reproducible minibatches: the same images whatever the number of ranks and workers.

A sample's augmentation is seeded by (seed, epoch, index), so it depends neither on the worker
that loads it nor on earlier random draws of the training loop. The global batch is formed
before it is divided among ranks, so two ranks with batch size B together see what one process
with batch size 2B sees.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
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
from ..utils import derive_seed, fork_rng

_LOOK_AT_PARENT = 2.0  # seconds between two looks of a data worker at whether its parent still lives
Key = tuple[int, int]  # (position, epoch): what EndlessBatchSampler yields and SeededSamples takes


class ParentSigtermOnly:
    """A ``worker_init_fn`` with which a loader's workers exit only on a SIGTERM sent by their parent, or after its end.

    torchrun and SLURM send SIGTERM to all processes, but the parent needs its workers until it has saved.
    ``first`` is the loader's own ``worker_init_fn``, called afterwards.
    """

    def __init__(self, first: Callable[[int], None] | None = None) -> None:
        self.first = first

    def __call__(self, worker: int) -> None:
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})  # threads that start later inherit it
        started_by = multiprocessing.parent_process()  # os.getppid() is already another if that has just been killed
        parent = os.getppid() if started_by is None else started_by.pid
        threading.Thread(target=self._watch, args=(parent,), daemon=True).start()
        if self.first is not None:
            self.first(worker)

    @staticmethod
    def _watch(parent: int | None) -> None:
        while os.getppid() == parent:  # PyTorch's own look at the parent begins later, and may miss its end
            received = signal.sigtimedwait({signal.SIGTERM}, _LOOK_AT_PARENT)
            if received is not None and received.si_pid == parent:
                break
        os._exit(0)


class SeededSamples(Dataset[Any]):
    """``dataset``, or its items ``indices``, with the random augmentation of each item seeded separately.

    The keys are (position, epoch). Python's, numpy's and torch's global generators are seeded
    for the call and restored after it. Other attributes are looked up in the dataset, where a
    user's ``worker_init_fn`` expects them.
    """

    def __init__(self, dataset: Any, seed: int, indices: Sequence[int] | None = None) -> None:
        self.dataset, self.seed = dataset, seed
        self.indices = range(len(dataset)) if indices is None else indices

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, key: Key) -> Any:
        position, epoch = key
        index = self.indices[position]
        with fork_rng(derive_seed(self.seed, epoch, index)):
            return self.dataset[index]

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or name == "dataset":  # __getitems__ does not take keys; unpickling has no dataset yet
            raise AttributeError(name)
        return getattr(self.dataset, name)


class EndlessBatchSampler(Sampler[list[Key]]):
    """An endless batch sampler: a new permutation each epoch, without its incomplete last batch.

    Args:
        size: number of items.
        batch_size: items per batch on each rank.
        seed: the same on every rank.
        rank, world_size: select this process's share of each global batch.
        start: number of batches to skip, to continue where an earlier iterator stopped.
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
        global_size = self.batch_size * self.world_size
        while True:
            generator = torch.Generator().manual_seed(derive_seed(self.seed, epoch))
            order = torch.randperm(self.size, generator=generator).tolist()
            for batch in range(step, self.batches_per_epoch):
                members = order[batch * global_size : (batch + 1) * global_size][self.rank :: self.world_size]
                yield [(index, epoch) for index in members]
            epoch, step = epoch + 1, 0


class LoaderContents(NamedTuple):
    """What is needed to build a private copy of a loader."""

    dataset: Any
    indices: Sequence[int]  # the items that the loader's sampler can draw
    batch_size: int  # on each rank
    ignored: str | None  # type of a user's sampler whose order a copy does not follow


def inspect_loader(loader: DataLoader[Any]) -> LoaderContents:
    """The dataset, items and batch size of a user's loader; a sampler's restriction to ``indices`` is kept.

    Raises:
        DataError: the dataset is iterable-style, or the batch size is not fixed.
    """
    dataset: Any = loader.dataset
    size = loader.batch_size if loader.batch_size is not None else getattr(loader.batch_sampler, "batch_size", None)
    if isinstance(dataset, IterableDataset) or not isinstance(size, int):
        raise DataError(
            "the loader cannot be copied: expected a map-style dataset and a fixed batch size, found "
            f"{type(dataset).__name__} with batch size {size}. Pass a list of batches instead."
        )
    if isinstance(dataset, SeededSamples):
        return LoaderContents(dataset.dataset, dataset.indices, size, None)
    sampler: Any = loader.sampler
    if isinstance(loader.batch_sampler, BatchSampler):
        sampler = loader.batch_sampler.sampler
    elif loader.batch_sampler is not None:
        sampler = loader.batch_sampler
    indices = getattr(sampler, "indices", None)  # SubsetRandomSampler, the usual split into train and val
    standard = isinstance(sampler, RandomSampler | SequentialSampler | DistributedSampler)
    ignored = None if standard or indices is not None else type(sampler).__name__
    return LoaderContents(dataset, range(len(dataset)) if indices is None else list(indices), size, ignored)


def split_indices(items: Sequence[int], part: int, seed: int) -> tuple[list[int], list[int]]:
    """``part`` of the ``items``, chosen at random with ``seed``, and the rest; both sorted."""
    generator = torch.Generator().manual_seed(derive_seed(seed, len(items)))
    order = [items[i] for i in torch.randperm(len(items), generator=generator).tolist()]
    return sorted(order[:part]), sorted(order[part:])


def endless_batches(
    loader: DataLoader[Any],
    *,
    seed: int,
    rank: int = 0,
    world_size: int = 1,
    start: int = 0,
    indices: Sequence[int] | None = None,
) -> Iterator[Any]:
    """Batches like ``loader``'s own (dataset, collate function, batch size, workers), without touching it.

    Two iterators of one loader are not safe: with persistent workers, the second resets the
    first. So this builds a private loader with a private generator. Its batches are smaller
    where there are too few items for one batch on each rank.

    Args:
        seed, rank, world_size, start: as for :class:`EndlessBatchSampler`.
        indices: the items of the dataset to use; None: those that ``loader`` uses.
    """
    contents = inspect_loader(loader)
    samples = SeededSamples(contents.dataset, seed, contents.indices if indices is None else indices)
    batch_size = max(1, min(contents.batch_size, len(samples) // world_size))
    batch_sampler = EndlessBatchSampler(
        len(samples), batch_size, seed=seed, rank=rank, world_size=world_size, start=start
    )
    return iter(
        DataLoader(
            samples,
            batch_sampler=batch_sampler,
            num_workers=loader.num_workers,
            collate_fn=loader.collate_fn,
            pin_memory=loader.pin_memory,
            worker_init_fn=ParentSigtermOnly(loader.worker_init_fn),
            multiprocessing_context=loader.multiprocessing_context,
            generator=torch.Generator().manual_seed(seed),
        )
    )


def fixed_batches(loader: DataLoader[Any], indices: Sequence[int], *, seed: int) -> list[Any]:
    """The items ``indices`` of ``loader``'s dataset as a list of batches, with one fixed augmentation per item."""
    contents = inspect_loader(loader)
    samples = SeededSamples(contents.dataset, seed, indices)
    collate: Any = loader.collate_fn
    starts = range(0, len(indices), contents.batch_size)
    with fork_rng(seed):  # a collate function may draw random numbers too
        return [
            collate([samples[position, 0] for position in range(start, min(start + contents.batch_size, len(indices)))])
            for start in starts
        ]
