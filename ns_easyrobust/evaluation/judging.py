"""Judges which images a model classifies correctly: every image exactly once, for any number of processes.

All tasks go through one loader: its workers decode the next task while the current one is judged, and each
decoded batch serves all measurements on it. Batches do not depend on the number of ranks that they are dealt to,
and each image has its own seed.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import replace
from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset, default_collate

from ..attacks import SecondVerdict
from ..data import ImageList
from ..errors import DataError, ModelError, OptionError
from ..models import frozen, required_image_size
from ..utils import Progress, derive_seed, fork_rng, rank, sum_over_ranks, world_size
from .recorder import PerImageResult, Recorder
from .task import EvaluationTask, Measurement, Outcome, TaskState, device_of

_logger = logging.getLogger(__name__)


class _Decoder(Dataset[Any]):
    """Runs in the loader's workers: from (task index, batch number, images) to the same with pixels and labels."""

    def __init__(self, transforms: Sequence[Any]) -> None:
        self.transforms = transforms

    def __getitem__(self, request: tuple[int, int, ImageList]) -> tuple[int, int, torch.Tensor, torch.Tensor]:
        task, batch, images = request
        images = images.with_transform(self.transforms[task])
        items = [images[i] for i in range(len(images))]
        shapes = {tuple(item[0].shape): path for item, path in zip(items, images.paths, strict=True)}
        if len(shapes) > 1:
            sizes = ", ".join(f"{shape} ({path})" for shape, path in list(shapes.items())[:2])
            raise DataError(f"{images.root}: expected images of one size, found {sizes}. Use a transform that crops.")
        pixels, labels = default_collate(items)  # in a worker, collates directly into shared memory
        return task, batch, pixels, labels


class _FirstLogitsTap(nn.Module):
    """Runs ``model`` and keeps the logits of its first forward."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.first: torch.Tensor | None = None

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.model(pixels)
        if self.first is None:
            self.first = logits.detach()
        return logits


def require_gradients(dtype: torch.dtype, measurements: Iterable[Measurement]) -> None:
    """Raise OptionError for attacks in float16."""
    if dtype == torch.float16 and any(measurement.attack is not None for measurement in measurements):
        raise OptionError("dtype float16: expected float32 or bfloat16 for attacks, whose gradients float16 cuts to 0.")


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
        ModelError: logits are not finite or not as many as expected, or the model is built for another image size.
        DataError: an image cannot be decoded, or the images of a batch differ in size.
        OptionError: an attack in float16, whose gradients would vanish; a negative seed; a batch size below 1.
    """
    tasks = list(tasks)
    require_gradients(dtype, [measurement for task in tasks for measurement in task.measurements])
    if seed < 0:
        raise OptionError(f"seed: expected a whole number >= 0, found {seed}.")
    earlier_results: tuple[Any, Any] = ({}, {})  # finished, unfinished
    if recorder is not None:
        recorder = recorder.for_run(model, dtype, seed, share)
        earlier_results = (recorder.finished(), recorder.unfinished())
    states: dict[int, TaskState] = {}
    this_rank, ranks = (rank(), world_size()) if share else (0, 1)

    def requests() -> Iterator[tuple[int, int, ImageList]]:
        for index, task in enumerate(tasks):
            state = states[index] = TaskState(task, recorder, *earlier_results)
            for number in state.left()[this_rank::ranks]:
                images = state.images.take(state.batches[number])
                yield index, number, replace(images, transform=None, classes=None, answers=None)

    device = device_of(model)
    outcomes: list[list[Outcome]] = []
    progress, current = Progress(len(tasks), shown=rank() == 0), -1

    def finish_tasks_before(index: int) -> None:
        while len(outcomes) < index:
            outcomes.append(_finish_task(states.pop(len(outcomes)), share, recorder, device))
            progress.next_part()

    with frozen(model) as inner, closing(progress):
        loader: DataLoader[Any] = DataLoader(
            _Decoder([task.transform for task in tasks]),
            sampler=requests(),
            batch_size=None,
            num_workers=workers,
            pin_memory=device.type == "cuda",
            generator=torch.Generator().manual_seed(seed),
        )
        for index, number, pixels, labels in loader:
            finish_tasks_before(index)
            state = states[index]
            if index != current:
                _require_image_size(inner, pixels)
                current, titles = index, dict.fromkeys(measurement.title for measurement in state.task.measurements)
                resumed = len(set().union(*state.done))
                if resumed and rank() == 0:
                    _logger.info("%s: goes on after %d batches of an unfinished run", ", ".join(titles), resumed)
                progress.start(", ".join(titles), len(state.left()[this_rank::ranks]))
            _judge_batch(inner, state, number, pixels.to(device), labels.to(device), seed, dtype, recorder)
            progress.batch()
        finish_tasks_before(len(tasks))
    return outcomes


