"""Scripts written for GPUs on a machine without one: what they ask of CUDA is done on the CPU, or not at all."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest import mock

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel
from torch.overrides import TorchFunctionMode

_SILENT = ("set_device", "synchronize", "empty_cache", "reset_peak_memory_stats")


def _on_cpu(value: Any) -> Any:
    """``value``, or the CPU where it names a GPU."""
    if isinstance(value, str) and value.split(":")[0] == "cuda":
        return "cpu"
    return torch.device("cpu") if isinstance(value, torch.device) and value.type == "cuda" else value


class OnCpu(TorchFunctionMode):
    """Calls of torch with a GPU as device get the CPU; ``tensor.cuda()`` gives the tensor."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Sequence[type], args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if func is torch.Tensor.cuda:
            return args[0]
        return func(*map(_on_cpu, args), **{name: _on_cpu(value) for name, value in (kwargs or {}).items()})


@contextmanager
def without_cuda() -> Iterator[None]:
    """Run the body as a script for GPUs would run on the CPU.

    ``.cuda()``, devices named ``cuda`` and ``torch.cuda.synchronize()`` do no harm, autocast is the
    CPU's in bfloat16, loss scaling is off, and several processes talk over gloo.
    """
    start_ddp, start_group = DistributedDataParallel.__init__, dist.init_process_group

    def ddp(self: Any, module: Any, device_ids: Any = None, output_device: Any = None, *rest: Any, **how: Any) -> None:
        start_ddp(self, module, None, None, *rest, **how)

    def group(backend: str | None = None, *rest: Any, **how: Any) -> None:
        start_group("gloo" if backend == "nccl" else backend, *rest, **how)

    with ExitStack() as undo:
        for name in _SILENT:
            undo.enter_context(mock.patch.object(torch.cuda, name, return_value=None))
        autocast = functools.partial(torch.autocast, "cpu", dtype=torch.bfloat16)
        undo.enter_context(
            mock.patch.object(torch.cuda.amp, "autocast", lambda enabled=True: autocast(enabled=enabled))
        )
        undo.enter_context(
            mock.patch.object(
                torch.cuda.amp, "GradScaler", functools.partial(torch.amp.GradScaler, "cpu", enabled=False)
            )
        )
        undo.enter_context(mock.patch.object(DistributedDataParallel, "__init__", ddp))
        undo.enter_context(mock.patch.object(dist, "init_process_group", group))
        undo.enter_context(OnCpu())
        yield
