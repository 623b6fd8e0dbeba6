"""Which images a model gets right, exactly: every image once, whatever the number of processes.

Batches are cut once and dealt to ranks, each with a seed of its own. The bits and the
number go into a record.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader
from torchvision.datasets import ImageFolder
from tqdm.auto import tqdm

from .bits import images_digest, save_right
from .distributed import rank, sum_over_ranks, world_size
from .errors import DataError, ModelError, OptionError
from .randomness import isolated, mix
from .records import Record, append_record
from .vit import frozen, unwrap

Attack = Callable[[nn.Module, torch.Tensor, torch.Tensor], torch.Tensor]


@dataclass(frozen=True)
class Judged:
    """Which images were right.

    Attributes:
        paths: relative to the data folder.
        right: (n,) bool.
        l2: (n,) L2 norm of what an attack added, in pixels of [0, 1]; zeros without one.
    """

    paths: list[str]
    right: torch.Tensor
    l2: torch.Tensor

    @property
    def n(self) -> int:
        return len(self.right)

    @property
    def top1(self) -> float:
        """Percent right."""
        return 100 * int(self.right.sum()) / self.n


@dataclass(frozen=True)
class Recorder:
    """Where results go, and what every record of one evaluated checkpoint has in common.

    Attributes:
        path: the results file.
        common: fields of :class:`~ns_easyrobust.records.Record` that say which weights these are.
        protocol: what every evaluation shares (mean, std and where they came from, dtype).
    """

    path: Path
    common: dict[str, Any]
    protocol: dict[str, Any] = field(default_factory=dict)

    def add(self, judged: Judged, suite: str, protocol: dict[str, Any]) -> None:
        """Append a top-1 record and its bits."""
        label = self.common["label"]
        self.add_value(
            suite,
            "top1",
            judged.top1,
            n=judged.n,
            correct=int(judged.right.sum()),
            protocol=protocol,
            images=images_digest(judged.paths),
            right=save_right(self.path.parent, f"{label}-{suite}", judged.paths, judged.right),
        )

    def add_value(self, suite: str, metric: str, value: float, *, protocol: dict[str, Any], **rest: Any) -> None:
        """Append a record of any metric."""
        append_record(
            self.path,
            Record(suite=suite, metric=metric, value=value, protocol=self.protocol | protocol, **self.common, **rest),
        )


def judge(
    model: nn.Module,
    folder: ImageFolder,
    batch_size: int,
    *,
    share: bool,
    attack: Attack | None = None,
    seed: int = 0,
    workers: int = 4,
    title: str = "",
) -> Judged:
    """Run ``model`` once over every image, after ``attack``; with ``share``, batches are dealt to ranks."""
    if batch_size < 1:
        raise OptionError(f"batch size: expected at least 1, found {batch_size}.")
    n, device = len(folder), next(unwrap(model).parameters()).device
    batches = [list(range(i, min(i + batch_size, n))) for i in range(0, n, batch_size)]
    mine = batches[rank() :: world_size()] if share else batches
    right, l2 = torch.zeros(n, device=device), torch.zeros(n, dtype=torch.float64, device=device)
    with frozen(model) as inner:
        loader: DataLoader[Any] = DataLoader(
            folder, batch_sampler=mine, num_workers=workers, generator=torch.Generator().manual_seed(seed)
        )
        bar = tqdm(zip(mine, loader, strict=True), title, len(mine), disable=None if rank() == 0 else True, leave=False)
        for members, (pixels, labels) in bar:
            pixels, labels = pixels.to(device), labels.to(device)
            attacked = pixels
            if attack is not None:
                with isolated(mix(seed, members[0]), device):
                    attacked = attack(inner, pixels, labels)
            with torch.no_grad():
                logits = inner(attacked)
            if logits.shape[-1] != len(folder.classes):
                raise DataError(
                    f"{folder.root}: expected one class folder for each of the model's {logits.shape[-1]} outputs, "
                    f"found {len(folder.classes)}. Labels follow the sorted folders, so they would be wrong."
                )
            if not torch.isfinite(logits).all():
                raise ModelError(f"{title}: expected finite logits, found nan or inf. Check the checkpoint.")
            right[members] = (logits.argmax(-1) == labels).float()
            l2[members] = (attacked - pixels).double().flatten(1).norm(dim=1)
    if share:
        sum_over_ranks(right), sum_over_ranks(l2)
    paths = [str(Path(path).relative_to(folder.root)) for path, _ in folder.samples]
    return Judged(paths, right.bool().cpu(), l2.cpu())
