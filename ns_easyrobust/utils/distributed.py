"""Ranks and communication between them; on a single process nothing is communicated."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import TypeVar

from ..errors import OptionError
from .lazy import dist, torch

Plain = TypeVar("Plain")


def is_distributed() -> bool:
    """Whether a process group of more than one rank is running."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def rank() -> int:
    """This process's rank; 0 on one process."""
    return dist.get_rank() if is_distributed() else 0


def world_size() -> int:
    """Number of ranks; 1 on one process."""
    return dist.get_world_size() if is_distributed() else 1


def is_first_rank() -> bool:
    """Whether this is rank 0 by torchrun's ``RANK``, which is known also before and after the process group exists."""
    return os.environ.get("RANK", "0") == "0"


def broadcast(tensor: torch.Tensor, source: int = 0) -> torch.Tensor:
    """Overwrite ``tensor`` with that of rank ``source`` and return it."""
    if is_distributed():
        dist.broadcast(tensor, source)
    return tensor


def broadcast_object(value: Plain) -> Plain:
    """The picklable ``value`` of rank 0."""
    if is_distributed():
        objects = [value]
        dist.broadcast_object_list(objects, 0)
        value = objects[0]
    return value


def gather_objects(value: Plain) -> list[Plain]:
    """The picklable ``value`` of every rank, in rank order."""
    if not is_distributed():
        return [value]
    gathered: list[Plain | None] = [None] * world_size()
    dist.all_gather_object(gathered, value)
    return gathered  # type: ignore[return-value]


def sum_over_ranks(tensor: torch.Tensor) -> torch.Tensor:
    """Sum of ``tensor`` over ranks, written in place and returned."""
    if is_distributed():
        dist.all_reduce(tensor, op=dist.ReduceOp.SUM)
    return tensor


def mean_over_ranks(tensor: torch.Tensor) -> torch.Tensor:
    """Mean of ``tensor`` over ranks, written in place and returned."""
    if is_distributed():
        sum_over_ranks(tensor).div_(world_size())
    return tensor


@contextmanager
def process_group(device: torch.device, timeout: timedelta | None = None) -> Iterator[torch.device]:
    """Join torchrun's process group (nccl on GPUs, gloo on CPU) and leave it at the end.

    Without torchrun's environment, on a single rank or inside an existing group, nothing happens. After
    an error the group is not destroyed: that could wait for ranks that wait for this one, and torchrun
    ends them all once this process has exited.

    Args:
        device: ``cuda`` or ``cpu``; decides between nccl and gloo.
        timeout: how long a rank waits for the others; None: PyTorch's default, 10 minutes on GPUs.

    Yields:
        The device of this rank: ``cuda:LOCAL_RANK`` under torchrun with GPUs, else ``device``.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) <= 1 or dist.is_initialized():
        yield device
        return
    if device.type == "cuda":
        device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=timeout)
    yield device
    # Prevents a deadlock: a gloo thread that is still freeing its last work waits for the GIL, while the group's
    # destructor holds the GIL and waits for that thread. Sleeping releases the GIL in time.
    time.sleep(0.2)
    dist.destroy_process_group()


def on_first_rank(action: Callable[[], object], device: torch.device) -> None:
    """Run ``action`` on rank 0 while the others wait; if it fails, all ranks end.

    Raises:
        Exception: on rank 0, whatever ``action`` raised.
        SystemExit: on the other ranks, silently, with code 2.
    """
    failure: Exception | None = None
    if rank() == 0:
        try:
            action()
        except Exception as error:
            failure = error
    failed = broadcast(torch.tensor(int(failure is not None), device=device))
    if failure is not None:
        raise failure
    if failed.item():
        raise SystemExit(2)


def pick_device(name: str) -> torch.device:
    """The device that ``--device`` selects.

    Raises:
        OptionError: ``cuda`` was requested and PyTorch can use no GPU.
    """
    available = torch.cuda.is_available()
    if name == "cuda" and not available:
        raise OptionError("device cuda: expected a GPU that PyTorch can use, found none. Use cpu.")
    return torch.device("cuda" if name == "cuda" or (name == "auto" and available) else "cpu")
