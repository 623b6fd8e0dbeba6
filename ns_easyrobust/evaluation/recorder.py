"""Records the results of one checkpoint and knows which of them exist already."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..attacks import Attack, Quantity, SecondVerdict
from ..models import state_digest
from ..utils import broadcast_object, rank
from .journal import Batch, Journal
from .per_image import images_digest, save_correctness
from .records import Record, now
from .results_file import ResultsFile, append_record

# Another version of one of these may judge images differently; of our own, the suite's revision says it.
_DECIDING_PACKAGES = ("easyrobust", "torchattacks", "timm", "torch", "torchvision")
_INDIFFERENT = ("normalization_from",)  # settings that say where others come from
_REVISION_1 = "0.1.0"  # the version that wrote journals before there were revisions


@dataclass(frozen=True)
class PerImageResult:
    """Which images were classified correctly.

    Attributes:
        paths: n paths relative to the data folder.
        right: (n,) bool.
        l2: (n,) float64 L2 norms of the attack's perturbations of pixels in [0, 1]; zeros without an attack.
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
        """In percent."""
        return 100 * self.correct / self.n


@dataclass(frozen=True)
class Recorder:
    """A results file, and what all records of one evaluated checkpoint have in common.

    Attributes:
        path: the results file; the journal lies beside it in ``<path>.unfinished/``.
        common: fields of :class:`~ns_easyrobust.evaluation.records.Record` that identify the weights.
        protocol: settings of all evaluations (mean, std and where they came from).
        remeasure: measure again what is in the file already.
        seed: of the attacks' random numbers; None if none are drawn. :meth:`for_run` sets it, ``share`` and the dtype.
        share: whether the ranks divide each evaluation among them.
        revision: of the suite that is recorded. :meth:`for_suite` sets it and ``outputs``.
        outputs: number of the model's.

    Example:
        >>> recorder = Recorder("results.jsonl", {"label": "ViT", "model": "vit_micro_patch8_32"})
        >>> top1 = evaluate_imagenet_val(model, data_dir / "val", records=recorder, workers=0)
        >>> [(record.label, record.suite, record.n) for record in read_records("results.jsonl")]
        [('ViT', 'imagenet-val', 40)]
    """

    path: Path
    common: dict[str, Any]
    protocol: dict[str, Any] = field(default_factory=dict)
    remeasure: bool = False
    seed: int | None = None
    share: bool = False
    revision: int = 1
    outputs: int | None = None
    # Both by path; copies made by for_run and replace share them.
    _files: dict[Path, ResultsFile] = field(default_factory=dict, repr=False, compare=False)
    _journals: dict[Path, Journal] = field(default_factory=dict, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "path", Path(self.path))  # a str is accepted too

    @property
    def _file(self) -> ResultsFile:
        return self._files.setdefault(self.path, ResultsFile(self.path))

    @property
    def _journal(self) -> Journal:
        folder = self.path.with_name(self.path.name + ".unfinished")
        return self._journals.setdefault(folder, Journal(folder))

    def for_run(self, model: nn.Module, dtype: torch.dtype, seed: int | None, share: bool) -> Recorder:
        """A copy with the settings of a run; weights without the hash of a file are identified by a digest of them."""
        settings, common = {"dtype": str(dtype).removeprefix("torch.")}, self.common
        if common.get("checkpoint_sha256") is None:
            common = common | {"weights": f"{common.get('weights') or 'in memory'}, state {state_digest(model)[:12]}"}
        return replace(self, common=common, protocol=self.protocol | settings, seed=seed, share=share)

    def for_suite(self, revision: int, draws: bool, outputs: int) -> Recorder:
        """A copy for the measurements of one suite; without the seed if it draws no random numbers."""
        return replace(self, revision=revision, seed=self.seed if draws else None, outputs=outputs)

    def record(self, suite: str, metric: str, value: float, *, protocol: dict[str, Any], **rest: Any) -> Record:
        """A record of this checkpoint."""
        fields = self.common | {"seed": self.seed, "revision": self.revision, "outputs": self.outputs} | rest
        return Record(suite=suite, metric=metric, value=value, protocol=self.protocol | protocol, **fields)

    def identity(self, suite: str, protocol: dict[str, Any], paths: tuple[str, ...], task: str) -> str:
        """A hash, equal for two top-1 measurements if one can replace the other.

        It covers weights, protocol, images, labels, seed, the suite's revision and the versions of the packages that
        decide the result.
        """
        images = images_digest(paths)
        return _identity(self.record(suite, "top1", 0.0, protocol=protocol, n=1, images=images, task=task))

    def finished(self) -> dict[str, Record]:
        """The file's top-1 records by :meth:`identity`; none with ``remeasure``.

        With ``share``, all ranks get what rank 0 reads.
        """
        records: dict[str, Record] = {}
        if not self.remeasure and (rank() == 0 or not self.share):
            records = {self._own_identity(record): record for record in self._file.records() if record.metric == "top1"}
        return broadcast_object(records) if self.share else records

    def _own_identity(self, record: Record) -> str:
        """The identity that ``record`` has if this run says the same of it; journals go on under theirs."""
        own = {name: self.protocol[name] for name in _INDIFFERENT if name in self.protocol}
        return _identity(replace(record, protocol={**record.protocol, **own}))

    def unfinished(self) -> dict[str, dict[int, Batch]]:
        """The journal's batches by :meth:`identity` and batch number; none with ``remeasure``."""
        return {} if self.remeasure else self._journal.read(self.share)

    def keep(self, key: str, number: int, right: list[int], l2: list[float]) -> None:
        """Enter a batch of the measurement ``key`` in the journal."""
        if self.share or rank() == 0:
            self._journal.add(key, number, right, l2)

    def forget(self, key: str) -> None:
        """Drop the measurement ``key``, now recorded, from the journal."""
        self._journal.drop(key)

    def add(self, suite: str, protocol: dict[str, Any], judged: PerImageResult) -> None:
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
            right=save_correctness(self.path.parent, f"{self.common['label']}-{suite}", judged.paths, judged.right),
        )

    def add_value(self, suite: str, metric: str, value: float, *, protocol: dict[str, Any], **rest: Any) -> None:
        """Append a record of any metric, unless the newest of its table cell is equal (left by a killed run)."""
        self._append(self.record(suite, metric, value, protocol=protocol, **rest))

    def add_extra(
        self,
        suite: str,
        protocol: dict[str, Any],
        judged: PerImageResult,
        results: Iterable[SecondVerdict | Quantity],
    ) -> None:
        """Append what an attack gave besides ``judged``; its results' settings are added to ``protocol``."""
        for result in results:
            settings = {**protocol, **result.protocol}
            if isinstance(result, SecondVerdict):
                self.add(suite, settings, replace(judged, right=result.correct))
            else:
                self.add_value(suite, result.metric, result.value, unit=result.unit, n=result.n, protocol=settings)

    def _append(self, record: Record) -> None:
        newest = self._file.newest(record.cell)
        if rank() == 0 and (self.remeasure or newest is None or not _same_but_for_time(record, newest)):
            append_record(self.path, record)

    def renew(self, record: Record, attack: Attack | None = None) -> None:
        """Make ``record``, reused for this run, and the records written with it the newest of their table cells."""
        ignored = () if attack is None else attack.verdict_settings
        together = [other for other in self._file.records() if _written_together(other, record, ignored)]
        newest_by_cell = {other.cell: other for other in together}
        for other in newest_by_cell.values():
            self._append(replace(other, created=now()))


def _written_together(other: Record, top1: Record, ignored: Collection[str]) -> bool:
    """Whether ``other`` comes from the measurement of ``top1``: their settings agree but for the ``ignored`` ones."""

    def measured(record: Record) -> tuple[object, ...]:
        settings = {name: value for name, value in record.protocol.items() if name not in ignored}
        return (record.row, record.suite, settings, record.seed, record.revision, record.versions)

    return measured(other) == measured(top1) and other.images in (None, top1.images) and other.task in (None, top1.task)


def _same_but_for_time(one: Record, other: Record) -> bool:
    return replace(one, created=other.created) == other


def _identity(record: Record) -> str:
    revision = _REVISION_1 if record.revision == 1 else f"revision {record.revision}"
    versions = [revision, *(record.versions.get(name) for name in _DECIDING_PACKAGES)]
    text = json.dumps([record.key, record.images, record.task, record.seed, versions])
    return hashlib.sha256(text.encode()).hexdigest()[:32]
