"""How precise float32 is on a GPU."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from .lazy import torch


@contextmanager
def exact_float32() -> Iterator[None]:
    """While the body runs, float32 is not shortened to TF32, whose 10 bits of mantissa are relative errors of 1e-3.

    From NVIDIA's Ampere on, PyTorch lets convolutions use TF32 unless it is told not to, and a patch embedding is one.
    Changes no other flag of cuDNN, unlike ``torch.backends.cudnn.flags``; all are restored.
    """
    convolutions, products = torch.backends.cudnn.allow_tf32, torch.get_float32_matmul_precision()
    cpu = getattr(torch.backends.mkldnn, "matmul", None)  # from torch 2.9 on; set along with the GPU's
    on_cpu = getattr(cpu, "fp32_precision", None)
    try:
        torch.backends.cudnn.allow_tf32 = False
        if products != "highest":
            torch.set_float32_matmul_precision("highest")
        yield
    finally:
        torch.backends.cudnn.allow_tf32 = convolutions
        if products != "highest":
            torch.set_float32_matmul_precision(products)
            if cpu is not None and on_cpu is not None:
                cpu.fp32_precision = on_cpu
