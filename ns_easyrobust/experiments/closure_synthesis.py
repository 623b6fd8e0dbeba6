"""Many noises from different starts, made by any number of processes that work on one folder."""

from __future__ import annotations

import logging
import os
from dataclasses import replace
from pathlib import Path

from .. import nullspace
from ..errors import OutputError
from ..utils import FileLock, Interval, derive_seed, is_first_rank, torch
from .inputs import Inputs

_logger = logging.getLogger(__name__)
_START, _STREAM = 1, 2  # what seeds are derived from, beside --seed and the noise's number


def use_own_gpu() -> None:
    """Let ``cuda`` be this rank's GPU, as torchrun numbers it."""
    if "LOCAL_RANK" in os.environ and torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]) % torch.cuda.device_count())


def synthesize_all(
    inputs: Inputs, folder: Path, config: nullspace.NoiseConfig, *, count: int, batch_size: int, seed: int
) -> list[nullspace.Noise]:
    """Noises 0 to ``count`` - 1, each made once, by the process that comes to it first, and kept in ``folder``.

    A noise depends on its number alone, not on the process. The first rank returns when all are there: what a process
    has left that has died, it makes itself. The others end when all are there or in somebody's hands.
    """
    from tqdm.auto import tqdm

    due = Interval(60)
    paths = [folder / f"noise-{number:04d}.pt" for number in range(count)]
    for is_last_round in (False, True) if is_first_rank() else (False,):
        for number, path in enumerate(tqdm(paths, desc="noises", unit="noise", disable=None)):
            if due.has_passed():
                _logger.info("%d of %d noises are there", sum(path.exists() for path in paths), count)
            if path.exists():
                continue
            try:
                with FileLock(path.with_suffix(".lock"), "this noise", wait=is_last_round):
                    if not path.exists():
                        replace(_make(inputs, config, number, batch_size, seed), trace=()).save(path)
            except OutputError:
                if is_last_round or (not path.with_suffix(".lock").exists() and not path.exists()):
                    raise
    return [nullspace.Noise.load(path) for path in paths] if is_first_rank() else []


def _make(inputs: Inputs, config: nullspace.NoiseConfig, number: int, batch_size: int, seed: int) -> nullspace.Noise:
    return nullspace.synthesize(
        inputs.model,
        inputs.searched.stream(batch_size, derive_seed(seed, _STREAM, number)),
        config,
        generator=torch.Generator().manual_seed(derive_seed(seed, _START, number)),
    )
