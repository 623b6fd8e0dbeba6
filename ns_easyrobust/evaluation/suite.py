"""Many evaluations of one checkpoint through one loader: first the quick ones, then each slow attack."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..attacks import gradient as attacks
from ..attacks.patch_fool import PatchFoolConfig, patchfool
from ..data.benchmarks import FOLDERS, Folder
from ..data.image_list import NotAllThere, Subset, class_labels
from ..data.transforms import describe_transform
from ..errors import DataError, ModelError
from ..utils.distributed import world_size
from . import trials
from .imagenet_c import corruption_parts, sum_up_corruptions
from .judging import judge, require_gradients
from .parts import exists, outputs_on, part_of
from .protocols import Protocol
from .recorder import Recorder
from .task import Part, Trial

_logger = logging.getLogger(__name__)

TABLE2 = ("val", "patchfool", "cw", "fgsm", "damagenet", "a", "c", "v2", "r", "sketch", "stylized")
EASYROBUST = ("val", "a", "r", "sketch", "v2", "stylized", "c")
GROUPS = {"table2": TABLE2, "easyrobust": EASYROBUST, "all": (*TABLE2, "objectnet", "pgd", "autoattack")}
SUITES = GROUPS["all"]
_ON_VAL = ("val", "fgsm", "pgd", "cw", "patchfool", "autoattack")
_SLOW = ("pgd", "cw", "patchfool", "autoattack")  # hours on ImageNet: last, and each by itself


@dataclass(frozen=True)
class Attacks:
    """Settings of the attacks; radii in pixels of [0, 1]."""

    fgsm: Sequence[float] = (1 / 255,)
    cw_radii: Sequence[float] = ()
    pgd: Sequence[float] = (1 / 255,)
    pgd_steps: int = 10
    patchfool: PatchFoolConfig = field(default_factory=PatchFoolConfig)
    autoattack: float = 4 / 255
    autoattack_norm: str = "Linf"

    def __post_init__(self) -> None:
        for suite in ("fgsm", "pgd", "autoattack"):
            self.trials(suite)  # OptionError for a radius that is none, before anything is loaded

    def trials(self, suite: str) -> list[Trial]:
        """What ``suite`` tries."""
        if suite == "fgsm":
            return [trials.fgsm(epsilon) for epsilon in self.fgsm]
        if suite == "pgd":
            return [trials.pgd(epsilon, self.pgd_steps) for epsilon in self.pgd]
        if suite == "cw":
            return [trials.cw(self.cw_radii)]
        if suite == "patchfool":
            return [trials.patch_fool(self.patchfool)]
        if suite == "autoattack":
            return [trials.auto_attack(self.autoattack_norm, self.autoattack)]
        return [trials.clean(suite if suite in ("damagenet", "objectnet") else f"imagenet-{suite}")]


@dataclass(frozen=True)
class Plan:
    """What is run, and how.

    Attributes:
        suites: of :data:`SUITES`.
        protocol: transforms and subsets.
        subsets: that replace the protocol's, by suite; "" is for all suites.
    """

    data_dir: Path
    suites: Sequence[str]
    protocol: Protocol
    attacks: Attacks = field(default_factory=Attacks)
    subsets: dict[str, Subset] = field(default_factory=dict)
    batch_size: int = 64

    def folder(self, suite: str) -> Path:
        return self.data_dir / self._set(suite).name

    def subset(self, suite: str, outputs: int) -> Subset:
        return self.subsets.get(suite) or self.subsets.get("") or self.protocol.subset(suite, outputs)

    def alike(self, one: str, other: str, outputs: int) -> bool:
        """Whether two suites see the very same images."""
        return (self.folder(one), self.protocol.preprocessing(one), self.subset(one, outputs)) == (
            self.folder(other),
            self.protocol.preprocessing(other),
            self.subset(other, outputs),
        )

    def transform(self, suite: str) -> Any:
        return self.protocol.preprocessing(suite).transform()

    def part(self, suite: str, outputs: int) -> Part:
        """The images of ``suite`` and what is tried on them."""
        root, load, tried = self.folder(suite), self._set(suite).load, self.attacks.trials(suite)
        return self._named(
            part_of(root, load, outputs, self.transform(suite), self.batch_size, self.subset(suite, outputs), tried)
        )

    def corruptions(self, outputs: int) -> dict[tuple[str, int], Part]:
        """A part for each folder of ImageNet-C that is there."""
        found = corruption_parts(
            self.folder("c"), outputs, self.transform("c"), self.batch_size, self.subset("c", outputs)
        )
        return {key: self._named(part) for key, part in found.items()}

    def _set(self, suite: str) -> Folder:
        return FOLDERS["val" if suite in _ON_VAL else suite]

    def _named(self, part: Part) -> Part:
        return replace(part, protocol={"preset": self.protocol.name, **part.protocol})


def run_suites(
    model: nn.Module,
    plan: Plan,
    *,
    records: Recorder,
    workers: int,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
) -> list[str]:
    """Every suite of ``plan`` whose folder is there; which ones ran.

    Clean accuracy and FGSM share a decoded batch and a forward pass. What an earlier run has
    finished is taken from ``records``.
    """
    suites = [suite for suite in SUITES if suite in plan.suites and plan.folder(suite).exists()]
    if not suites:
        return []
    for folder in dict.fromkeys(map(plan.folder, plan.suites)):
        exists(folder)  # warns of what is skipped
    require_gradients(dtype, [trial for suite in suites for trial in plan.attacks.trials(suite)])
    outputs = outputs_on(model, plan.folder(suites[0]), plan.transform(suites[0]))
    how: dict[str, Any] = {
        "share": world_size() > 1,
        "workers": workers,
        "seed": seed,
        "dtype": dtype,
        "recorder": records,
    }
    slow = {suite: plan.part(suite, outputs) for suite in _SLOW if suite in suites}
    quick = {suite: plan.part(suite, outputs) for suite in suites if suite not in (*_SLOW, "c")}
    for suite, part in (quick | slow).items():
        with _of_suite(suite):
            part.open()  # what cannot be opened, or attacked, is told now and not in some hours
    corrupted = {}
    if "c" in suites:
        with _of_suite("c"):
            corrupted = plan.corruptions(outputs)
            for name, severity in corrupted:  # without listing 3.75 million images
                class_labels(plan.folder("c") / name / str(severity), outputs)
    if "patchfool" in slow:
        _try_patchfool(model, slow["patchfool"], plan.attacks.patchfool)
    if "autoattack" in slow:
        attacks.require_ten(outputs)
    if {"val", "fgsm"} <= set(quick) and plan.alike("val", "fgsm", outputs):
        quick["val"] = replace(quick["val"], trials=[*quick["val"].trials, *quick.pop("fgsm").trials])
    found = judge(model, [*quick.values(), *corrupted.values()], **how)
    if corrupted:
        outcomes = {key: outcome[0] for key, outcome in zip(corrupted, found[len(quick) :], strict=True)}
        protocol = next(iter(corrupted.values())).protocol
        seen = describe_transform(plan.transform("c")) | {"batch_size": plan.batch_size}
        sum_up_corruptions(outcomes, records.of_run(model, dtype, None, how["share"]), {**protocol, **seen})
    for part in slow.values():
        judge(model, [part], **how)
    return suites


@contextmanager
def _of_suite(suite: str) -> Iterator[None]:
    """Name the suite whose folder is refused, and the flags that help."""
    try:
        yield
    except DataError as error:
        others = f"give --subset {suite}=random:1000 or " if isinstance(error, NotAllThere) else ""
        raise DataError(f"{suite}: {error.line} Or {others}leave the suite out.") from error


def _try_patchfool(model: nn.Module, part: Part, config: PatchFoolConfig) -> None:
    """One step on one image, for a model whose attention cannot be read."""
    pixels, label = part.open().with_transform(part.transform)[0]
    device = next(model.parameters()).device
    try:
        patchfool(model, pixels[None].to(device), torch.tensor([label], device=device), replace(config, steps=1))
    except ModelError as error:
        raise ModelError(
            f"{error.line} In flags: --patchfool-layer L, --patchfool-loss ce, --patchfool-select saliency; "
            "or leave the suite patchfool out."
        ) from error
