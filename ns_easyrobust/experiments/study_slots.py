"""Where the processes of a study run: the devices, and how many share one."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass

from ..errors import OptionError
from ..utils import default_workers, torch


@dataclass(frozen=True)
class Slot:
    """Where one process at a time runs.

    Attributes:
        name: for people.
        device: the value of ``--device``.
        environment: what differs from this process's.
    """

    name: str
    device: str
    environment: dict[str, str]


def find_slots(devices: Sequence[str], processes: int) -> list[Slot]:
    """``processes`` slots on each of ``devices`` (``cpu``, ``cuda:0``, ...), by default every GPU or else the CPU.

    All processes share the cores: each has as many threads as are its share, unless OMP_NUM_THREADS says otherwise.

    Returns:
        Slots in the order in which they are filled: one on each device, then the second ones.

    Raises:
        OptionError: no such GPU, or a device twice.
    """
    count = torch.cuda.device_count()
    names = list(devices) or [f"cuda:{number}" for number in range(count)] or ["cpu"]
    known = ["cpu", *(f"cuda:{number}" for number in range(count))]
    for name in names:
        if name not in known:
            raise OptionError(f"--devices: expected some of {', '.join(known)}, found {name}.")
    if len(set(names)) < len(names):
        raise OptionError("--devices: expected each once, found one twice. Use --processes for several on each.")
    threads = str(max(1, default_workers(1024) // (processes * len(names))))
    shared = {"OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", threads)}
    return [
        Slot(f"{name}, {number}" if processes > 1 else name, name.partition(":")[0], shared | _visible(name))
        for number in range(processes)
        for name in names
    ]


def _visible(name: str) -> dict[str, str]:
    """What hides all GPUs but the one of this name, which counts among those that this process sees."""
    if name == "cpu":
        return {"CUDA_VISIBLE_DEVICES": ""}
    number = int(name.partition(":")[2])
    visible = [each for each in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if each]
    return {"CUDA_VISIBLE_DEVICES": visible[number] if visible else str(number)}
