"""A digest by which weights are known again, wherever they came from."""

from __future__ import annotations

import hashlib

from ..utils import nn, torch
from .vit import unwrap


def state_digest(model: nn.Module) -> str:
    """SHA-256 of all parameters and buffers, without wrappers such as DistributedDataParallel."""
    digest = hashlib.sha256()
    for name, tensor in sorted(unwrap(model).state_dict().items()):
        values = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(values.numpy().tobytes())
    return digest.hexdigest()
