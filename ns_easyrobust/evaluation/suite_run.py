"""Many evaluations of one checkpoint: first all quick ones through one loader, then each slow attack."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..attacks import CW, FGSM, PGD, AutoAttack, PatchFool, PatchFoolConfig, patchfool, require_ten_outputs
from ..data import BENCHMARKS, Benchmark, MissingImages, Subset, class_labels, describe_transform
from ..errors import DataError, ModelError
from ..utils import world_size
from .imagenet_c import corruption_tasks, sum_up_corruptions
from .judging import judge, require_gradients
from .recorder import Recorder
from .suite import ON_VAL, SLOW, SUITES, Protocol
from .task import EvaluationTask, Measurement, number_of_outputs, task_for, warn_if_missing

_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Attacks:
    """Settings of the attacks; radii for pixels in [0, 1]."""

    fgsm: Sequence[float] = (1 / 255,)
    cw_radii: Sequence[float] = ()
    pgd: Sequence[float] = (1 / 255,)
    pgd_steps: int = 10
    patchfool: PatchFoolConfig = field(default_factory=PatchFoolConfig)
    autoattack: float = 4 / 255
    autoattack_norm: str = "Linf"

    def __post_init__(self) -> None:
        for suite in ("fgsm", "pgd", "autoattack"):
            self.measurements(suite)  # raises OptionError for an invalid radius before anything is loaded

    def measurements(self, suite: str) -> list[Measurement]:
        """The measurements of ``suite``."""
        if suite == "fgsm":
            return [Measurement.under(FGSM(epsilon)) for epsilon in self.fgsm]
        if suite == "pgd":
            return [Measurement.under(PGD(epsilon, self.pgd_steps)) for epsilon in self.pgd]
        if suite == "cw":
            return [Measurement.under(CW(self.cw_radii))]
        if suite == "patchfool":
            return [Measurement.under(PatchFool(self.patchfool))]
        if suite == "autoattack":
            return [Measurement.under(AutoAttack(self.autoattack_norm, self.autoattack))]
        return [Measurement(suite if suite in ("damagenet", "objectnet") else f"imagenet-{suite}")]


@dataclass(frozen=True)
class EvaluationPlan:
    """Which suites are run, and how.

    Attributes:
        suites: names from :data:`SUITES`.
        protocol: transforms and subsets.
        subsets: replace the protocol's, by suite; the key "" stands for all suites without an entry.
    """

    data_dir: Path
    suites: Sequence[str]
    protocol: Protocol
    attacks: Attacks = field(default_factory=Attacks)
    subsets: dict[str, Subset] = field(default_factory=dict)
    batch_size: int = 64

    def folder(self, suite: str) -> Path:
        return self.data_dir / self._benchmark(suite).name

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
        root, load, measurements = self.folder(suite), self._benchmark(suite).load, self.attacks.measurements(suite)
        return self._with_preset(
            task_for(
                root, load, outputs, self.transform(suite), self.batch_size, self.subset(suite, outputs), measurements
            )
        )

    def corruptions(self, outputs: int) -> dict[tuple[str, int], EvaluationTask]:
        """A task for each folder of ImageNet-C that is present, by (corruption, severity)."""
        tasks = corruption_tasks(
            self.folder("c"), outputs, self.transform("c"), self.batch_size, self.subset("c", outputs)
        )
        return {key: self._with_preset(task) for key, task in tasks.items()}

    def _benchmark(self, suite: str) -> Benchmark:
        return BENCHMARKS["val" if suite in ON_VAL else suite]

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

    Clean accuracy and FGSM share a decoded batch and a forward. What an earlier run has
    finished is taken from ``records``.
    """
    suites = [suite for suite in SUITES if suite in plan.suites and plan.folder(suite).exists()]
    if not suites:
        return []
    for folder in dict.fromkeys(map(plan.folder, plan.suites)):
        warn_if_missing(folder)  # logs a warning for each one skipped
    require_gradients(dtype, [measurement for suite in suites for measurement in plan.attacks.measurements(suite)])
    outputs = number_of_outputs(model, plan.folder(suites[0]), plan.transform(suites[0]))
    options: dict[str, Any] = {
        "share": world_size() > 1,
        "workers": workers,
        "seed": seed,
        "dtype": dtype,
        "recorder": records,
    }
    slow = {suite: plan.task(suite, outputs) for suite in SLOW if suite in suites}
    quick = {suite: plan.task(suite, outputs) for suite in suites if suite not in (*SLOW, "c")}
    for suite, task in (quick | slow).items():
        with _suite_named_in_errors(suite):
            task.open()  # fails now if it cannot be opened, rather than in some hours
    corruptions = {}
    if "c" in suites:
        with _suite_named_in_errors("c"):
            corruptions = plan.corruptions(outputs)
            for name, severity in corruptions:  # checked without listing 3.75 million images
                class_labels(plan.folder("c") / name / str(severity), outputs)
    if "patchfool" in slow:
        _try_patchfool(model, slow["patchfool"], plan.attacks.patchfool)
    if "autoattack" in slow:
        require_ten_outputs(outputs)
    if {"val", "fgsm"} <= set(quick) and plan.alike("val", "fgsm", outputs):
        quick["val"] = replace(quick["val"], measurements=[*quick["val"].measurements, *quick.pop("fgsm").measurements])
    judged = judge(model, [*quick.values(), *corruptions.values()], **options)
    if corruptions:
        outcomes = {key: task_outcomes[0] for key, task_outcomes in zip(corruptions, judged[len(quick) :], strict=True)}
        protocol = next(iter(corruptions.values())).protocol
        settings = describe_transform(plan.transform("c")) | {"batch_size": plan.batch_size}
        sum_up_corruptions(outcomes, records.for_run(model, dtype, None, options["share"]), {**protocol, **settings})
    for task in slow.values():
        judge(model, [task], **options)
    return suites


@contextmanager
def _suite_named_in_errors(suite: str) -> Iterator[None]:
    """Add to a DataError the suite's name and the flags that avoid it."""
    try:
        yield
    except DataError as error:
        smaller_subset = f"give --subset {suite}=random:1000 or " if isinstance(error, MissingImages) else ""
        raise DataError(f"{suite}: {error.line} Or {smaller_subset}leave the suite out.") from error


def _try_patchfool(model: nn.Module, task: EvaluationTask, config: PatchFoolConfig) -> None:
    """Run one step on one image, to detect early a model whose attention cannot be read.

    Raises:
        ModelError: the attention cannot be read; the message names the flags that help.
    """
    pixels, label = task.open().with_transform(task.transform)[0]
    device = next(model.parameters()).device
    try:
        patchfool(model, pixels[None].to(device), torch.tensor([label], device=device), replace(config, steps=1))
    except ModelError as error:
        raise ModelError(
            f"{error.line} In flags: --patchfool-layer L, --patchfool-loss ce, --patchfool-select saliency; "
            "or leave the suite patchfool out."
        ) from error
