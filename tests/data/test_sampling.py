from __future__ import annotations

import multiprocessing
import os
import random
import signal
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, Dataset, IterableDataset

import ns_easyrobust.data.sampling as sampling
from ns_easyrobust.data.sampling import (
    EndlessBatchSampler,
    ParentSigtermOnly,
    SeededSamples,
    endless_batches,
    fixed_batches,
    split_indices,
)
from ns_easyrobust.errors import DataError


class Augmented(Dataset):
    """Items are (index, one draw from each global generator)."""

    def __len__(self):
        return 24

    def __getitem__(self, index):
        return torch.tensor([index, random.random(), np.random.rand(), torch.rand(()).item()])


def take(iterator, count):
    return [next(iterator) for _ in range(count)]


def test_an_epoch_is_every_index_once_and_the_next_is_ordered_anew():
    stream = iter(EndlessBatchSampler(24, 4, seed=1))
    first, second = ([k for batch in take(stream, 6) for k in batch] for _ in range(2))
    assert sorted(index for index, _ in first) == sorted(index for index, _ in second) == list(range(24))
    assert {epoch for _, epoch in first} == {0}
    assert {epoch for _, epoch in second} == {1}
    assert [index for index, _ in first] != [index for index, _ in second]


@pytest.mark.parametrize("ranks", [2, 3])
def test_ranks_share_the_batches_of_one_process(ranks):
    alone = take(iter(EndlessBatchSampler(26, 4 * ranks, seed=5)), 7)
    shares = [take(iter(EndlessBatchSampler(26, 4, seed=5, rank=r, world_size=ranks)), 7) for r in range(ranks)]
    for number, whole in enumerate(alone):
        parts = [share[number] for share in shares]
        assert all(len(part) == 4 for part in parts)
        assert sorted(key for part in parts for key in part) == sorted(whole)


def test_start_skips_batches():
    assert (
        take(iter(EndlessBatchSampler(10, 3, seed=2, start=5)), 4)
        == take(iter(EndlessBatchSampler(10, 3, seed=2)), 9)[5:]
    )


def test_too_few_images_for_a_batch():
    with pytest.raises(DataError, match="expected at least 8 x 2 processes, found 15"):
        EndlessBatchSampler(15, 8, seed=0, world_size=2)


def test_a_samples_augmentation_depends_on_seed_epoch_and_index_alone():
    samples = SeededSamples(Augmented(), seed=3)
    first = samples[5, 0]
    torch.rand(7), random.random(), np.random.rand()
    assert torch.equal(samples[5, 0], first)
    for other in (samples[5, 1], samples[6, 0], SeededSamples(Augmented(), seed=4)[5, 0]):
        assert not torch.isclose(other[1:], first[1:]).any()


def test_copied_loader_gives_the_same_batches_for_any_number_of_workers():
    def batches(workers):
        loader = DataLoader(Augmented(), batch_size=4, shuffle=True, num_workers=workers)
        return torch.stack(take(endless_batches(loader, seed=9), 8))

    assert torch.equal(batches(0), batches(2))


def test_copied_loader_restricted_to_some_items():
    loader = DataLoader(Augmented(), batch_size=4)
    seen = {
        int(row[0]) for batch in take(endless_batches(loader, seed=0, indices=[1, 3, 5, 7, 11]), 9) for row in batch
    }
    assert seen == {1, 3, 5, 7, 11}


def test_a_loader_that_already_streams_is_copied_from_its_dataset():
    loader = DataLoader(SeededSamples(Augmented(), 0), batch_sampler=EndlessBatchSampler(24, 4, seed=0))
    assert next(endless_batches(loader, seed=1)).shape == (4, 4)


class Endless(IterableDataset):
    def __iter__(self):
        return iter(torch.zeros(9, 3, 4, 4))


def test_a_loader_that_cannot_be_copied_is_refused():
    with pytest.raises(DataError, match=r"map-style dataset.*Endless"):
        endless_batches(DataLoader(Endless(), batch_size=3), seed=0)


def test_fixed_batches_hold_the_asked_items_with_one_augmentation():
    loader = DataLoader(Augmented(), batch_size=3)
    again, once = (torch.cat(fixed_batches(loader, [20, 1, 7, 8], seed=6)) for _ in range(2))
    assert once[:, 0].tolist() == [20, 1, 7, 8]
    assert torch.equal(once, again)


def test_split_is_a_partition():
    part, rest = split_indices(range(50), 8, seed=1)
    assert len(part) == 8
    assert sorted(part + rest) == list(range(50))
    assert split_indices(range(50), 8, seed=2)[0] != part


@pytest.mark.stress
def test_a_worker_whose_parent_was_killed_before_it_looked_ends(monkeypatch):
    """As ``kill -9`` during a fork leaves it: torch's own watchdog would take its new parent for the old one."""
    monkeypatch.setattr(sampling, "_LOOK_AT_PARENT", 0.05)
    reader, writer = os.pipe()

    def work() -> None:
        os.read(reader, 1)  # until its parent is gone
        ParentSigtermOnly()(0)
        time.sleep(60)

    def start_and_die() -> None:
        worker = multiprocessing.get_context("fork").Process(target=work)
        worker.start()
        os.write(told, b"%d" % worker.pid)
        os.kill(os.getpid(), signal.SIGKILL)

    listen, told = os.pipe()
    parent = multiprocessing.get_context("fork").Process(target=start_and_die)
    parent.start()
    worker = int(os.read(listen, 20))
    parent.join(10)
    os.write(writer, b"!")
    deadline = time.monotonic() + 10
    while Path(f"/proc/{worker}").exists() and "Z" not in Path(f"/proc/{worker}/stat").read_text().split(")")[1]:
        assert time.monotonic() < deadline, "it lives on"
        time.sleep(0.02)
