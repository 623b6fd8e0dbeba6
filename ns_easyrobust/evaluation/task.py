"""Evaluation tasks: which measurements are made on which images, and how far a task has been judged."""

from __future__ import annotations

import itertools
import logging
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..attacks import Attack, require_outputs
from ..data import (
    ImageList,
    Loader,
    Subset,
    describe_transform,
    images_below,
    is_described,
    is_image,
    list_folder,
    read_image,
)
from ..errors import DataError, ModelError, OptionError
from ..models import bare_vit, find_normalize, frozen, logits_of, reference_tensor, required_image_size
from .journal import Batch
from .recorder import PerImageResult, Recorder
from .records import Record
from .suite import LARGEST_BATCH, revision_of, suite_under

_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Measurement:
    """One measurement on a task's images: unattacked, or under an attack.

    Attributes:
        suite: the suite's name in the records.
        settings: the measurement's own protocol settings; none with an attack, which has its own.
        attack: None: the images are not attacked.

    Raises:
        OptionError: both settings and an attack.
    """

    suite: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    attack: Attack | None = None

    def __post_init__(self) -> None:
        if self.attack is not None and self.settings:
            raise OptionError(f"{self.suite}: expected the settings of an attack in the attack, found {self.settings}.")

    @classmethod
    def under(cls, attack: Attack) -> Measurement:
        """The accuracy under ``attack``."""
        return cls(attack.name, attack=attack)

    @property
    def protocol(self) -> Mapping[str, Any]:
        return self.settings if self.attack is None else self.attack.protocol()

    @property
    def title(self) -> str:
        """Its name on the progress bar."""
        return " ".join([self.suite, *map(str, self.settings.values())]) if self.attack is None else self.attack.title

    @property
    def draws(self) -> bool:
        """Whether random numbers are drawn, so that the seed is part of the measurement."""
        return self.attack is not None and self.attack.draws

    @property
    def revision(self) -> int:
        """That of the suite: of the benchmark, and of the attack on it."""
        return revision_of(self.suite) if self.attack is None else suite_under(self.attack).revision


@dataclass(frozen=True)
class EvaluationTask:
    """Images, listed only when their turn comes, and the measurements on them.

    Attributes:
        open: lists the images; the list's own transform is not used.
        transform: from RGB image to pixels. It is kept here, not in the list, so that data workers inherit it:
            a lambda cannot be sent to them.
        protocol: settings in its records besides those of the transform, the batch size and the measurement.
    """

    open: Callable[[], ImageList]
    transform: Any
    batch_size: int
    measurements: Sequence[Measurement]
    protocol: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Outcome:
    """A measurement's result, measured now or taken from the records."""

    n: int
    correct: int

    @property
    def top1(self) -> float:
        """In percent."""
        return 100 * self.correct / self.n


def device_of(model: nn.Module) -> torch.device:
    """The device of the model's parameters; the CPU for a model without any."""
    return reference_tensor(model).device


def outputs_of(model: nn.Module, pixels: torch.Tensor) -> int:
    """The number of logits that ``model`` gives for an image like ``pixels`` (C, H, W)."""
    with frozen(model) as inner, torch.no_grad():
        return logits_of(inner(pixels[None].to(device_of(model))), 1).shape[1]


def warn_if_missing(root: Path) -> bool:
    """Whether ``root`` exists; if not, a logged warning names it."""
    exists = os.path.exists(root)
    if not exists:
        _logger.warning("%s does not exist: skipped", root)
    return exists


def transform_for(model: nn.Module, given: Any, default: Callable[[int], Any]) -> Any:
    """The transform ``given``, or else ``default(image_size)`` for the model's image size.

    Raises:
        ModelError: none is given, and the model does not normalise its input itself.
    """
    if given is None and find_normalize(model) is None:
        raise ModelError(
            "the model has no normalisation inside and no test_transform was given: expected one of both. "
            "Wrap it (load_model does), or pass the transform that its weights were trained with."
        )
    return given or default((required_image_size(model) or (224, 224))[-1])


def number_of_outputs(model: nn.Module, root: Path, transform: Any) -> int:
    """The model's number of logits: its ``num_classes``, or else counted on the first image in or below ``root``.

    :func:`~ns_easyrobust.evaluation.judging.judge` refuses another number of logits.

    Raises:
        DataError: there is no image to count them on.
    """
    declared = getattr(bare_vit(model), "num_classes", None)
    if isinstance(declared, int) and declared > 0:
        return declared
    folders, files = list_folder(root)
    paths = itertools.chain(filter(is_image, files), *(images_below(root, name) for name in folders))
    first = next(paths, None)
    if first is None:
        raise DataError(f"{root}: expected images, found none. Check the path.")
    return outputs_of(model, transform(read_image(str(root / first))))


