"""Where the results of one checkpoint go, and which of them are there already."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..models.vit import unwrap
from ..utils.distributed import broadcast_object, rank
from .journal import Batch, Journal
from .per_image import images_digest, save_right
from .records import Record, append_record, now, read_records

# Another version of these may count otherwise.
_DECIDING = ("ns_easyrobust", "easyrobust", "torchattacks", "timm", "torch", "torchvision")


@dataclass(frozen=True)
class Judged:
    """Which images were right.

    Attributes:
        paths: relative to the data folder.
        right: (n,) bool.
        l2: (n,) float64 L2 norm of what an attack added, in pixels of [0, 1]; zeros without one.
        task: :meth:`ImageList.task` of the images.
    """

    paths: tuple[str, ...]
    right: torch.Tensor
    l2: torch.Tensor
    task: str | None = None

    @property
    def n(self) -> int:
        return len(self.right)

    @property
    def correct(self) -> int:
        return int(self.right.sum())

    @property
    def top1(self) -> float:
        """Percent right."""
        return 100 * self.correct / self.n


@dataclass(frozen=True)
class Recorder:
    """A results file, and what every record of one evaluated checkpoint has in common.

    Attributes:
        path: the results file; the journal of what is under way lies beside it, as ``<path>.unfinished/``.
        common: fields of :class:`~ns_easyrobust.evaluation.records.Record` that say which weights these are.
        protocol: what every evaluation shares (mean, std and where they came from).
        again: measure also what is in the file already.
        seed: of what an attack drew; None where nothing was drawn. The judge sets it, as ``share`` and the dtype.
        share: whether ranks work on one evaluation together.
    """

    path: Path
    common: dict[str, Any]
    protocol: dict[str, Any] = field(default_factory=dict)
    again: bool = False
    seed: int | None = None
    share: bool = False
    _journals: dict[Path, Journal] = field(default_factory=dict, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "path", Path(self.path))  # a str will do

    @property
    def _journal(self) -> Journal:
        folder = self.path.with_name(self.path.name + ".unfinished")
        return self._journals.setdefault(folder, Journal(folder))

    def of_run(self, model: nn.Module, dtype: torch.dtype, seed: int | None, share: bool) -> Recorder:
        """This one, for a run of these settings; weights that came from no named file are told apart by a digest."""
        words, common = {"dtype": str(dtype).removeprefix("torch.")}, self.common
        if common.get("checkpoint_sha256") is None:
            common = common | {"weights": f"{common.get('weights') or 'in memory'}, state {state_digest(model)[:12]}"}
        return replace(self, common=common, protocol=self.protocol | words, seed=seed, share=share)

    def record(self, suite: str, metric: str, value: float, *, protocol: dict[str, Any], **rest: Any) -> Record:
        """A record of this checkpoint."""
        fields = self.common | {"seed": self.seed} | rest
        return Record(suite=suite, metric=metric, value=value, protocol=self.protocol | protocol, **fields)

    def identity(
        self, suite: str, protocol: dict[str, Any], paths: tuple[str, ...], task: str, draws: bool = True
    ) -> str:
        """Equal for two top-1 measurements if one can stand for the other: weights, protocol, images, labels, seed."""
        seed = self.seed if draws else None
        images = images_digest(paths)
        return _identity(self.record(suite, "top1", 0.0, protocol=protocol, n=1, images=images, task=task, seed=seed))

    def finished(self) -> dict[str, Record]:
        """The file's top-1 records by :meth:`identity`; none where all is measured again.

        Where ranks share the work, all see what rank 0 reads.
        """
        found: dict[str, Record] = {}
        if not self.again and (rank() == 0 or not self.share):
            found = {_identity(record): record for record in self._read() if record.metric == "top1"}
        return broadcast_object(found) if self.share else found

    def unfinished(self) -> dict[str, dict[int, Batch]]:
        """What a killed run has judged, by :meth:`identity` and batch; nothing where all is measured again."""
        return {} if self.again else self._journal.read(self.share)

    def keep(self, key: str, number: int, right: list[int], l2: list[float]) -> None:
        """Enter a batch of the measurement ``key`` in the journal."""
        if self.share or rank() == 0:
            self._journal.add(key, number, right, l2)

    def forget(self, key: str) -> None:
        """The measurement ``key`` is recorded: its journal goes."""
        self._journal.drop(key)

    def add(self, suite: str, protocol: dict[str, Any], judged: Judged) -> None:
        """Append a top-1 record and its bits."""
        self.add_value(
            suite,
            "top1",
            judged.top1,
            n=judged.n,
            correct=judged.correct,
            protocol=protocol,
            images=images_digest(judged.paths),
            task=judged.task,
            right=save_right(self.path.parent, f"{self.common['label']}-{suite}", judged.paths, judged.right),
        )

    def add_value(self, suite: str, metric: str, value: float, *, protocol: dict[str, Any], **rest: Any) -> None:
        """Append a record of any metric, unless this very one is the newest of its cell (a killed run left it)."""
        self._append(self.record(suite, metric, value, protocol=protocol, **rest), self._read())

    def _append(self, record: Record, there: list[Record]) -> None:
        newest = next((other for other in reversed(there) if other.cell == record.cell), None)
        if rank() == 0 and (self.again or newest is None or not _same(record, newest)):
            append_record(self.path, record)

    def renew(self, record: Record) -> None:
        """``record`` stands for a measurement asked for now: make it, and what was written with it, the newest."""
        there = self._read()
        with_it = {other.cell: other for other in there if _written_together(other, record)}
        for other in with_it.values():
            self._append(replace(other, created=now()), there)

    def _read(self) -> list[Record]:
        return read_records(self.path) if self.path.exists() else []


def state_digest(model: nn.Module) -> str:
    """A hash of every parameter and buffer, wrapped or not."""
    digest = hashlib.sha256()
    for name, tensor in sorted(unwrap(model).state_dict().items()):
        values = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(values.numpy().tobytes())
    return digest.hexdigest()


def _written_together(one: Record, other: Record) -> bool:
    """Whether both are of one trial: CW's accuracies within radii and its mean L2 belong to one."""

    def trial(record: Record) -> tuple[object, ...]:
        settled = {name: value for name, value in record.protocol.items() if name != "radius"}
        return (record.row, record.suite, settled, record.seed, record.versions)

    return trial(one) == trial(other) and one.images in (None, other.images) and one.task in (None, other.task)


def _same(one: Record, other: Record) -> bool:
    return replace(one, created=other.created) == other


def _identity(record: Record) -> str:
    versions = [record.versions.get(name) for name in _DECIDING]
    text = json.dumps([record.key, record.images, record.task, record.seed, versions])
    return hashlib.sha256(text.encode()).hexdigest()[:32]
