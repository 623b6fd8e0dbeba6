"""Runs scripts written for GPUs on a machine without one: their calls of CUDA use the CPU or do nothing."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest import mock

import torch
import torch.distributed as dist
from torch.amp.grad_scaler import GradScaler
from torch.nn.parallel import DistributedDataParallel
from torch.overrides import TorchFunctionMode

_NO_OPS = ("set_device", "synchronize", "empty_cache", "reset_peak_memory_stats")


def _on_cpu(value: Any) -> Any:
    """``value``, or the CPU if ``value`` names a GPU."""
    if isinstance(value, str) and value.split(":")[0] == "cuda":
        return "cpu"
    return torch.device("cpu") if isinstance(value, torch.device) and value.type == "cuda" else value


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

    with ExitStack() as undo:
        for name in _NO_OPS:
            undo.enter_context(mock.patch.object(torch.cuda, name, return_value=None))
        autocast = functools.partial(torch.autocast, "cpu", dtype=torch.bfloat16)
        undo.enter_context(
            mock.patch.object(torch.cuda.amp, "autocast", lambda enabled=True: autocast(enabled=enabled))
        )
        undo.enter_context(
            mock.patch.object(torch.cuda.amp, "GradScaler", functools.partial(GradScaler, "cpu", enabled=False))
        )
        undo.enter_context(mock.patch.object(DistributedDataParallel, "__init__", ddp_init))
        undo.enter_context(mock.patch.object(dist, "init_process_group", init_group))
        undo.enter_context(OnCpu())
        yield
