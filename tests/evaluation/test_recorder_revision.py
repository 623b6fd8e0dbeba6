"""Results of version 0.1.0 under another version of ours, and suites of a raised revision.

``of_0_1_0`` holds what the code of 0.1.0 (commit c278f7a) left of :func:`evaluate` here: the results file of a whole
run, and of a run that was killed after 9 forwards, in the middle of PGD.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from ns_easyrobust.attacks.gradient import CW, FGSM, PGD
from ns_easyrobust.data.benchmarks import known_benchmarks
from ns_easyrobust.errors import OptionError
from ns_easyrobust.evaluation import records as records_module
from ns_easyrobust.evaluation.recorder import Recorder
from ns_easyrobust.evaluation.results_file import read_records
from ns_easyrobust.evaluation.suite import Protocol
from ns_easyrobust.evaluation.suite_run import EvaluationPlan, run_suites

OF_0_1_0 = Path(__file__).with_name("of_0_1_0")
VERSIONS = {
    "torch": "2.11.0+cu130",
    "torchvision": "0.26.0+cu130",
    "timm": "0.5.4",
    "torchattacks": "3.5.1",
    "easyrobust": "0.2.4",
    "numpy": "2.4.6",
    "ns_easyrobust": "0.1.0",
}


class Stopped(Exception):
    """As by a kill."""


class Counting(nn.Module):
    """A linear classifier of fixed weights, which counts its forwards and stops after ``most`` of them."""

    num_classes = 3

    def __init__(self, most: int = 10**6) -> None:
        super().__init__()
        self.forwards, self.most = 0, most
        weight = torch.sin(torch.arange(3 * 192, dtype=torch.float32) * 0.7).view(3, 192)
        self.weight = nn.Parameter((weight * 64).round() / 64)

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        self.forwards += 1
        if self.forwards > self.most:
            raise Stopped
        return pixels.flatten(1) @ self.weight.T


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_images(tmp_path_factory.mktemp("images"))


def write_images(root: Path) -> Path:
    """Bitmaps, whose sizes no compression decides."""
    generator = np.random.default_rng(0)
    for number in range(12):
        path = root / "imagenet-val" / "abc"[number % 3] / f"{number}.bmp"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(generator.integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(path)
    return root


def evaluate(model: nn.Module, images: Path, path: Path) -> None:
    suites = ("val", "fgsm", "cw", "pgd")
    attacks = {"fgsm": [FGSM(8 / 255)], "pgd": [PGD(8 / 255, steps=2)], "cw": [CW((0.5,), steps=3)]}
    plan = EvaluationPlan(images, suites, Protocol("paper", 8), attacks, batch_size=4)
    run_suites(model, plan, records=Recorder(path, {"label": "m", "model": "m"}), workers=0, seed=7)


@pytest.fixture
def left_by_0_1_0(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The files of 0.1.0, under today's code as another version, with the other packages' versions of then."""
    shutil.copytree(OF_0_1_0, tmp_path / "old")
    monkeypatch.setattr(records_module.metadata, "version", VERSIONS.__getitem__)
    monkeypatch.setattr(records_module, "__version__", "7.5.0")
    return tmp_path / "old"


def test_a_results_file_goes_on_under_another_version(left_by_0_1_0, images):
    path = left_by_0_1_0 / "results.jsonl"
    before = read_records(path)
    assert {(record.revision, record.versions["ns_easyrobust"]) for record in before} == {(1, "0.1.0")}
    model = Counting()
    evaluate(model, images, path)
    assert model.forwards == 0
    assert read_records(path) == before


def test_a_killed_run_goes_on_under_another_version(left_by_0_1_0, images):
    """It does the rest alone, of the 29 forwards of a whole run, and ends with the results of one."""
    path = left_by_0_1_0 / "killed.jsonl"
    model = Counting()
    evaluate(model, images, path)
    assert model.forwards == 29 - 9
    assert not path.with_name("killed.jsonl.unfinished").exists()
    whole, resumed = read_records(left_by_0_1_0 / "results.jsonl"), read_records(path)
    assert [(r.suite, r.protocol, r.value) for r in resumed] == [(r.suite, r.protocol, r.value) for r in whole]
    assert [r.versions["ns_easyrobust"] for r in resumed] == ["0.1.0"] * 2 + ["7.5.0"] * 4


def test_a_raised_revision_measures_that_suite_alone_anew(left_by_0_1_0, images, monkeypatch):
    path = left_by_0_1_0 / "results.jsonl"
    before = read_records(path)
    monkeypatch.setattr(PGD, "revision", 2)
    model = Counting()
    evaluate(model, images, path)
    (added,) = read_records(path)[len(before) :]
    assert (added.suite, added.revision) == ("pgd", 2)
    assert json.loads(path.read_text().splitlines()[-1])["revision"] == 2
    assert model.forwards == 9
    evaluate(model, images, path)
    assert model.forwards == 9
    assert len(read_records(path)) == len(before) + 1


def test_a_raised_revision_of_the_images_measures_the_attacks_on_them_anew(left_by_0_1_0, images, monkeypatch):
    path = left_by_0_1_0 / "results.jsonl"
    before = read_records(path)
    monkeypatch.setitem(known_benchmarks(), "val", replace(known_benchmarks()["val"], revision=2))
    model = Counting()
    evaluate(model, images, path)
    assert model.forwards == 29
    added = read_records(path)[len(before) :]
    assert [(r.suite, r.protocol, r.value) for r in added] == [(r.suite, r.protocol, r.value) for r in before]
    assert {record.revision for record in added} == {2}
    monkeypatch.setattr(PGD, "revision", 2)
    evaluate(model, images, path)
    assert [(r.suite, r.revision) for r in read_records(path)[2 * len(before) :]] == [("pgd", 3)]


@pytest.mark.parametrize("revision", [0, 1.0, True, "2", None])
def test_a_revision_is_a_whole_number(revision):
    with pytest.raises(OptionError, match=r"revision: expected a whole number >= 1, found|as its revision, found"):
        replace(read_records(OF_0_1_0 / "results.jsonl")[0], revision=revision)
    with pytest.raises(OptionError, match="expected a whole number >= 1 as its revision, found"):
        known_benchmarks().add("rev", replace(known_benchmarks()["val"], name="rev", revision=revision), "here")
    assert "rev" not in known_benchmarks()


def test_where_mean_and_std_were_read_does_not_matter(images, tmp_path):
    """0.1.0 took those of a timm checkpoint from timm's config; the same ones are now read from its args."""
    path = tmp_path / "r.jsonl"

    def under(mean: float, origin: str) -> int:
        model = Counting()
        normalization = {"mean": [mean] * 3, "std": [0.5] * 3, "normalization_from": origin}
        plan = EvaluationPlan(images, ("val",), Protocol("paper", 8), batch_size=4)
        run_suites(model, plan, records=Recorder(path, {"label": "m", "model": "m"}, normalization), workers=0)
        return model.forwards

    assert under(0.5, "timm config") == 3
    before = read_records(path)
    assert under(0.5, "checkpoint args") == 0
    assert read_records(path) == before
    assert under(0.4, "checkpoint args") == 3
