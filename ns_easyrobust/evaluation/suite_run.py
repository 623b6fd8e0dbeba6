"""Many evaluations of one checkpoint: first all quick ones through one loader, then each slow attack."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..attacks import Attack
from ..data import MissingImages, Subset, class_labels, describe_transform
from ..errors import DataError, ModelError, OptionError
from ..utils import world_size
from .imagenet_c import corruption_tasks, sum_up_corruptions
from .judging import judge
from .recorder import Recorder
from .suite import Protocol, suites
from .task import (
    EvaluationTask,
    Measurement,
    device_of,
    number_of_outputs,
    require_gradients,
    task_for,
    warn_if_missing,
)

_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class EvaluationPlan:
    """Which suites are run, and how.

    Attributes:
        suites: names from :func:`~ns_easyrobust.evaluation.suite.suites`.
        protocol: transforms and subsets.
        attacks: by suite, the settings of its attack that are measured; without an entry, the defaults.
        subsets: replace the protocol's, by suite; the key "" stands for all suites without an entry.
    """

    data_dir: Path
    suites: Sequence[str]
    protocol: Protocol
    attacks: Mapping[str, Sequence[Attack]] = field(default_factory=dict)
    subsets: Mapping[str, Subset] = field(default_factory=dict)
    batch_size: int = 64

    def folder(self, suite: str) -> Path:
        return self.data_dir / suites()[suite].benchmark.folder

    def measurements(self, suite: str) -> list[Measurement]:
        """The measurements of ``suite``: one, or one for each setting of its attack."""
        kind = suites()[suite].attack
        if kind is None:
            return [Measurement(suites()[suite].record)]
        return [Measurement.under(attack) for attack in self.attacks.get(suite) or [kind()]]

    def subset(self, suite: str, outputs: int) -> Subset:
        return self.subsets.get(suite) or self.subsets.get("") or self.protocol.subset(suite, outputs)

    def alike(self, one: str, other: str, outputs: int) -> bool:
        """Whether two suites use the same images, preprocessed alike."""
        return (self.folder(one), self.protocol.preprocessing(one), self.subset(one, outputs)) == (
            self.folder(other),
            self.protocol.preprocessing(other),
            self.subset(other, outputs),
        )

    def transform(self, suite: str) -> Any:
        return self.protocol.preprocessing(suite).transform()

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


def run_suites(
    model: nn.Module,
    plan: EvaluationPlan,
    *,
    records: Recorder,
    workers: int,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
) -> list[str]:
    """Run every suite of ``plan`` whose folder exists, and return the names of those.

    Clean accuracy and quick attacks share a decoded batch, and with FGSM a forward. What an earlier
    run has finished is taken from ``records``.
    """
    found = [name for name in suites() if name in plan.suites and os.path.exists(plan.folder(name))]
    if not found:
        return []
    for folder in dict.fromkeys(map(plan.folder, plan.suites)):
        warn_if_missing(folder)  # logs a warning for each one skipped
    require_gradients(dtype, [measurement for name in found for measurement in plan.measurements(name)])
    outputs = number_of_outputs(model, plan.folder(found[0]), plan.transform(found[0]))
    options: dict[str, Any] = {
        "share": world_size() > 1,
        "workers": workers,
        "seed": seed,
        "dtype": dtype,
        "recorder": records,
    }
    # ImageNet-C is a set of folders, each a task of its own.
    tasks = {name: plan.task(name, outputs) for name in found if name != "c"}
    for name, task in tasks.items():
        with _suite_named_in_errors(name):
            _try_out(model, task)
    corruptions = {}
    if "c" in found:
        with _suite_named_in_errors("c"):
            corruptions = plan.corruptions(outputs)
            next(iter(corruptions.values())).open()  # whose files' names may contradict their labels
            for corruption, severity in corruptions:  # checked without listing 3.75 million images
                class_labels(plan.folder("c") / corruption / str(severity), outputs)
    quick = _sharing_images(plan, {name: t for name, t in tasks.items() if not suites()[name].slowness}, outputs)
    together: dict[Any, EvaluationTask] = {**quick, **corruptions}
    outcomes_of = dict(zip(together, judge(model, list(together.values()), **options), strict=True))
    if corruptions:
        outcomes = {folder: outcomes_of[folder][0] for folder in corruptions}
        protocol = next(iter(corruptions.values())).protocol
        settings = describe_transform(plan.transform("c")) | {"batch_size": plan.batch_size}
        sum_up_corruptions(outcomes, records.for_run(model, dtype, None, options["share"]), {**protocol, **settings})
    for name in sorted((name for name in tasks if suites()[name].slowness), key=lambda name: suites()[name].slowness):
        judge(model, [tasks[name]], **options)
    return found


def _sharing_images(plan: EvaluationPlan, tasks: dict[str, EvaluationTask], outputs: int) -> dict[str, EvaluationTask]:
    """``tasks``, but attacks on the validation set's images join ``val``, if those are prepared alike."""
    shared = dict(tasks)
    for name, task in tasks.items():
        if "val" in shared and suites()[name].attack is not None and plan.alike("val", name, outputs):
            del shared[name]
            val = shared["val"]
            shared["val"] = replace(val, measurements=[*val.measurements, *task.measurements])
    return shared


@contextmanager
def _suite_named_in_errors(suite: str) -> Iterator[None]:
    """Add to an error the suite's name and what avoids it."""
    try:
        yield
    except (DataError, ModelError, OptionError) as error:
        smaller_subset = "take a smaller subset, such as random:1000, or " if isinstance(error, MissingImages) else ""
        line = error.line if error.line.startswith(f"{suite}:") else f"{suite}: {error.line}"
        raise type(error)(f"{line} Or {smaller_subset}leave the suite out.") from error


def _try_out(model: nn.Module, task: EvaluationTask) -> None:
    """Raise now what would end an evaluation after hours: images that cannot be read, attacks that cannot be made."""
    images = task.open()
    attacks = [measurement.attack for measurement in task.measurements if measurement.attack is not None]
    if not attacks:
        return
    pixels, label = images.with_transform(task.transform)[0]
    device = device_of(model)
    for attack in attacks:
        attack.require_applicable(model, pixels[None].to(device), torch.tensor([label], device=device))
