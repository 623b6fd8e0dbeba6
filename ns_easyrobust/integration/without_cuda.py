"""Runs scripts written for GPUs on a machine without one: their calls of CUDA use the CPU or do nothing."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch.amp.grad_scaler import GradScaler
from torch.nn.parallel import DistributedDataParallel
from torch.overrides import TorchFunctionMode

from ..utils import replaced_attributes

_NO_OPS = ("set_device", "synchronize", "empty_cache", "reset_peak_memory_stats")


def _on_cpu(value: Any) -> Any:
    """``value``, or the CPU if ``value`` names a GPU."""
    if isinstance(value, str) and value.split(":")[0] == "cuda":
        return "cpu"
    return torch.device("cpu") if isinstance(value, torch.device) and value.type == "cuda" else value


def _do_nothing(*_: Any, **__: Any) -> None:
    """Stands in for the functions of :data:`_NO_OPS`."""


class OnCpu(TorchFunctionMode):
    """Calls of torch that name a GPU use the CPU; ``tensor.cuda()`` returns the tensor itself."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Sequence[type], args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if func is torch.Tensor.cuda:
            return args[0]
        return func(*map(_on_cpu, args), **{name: _on_cpu(value) for name, value in (kwargs or {}).items()})


@contextmanager
def without_cuda() -> Iterator[None]:
    """Run the body, written for GPUs, on the CPU.

    ``.cuda()`` and ``torch.cuda.synchronize()`` do nothing, devices named ``cuda`` become the CPU, autocast
    is the CPU's in bfloat16, loss scaling is off, and processes communicate over gloo.
    """
    original_ddp_init, original_init_group = DistributedDataParallel.__init__, dist.init_process_group

    def ddp_init(
        self: Any, module: Any, device_ids: Any = None, output_device: Any = None, *rest: Any, **options: Any
    ) -> None:
        original_ddp_init(self, module, None, None, *rest, **options)

    def init_group(backend: str | None = None, *rest: Any, **options: Any) -> None:
        original_init_group("gloo" if backend == "nccl" else backend, *rest, **options)

    def autocast(enabled: bool = True) -> torch.autocast:
        return torch.autocast("cpu", dtype=torch.bfloat16, enabled=enabled)

    scaler = functools.partial(GradScaler, "cpu", enabled=False)
    with (
        replaced_attributes(torch.cuda, **dict.fromkeys(_NO_OPS, _do_nothing)),
        replaced_attributes(torch.cuda.amp, autocast=autocast, GradScaler=scaler),
        replaced_attributes(DistributedDataParallel, __init__=ddp_init),
        replaced_attributes(dist, init_process_group=init_group),
        OnCpu(),
    ):
        yield
