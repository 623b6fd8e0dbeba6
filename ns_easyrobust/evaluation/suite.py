"""The suites of ``benchmark``, each a benchmark's images as they are or under an attack, and their preprocessing."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from dataclasses import dataclass, replace

from ..attacks import Attack, known_attacks
from ..data import (
    IMAGENET_CLASSES,
    SUITE_GROUPS,
    Benchmark,
    ImageList,
    MissingImages,
    Preprocessing,
    Subset,
    known_benchmarks,
)
from ..errors import OptionError

_logger = logging.getLogger(__name__)
_SAMPLE = 1000  # images that a slow attack takes of a set that is not ImageNet's: hours, not days, on a CPU
MISSING_FOLDER = "does not exist."  # how the reason of a suite without a folder ends
LARGEST_BATCH = 65536  # of 224 x 224 pixels, 40 GB
# The columns of the paper's Table 2, left to right: suite, and heading.
_TABLE2 = {
    "val": "Clean",
    "patchfool": "PatchFool",
    "cw": "CW",
    "fgsm": "FGSM",
    "damagenet": "DamageNet",
    "a": "A",
    "c": "C (mCE)",
    "v2": "V2",
    "r": "R",
    "sketch": "Sketch",
    "stylized": "Stylized",
}
TABLE2 = tuple(_TABLE2)
_ADVERSARIAL_SETS = ("damagenet",)  # evaluation sets that an attack has made
CLEAN, ADVERSARIAL, OOD = "clean", "Adversarial", "OOD"  # the groups of columns in Figure 4 of the paper
PRESETS = {
    "paper": "what the paper's authors ran: photographs to 256 bicubic and cropped, ImageNet-C and Stylized as "
    "they are, PatchFool on RobustBench's 5000 images at 224 bilinear",
    "easyrobust": "as EasyRobust's benchmark.py: everything to 256 bicubic and cropped, ImageNet-C and Stylized too",
    "native": "the model's own resizing from timm's config; ImageNet-C, Stylized and DamageNet as they are",
}


@dataclass(frozen=True)
class Suite:
    """What ``--suite NAME`` measures, and its column in tables.

    Attributes:
        name: on the command line, and of its column among published rows.
        benchmark: whose images; the validation set's for an attack.
        attack: None: the images are not attacked.
        heading: in the paper's Table 2; "" if that has no such column.
    """

    name: str
    benchmark: Benchmark
    attack: type[Attack] | None = None
    heading: str = ""

    @property
    def record(self) -> str:
        """Its name in records."""
        return self.benchmark.record if self.attack is None else self.attack.name

    @property
    def metric(self) -> str:
        """The metric of its column."""
        return self.benchmark.metric if self.attack is None else "top1"

    @property
    def lower_is_better(self) -> bool:
        return self.metric == "mce"

    @property
    def group(self) -> str:
        """As in Figure 4: attacked images, by whom ever, are "Adversarial", other sets than ``val`` "OOD"."""
        if self.attack is not None or self.name in _ADVERSARIAL_SETS:
            return ADVERSARIAL
        return CLEAN if self.name == "val" else OOD

    @property
    def slowness(self) -> int:
        """That of its attack; 0 without one."""
        return 0 if self.attack is None else self.attack.slowness

    @property
    def revision(self) -> int:
        """Of the benchmark; with an attack, another one whenever either is raised: their sum less 1."""
        return self.benchmark.revision + (0 if self.attack is None else self.attack.revision - 1)

    @property
    def released_images(self) -> int:
        """How many images the whole set has, of which published numbers are."""
        return self.benchmark.released_images


def suites() -> dict[str, Suite]:
    """Every suite by name: the columns of Table 2, then the other benchmarks, then the other attacks."""
    benchmarks, attacks = known_benchmarks(), known_attacks()
    names = dict.fromkeys([*_TABLE2, *benchmarks, *attacks])
    return {
        name: Suite(name, benchmarks.get(name) or benchmarks["val"], attacks.get(name), _TABLE2.get(name, ""))
        for name in names
    }


def released_images(record_suite: str) -> int:
    """Images of the set that a record's suite is of; the validation set's for a suite that is not known."""
    found = (suite for suite in suites().values() if suite.record == record_suite)
    return next(found, suites()["val"]).released_images


def revision_of(record_suite: str) -> int:
    """The revision of the benchmark or attack that bears this name in records; 1 for one that is not known."""
    return next((suite.revision for suite in suites().values() if suite.record == record_suite), 1)


def suite_under(attack: Attack) -> Suite:
    """The suite of ``attack``, known or not, on the validation set's images."""
    return Suite(attack.name, known_benchmarks()["val"], type(attack))


