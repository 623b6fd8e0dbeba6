"""Explicit randomness: seeds go in, the global generators stay as they were."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch


def draw_seed(generator: torch.Generator) -> int:
    """A fresh seed in [0, 2**62) from ``generator``."""
    return int(torch.randint(2**62, (), generator=generator, device=generator.device))


def mix(*numbers: int) -> int:
    """One well-mixed seed in [0, 2**63) from several non-negative integers."""
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0] >> np.uint64(1))


@contextmanager
def isolated(seed: int, device: torch.device | None = None) -> Iterator[None]:
    """Run the body under ``seed``; afterwards every global generator is as before.

    Covers Python's, numpy's and torch's CPU generators (what data pipelines and
    dropout draw from) and, where ``device`` is a GPU, that GPU's generator. The
    generators are seeded directly: ``torch.manual_seed`` would also reach for
    CUDA, which a forked data worker must not touch.
    """
    python_state, numpy_state = random.getstate(), np.random.get_state()
    torch_state = torch.default_generator.get_state()
    cuda = None
    if device is not None and device.type == "cuda":
        index = torch.cuda.current_device() if device.index is None else device.index
        cuda = torch.cuda.default_generators[index]
        cuda_state = cuda.get_state()
    try:
        random.seed(seed)
        np.random.seed(seed % 2**32)
        torch.default_generator.manual_seed(seed)
        if cuda is not None:
            cuda.manual_seed(seed)
        yield
    finally:
        random.setstate(python_state)
        np.random.set_state(numpy_state)
        torch.default_generator.set_state(torch_state)
        if cuda is not None:
            cuda.set_state(cuda_state)
