"""Where the results of one checkpoint go, and which of them are there already."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from .bits import images_digest, save_right
from .distributed import broadcast_object, rank
from .journal import Batch, Journal
from .records import Record, append_record, read_records

_DECIDING = ("ns_easyrobust", "torchattacks", "timm")  # another version of these may count otherwise


@dataclass(frozen=True)
class Judged:
    """Which images were right.

    Attributes:
        paths: relative to the data folder.
        right: (n,) bool.
        l2: (n,) float64 L2 norm of what an attack added, in pixels of [0, 1]; zeros without one.
    """

    paths: tuple[str, ...]
    right: torch.Tensor
    l2: torch.Tensor

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
        common: fields of :class:`~ns_easyrobust.records.Record` that say which weights these are.
        protocol: what every evaluation shares (mean, std and where they came from, dtype).
        again: measure also what is in the file already.
    """

    path: Path
    common: dict[str, Any]
    protocol: dict[str, Any] = field(default_factory=dict)
    again: bool = False

    @property
    def journal(self) -> Journal:
        return Journal(self.path.with_name(self.path.name + ".unfinished"))

    def record(self, suite: str, metric: str, value: float, *, protocol: dict[str, Any], **rest: Any) -> Record:
        """A record of this checkpoint."""
        return Record(suite=suite, metric=metric, value=value, protocol=self.protocol | protocol, **self.common, **rest)

    def identity(self, suite: str, protocol: dict[str, Any], paths: tuple[str, ...]) -> str:
        """Equal for two top-1 measurements if one can stand for the other: same weights, protocol, images and seed."""
        stub = self.record(suite, "top1", 0.0, protocol=protocol, n=1, images=images_digest(paths))
        return _identity(stub)

    def finished(self) -> dict[str, Record]:
        """The file's top-1 records by :meth:`identity`, as rank 0 reads them; none where all is measured again."""
        found: dict[str, Record] = {}
        if rank() == 0 and not self.again:
            found = {_identity(record): record for record in self._read() if record.metric == "top1"}
        return broadcast_object(found)

    def unfinished(self) -> dict[str, dict[int, Batch]]:
        """What a killed run has judged, by :meth:`identity` and batch; nothing where all is measured again."""
        return {} if self.again else self.journal.read()

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
            right=save_right(self.path.parent, f"{self.common['label']}-{suite}", judged.paths, judged.right),
        )

    def add_value(self, suite: str, metric: str, value: float, *, protocol: dict[str, Any], **rest: Any) -> None:
        """Append a record of any metric, unless a killed run has left this very one behind."""
        record = self.record(suite, metric, value, protocol=protocol, **rest)
        if rank() == 0 and (self.again or not any(map(partial(_same, record), self._read()))):
            append_record(self.path, record)

    def _read(self) -> list[Record]:
        return read_records(self.path) if self.path.exists() else []


def _same(one: Record, other: Record) -> bool:
    return replace(one, created=other.created) == other


def _identity(record: Record) -> str:
    versions = [record.versions.get(name) for name in _DECIDING]
    text = json.dumps([record.key, record.images, record.seed, versions])
    return hashlib.sha256(text.encode()).hexdigest()[:32]
