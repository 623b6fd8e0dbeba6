from __future__ import annotations

from itertools import islice

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

from ns_easyrobust.data.batches import cycle, images_of
from ns_easyrobust.errors import DataError


def test_cycle_repeats_skips_and_refuses_one_shot_iterators():
    assert list(islice(cycle([1, 2, 3], start=4), 4)) == [2, 3, 1, 2]
    stream = cycle(iter([1, 2]))
    assert list(islice(stream, 2)) == [1, 2]
    with pytest.raises(DataError, match="ran out after 2"):
        next(stream)
    with pytest.raises(DataError, match="ran out after 0"):
        next(cycle([]))


@pytest.mark.parametrize(
    ("batch", "found"),
    [
        (torch.zeros(2, 3, 4, 4, dtype=torch.uint8), "uint8"),
        (torch.zeros(3, 4, 4), r"shape \(3, 4, 4\)"),
        ("images", "str"),
        ([np.zeros((2, 3, 4, 4))], "ndarray"),
    ],
)
def test_batches_that_are_no_images(batch, found):
    with pytest.raises(DataError, match=found):
        images_of(batch, torch.zeros(()))


def test_images_are_the_first_of_a_tuple():
    images = torch.rand(2, 3, 4, 4)
    loader = DataLoader(TensorDataset(images, torch.zeros(2)), batch_size=2)
    assert torch.equal(images_of(next(iter(loader)), torch.zeros(())), images)
    assert images_of((images,), torch.zeros((), dtype=torch.float64)).dtype == torch.float64