def table2_suites() -> tuple[Suite, ...]:
    """The columns of the paper's Table 2, left to right."""
    known = suites()
    return tuple(known[name] for name in TABLE2)


def mean_corruption_suite() -> Suite:
    """What stands in place of mCE for other classes than ImageNet's: the mean top-1 of all corruptions."""
    return Suite("c_top1", replace(known_benchmarks()["c"], metric="top1_mean"), heading="C (top-1)")


def suite_groups() -> dict[str, tuple[str, ...]]:
    """Suites by the name of a group: the paper's columns, EasyRobust's benchmark.py's, and all."""
    easyrobust = ("val", "a", "r", "sketch", "v2", "stylized", "c")
    return dict(zip(SUITE_GROUPS, (TABLE2, easyrobust, tuple(suites())), strict=True))


def expand_groups(names: Iterable[str]) -> list[str]:
    """The suites of ``names``, which may be names of groups, each once."""
    groups = suite_groups()
    return list(dict.fromkeys(suite for name in names for suite in groups.get(name, (name,))))


@dataclass(frozen=True)
class Protocol:
    """A preset, applied to a model's image size.

    Attributes:
        preset: one of :data:`PRESETS`.
        size: side of the model's square input, in pixels.
        crop_pct, interpolation: override the preset's, crop_pct not for sets taken as they are; None: the preset's.
        own_crop_pct, own_interpolation: the model's own, from timm's config.
    """

    preset: str = "paper"
    size: int = 224
    crop_pct: float | None = None
    interpolation: str | None = None
    own_crop_pct: float = 0.875
    own_interpolation: str = "bicubic"

    def __post_init__(self) -> None:
        if self.preset not in PRESETS:
            raise OptionError(f"protocol: expected one of {', '.join(PRESETS)}, found {self.preset!r}.")

    @property
    def name(self) -> str:
        """The preset's name, or "custom" if ``crop_pct`` or ``interpolation`` overrides it."""
        return self.preset if self.crop_pct is None and self.interpolation is None else "custom"

    def preprocessing(self, name: str) -> Preprocessing:
        """The preprocessing of one suite; a crop_pct of 1 leaves images that have the model's size unchanged."""
        suite, native = suites()[name], self.preset == "native"
        if self.preset == "paper" and suite.attack is not None and suite.attack.published_resizing is not None:
            crop_pct, interpolation = suite.attack.published_resizing
            return Preprocessing(self.size, self.crop_pct or crop_pct, self.interpolation or interpolation)
        if self.preset in suite.benchmark.taken_as_is:
            return Preprocessing(self.size, 1.0, self.interpolation or "bicubic")
        crop_pct = self.crop_pct or (self.own_crop_pct if native else 0.875)
        return Preprocessing(
            self.size, crop_pct, self.interpolation or (self.own_interpolation if native else "bicubic")
        )

    @staticmethod
    def is_sampled(name: str) -> bool:
        """Whether a suite takes :func:`sampled_subset` of its images unless told otherwise, not all of them."""
        attack = suites()[name].attack
        return attack is not None and attack.sampled


def sampled_subset(images: ImageList) -> Subset:
    """What the slowest attacks take of ``images``: RobustBench's 5000, for ImageNet's classes and where they are there.

    Else 1000 random ones, the same for every model and seed; or all, if there are no more.
    """
    missing = ""
    if images.outputs == IMAGENET_CLASSES:
        try:
            Subset("robustbench").of(images)
            return Subset("robustbench")
        except MissingImages:
            missing = "RobustBench's 5000 images are not all there; "
    n = len(images)
    subset = Subset("random", _SAMPLE) if n > _SAMPLE else Subset()
    if subset.n or missing:
        taken = f"{_SAMPLE} random ones of {n} are attacked (subset {subset})" if subset.n else f"all {n} are attacked"
        _logger.info("%s: %s%s", images.root, missing, taken)
    return subset
