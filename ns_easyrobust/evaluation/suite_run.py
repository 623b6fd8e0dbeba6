"""Many evaluations of one checkpoint: first all quick ones through one loader, then each slow attack."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

from ..attacks import Attack
from ..data import (
    MissingImages,
    OtherClasses,
    Preprocessing,
    Subset,
    benchmark_folder,
    class_labels,
    describe_transform,
    require_names_of,
)
from ..errors import DataError, ModelError, OptionError, UserError
from ..utils import world_size
from .imagenet_c import corruption_tasks, framed_as, sum_up_corruptions
from .judging import judge
from .recorder import Recorder
from .suite import MISSING_FOLDER, Protocol, sampled_subset, suites
from .task import (
    EvaluationTask,
    Measurement,
    device_of,
    number_of_outputs,
    require_gradients,
    task_for,
)

_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class EvaluationPlan:
    """Which suites are run, and how.

    Attributes:
        data_dir: EasyRobust's folders, or a training folder; None if ``folders`` has every suite.
        suites: names from :func:`~ns_easyrobust.evaluation.suite.suites`.
        protocol: transforms and subsets.
        attacks: by suite, the settings of its attack that are measured; without an entry, the defaults.
        subsets: replace the protocol's, by suite; the key "" stands for all suites without an entry.
        folders: of suites that lie elsewhere than in ``data_dir``; an attack without an entry uses that of its images.
    """

    data_dir: Path | None
    suites: Sequence[str]
    protocol: Protocol
    attacks: Mapping[str, Sequence[Attack]] = field(default_factory=dict)
    subsets: Mapping[str, Subset] = field(default_factory=dict)
    batch_size: int = 64
    folders: Mapping[str, Path] = field(default_factory=dict)

    def folder(self, suite: str) -> Path:
        benchmark = suites()[suite].benchmark
        own = self.folders.get(suite) or self.folders.get(benchmark.name)
        if own is None and self.data_dir is None:
            raise OptionError(f"{suite}: expected a folder for it, or one for all suites, found neither.")
        return Path(own or benchmark_folder(self.data_dir or "", benchmark))

    def measurements(self, suite: str) -> list[Measurement]:
        """The measurements of ``suite``: one, or one for each setting of its attack."""
        kind = suites()[suite].attack
        if kind is None:
            return [Measurement(suites()[suite].record)]
        return [Measurement.under(attack) for attack in self.attacks.get(suite) or [kind()]]

    def subset(self, suite: str, outputs: int) -> Subset:
        given = self.subsets.get(suite) or self.subsets.get("")
        if given is None and self.protocol.is_sampled(suite):
            return sampled_subset(suites()[suite].benchmark.load(self.folder(suite), outputs, None))
        return given or Subset()

    def preprocessing(self, suite: str) -> Preprocessing:
        """That of the protocol; corrupted images that are whole photographs are prepared like the clean ones."""
        return self.protocol.preprocessing(framed_as(self.folder(suite)) if suite == "c" else suite)

    def prepared_alike(self, one: str, other: str) -> bool:
        """Whether two suites use images of one folder, preprocessed alike."""
        return self.folder(one) == self.folder(other) and self.preprocessing(one) == self.preprocessing(other)

    def transform(self, suite: str) -> Any:
        return self.preprocessing(suite).transform()

    def task(self, suite: str, outputs: int) -> EvaluationTask:
        """The images of ``suite`` and the measurements on them."""
        return self._with_preset(
            task_for(
                self.folder(suite),
                suites()[suite].benchmark.load,
                outputs,
                self.transform(suite),
                self.batch_size,
                self.subset(suite, outputs),
                self.measurements(suite),
            )
        )

    def corruptions(self, outputs: int) -> dict[tuple[str, int], EvaluationTask]:
        """A task for each folder of ImageNet-C that is present, by (corruption, severity)."""
        tasks = corruption_tasks(
            self.folder("c"), outputs, self.transform("c"), self.batch_size, self.subset("c", outputs)
        )
        return {key: self._with_preset(task) for key, task in tasks.items()}

    def _with_preset(self, task: EvaluationTask) -> EvaluationTask:
        return replace(task, protocol={"preset": self.protocol.name, **task.protocol})


class SuitesRun(NamedTuple):
    """The suites that :func:`run_suites` has run, and the others, with the reason for each."""

    run: list[str]
    not_run: dict[str, str]


class _CannotRun(UserError):
    """A suite that does not fit this model or this installation."""


def run_suites(
    model: nn.Module,
    plan: EvaluationPlan,
    *,
    records: Recorder,
    workers: int,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
) -> SuitesRun:
    """Run every suite of ``plan`` that can be run; each other one is named in a logged warning.

    Clean accuracy and quick attacks share a decoded batch, and with FGSM a forward. What an earlier
    run has finished is taken from ``records``.

    A suite cannot be run if its folder is missing or lacks the images of its subset, if it is of other classes than the
    model's, or if its attack does not work on the model. Faults of images and labels that are there, which would make a
    number wrong, and a validation set of other classes are errors, raised before anything is measured.
    """
    chosen = [name for name in suites() if name in plan.suites]
    not_run = {
        name: f"{plan.folder(name)} {MISSING_FOLDER}" for name in chosen if not os.path.exists(plan.folder(name))
    }
    found = [name for name in chosen if name not in not_run]
    tasks: dict[str, EvaluationTask] = {}
    corruptions: dict[tuple[str, int], EvaluationTask] = {}
    if found:
        require_gradients(dtype, [measurement for name in found for measurement in plan.measurements(name)])
        outputs = number_of_outputs(model, plan.folder(found[0]), plan.transform(found[0]))
    for name in found:
        with _suite_named_in_errors(name):
            try:
                if name == "c":  # a set of folders, each a task of its own
                    corruptions = _corruptions(plan, outputs)
                else:
                    tasks[name] = _tried_out(model, plan.task(name, outputs))
            except (_CannotRun, MissingImages, OtherClasses) as error:
                if isinstance(error, OtherClasses) and suites()[name].benchmark.name == "val":
                    raise
                not_run[name] = error.line.removeprefix(f"{name}: ")
    _warn(not_run)
    options: dict[str, Any] = {
        "share": world_size() > 1,
        "workers": workers,
        "seed": seed,
        "dtype": dtype,
        "recorder": records,
    }
    quick = _sharing_images(plan, {name: task for name, task in tasks.items() if not suites()[name].slowness})
    together: dict[Any, EvaluationTask] = {**quick, **corruptions}
    outcomes_of = dict(zip(together, judge(model, list(together.values()), **options), strict=True))
    if corruptions:
        outcomes = {folder: outcomes_of[folder][0] for folder in corruptions}
        protocol = next(iter(corruptions.values())).protocol
        settings = describe_transform(plan.transform("c")) | {"batch_size": plan.batch_size}
        recorder = records.for_run(model, dtype, None, options["share"])
        sum_up_corruptions(plan.folder("c"), outcomes, recorder, {**protocol, **settings}, outputs)
    for name in sorted((name for name in tasks if suites()[name].slowness), key=lambda name: suites()[name].slowness):
        judge(model, [tasks[name]], **options)
    return SuitesRun([name for name in chosen if name not in not_run], not_run)


def _corruptions(plan: EvaluationPlan, outputs: int) -> dict[tuple[str, int], EvaluationTask]:
    corruptions = plan.corruptions(outputs)
    next(iter(corruptions.values())).open()  # whose files' names may contradict their labels
    for corruption, severity in corruptions:  # checked without listing 3.75 million images
        folder = plan.folder("c") / corruption / str(severity)
        names, labels = class_labels(folder, outputs)
        if labels is None and (plan.data_dir is not None or "val" in plan.folders):
            require_names_of(plan.folder("val"), folder, names)
    return corruptions


def _warn(not_run: Mapping[str, str]) -> None:
    """Log a warning for each reason, with the suites that it keeps from being run."""
    for reason in dict.fromkeys(not_run.values()):
        names = ", ".join(name for name, other in not_run.items() if other == reason)
        _logger.warning("%s: not run: %s", names, reason)


def _sharing_images(plan: EvaluationPlan, tasks: dict[str, EvaluationTask]) -> dict[str, EvaluationTask]:
    """``tasks``, but attacks on the validation set's images join ``val``, if those are prepared alike."""
    shared = dict(tasks)
    for name, task in tasks.items():
        if "val" in shared and suites()[name].attack is not None and plan.prepared_alike("val", name):
            val = shared["val"]
            if task.protocol == val.protocol:  # the preset, and the subset
                del shared[name]
                shared["val"] = replace(val, measurements=[*val.measurements, *task.measurements])
    return shared


@contextmanager
def _suite_named_in_errors(suite: str) -> Iterator[None]:
    """Add to an error the suite's name and what avoids it."""
    try:
        yield
    except (DataError, ModelError, OptionError) as error:
        line = error.line if error.line.startswith(f"{suite}:") else f"{suite}: {error.line}"
        raise type(error)(f"{line} Or leave the suite out.") from error


def _tried_out(model: nn.Module, task: EvaluationTask) -> EvaluationTask:
    """``task``; raises now what would end an evaluation after hours: images that cannot be read, attacks that cannot
    be made.
    """
    images = task.open()
    classes = len(set(images.labels))
    _logger.info("%s: %d images of %d classes, labelled %s", images.root, len(images), classes, images.labelled)
    attacks = [measurement.attack for measurement in task.measurements if measurement.attack is not None]
    if attacks:
        pixels, label = images.with_transform(task.transform)[0]
        device = device_of(model)
    for attack in attacks:
        try:
            attack.require_applicable(model, pixels[None].to(device), torch.tensor([label], device=device))
        except (ModelError, OptionError) as error:
            raise _CannotRun(error.line) from error
    return task
