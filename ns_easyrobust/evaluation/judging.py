"""Judges which images a model classifies correctly: every image exactly once, for any number of processes.

All tasks go through one loader: its workers decode the next task while the current one is judged, and each
decoded batch serves all measurements on it. Batches do not depend on the number of ranks that they are dealt to,
and each image has its own seed.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from itertools import groupby
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset, default_collate

from ..attacks import Attack, require_adversarial, require_input
from ..data import ImageList
from ..errors import DataError, ModelError, OptionError
from ..models import frozen, logits_of
from ..utils import Progress, derive_seed, fork_rng, rank, sum_over_ranks, world_size
from .recorder import PerImageResult, Recorder
from .task import EvaluationTask, Measurement, Outcome, TaskState, device_of, require_gradients

_logger = logging.getLogger(__name__)
_MOST_WORKERS = 1024


class _Batch(NamedTuple):
    """A decoded batch: the index of its task, its number there, pixels (B, C, H, W) and labels (B,)."""

    task: int
    number: int
    pixels: torch.Tensor
    labels: torch.Tensor


class _Decoder(Dataset[Any]):
    """Runs in the loader's workers: from (task, number, images) to the decoded batch; one transform a task."""

    def __init__(self, transforms: Sequence[Any]) -> None:
        self.transforms = transforms

    def __getitem__(self, request: tuple[int, int, ImageList]) -> _Batch:
        task, number, images = request
        images = images.with_transform(self.transforms[task])
        items = [images[i] for i in range(len(images))]
        if not hasattr(items[0][0], "shape"):
            raise DataError(
                f"{images.root}: expected a transform to a tensor (C, H, W), found one to "
                f"{type(items[0][0]).__name__}. Let it end in ToTensor."
            )
        shapes = {tuple(item[0].shape): path for item, path in zip(items, images.paths, strict=True)}
        if len(shapes) > 1:
            sizes = ", ".join(f"{shape} ({path})" for shape, path in list(shapes.items())[:2])
            raise DataError(f"{images.root}: expected images of one size, found {sizes}. Use a transform that crops.")
        pixels, labels = default_collate(items)  # in a worker, collates directly into shared memory
        return _Batch(task, number, pixels, labels)


