"""Which folder is taken for an evaluation set, and for how many classes."""

from __future__ import annotations

from pathlib import Path

import pytest

from ns_easyrobust.data import imagenet
from ns_easyrobust.data.benchmarks import known_benchmarks
from ns_easyrobust.data.layout import benchmark_folder, holds_benchmarks, outputs_meant


def folders(root: Path, *names: str) -> Path:
    for name in names:
        (root / name).mkdir(parents=True)
    return root


@pytest.mark.parametrize(
    ("present", "taken"),
    [
        (("train", "val"), "val"),
        (("train", "validation", "test"), "validation"),
        (("train", "test"), "test"),
        (("train", "val", "imagenet-val"), "imagenet-val"),
        (("val",), "imagenet-val"),  # as DamageNet's folder has it
        (("train",), "imagenet-val"),
    ],
)
def test_a_training_folder_holds_the_validation_set(tmp_path, present, taken):
    root = folders(tmp_path, *present)
    val = benchmark_folder(root, known_benchmarks()["val"])
    assert val == root / taken
    assert holds_benchmarks(root) == val.is_dir()
    assert benchmark_folder(root, known_benchmarks()["damagenet"]) == root / "damagenet"


WNIDS = imagenet.wnids()


@pytest.mark.parametrize(
    ("names", "with_train", "outputs"),
    [
        (WNIDS[:10], True, 10),  # Imagenette
        (WNIDS[:10], False, 1000),  # a part of ImageNet's validation set
        (WNIDS[:999], True, 1000),
        ([*WNIDS[:9], "cat"], False, 10),
        (list("0123456789"), False, 10),
        (list(map(str, range(1, 999))), False, 1000),
        (["cat", "dog"], True, 2),
        ([], False, 1000),
    ],
    ids=["own wnids", "some wnids", "most wnids", "a name", "digits", "most indices", "names", "missing"],
)
def test_the_number_of_outputs_that_a_validation_set_is_for(tmp_path, names, with_train, outputs):
    folders(tmp_path, *(f"val/{name}" for name in names), *["train"] * with_train)
    assert outputs_meant(tmp_path / "val") == outputs


def test_a_flat_validation_set_is_imagenets(tmp_path):
    folders(tmp_path, "val", "train")
    (tmp_path / "val" / "a.png").touch()
    assert outputs_meant(tmp_path / "val") == 1000
