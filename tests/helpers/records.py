"""Records of every suite with drawn verdicts, for the tests of reports."""

from __future__ import annotations

import csv
import io
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from ns_easyrobust.data.benchmarks import ALEXNET_ERROR, ROBUSTBENCH, SEVERITIES
from ns_easyrobust.evaluation.per_image import images_digest, save_correctness
from ns_easyrobust.evaluation.records import Record
from ns_easyrobust.evaluation.suite import released_images
from ns_easyrobust.report.table import ResultsTable

SIZES = {
    "imagenet-val": 40,
    "cw": 40,
    "fgsm": 40,
    "patchfool": 16,
    "damagenet": 40,
    "imagenet-a": 30,
    "imagenet-v2": 20,
    "imagenet-r": 24,
    "imagenet-sketch": 36,
    "imagenet-stylized": 40,
    "objectnet": 28,
    "autoattack": 16,
}
SETTINGS: dict[str, dict[str, Any]] = {
    "cw": {"radius": "unbounded"},
    "fgsm": {"epsilon": 1 / 255},
    "patchfool": {"subset": "robustbench"},
    "autoattack": {"epsilon": 4 / 255, "norm": "linf", "subset": "robustbench"},
}
ON_VAL = ("imagenet-val", "cw", "fgsm", "patchfool", "autoattack", "imagenet-stylized")


def paths_of(suite: str, n: int) -> list[str]:
    name = "val" if suite in ON_VAL or suite == "imagenet-c" else suite
    return [f"n{index % 7:02d}/{name}_{index:03d}.png" for index in range(n)]


def of_released_size(records: list[Record]) -> list[Record]:
    """The same, grown to the released sets' sizes; bits are kept for the validation set and AutoAttack alone."""
    grown = []
    for record in records:
        n = ROBUSTBENCH if record.protocol["subset"] == "robustbench" else released_images(record.suite)
        if record.correct is None:
            grown.append(replace(record, n=n))
        elif record.suite in ("imagenet-val", "autoattack"):
            paths, right = paths_of(record.suite, n), np.arange(n) % 7 < 4
            saved = save_correctness(record.folder, f"{record.label}-{record.suite}-grown", paths, right)
            value = 100 * int(right.sum()) / n
            grown.append(replace(record, n=n, correct=int(right.sum()), value=value, right=saved,
                                 images=images_digest(paths)))  # fmt: skip
        else:
            grown.append(replace(record, n=n, correct=n // 2, value=100 * (n // 2) / n, right=None, images=None))
    return grown


def whole_set(folder: Path, label: str, share: float, seed: int, preset: str = "paper", scale: int = 1) -> list[Record]:
    """Records of every suite, with bits that are right with probability about ``share``."""
    generator = np.random.default_rng(seed)
    records = []

    def judged(suite: str, n: int, **settings: Any) -> Record:
        paths, right = paths_of(suite, n), generator.random(n) < share
        protocol = {"resize": 256, "crop": 224, "interpolation": "bicubic", "batch_size": 64, "dtype": "float32",
                    "preset": preset, "subset": "all", **settings}  # fmt: skip
        return make(label, suite, int(right.sum()), n=n, protocol=protocol, images=images_digest(paths),
                    right=save_correctness(folder, f"{label}-{suite}", paths, right))  # fmt: skip

    for suite, n in SIZES.items():
        records.append(judged(suite, n * scale, **SETTINGS.get(suite, {})))
    folders = [
        judged("imagenet-c", 40 * scale, corruption=name, severity=severity)
        for name in ALEXNET_ERROR
        for severity in SEVERITIES
    ]
    errors = {name: [100 - r.value for r in folders if r.protocol["corruption"] == name] for name in ALEXNET_ERROR}
    mce = np.mean([np.mean(errors[name]) / ALEXNET_ERROR[name] for name in ALEXNET_ERROR])
    shared = {k: v for k, v in folders[0].protocol.items() if k not in ("corruption", "severity")}
    records.append(make(label, "imagenet-c", None, metric="mce", value=float(mce), n=40 * scale, protocol=shared))
    return [replace(record, folder=folder) for record in [*records, *folders]]


def make(label: str = "DAT", suite: str = "imagenet-val", correct: int | None = 60, **changes: Any) -> Record:
    n = changes.pop("n", 100)
    fields: dict[str, Any] = {
        "suite": suite,
        "metric": "top1",
        "value": 0.0 if correct is None else 100 * correct / n,
        "n": n,
        "correct": correct,
        "label": label,
        "model": "vit_tiny",
        "protocol": {"resize": 256, "crop": 224, "batch_size": 128},
        "versions": {"torch": "2.11.0"},
        "machine": "NVIDIA H200",
        "created": "2026-01-31T12:00:00+00:00",
    }
    return Record(**{**fields, **changes})


def mce(label: str, value: float) -> Record:
    return make(label, "imagenet-c", None, metric="mce", value=value)


def parsed(table: ResultsTable) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(table.to_csv())))


def one_record(**changes: Any) -> Record:
    fields: dict[str, Any] = {
        "suite": "imagenet-val",
        "metric": "top1",
        "value": 75.0,
        "n": 8,
        "correct": 6,
        "label": "DAT",
        "model": "vit_tiny",
        "protocol": {"resize": 256, "crop": 224, "interpolation": "bilinear"},
        "versions": {"python": "3.11.7"},
        "created": "2026-01-31T12:00:00+00:00",
    }
    return Record(**{**fields, **changes})


def judged(folder: Path, label: str, suite: str, right: np.ndarray, **changes: Any) -> Record:
    """A record with its bits, of images that suites on the validation set share."""
    paths = paths_of(suite, len(right))
    saved = save_correctness(folder, f"{label}-{suite}", paths, right)
    record = make(label, suite, int(right.sum()), n=len(right), images=images_digest(paths), right=saved, **changes)
    return replace(record, folder=folder)