class _FirstLogitsTap(nn.Module):
    """Runs ``model`` and keeps the logits of its first forward."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.first: torch.Tensor | None = None

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        logits = logits_of(self.model(pixels), len(pixels))
        if self.first is None:
            self.first = logits.detach()
        return logits


def judge(
    model: nn.Module,
    tasks: Iterable[EvaluationTask],
    *,
    share: bool = False,
    workers: int = 4,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
    recorder: Recorder | None = None,
) -> list[list[Outcome]]:
    """Judge every image of every task once under each of the task's measurements.

    Measurements that ``recorder`` already holds are not repeated, and batches that a killed run judged are taken
    from its journal. Records are written as soon as their task is finished.

    Args:
        share: deal the batches to torchrun's processes.
        workers: data loading processes.
        seed: of the attacks' random numbers; each image has its own, whichever rank judges it.
        dtype: if not float32, the forwards run under autocast.

    Returns:
        For each task, the outcome of each of its measurements.

    Raises:
        ModelError: the model returns no logits, or not finite ones, or not as many as expected; or it is built for
            another image size.
        DataError: an image cannot be decoded, the images of a batch differ in size, or their pixels are outside [0, 1]
            and the model normalises its input itself; a label is none of the model's outputs.
        OptionError: an attack in float16, whose gradients would vanish; a seed, a number of workers or a batch size out
            of range.
    """
    tasks = list(tasks)
    require_gradients(dtype, [measurement for task in tasks for measurement in task.measurements])
    if not 0 <= seed < 2**63:
        raise OptionError(f"seed: expected a whole number {'>= 0' if seed < 0 else '< 2**63'}, found {seed}.")
    if not 0 <= workers <= _MOST_WORKERS:
        raise OptionError(f"workers: expected 0 to {_MOST_WORKERS} processes, found {workers}.")
    if recorder is not None:
        recorder = recorder.for_run(model, dtype, seed, share)
    bars = closing(Progress(len(tasks), shown=rank() == 0))
    with torch.inference_mode(False), frozen(model) as inner, bars as progress:  # so that attacks have gradients
        return _Run(inner, device_of(inner), tasks, share, seed, dtype, recorder, progress).judge_all(workers)


@dataclass
class _Run:
    """One call of :func:`judge` in one process.

    A task is opened when its batches are requested, some time before they arrive from the loader's workers, and
    finished when the first batch of a later task has arrived; both in the order of the tasks.
    """

    model: nn.Module
    device: torch.device
    tasks: Sequence[EvaluationTask]
    share: bool
    seed: int
    dtype: torch.dtype
    recorder: Recorder | None
    progress: Progress
    opened: deque[TaskState] = field(default_factory=deque)  # not finished; the first is the one that is judged
    outcomes: list[list[Outcome]] = field(default_factory=list)  # of the finished tasks

    def judge_all(self, workers: int) -> list[list[Outcome]]:
        """The outcomes of all tasks."""
        loader: DataLoader[_Batch] = DataLoader(
            _Decoder([task.transform for task in self.tasks]),
            sampler=self._requests(),
            batch_size=None,
            num_workers=workers,
            pin_memory=self.device.type == "cuda",
            generator=torch.Generator().manual_seed(self.seed),
        )
        for task, batches in groupby(loader, key=lambda batch: batch.task):
            self._finish_tasks(before=task)
            self._judge_task(self.opened[0], batches)
        self._finish_tasks(before=len(self.tasks))
        return self.outcomes

    def _requests(self) -> Iterator[tuple[int, int, ImageList]]:
        """Open each task and request its batches; a task of which nothing is left has none."""
        finished = self.recorder.finished() if self.recorder is not None else {}
        unfinished = self.recorder.unfinished() if self.recorder is not None else {}
        for index, task in enumerate(self.tasks):
            state = TaskState(task, self.recorder, finished, unfinished)
            self.opened.append(state)
            for number in self._own_batches(state):
                images = state.images.take(state.batches[number])
                yield index, number, replace(images, transform=None, classes=None, answers=None)

    def _own_batches(self, state: TaskState) -> list[int]:
        """The numbers of the batches that this rank judges."""
        return state.left()[rank() :: world_size()] if self.share else state.left()

    def _judge_task(self, state: TaskState, batches: Iterable[_Batch]) -> None:
        titles = ", ".join(dict.fromkeys(measurement.title for measurement in state.task.measurements))
        resumed = len(set().union(*state.done))
        if resumed and rank() == 0:
            _logger.info("%s: goes on after %d batches of an unfinished run", titles, resumed)
        self.progress.start(titles, len(self._own_batches(state)))
        for batch in batches:
            pixels, labels = batch.pixels.to(self.device), batch.labels.to(self.device)
            require_input(self.model, pixels)
            self._judge_batch(state, batch._replace(pixels=pixels, labels=labels))
            self.progress.batch()

    def _judge_batch(self, state: TaskState, batch: _Batch) -> None:
        """Judge ``batch`` under every measurement that still needs it."""
        left = {index: state.task.measurements[index].attack for index in state.measurements_left(batch.number)}
        attacks = {index: attack for index, attack in left.items() if attack is not None}
        positions = state.batches[batch.number]
        adversarial: dict[int, torch.Tensor] = {}
        if unattacked := [index for index in left if index not in attacks]:
            clean_logits, adversarial = self._clean_logits(attacks, batch, positions)
            for index in unattacked:
                self._keep(state, index, batch, clean_logits, l2=[0.0] * len(positions))
        for index, attack in attacks.items():
            if index not in adversarial:
                adversarial[index] = self._attacked(self.model, attack, batch, positions)
            attacked = adversarial.pop(index)
            l2 = (attacked - batch.pixels).double().flatten(1).norm(dim=1).tolist()
            self._keep(state, index, batch, self._logits(attacked), l2)

    def _clean_logits(
        self, attacks: Mapping[int, Attack], batch: _Batch, positions: range
    ) -> tuple[torch.Tensor, dict[int, torch.Tensor]]:
        """The logits of the unmodified images, and by index the result of the attack whose own forward gave them."""
        for index, attack in attacks.items():
            if attack.clean_first:
                tap = _FirstLogitsTap(self.model)
                adversarial = self._attacked(tap, attack, batch, positions)
                if tap.first is not None:
                    return tap.first, {index: adversarial}
        return self._logits(batch.pixels), {}

    def _attacked(self, model: nn.Module, attack: Attack, batch: _Batch, positions: range) -> torch.Tensor:
        """Adversarial pixels (B, C, H, W); random numbers depend on ``positions``, the images' places in their task."""
        seeds = [derive_seed(self.seed, position) for position in positions]
        with self._autocast(), fork_rng(derive_seed(self.seed, positions.start), self.device):
            attacked = attack(model, batch.pixels, batch.labels, seeds)
        require_adversarial(attacked, batch.pixels.shape, attack.title)
        return attacked

    def _logits(self, pixels: torch.Tensor) -> torch.Tensor:
        with self._autocast(), torch.no_grad():
            return logits_of(self.model(pixels), len(pixels))

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32)

    def _keep(self, state: TaskState, index: int, batch: _Batch, logits: torch.Tensor, l2: list[float]) -> None:
        """Enter which images of ``batch`` are classified correctly under measurement ``index``."""
        _require_sound(logits, state.images.outputs, state.task.measurements[index].title)
        correct = state.images.correct_predictions(logits, batch.labels).int().tolist()
        state.keep(index, batch.number, correct, l2)
        if self.recorder is not None and state.keys[index]:
            self.recorder.keep(state.keys[index], batch.number, correct, l2)

    def _finish_tasks(self, before: int) -> None:
        """Finish the tasks of lower indices than ``before``."""
        while len(self.outcomes) < before:
            self.outcomes.append(self._finish_task(self.opened.popleft()))
            self.progress.next_part()

    def _finish_task(self, state: TaskState) -> list[Outcome]:
        """Merge the ranks' results, record them and return the outcome of each measurement."""
        if self.share:
            per_image = torch.stack([state.right, state.l2]).to(self.device)
            state.right, state.l2 = sum_over_ranks(per_image).cpu()  # a rank has zeros where another judged
        return [self._finish_measurement(state, index) for index in range(len(state.task.measurements))]

    def _finish_measurement(self, state: TaskState, index: int) -> Outcome:
        measurement, record = state.task.measurements[index], state.records[index]
        if record is None:
            judged = state.judged(index)
            outcome, origin = Outcome(judged.n, judged.correct), ""
            if self.recorder is not None:
                recorder = self.recorder.for_suite(measurement.revision, measurement.draws, state.images.outputs)
                _write_records(recorder, measurement, state.protocol, judged)
        else:
            outcome = Outcome(record.n, record.correct or 0)
            origin = f" (measured {record.created[:10]}, taken from the records)"
            if self.recorder is not None:
                self.recorder.renew(record, measurement.attack)
        if self.recorder is not None and state.keys[index]:
            self.recorder.forget(state.keys[index])
        if rank() == 0:
            _logger.info("%s: %.2f%% of %d%s", measurement.title, outcome.top1, outcome.n, origin)
        return outcome


def _require_sound(logits: torch.Tensor, outputs: int, title: str) -> None:
    """Raise ModelError unless ``logits`` (B, K) are finite and K is ``outputs``."""
    if logits.shape[1] != outputs:
        raise ModelError(
            f"{title}: expected {outputs} logits, found {logits.shape[1]}. "
            "The model's num_classes is not what it gives."
        )
    if not torch.isfinite(logits).all():
        raise ModelError(f"{title}: expected finite logits, found nan or inf. Check the checkpoint.")


def _write_records(
    recorder: Recorder, measurement: Measurement, protocol: dict[str, Any], judged: PerImageResult
) -> None:
    """Record top-1 and the attack's further results."""
    if measurement.attack is not None:
        extra = measurement.attack.extra_results(judged.right, judged.l2)
        recorder.add_extra(measurement.suite, protocol, judged, extra)
    # Last, because this record marks the measurement as done.
    recorder.add(measurement.suite, {**protocol, **measurement.protocol}, judged)
