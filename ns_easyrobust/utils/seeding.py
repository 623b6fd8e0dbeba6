"""Explicit seeding that leaves the global random generators unchanged."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager

from .lazy import np, torch


def draw_seed(generator: torch.Generator) -> int:
    """A fresh seed in [0, 2**62) from ``generator``."""
    return int(torch.randint(2**62, (), generator=generator, device=generator.device))


def derive_seed(*numbers: int) -> int:
    """One well-mixed seed in [0, 2**63) from several non-negative integers."""
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0] >> np.uint64(1))


@contextmanager
def fork_rng(seed: int, device: torch.device | None = None) -> Iterator[None]:
    """Seed the global generators with ``seed`` for the body, and restore their states afterwards.

    Covers Python's, numpy's and torch's CPU generators (which data pipelines and
    dropout draw from) and, if ``device`` is a GPU, that GPU's generator. The
    generators are seeded directly: ``torch.manual_seed`` would also touch CUDA,
    which a forked data worker must not do.
    """
    python_state, numpy_state = random.getstate(), np.random.get_state()
    torch_state = torch.default_generator.get_state()
    cuda_generator = None
    if device is not None and device.type == "cuda":
        index = torch.cuda.current_device() if device.index is None else device.index
        cuda_generator = torch.cuda.default_generators[index]
        cuda_state = cuda_generator.get_state()
    try:
        random.seed(seed)
        np.random.seed(seed % 2**32)
        torch.default_generator.manual_seed(seed)
        if cuda_generator is not None:
            cuda_generator.manual_seed(seed)
        yield
    finally:
        random.setstate(python_state)
        np.random.set_state(numpy_state)
        torch.default_generator.set_state(torch_state)
        if cuda_generator is not None:
            cuda_generator.set_state(cuda_state)