def require_gradients(dtype: torch.dtype, measurements: Iterable[Measurement]) -> None:
    """Raise OptionError for attacks in float16, and for what is no type of autocast."""
    if dtype not in (torch.float32, torch.bfloat16, torch.float16):
        raise OptionError(f"dtype: expected torch.float32, torch.bfloat16 or torch.float16, found {dtype!r}.")
    if dtype == torch.float16 and any(measurement.attack is not None for measurement in measurements):
        raise OptionError("dtype float16: expected float32 or bfloat16 for attacks, whose gradients float16 cuts to 0.")


def task_for(
    root: Path,
    load: Loader,
    outputs: int,
    transform: Any,
    batch_size: int,
    subset: Subset,
    measurements: Sequence[Measurement],
) -> EvaluationTask:
    """A task of the images under ``root``, which are listed only when it is opened."""
    return EvaluationTask(
        lambda: subset.of(load(root, outputs, None)), transform, batch_size, measurements, {"subset": str(subset)}
    )


class TaskState:
    """The state of one task while it is judged.

    Args:
        finished: records in the results file, by identity.
        journaled: batches that a killed run has judged, by identity and batch number.

    Attributes:
        keys: identity of each measurement; "" if it cannot be resumed.
        records: finished record of each measurement, or None.
        done: journaled batches of each measurement, by number.
    """

    def __init__(
        self,
        task: EvaluationTask,
        recorder: Recorder | None,
        finished: Mapping[str, Record],
        journaled: Mapping[str, Mapping[int, Batch]],
    ) -> None:
        self.task, self.images = task, task.open()
        if not (isinstance(task.batch_size, int) and 1 <= task.batch_size <= LARGEST_BATCH):
            raise OptionError(f"batch size: expected 1 to {LARGEST_BATCH} images, found {task.batch_size}.")
        if self.images.answers is None:
            require_outputs(max(self.images.labels, default=0), self.images.outputs, str(self.images.root))
        n = len(self.images)
        self.batches = [range(i, min(i + task.batch_size, n)) for i in range(0, n, task.batch_size)]
        self.protocol = self._shared_protocol()
        self.task_digest = self.images.task()
        identities = [self._identities(index, recorder) for index in range(len(task.measurements))]
        self.keys = [keys[0] if keys else "" for keys in identities]
        self.records = [
            finished[keys[0]] if keys and all(key in finished for key in keys) else None for keys in identities
        ]
        self.done = [self._of_expected_size(journaled.get(key, {})) if key else {} for key in self.keys]
        self.right = torch.zeros(len(task.measurements), n, dtype=torch.float64)
        self.l2 = torch.zeros(len(task.measurements), n, dtype=torch.float64)

    def _shared_protocol(self) -> dict[str, Any]:
        """The settings that all records of this task share."""
        images = self.images
        dataset_settings = {"classes": len(images.classes)} if images.classes is not None else {}
        dataset_settings |= {"border": images.border} if images.border else {}
        settings = describe_transform(self.task.transform) | dataset_settings | {"batch_size": self.task.batch_size}
        return {**self.task.protocol, **settings}

    def _identities(self, index: int, recorder: Recorder | None) -> list[str]:
        """The identities of its top-1 record and of its attack's other verdicts, in this order.

        Empty without a recorder, and for a transform that a record does not describe completely.
        """
        if recorder is None or not is_described(self.task.transform):
            return []
        measurement = self.task.measurements[index]
        recorder = recorder.for_suite(measurement.revision, measurement.draws, self.images.outputs)
        other_protocols = () if measurement.attack is None else measurement.attack.other_protocols()
        return [
            recorder.identity(measurement.suite, {**self.protocol, **protocol}, self.images.paths, self.task_digest)
            for protocol in (measurement.protocol, *other_protocols)
        ]

    def _of_expected_size(self, batches: Mapping[int, Batch]) -> dict[int, Batch]:
        sizes = {number: len(positions) for number, positions in enumerate(self.batches)}
        return {
            number: batch for number, batch in batches.items() if len(batch[0]) == len(batch[1]) == sizes.get(number)
        }

    def measurements_left(self, number: int) -> list[int]:
        """Indices of the measurements that still need batch ``number``."""
        return [i for i, record in enumerate(self.records) if record is None and number not in self.done[i]]

    def left(self) -> list[int]:
        """Numbers of the batches that some measurement still needs; the same on all ranks."""
        return [number for number in range(len(self.batches)) if self.measurements_left(number)]

    def keep(self, index: int, number: int, right: Sequence[int], l2: Sequence[float]) -> None:
        """Enter the results of batch ``number`` under measurement ``index``."""
        positions = self.batches[number]
        self.right[index, positions.start : positions.stop] = torch.tensor(right, dtype=torch.float64)
        self.l2[index, positions.start : positions.stop] = torch.tensor(l2, dtype=torch.float64)

    def judged(self, index: int) -> PerImageResult:
        """The results of measurement ``index`` on all images, once every batch is judged.

        Journaled batches are entered only here: all ranks have them, so a sum over ranks would repeat them.
        """
        for number, batch in self.done[index].items():
            self.keep(index, number, *batch)
        return PerImageResult(self.images.paths, self.right[index] > 0.5, self.l2[index], self.task_digest)