def _require_image_size(model: nn.Module, pixels: torch.Tensor) -> None:
    """Raise ModelError if the model is built for images of another size, where it would only fail an assertion."""
    built, found = required_image_size(model), tuple(pixels.shape[2:])
    if built is not None and built != found:
        raise ModelError(
            f"expected images of {built[0]}x{built[1]} pixels, which the model is built for, found "
            f"{found[0]}x{found[1]}. Give a transform of that size, or build the model for this one (img_size=...)."
        )


def _judge_batch(
    model: nn.Module,
    state: TaskState,
    number: int,
    pixels: torch.Tensor,
    labels: torch.Tensor,
    seed: int,
    dtype: torch.dtype,
    recorder: Recorder | None,
) -> None:
    """Judge batch ``number`` under every measurement that still needs it."""
    measurements, positions = state.task.measurements, state.batches[number]
    clean_logits: torch.Tensor | None = None
    # Attacks whose first forward is the clean one go first, so that clean accuracy can reuse its logits.
    for index in sorted(
        state.measurements_left(number), key=lambda index: not _yields_clean_logits(measurements[index])
    ):
        attack, attacked, logits = measurements[index].attack, pixels, None
        with torch.autocast(pixels.device.type, dtype, enabled=dtype != torch.float32):
            if attack is not None:
                tap = _FirstLogitsTap(model)
                with fork_rng(derive_seed(seed, positions.start), pixels.device):
                    seeds = [derive_seed(seed, position) for position in positions]
                    attacked = attack(tap if attack.clean_first else model, pixels, labels, seeds)
                clean_logits = tap.first if tap.first is not None else clean_logits
            else:
                logits = clean_logits
            if logits is None:
                with torch.no_grad():
                    logits = model(attacked)
        if logits.shape[-1] != state.images.outputs:
            raise ModelError(
                f"{measurements[index].title}: expected {state.images.outputs} logits, found {logits.shape[-1]}. "
                "The model's num_classes is not what it gives."
            )
        if not torch.isfinite(logits).all():
            raise ModelError(
                f"{measurements[index].title}: expected finite logits, found nan or inf. Check the checkpoint."
            )
        correct = state.images.correct_predictions(logits, labels).int().tolist()
        l2 = (
            (attacked - pixels).double().flatten(1).norm(dim=1).tolist() if attack is not None else [0.0] * len(correct)
        )
        state.keep(index, number, correct, l2)
        if recorder is not None and state.keys[index]:
            recorder.keep(state.keys[index], number, correct, l2)


def _yields_clean_logits(measurement: Measurement) -> bool:
    return measurement.attack is not None and measurement.attack.clean_first


def _write_records(
    recorder: Recorder, measurement: Measurement, protocol: dict[str, Any], judged: PerImageResult
) -> None:
    """Record top-1 and the attack's further results."""
    results = [] if measurement.attack is None else measurement.attack.extra_results(judged.right, judged.l2)
    for result in results:
        settings = {**protocol, **result.protocol}
        if isinstance(result, SecondVerdict):
            recorder.add(measurement.suite, settings, replace(judged, right=result.correct))
        else:
            recorder.add_value(
                measurement.suite, result.metric, result.value, unit=result.unit, n=result.n, protocol=settings
            )
    # Last, because this record marks the measurement as done.
    recorder.add(measurement.suite, {**protocol, **measurement.protocol}, judged)


def _finish_task(state: TaskState, share: bool, recorder: Recorder | None, device: torch.device) -> list[Outcome]:
    """Merge the ranks' results, record them and return the outcome of each measurement."""
    if share:
        per_image = torch.stack([state.right, state.l2]).to(device)
        state.right, state.l2 = sum_over_ranks(per_image).cpu()  # a rank has zeros where another judged
    outcomes = []
    for index, measurement in enumerate(state.task.measurements):
        record = state.records[index]
        if record is not None:
            outcomes.append(Outcome(record.n, record.correct or 0))
            if recorder is not None:
                recorder.renew(record)
            origin = f" (measured {record.created[:10]}, taken from the records)"
        else:
            judged, origin = state.judged(index), ""
            outcomes.append(Outcome(judged.n, judged.correct))
            if recorder is not None:
                measurement_recorder = recorder if measurement.draws else replace(recorder, seed=None)
                _write_records(measurement_recorder, measurement, state.protocol, judged)
        if recorder is not None and state.keys[index]:
            recorder.forget(state.keys[index])
        if rank() == 0:
            _logger.info("%s: %.2f%% of %d%s", measurement.title, outcomes[-1].top1, outcomes[-1].n, origin)
    return outcomes
