"""Ranks, broadcasts and means over ranks; every function is a no-op on one process."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import TypeVar

import torch
import torch.distributed as dist

Plain = TypeVar("Plain")


def active() -> bool:
    """Whether a process group of more than one rank is running."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def rank() -> int:
    """This process's rank; 0 on one process."""
    return dist.get_rank() if active() else 0


def world_size() -> int:
    """Number of ranks; 1 on one process."""
    return dist.get_world_size() if active() else 1


def is_first() -> bool:
    """Whether this process speaks for all, also before and after the group stands (torchrun's RANK)."""
    return os.environ.get("RANK", "0") == "0"


def broadcast(tensor: torch.Tensor, source: int = 0) -> torch.Tensor:
    """``tensor`` as rank ``source`` has it, written in place and returned."""
    if active():
        dist.broadcast(tensor, source)
    return tensor


def broadcast_object(value: Plain) -> Plain:
    """A plain ``value`` as rank 0 has it."""
    if active():
        box = [value]
        dist.broadcast_object_list(box, 0)
        value = box[0]
    return value


def gather_objects(value: Plain) -> list[Plain]:
    """Every rank's plain ``value``, by rank."""
    if not active():
        return [value]
    found: list[Plain | None] = [None] * world_size()
    dist.all_gather_object(found, value)
    return found  # type: ignore[return-value]


def sum_over_ranks(tensor: torch.Tensor) -> torch.Tensor:
    """Sum of ``tensor`` over ranks, written in place and returned."""
    if active():
        dist.all_reduce(tensor, op=dist.ReduceOp.SUM)
    return tensor


def mean_over_ranks(tensor: torch.Tensor) -> torch.Tensor:
    """Mean of ``tensor`` over ranks, written in place and returned."""
    if active():
        sum_over_ranks(tensor).div_(world_size())
    return tensor


@contextmanager
def process_group(device: torch.device, timeout: timedelta | None = None) -> Iterator[torch.device]:
    """Join torchrun's process group (nccl on GPUs, gloo on CPU) and leave it at the end.

    ``timeout`` is how long a rank waits for the others; None: PyTorch's default, 10 minutes on GPUs.

    Yields the device of this rank: ``cuda:LOCAL_RANK`` under torchrun with GPUs.
    Without torchrun's environment nothing happens and ``device`` comes back. After an error the
    group is left standing: to leave it can wait for ranks that wait for this one, and torchrun
    ends them all once this process has gone.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) <= 1 or dist.is_initialized():
        yield device
        return
    if device.type == "cuda":
        device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=timeout)
    yield device
    # A gloo thread that still frees its last work waits for the GIL, and the group's destructor waits for that
    # thread while it holds the GIL. Sleeping lets go of it.
    time.sleep(0.2)
    dist.destroy_process_group()


def on_first_rank(action: Callable[[], object], device: torch.device) -> None:
    """Run ``action`` on rank 0 while the others wait; where it fails, all end.

    Raises:
        Exception: on rank 0, what ``action`` raised; SystemExit (code 2) on the others, silently.
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
